"""A lossless JPEG scan → samples (ITU-T T.81 Annex H), about twice as fast as libjpeg-turbo.

What bounds it is the chain from one code to the next: shift, look-up, shift. All else is off that
chain: no branch on a difference's size or sign, which noise makes a coin toss, bits are taken in
eight bytes at a time for two codes or more, and air goes several samples a look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.decoding.lossless_jpeg.header import CODE, INDEX_BITS, RUN
from fastmammo.errors import CorruptCodestreamError
from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.lossless_jpeg.header import Scan

_ENDS, _NO_CODE, _NO_RESTART, _BEYOND = 1, 2, 3, 4
_PADDING = 32


def decode_samples(
    data: NDArray[np.uint8], scan: Scan, rows: int, columns: int, precision: int, interval: int
) -> NDArray[np.uint16]:
    """Return the samples (rows, columns) of one component.

    Args:
        data: the codestream.
        precision: bits a sample, 2 to 16.
        interval: samples between restart markers, whole rows of them; 0 for none.

    Raises:
        CorruptCodestreamError: the data ends too early, holds an unused code, lacks a restart
            marker, or gives values beyond the precision.
    """
    out = np.empty((rows, columns), np.uint16)
    table = scan.huffman
    # nothing but a memory bound for what follows a scan that ends early
    buffer = np.empty(data.size - scan.start + _PADDING, np.uint8)
    status, row = _decode(
        data,
        scan.start,
        buffer,
        table.entries,
        table.first,
        table.last,
        table.offset,
        table.categories,
        56 // max(table.most_bits, INDEX_BITS),
        scan.predictor,
        precision - scan.point_transform,
        interval // columns or rows,
        out,
    )
    if status:
        what = {
            _ENDS: f"its data ends in row {row} of {rows}: it is truncated or damaged",
            _NO_CODE: f"row {row} holds a Huffman code that its table lacks: it is damaged",
            _NO_RESTART: f"no restart marker before row {row}: it is damaged",
            _BEYOND: f"values beyond {precision} bits in row {row}: it is damaged",
        }[status]
        raise CorruptCodestreamError(f"lossless JPEG of {data.size} bytes: {what}")
    if scan.point_transform:
        out <<= np.uint16(scan.point_transform)
    return out


@njit
def _decode(  # type: ignore[no-untyped-def]
    data, start, buffer, entries, first, last, offset, categories, codes_a_refill,
    predictor, precision, interval_rows, out,
):  # fmt: skip
    """Decode all restart intervals; return a status, 0 if all is well, and the row it is of."""
    rows = out.shape[0]
    position = np.uint64(start)
    for top in range(0, rows, interval_rows):
        if top:
            while position + np.uint64(2) < np.uint64(data.size) and (
                data[position + np.uint64(1)] == 0xFF  # fill bytes (B.1.1.2)
            ):
                position += np.uint64(1)
            wanted = 0xD0 + ((top // interval_rows - 1) & 7)
            if (
                position + np.uint64(2) > np.uint64(data.size)
                or data[position + np.uint64(1)] != wanted
            ):
                return _NO_RESTART, top
            position += np.uint64(2)
        size, position = _without_stuffing(data, position, buffer)
        bottom = min(top + interval_rows, rows)
        status, row = _interval(
            buffer, size, entries, first, last, offset, categories, codes_a_refill,
            predictor, precision, out[top:bottom],
        )  # fmt: skip
        if status:
            return status, top + row
    return 0, 0


@njit
def _without_stuffing(data, position, buffer):  # type: ignore[no-untyped-def]
    """Copy up to the next marker, without the 0 after each FF (T.81 F.1.2.3); pad with zeros.

    Returns:
        The bytes copied, and where the marker is, or the end of the data.
    """
    size = np.uint64(0)
    end = np.uint64(data.size)
    one = np.uint64(1)
    while position < end:
        byte = data[position]
        if byte == 0xFF:
            if position + one >= end or data[position + one] != 0:
                break
            position += one
        buffer[size] = byte
        size += one
        position += one
    buffer[size : size + np.uint64(_PADDING)] = 0
    return size, position


@njit
def _interval(  # type: ignore[no-untyped-def]
    buffer, size, entries, first, last, offset, categories, codes_a_refill,
    predictor, precision, out,
):  # fmt: skip
    """Decode the rows up to the next restart marker; return a status and its row.

    `bits` holds the next bits from its top on; `count` of them are sure, those below may be there.
    """
    rows, columns = out.shape
    byte, low_byte = np.uint64(8), np.uint32(0xFF)
    shift = np.uint64(64 - INDEX_BITS)
    bits, count, at = np.uint64(0), np.uint64(0), np.uint64(0)
    limit = size + byte
    value = np.uint32(1) << np.uint32(precision - 1)
    for i in range(rows):
        line = out[i]
        # Predictor 1, and every first row: from the left; the others take the differences first.
        from_left = i == 0 or predictor == 1
        of_row = np.uint32(0)
        keep = np.uint32(0xFFFF if from_left else 0)
        if i:
            value = np.uint32(out[i - 1, 0]) & keep
        j = 0
        while j < columns:
            if at > limit:
                return _ENDS, i
            bits |= _eight_bytes(buffer, at) >> count
            at += (np.uint64(63) - count) >> np.uint64(3)
            count |= np.uint64(56)
            for _ in range(codes_a_refill):
                entry = entries[bits >> shift]
                used = np.uint64(entry & low_byte)
                kind = entry >> np.uint32(24)
                if kind == 0:
                    difference = np.int64((entry >> np.uint32(8)) & np.uint32(0xFFFF))
                elif kind > RUN:
                    difference = np.int64(0)
                    stop = min(j + np.int64(kind - np.uint32(RUN)), columns)
                    used *= np.uint64(stop - j)
                    for k in range(j, stop - 1):
                        line[k] = value
                    j = stop - 1
                elif kind == CODE:
                    code = np.uint64((entry >> np.uint32(8)) & low_byte)
                    category = np.uint64((entry >> np.uint32(16)) & low_byte)
                    difference = _difference(bits << code, category)
                else:
                    used, difference = _long_code(bits, first, last, offset, categories)
                    if used == 0:
                        return _NO_CODE, i
                value = ((value & keep) + np.uint32(difference)) & np.uint32(0xFFFF)
                of_row |= value
                line[j] = value
                j += 1
                if not from_left:
                    value = np.uint32(0)
                bits <<= used
                count -= used
                if j >= columns:
                    break
        if at * byte - count > size * byte:
            return _ENDS, i
        if not from_left:
            of_row = _add_predictions(line, out[i - 1], predictor)
        if of_row >> np.uint32(precision):
            return _BEYOND, i
    return 0, 0


@njit
def _eight_bytes(buffer, at):  # type: ignore[no-untyped-def]
    """Return eight bytes, the first on top: the compiler makes one load of them."""
    word = np.uint64(buffer[at])
    for k in range(1, 8):
        word = (word << np.uint64(8)) | np.uint64(buffer[at + np.uint64(k)])
    return word


@njit
def _difference(bits, category):  # type: ignore[no-untyped-def]
    """Return the difference on top of `bits`, of category 1 to 15 (T.81 F.1.2.1)."""
    extra = np.int64(bits >> (np.uint64(64) - category))
    size = np.int64(np.uint64(1) << category)
    return extra if extra + extra >= size else extra + np.int64(1) - size


@njit
def _long_code(bits, first, last, offset, categories):  # type: ignore[no-untyped-def]
    """Return the bits of any code and its difference, and the difference; 0 bits: no such code."""
    for length in range(1, 17):
        code = np.int64(bits >> np.uint64(64 - length))
        if first[length] <= code <= last[length]:
            category = np.uint64(categories[offset[length] + code])
            if category == 16:
                return np.uint64(length), np.int64(32768)
            if category == 0:
                return np.uint64(length), np.int64(0)
            difference = _difference(bits << np.uint64(length), category)
            return np.uint64(length) + category, difference
    return np.uint64(0), np.int64(0)


@njit
def _add_predictions(line, above, predictor):  # type: ignore[no-untyped-def]
    """Add the predictions 2 to 7 (T.81 table H.1) to a row of differences; return all values or-ed.

    a is to the left, b above, c above and to the left. The first column takes b.
    """
    mask = np.int64(0xFFFF)
    a = (np.int64(line[0]) + np.int64(above[0])) & mask
    line[0] = a
    seen = a
    for j in range(1, line.size):
        b, c = np.int64(above[j]), np.int64(above[j - 1])
        if predictor == 2:
            guess = b
        elif predictor == 3:
            guess = c
        elif predictor == 4:
            guess = a + b - c
        elif predictor == 5:
            guess = a + ((b - c) >> 1)
        elif predictor == 6:
            guess = b + ((a - c) >> 1)
        else:
            guess = (a + b) >> 1
        a = (np.int64(line[j]) + guess) & mask
        line[j] = a
        seen |= a
    return np.uint32(seen)
