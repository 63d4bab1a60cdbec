"""Takes a code-block's bytes, gives its wavelet coefficients (15444-1 Annexes C and D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.decoding.ebcot import tables
from fastmammo.decoding.ebcot.layout import (
    BAND,
    COLUMNS,
    FIRST,
    LEFT,
    PASSES,
    PLANES,
    ROWS,
    TOP,
)
from fastmammo.decoding.ebcot.packets import BEGIN as SEGMENT_BEGIN
from fastmammo.decoding.ebcot.packets import LENGTH, MOST_PLANES, NEXT, CodeBlocks
from fastmammo.decoding.ebcot.passes import (
    BEGIN,
    CONTEXT,
    CORE,
    END,
    INSIDE,
    NEGATIVE,
    NIBBLE,
    PLANE0,
    POSITION,
    SIGNIFICANT,
    STOP,
    STRIDE,
    TOP_ROW,
    U0,
    U1,
    U7,
    U8,
    U32,
    VISITED,
    WORDS,
    A,
    C,
    U,
    cleanup,
    refinement,
    significance,
)
from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORKSPACE = PLANE0 + MOST_PLANES * WORDS
DIGITS = MOST_PLANES // 8  # bytes of a magnitude
EACH_BYTE = U(0x0101010101010101)
FIRST_INTERVAL, ALL_ONES = U(0x8000 << 48), U(0xFFFFFFFF)


class Decoder:
    """Decodes code-blocks of one resolution, with the memory that it takes."""

    def __init__(self, found: CodeBlocks, blocks: NDArray[np.int32]) -> None:
        rows4 = np.zeros((DIGITS + 1, 4, WORDS), np.uint64)
        code = np.zeros(_longest(blocks, found.segments) // 4 + 3, np.uint32)
        self._blocks = np.ascontiguousarray(blocks)
        self._input = found.data, found.segments, tables.CONTEXTS, tables.STATES, tables.INITIAL
        self._memory = np.zeros(WORKSPACE, np.uint64), code, rows4, rows4.view(np.uint8)

    def __call__(self, begin: int, end: int, top: int, bands: NDArray[np.int32]) -> None:
        """Decode blocks `begin` to `end` into `bands`, whose first row is row `top` of each band.

        Args:
            bands: int32 (1, rows, columns) for LL, (3, rows, columns) for HL, LH and HH.
        """
        _decode_blocks(self._blocks, begin, end, top, self._input, self._memory, bands)


@njit
def _decode_blocks(blocks, begin, end, top, source, memory, bands):  # type: ignore[no-untyped-def]
    data, segments, contexts, states, initial = source
    w, code, rows4, bytes4 = memory
    for b in range(begin, end):
        block = blocks[b]
        if block[PASSES]:
            kind = (block[BAND] + 2) % 3 if block[BAND] else 0
            table = contexts[kind + 1 if block[BAND] else 0]
            _decode_block(block, data, segments, table, states, initial, w, code)
            _store(block, w, rows4, bytes4, bands[kind], block[TOP] - top, block[LEFT])


@njit
def _longest(blocks, segments):  # type: ignore[no-untyped-def]
    """Return the most bytes that one code-block has."""
    most = 0
    for b in range(len(blocks)):
        if blocks[b, PASSES]:
            total, segment = 0, blocks[b, FIRST]
            while segment >= 0:
                total += segments[segment, LENGTH]
                segment = segments[segment, NEXT]
            most = max(most, total)
    return most


@njit
def _plain_bits(data, segments, segment, code):  # type: ignore[no-untyped-def]
    """Write a block's bytes as 32-bit words without the stuffed bits; return the last index.

    After a byte FF the next one's upper bit is a carry into what went before (C.2.5); above 8F it
    is a marker, and the code goes on as ones (C.3.4). So the last word is all ones.
    """
    held, count, written, previous = U0, U0, 0, 0
    while segment >= 0:
        at = segments[segment, SEGMENT_BEGIN]
        stop = at + segments[segment, LENGTH]
        segment = segments[segment, NEXT]
        while at < stop:
            byte = np.int64(data[at])
            at += 1
            if previous == 0xFF:
                if byte > 0x8F:
                    segment = -1
                    break
                held = (held << U7) + U(byte)
                count += U7
                if held >> count:
                    held &= (U1 << count) - U1
                    for k in range(written - 1, -1, -1):
                        code[k] += np.uint32(1)
                        if code[k]:
                            break
            else:
                held = held << U8 | U(byte)
                count += U8
            previous = byte
            if count >= U32:
                code[written] = np.uint32(held >> (count - U32))
                written += 1
                count -= U32
                held &= (U1 << count) - U1
    rest = U32 - count
    code[written] = np.uint32(held << rest | ((U1 << rest) - U1))
    code[written + 1] = np.uint32(ALL_ONES)
    return written + 1


@njit
def _start(block, data, segments, initial, w, code):  # type: ignore[no-untyped-def]
    rows, columns = block[ROWS], block[COLUMNS]
    across, down = (columns + 7) // 8, (rows + 3) // 4
    stride = across + 2  # a word of zeros on every side: no neighbour lies outside
    words = (down + 2) * stride
    for kind in range(PLANE0 // WORDS + block[PLANES]):
        for i in range(words):
            w[U(kind * WORDS + i)] = U0
    right, bottom = U0, CORE
    for column in range(columns - 8 * (across - 1)):
        right |= NIBBLE << U(6 * column + 7)
    for row in range(rows - 4 * (down - 1), 4):
        bottom &= ~(TOP_ROW << U(row + 1))
    for y in range(down):
        inside = CORE if y < down - 1 else bottom
        for x in range(across):
            at = INSIDE + U((y + 1) * stride + x + 1)
            w[at] = inside if x < across - 1 else inside & right
    for i in range(len(initial)):
        w[CONTEXT + U(i)] = initial[i]
    end = _plain_bits(data, segments, block[FIRST], code)
    w[A] = FIRST_INTERVAL
    w[C] = U(code[0]) << U(31) | U1 << U(30)
    w[POSITION], w[END] = U1, U(end)
    w[STRIDE], w[BEGIN], w[STOP] = U(stride), U(stride + 1), U((down + 1) * stride - 1)


@njit
def _decode_block(block, data, segments, contexts, states, initial, w, code):  # type: ignore[no-untyped-def]
    """Decode all passes of a block into the bit planes and signs of the workspace."""
    _start(block, data, segments, initial, w, code)
    plane, kind = block[PLANES] - 1, 2
    for done in range(block[PASSES]):
        words = U(PLANE0 + plane * WORDS)
        if kind == 0:
            significance(w, code, contexts, states)
        elif kind == 1:
            refinement(w, code, states, words)
        else:
            cleanup(w, code, contexts, states, words)
        if done + 1 == block[PASSES]:
            _middle(w, plane, kind)
        kind += 1
        if kind == 3:
            kind, plane = 0, plane - 1


@njit
def _middle(w, plane, kind):  # type: ignore[no-untyped-def]
    """Where bit planes are missing, put values in the middle of what they may be (E-8).

    As OpenJPEG does: half of the lowest bit that was decoded, which for whole numbers is nothing
    when that is bit 0.
    """
    here, below = U(PLANE0 + plane * WORDS), U(PLANE0 + (plane - 1) * WORDS)
    for i in range(w[BEGIN], w[STOP]):
        significant, visited = w[SIGNIFICANT + i], w[VISITED + i]
        coded = significant
        if kind == 0:
            coded = significant & visited
            w[here + i] |= significant  # of the visited it is this plane's bit, of others half
        elif kind == 1:
            w[here + i] |= significant & visited  # which the cleanup pass would have done
        if plane:
            w[below + i] |= coded


@njit
def _spread(word):  # type: ignore[no-untyped-def]
    """Return the 8 columns of a word as 8 bytes, a column's four rows in the lower bits."""
    word = word >> U7
    word = (word & U(0xFFFFFF)) | ((word & U(0xFFFFFF << 24)) << U8)
    word = (word & U(0x00000FFF00000FFF)) | ((word & U(0x00FFF00000FFF000)) << U(4))
    return (word & U(0x003F003F003F003F)) | ((word & U(0x0FC00FC00FC00FC0)) << U(2))


