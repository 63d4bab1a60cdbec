"""Takes a frame, gives its DICOM RLE segments (PS3.5 Annex G)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode_rle(pixels: NDArray[Any]) -> bytes:
    """One frame in DICOM RLE: a segment a byte plane, most significant first, a row at a time.

    Args:
        pixels: (rows, columns), uint8, int8, uint16 or int16.
    """
    planes = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"), copy=False))
    planes = planes.view(np.uint8).reshape(*pixels.shape, pixels.dtype.itemsize)
    segments = []
    for index in range(pixels.dtype.itemsize):
        segment = _pack_bits(np.ascontiguousarray(planes[:, :, index])).tobytes()
        segments.append(segment + b"\x00" * (len(segment) % 2))  # G.3.1: even length
    offsets = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    header = struct.pack("<16I", len(segments), *offsets, *(0,) * (15 - len(offsets)))
    return header + b"".join(segments)


@njit(cache=True)
def _pack_bits(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """PackBits of each row by itself, as G.3.1 asks: runs of 3 or more, literals up to 128."""
    rows, columns = plane.shape
    out = np.empty(rows * (columns + columns // 128 + 2), dtype=np.uint8)
    end = 0
    for row in range(rows):
        column = 0
        while column < columns:
            run = 1
            while (
                column + run < columns
                and run < 128
                and plane[row, column + run] == plane[row, column]
            ):
                run += 1
            if run >= 3:
                out[end] = 257 - run
                out[end + 1] = plane[row, column]
                end += 2
                column += run
                continue
            start = column
            while column < columns and column - start < 128:
                if (
                    column + 2 < columns
                    and plane[row, column] == plane[row, column + 1]
                    and plane[row, column] == plane[row, column + 2]
                ):
                    break
                column += 1
            out[end] = column - start - 1
            end += 1
            for index in range(start, column):
                out[end] = plane[row, index]
                end += 1
    packed: NDArray[np.uint8] = out[:end].copy()
    return packed
