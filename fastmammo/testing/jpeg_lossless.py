"""Takes a frame, gives a JPEG lossless codestream (SOF3) with restart intervals if asked.

libjpeg-turbo writes predictors and precisions, but no restart interval and no point transform in
lossless mode; scanners in the field write both, so a test needs them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One Huffman table for every frame: categories 0 to 8 in 4 bits, 9 to 16 in 5. It is not the best
# for any, but it is complete, and no code is all ones (ITU-T T.81 C.2).
_CODES_PER_LENGTH = (0, 0, 0, 9, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_CATEGORIES = 17


def encode_jpeg_lossless(
    pixels: NDArray[Any],
    *,
    precision: int,
    predictor: int = 1,
    restart_rows: int = 0,
    point_transform: int = 0,
) -> bytes:
    """One frame as JPEG lossless, non-hierarchical, process 14 (ITU-T T.81 Annex H).

    Args:
        pixels: (rows, columns), uint8 or uint16, each value below 2^precision.
        precision: bits a sample in SOF3, 2 to 16.
        predictor: selection value, 1 to 7 (T.81 table H.1).
        restart_rows: rows between restart markers, 0 for none. An interval counts samples in 16
            bits, so rows × columns must stay below 65,536 (H.1.1 wants whole rows).
        point_transform: low bits dropped (H.1.2.1); above 0 the frame is no longer lossless.

    Raises:
        ConfigError: a setting out of its range.
    """
    rows, columns = pixels.shape
    interval = restart_rows * columns
    if not 1 <= predictor <= 7:
        raise ConfigError(f"JPEG lossless encoding: predictor {predictor}; wanted 1 to 7")
    if not 2 <= precision <= 16:
        raise ConfigError(f"JPEG lossless encoding: precision {precision}; wanted 2 to 16")
    if not 0 <= point_transform < precision:
        raise ConfigError(
            f"JPEG lossless encoding: point_transform {point_transform}; "
            f"wanted 0 to {precision - 1}"
        )
    if interval > 0xFFFF:
        raise ConfigError(
            f"JPEG lossless encoding: restart interval of {restart_rows} rows × {columns} columns "
            f"= {interval} samples; wanted at most 65535; use fewer rows"
        )
    table = bytes((0, *_CODES_PER_LENGTH, *range(_CATEGORIES)))
    header = b"\xff\xd8"
    header += _segment(0xC3, struct.pack(">BHHB3B", precision, rows, columns, 1, 1, 0x11, 0))
    header += _segment(0xC4, table)
    if interval:
        header += _segment(0xDD, struct.pack(">H", interval))
    header += _segment(0xDA, bytes((1, 1, 0, predictor, 0, point_transform)))
    samples = (pixels.astype(np.int64) >> point_transform).astype(np.int32)
    codes, lengths = _huffman_codes()
    scan = _scan(samples, precision - point_transform, predictor, restart_rows, codes, lengths)
    return header + scan.tobytes() + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    """A marker segment: marker, length with itself, body (T.81 B.1.1.4)."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _huffman_codes() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(code, length) of each category, by T.81 C.2."""
    codes, lengths = [], []
    code = 0
    for length, count in enumerate(_CODES_PER_LENGTH, start=1):
        for _ in range(count):
            codes.append(code)
            lengths.append(length)
            code += 1
        code <<= 1
    return np.array(codes, dtype=np.int64), np.array(lengths, dtype=np.int64)


@njit(cache=True)
def _predict(x: NDArray[np.int32], row: int, column: int, predictor: int) -> int:
    """The prediction inside the frame (T.81 table H.1): a left, b above, c above left."""
    a: int = x[row, column - 1]
    b: int = x[row - 1, column]
    c: int = x[row - 1, column - 1]
    if predictor == 1:
        return a
    if predictor == 2:
        return b
    if predictor == 3:
        return c
    if predictor == 4:
        return a + b - c
    if predictor == 5:
        return a + ((b - c) >> 1)
    if predictor == 6:
        return b + ((a - c) >> 1)
    return (a + b) >> 1


@njit(cache=True)
def _scan(
    samples: NDArray[np.int32],
    bits: int,
    predictor: int,
    restart_rows: int,
    codes: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """The entropy-coded bytes with stuffing and restart markers (T.81 H.1.2, F.1.2.3, B.1.1.5)."""
    rows, columns = samples.shape
    out = np.empty(rows * columns * 6 + rows * 4 + 16, dtype=np.uint8)
    end = 0
    buffer = 0
    filled = 0
    for row in range(rows):
        first = row == 0 or (restart_rows > 0 and row % restart_rows == 0)
        if first and row > 0:
            if filled:
                byte = ((buffer << (8 - filled)) | ((1 << (8 - filled)) - 1)) & 0xFF
                out[end] = byte
                end += 1
                if byte == 0xFF:
                    out[end] = 0
                    end += 1
                buffer = 0
                filled = 0
            out[end] = 0xFF
            out[end + 1] = 0xD0 + (row // restart_rows - 1) % 8
            end += 2
        for column in range(columns):
            if column == 0:
                prediction = 1 << (bits - 1) if first else samples[row - 1, 0]
            elif first:
                prediction = samples[row, column - 1]
            else:
                prediction = _predict(samples, row, column, predictor)
            difference = (samples[row, column] - prediction) & 0xFFFF
            if difference > 0x8000:
                difference -= 0x10000
            category = 0
            while (abs(difference) >> category) > 0:
                category += 1
            value = codes[category]
            length = lengths[category]
            if 0 < category < 16:
                extra = difference if difference > 0 else difference + (1 << category) - 1
                value = (value << category) | extra
                length += category
            buffer = (buffer << length) | value
            filled += length
            while filled >= 8:
                byte = (buffer >> (filled - 8)) & 0xFF
                filled -= 8
                buffer &= (1 << filled) - 1
                out[end] = byte
                end += 1
                if byte == 0xFF:
                    out[end] = 0
                    end += 1
    if filled:
        byte = ((buffer << (8 - filled)) | ((1 << (8 - filled)) - 1)) & 0xFF
        out[end] = byte
        end += 1
        if byte == 0xFF:
            out[end] = 0
            end += 1
    scan: NDArray[np.uint8] = out[:end].copy()
    return scan