@njit
def _store(block, w, rows4, bytes4, out, top, left):  # type: ignore[no-untyped-def]
    """Write a decoded block's coefficients to int32 `out` at (top, left).

    rows4: uint64 (DIGITS + 1, 4, WORDS), room for the magnitudes' bytes and, last, the signs, one
    word a row of a word; bytes4: the same memory as uint8.
    """
    rows, columns, planes = block[ROWS], block[COLUMNS], block[PLANES]
    stride = (columns + 7) // 8 + 2
    words = ((rows + 3) // 4 + 2) * stride
    digits = (planes + 7) // 8
    for digit in range(digits):
        for row in range(4):
            for i in range(words):
                rows4[digit, row, i] = U0
        for plane in range(8 * digit, min(planes, 8 * digit + 8)):
            bit = U(plane - 8 * digit)
            for i in range(words):
                four = _spread(w[U(PLANE0 + plane * WORDS + i)])
                for row in range(4):
                    rows4[digit, row, i] |= ((four >> U(row)) & EACH_BYTE) << bit
    for i in range(words):
        four = _spread(w[NEGATIVE + U(i)])
        for row in range(4):
            rows4[DIGITS, row, i] = (four >> U(row)) & EACH_BYTE
    for y in range(rows):
        begin = 8 * (((y >> 2) + 1) * stride + 1)
        line = out[top + y, left : left + columns]
        signs = bytes4[DIGITS, y & 3, begin : begin + columns]
        digit0 = bytes4[0, y & 3, begin : begin + columns]
        if digits == 1:
            for x in range(columns):
                sign = -np.int32(signs[x])
                line[x] = (np.int32(digit0[x]) ^ sign) - sign
        else:
            digit1 = bytes4[1, y & 3, begin : begin + columns]
            digit2 = bytes4[2, y & 3, begin : begin + columns]
            third = np.int32(0xFF if digits == 3 else 0)
            for x in range(columns):
                sign = -np.int32(signs[x])
                value = np.int32(digit0[x]) | np.int32(digit1[x]) << 8
                value |= (np.int32(digit2[x]) & third) << 16
                line[x] = (value ^ sign) - sign
