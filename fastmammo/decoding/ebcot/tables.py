"""The arithmetic decoder's states and the context of every neighbourhood (15444-1 C and D).

A neighbourhood is a window of a word of 8 columns x 4 rows (see `passes`): three columns of three
rows, 6 bits apart, the upper row in the lowest bit. `CONTEXTS` takes that window as its index.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 0b111_000_111_000_111
CROSS = 0b010_000_101_000_010
"""Of the window, the left, upper, lower and right neighbours: those that a sign depends on."""
SIGN_TABLE = 1 << 15
"""Where the contexts of signs begin: index = neighbours' significance | their signs << 1."""

RUN_CONTEXT, UNIFORM_CONTEXT = 17, 18  # (Table D.7)
FIRST_REFINEMENT = 14

# Table C.2: Qe, the next state after a more and a less probable symbol, whether the sense switches.
_STATES = (
    (0x5601, 1, 1, 1), (0x3401, 2, 6, 0), (0x1801, 3, 9, 0), (0x0AC1, 4, 12, 0),
    (0x0521, 5, 29, 0), (0x0221, 38, 33, 0), (0x5601, 7, 6, 1), (0x5401, 8, 14, 0),
    (0x4801, 9, 14, 0), (0x3801, 10, 14, 0), (0x3001, 11, 17, 0), (0x2401, 12, 18, 0),
    (0x1C01, 13, 20, 0), (0x1601, 29, 21, 0), (0x5601, 15, 14, 1), (0x5401, 16, 14, 0),
    (0x5101, 17, 15, 0), (0x4801, 18, 16, 0), (0x3801, 19, 17, 0), (0x3401, 20, 18, 0),
    (0x3001, 21, 19, 0), (0x2801, 22, 19, 0), (0x2401, 23, 20, 0), (0x2201, 24, 21, 0),
    (0x1C01, 25, 22, 0), (0x1801, 26, 23, 0), (0x1601, 27, 24, 0), (0x1401, 28, 25, 0),
    (0x1201, 29, 26, 0), (0x1101, 30, 27, 0), (0x0AC1, 31, 28, 0), (0x09C1, 32, 29, 0),
    (0x08A1, 33, 30, 0), (0x0521, 34, 31, 0), (0x0441, 35, 32, 0), (0x02A1, 36, 33, 0),
    (0x0221, 37, 34, 0), (0x0141, 38, 35, 0), (0x0111, 39, 36, 0), (0x0085, 40, 37, 0),
    (0x0049, 41, 38, 0), (0x0025, 42, 39, 0), (0x0015, 43, 40, 0), (0x0009, 44, 41, 0),
    (0x0005, 45, 42, 0), (0x0001, 45, 43, 0), (0x5601, 46, 46, 0),
)  # fmt: skip


def _states() -> NDArray[np.uint64]:
    """Return 256 entries: Qe << 48 | index after the less | index after the more probable | mps.

    The index of a state is twice its number in Table C.2 plus its more probable symbol, so that
    bit 0 of an entry, which holds its own index, is that symbol.
    """
    entries = np.zeros(256, np.uint64)
    for number, (probability, more, less, switch) in enumerate(_STATES):
        for symbol in (0, 1):
            entries[2 * number + symbol] = (
                probability << 48
                | (2 * less + (symbol ^ switch)) << 16
                | (2 * more + symbol) << 8
                | (2 * number + symbol)
            )
    return entries


def _initial() -> NDArray[np.uint64]:
    """Return the entry that each context begins with (Table D.7)."""
    numbers = np.zeros(32, np.int64)
    numbers[0], numbers[RUN_CONTEXT], numbers[UNIFORM_CONTEXT] = 4, 3, 46
    return STATES[2 * numbers]


def _significance(horizontal: int, vertical: int, diagonal: int) -> int:
    """Table D.1 for the bands LL and LH; HL is the same with the first two exchanged."""
    if horizontal == 2:
        return 8
    if horizontal == 1:
        return 7 if vertical else 6 if diagonal else 5
    return 2 + vertical if vertical else min(diagonal, 2)


def _significance_diagonal(straight: int, diagonal: int) -> int:
    """Table D.1 for the band HH."""
    if diagonal >= 3:
        return 8
    if diagonal == 2:
        return 7 if straight else 6
    return 3 + min(straight, 2) if diagonal else min(straight, 2)


def _sign(horizontal: int, vertical: int) -> int:
    """Return Table D.3's context, and in bit 7 whether the sign is inverted."""
    inverted = horizontal < 0 or (horizontal == 0 and vertical < 0)
    if inverted:
        horizontal, vertical = -horizontal, -vertical
    return (12 + vertical if horizontal else 9 + vertical) | (128 if inverted else 0)


def _contexts() -> NDArray[np.uint8]:
    """Return uint8 (4, 65536) for LL, HL, LH, HH: by window, then by signs from SIGN_TABLE on."""
    table = np.zeros((4, 2 * SIGN_TABLE), np.uint8)
    for bits in itertools.product((0, 1), repeat=8):
        up_left, left, down_left, up, down, up_right, right, down_right = bits
        index = sum(bit << at for bit, at in zip(bits, (0, 1, 2, 6, 8, 12, 13, 14), strict=True))
        horizontal, vertical = left + right, up + down
        diagonal = up_left + down_left + up_right + down_right
        table[[0, 2], index] = _significance(horizontal, vertical, diagonal)
        table[1, index] = _significance(vertical, horizontal, diagonal)
        table[3, index] = _significance_diagonal(horizontal + vertical, diagonal)
    for signs in itertools.product((0, 1, -1), repeat=4):
        left, up, down, right = signs
        index = SIGN_TABLE
        for sign, at in zip(signs, (1, 6, 8, 13), strict=True):
            index |= (abs(sign) | (2 if sign < 0 else 0)) << at
        table[:, index] = _sign(max(-1, min(1, left + right)), max(-1, min(1, up + down)))
    return table


STATES = _states()
INITIAL = _initial()
CONTEXTS = _contexts()
