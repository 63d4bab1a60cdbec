"""The three coding passes of a code-block on one bit plane (15444-1 C.3 and D.3).

State lies in one uint64 array, the workspace: for every 8 columns x 4 rows of the code-block one
word of each kind. A word has 6 bits a column, of which the middle four are the block's rows; the
other two, and the columns at either end, are room for the neighbours while a word is in hand. So
which coefficients a pass visits, and the neighbourhood of each, are shifts and masks of a word, in
the scan's own order (D.1).

What made it fast: noise makes every decision a coin toss, so the arithmetic decoder has no branch
on what it decodes, only selects; a pass visits set bits and tests no coefficient that it skips;
both next states are loaded before it is known which holds. Helpers take numbers, no arrays: numba
would count references at each call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastmammo.decoding.ebcot import tables
from fastmammo.kernels._jit import njit

U = np.uint64  # numba makes floats of uint64 with int64: every number here is uint64
WORDS = 1024  # room for each kind of word: 774 are needed at most, for a block of 1024 x 4
SIGNIFICANT, NEGATIVE, VISITED, REFINED, INSIDE, REST = (U(i * WORDS) for i in range(6))
PLANE0 = 6 * WORDS  # the words of bit plane p lie at PLANE0 + p * WORDS
CONTEXT = REST  # 32 entries of tables.STATES, then what is carried from pass to pass:
A, C, POSITION, END, STRIDE, BEGIN, STOP = (U(5 * WORDS + 32 + i) for i in range(7))

U0, U1, U2, U4, U6, U7, U8, U16, U31, U32, U48 = (
    U(i) for i in (0, 1, 2, 4, 6, 7, 8, 16, 31, 32, 48)
)
CORE = U(sum(15 << (6 * column + 7) for column in range(8)))
TOP_ROW = U(sum(1 << (6 * column) for column in range(10)))
BYTE, LOW_HALF, PROBABILITY, NIBBLE = U(0xFF), U(0xFFFFFFFF), U(0xFFFF << 48), U(15)
WINDOW, CROSS, SIGN_TABLE = U(tables.WINDOW), U(tables.CROSS), U(tables.SIGN_TABLE)
CROSS2 = U(tables.CROSS << 1)
LATER = U(0b111_0001 << 1)  # the neighbours that the scan has yet to visit, seen from a coefficient
REFINEMENT = CONTEXT + U(tables.FIRST_REFINEMENT)
RUN, UNIFORM = CONTEXT + U(tables.RUN_CONTEXT), CONTEXT + U(tables.UNIFORM_CONTEXT)


def _count_zeros(name: str) -> Any:
    def typer(_: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            false = context.get_constant(types.boolean, False)  # zero has 64
            return getattr(builder, name)(arguments[0], false)

        return types.uint64(types.uint64), build

    return intrinsic(typer)


trailing_zeros = _count_zeros("cttz")
leading_zeros = _count_zeros("ctlz")


@njit
def decode(a, c, position, end, bits, entry, more, less):  # type: ignore[no-untyped-def]
    """Decode one decision (C.3.2) without a branch on it.

    Args:
        a: the interval, in the upper 16 bits.
        c: 16 bits of code in the upper 16 bits, then bits ahead, then a single 1 as their end.
        position, end, bits: of the next 32 bits of code, and those bits.
        entry, more, less: the context's state, and the two that may follow it.

    Returns:
        a, c, position, decision, the context's next state.
    """
    probability = entry & PROBABILITY
    lower = c < probability
    a = a - probability
    small = a < probability
    exchanged = less if small else more
    straight = more if small else less
    following = straight if lower else exchanged
    decision = (entry ^ (U(lower) ^ U(small))) & U1
    c = c if lower else c - probability
    a = probability if lower else a
    shift = leading_zeros(a)
    following = following if shift != U0 else entry
    c = c << shift
    if (c & LOW_HALF) == U0:
        last = trailing_zeros(c)
        c = (c ^ (U1 << last)) | (bits << (last - U31)) | (U1 << (last - U32))
        position = min(position + U1, end)
    return a << shift, c, position, decision, following


@njit
def _around(w, kind, i, stride):  # type: ignore[no-untyped-def]
    """Return word i with the row above and below and the columns beside it."""
    i = kind + i
    x = w[i] | (w[i - U1] >> U48) | (w[i + U1] << U48)
    j = i - stride
    y = w[j] | (w[j - U1] >> U48) | (w[j + U1] << U48)
    j = i + stride
    z = w[j] | (w[j - U1] >> U48) | (w[j + U1] << U48)
    return x | ((y >> U4) & TOP_ROW) | ((z & (TOP_ROW << U1)) << U4)


@njit
def _near(word):  # type: ignore[no-untyped-def]
    """Return where one of the eight neighbours is set."""
    straight = (word << U1) | (word >> U1)
    column = word | straight
    return straight | (column << U6) | (column >> U6)


@njit
def significance(w, code, contexts, states):  # type: ignore[no-untyped-def]
    """Visit what is not significant but has a significant neighbour (D.3.1, D.3.2)."""
    a, c, position, end = w[A], w[C], w[POSITION], w[END]
    stride = w[STRIDE]
    for i in range(w[BEGIN], w[STOP]):
        word = _around(w, SIGNIFICANT, i, stride)
        inside = w[INSIDE + i]
        members = _near(word) & ~word & inside
        if members == U0:
            continue
        signs = _around(w, NEGATIVE, i, stride) << U1
        visited = members
        while members != U0:
            b = trailing_zeros(members)
            window = word >> (b - U7)
            at = CONTEXT + U(contexts[window & WINDOW])
            e = w[at]
            a, c, position, d, w[at] = decode(
                a, c, position, end, U(code[position]), e,
                states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
            )  # fmt: skip
            members &= members - U1
            if d != U0:
                x = U(contexts[(window & CROSS) | ((signs >> (b - U7)) & CROSS2) | SIGN_TABLE])
                at = CONTEXT + (x & U31)
                e = w[at]
                a, c, position, d, w[at] = decode(
                    a, c, position, end, U(code[position]), e,
                    states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
                )  # fmt: skip
                word |= U1 << b
                signs |= (d ^ (x >> U7)) << (b + U1)
                members |= (LATER << b) & inside & ~word
                visited |= members
        w[SIGNIFICANT + i] = word & CORE
        w[NEGATIVE + i] = (signs >> U1) & CORE
        w[VISITED + i] = visited
    w[A], w[C], w[POSITION] = a, c, position


@njit
def refinement(w, code, states, plane):  # type: ignore[no-untyped-def]
    """Decode one more bit of what was significant before this bit plane (D.3.3)."""
    a, c, position, end = w[A], w[C], w[POSITION], w[END]
    stride = w[STRIDE]
    for i in range(w[BEGIN], w[STOP]):
        members = w[SIGNIFICANT + i] & ~w[VISITED + i]
        if members == U0:
            continue
        refined = w[REFINED + i]
        near = U0
        if members & ~refined != U0:
            near = _near(_around(w, SIGNIFICANT, i, stride)) & ~refined
        w[REFINED + i] = members
        bits = U0
        b = trailing_zeros(members)
        at = REFINEMENT + ((near >> b) & U1) + ((refined >> b) & U1) * U2
        e = w[at]
        while members != U0:
            members &= members - U1
            b2 = trailing_zeros(members) & U(63)
            at2 = REFINEMENT + ((near >> b2) & U1) + ((refined >> b2) & U1) * U2
            e2 = w[at2]  # before the store below, whose value it would wait for
            a, c, position, d, e = decode(
                a, c, position, end, U(code[position]), e,
                states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
            )  # fmt: skip
            w[at] = e
            bits |= d << b
            e = e if at2 == at else e2
            at, b = at2, b2
        w[plane + i] = bits
    w[A], w[C], w[POSITION] = a, c, position


@njit
def cleanup(w, code, contexts, states, plane):  # type: ignore[no-untyped-def]
    """Visit what the other passes left, columns without neighbours in one go (D.3.4)."""
    a, c, position, end = w[A], w[C], w[POSITION], w[END]
    stride = w[STRIDE]
    for i in range(w[BEGIN], w[STOP]):
        inside = w[INSIDE + i]
        significant, visited = w[SIGNIFICANT + i], w[VISITED + i]
        members = inside & ~significant & ~visited
        new = visited & significant
        w[VISITED + i] = U0
        if members != U0:
            word = _around(w, SIGNIFICANT, i, stride)
            signs = _around(w, NEGATIVE, i, stride) << U1
            near = _near(word)
            while members != U0:
                b = trailing_zeros(members)
                column = NIBBLE << b
                window = word >> (b - U7)
                # Bit b - 1 is inside unless b is a stripe's first row; short stripes lack rows.
                run = (members & column & ~near) == column and (inside >> (b - U1)) & U1 == U0
                at = RUN if run else CONTEXT + U(contexts[window & WINDOW])
                e = w[at]
                a, c, position, d, w[at] = decode(
                    a, c, position, end, U(code[position]), e,
                    states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
                )  # fmt: skip
                members &= ~(column if run and d == U0 else U1 << b)
                if d == U0:
                    continue
                if run:
                    row = U0
                    for _ in range(2):
                        e = w[UNIFORM]
                        a, c, position, d, w[UNIFORM] = decode(
                            a, c, position, end, U(code[position]), e,
                            states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
                        )  # fmt: skip
                        row = row + row + d
                    members &= ~(((U2 << row) - U1) << b)
                    b += row
                    window = word >> (b - U7)
                x = U(contexts[(window & CROSS) | ((signs >> (b - U7)) & CROSS2) | SIGN_TABLE])
                at = CONTEXT + (x & U31)
                e = w[at]
                a, c, position, d, w[at] = decode(
                    a, c, position, end, U(code[position]), e,
                    states[(e >> U8) & BYTE], states[(e >> U16) & BYTE],
                )  # fmt: skip
                word |= U1 << b
                new |= U1 << b
                signs |= (d ^ (x >> U7)) << (b + U1)
                near = _near(word)
            w[SIGNIFICANT + i] = word & CORE
            w[NEGATIVE + i] = (signs >> U1) & CORE
        w[plane + i] |= new
    w[A], w[C], w[POSITION] = a, c, position
