"""The integer kernels on the CPU, in numba: stored values in, finished pixels out.

All arithmetic is on integers and each function says its widths, so that a twin on another device
gives the same bits. Every kernel releases the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHT_BITS = 16
"""The weights of one output pixel along one axis sum to exactly 2^16."""


def low_pass(pixels: NDArray[np.generic]) -> NDArray[np.int32]:
    """Return the low-pass band of one level of the integer 5/3 wavelet transform.

    Args:
        pixels: (rows, columns) of an integer type of at most 32 bits; |value| < 2^29.

    Returns:
        int32 (ceil(rows / 2), ceil(columns / 2)), not clipped: sample k lies at pixel 2k.

    ISO/IEC 15444-1 Annex F.4.8.1: vertical, then horizontal, symmetric extension. A constant
    offset passes through, so the DC level shift of JPEG 2000 needs no attention.
    """
    rows, columns = pixels.shape
    out = np.empty((-(-rows // 2), -(-columns // 2)), np.int32)
    _low_pass(pixels, out)
    return out


@njit
def _low_pass(x, out):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    half_rows, half_columns = out.shape
    odd_columns = columns // 2
    one, two = np.int32(1), np.int32(2)
    above = np.zeros(columns, np.int32)  # vertical high-pass d[k-1]
    low = np.empty(columns, np.int32)
    # `low` by even and odd columns: side by side, as the vector units want it
    evens = np.empty(half_columns + 1, np.int32)
    odds = np.empty(half_columns + 1, np.int32)
    high = np.empty(half_columns + 1, np.int32)  # horizontal high-pass: d[j] at j + 1
    if rows > 1:  # the extension mirrors d[0] to d[-1]; a single row passes unchanged
        following = x[min(2, 2 * (half_rows - 1))]
        for j in range(columns):
            above[j] = np.int32(x[1, j]) - ((np.int32(x[0, j]) + np.int32(following[j])) >> one)
    for k in range(half_rows):
        even = x[2 * k]
        if 2 * k + 1 < rows:
            odd = x[2 * k + 1]
            following = x[2 * k + 2] if 2 * k + 2 < rows else even
            for j in range(columns):
                middle = np.int32(even[j])
                below = np.int32(np.int32(odd[j]) - ((middle + np.int32(following[j])) >> one))
                low[j] = middle + ((above[j] + below + two) >> two)
                above[j] = below
        else:  # the last row has no odd one below it, and the extension mirrors d[k-1]
            for j in range(columns):
                low[j] = np.int32(even[j]) + ((above[j] + above[j] + two) >> two)
        row = out[k]
        if columns == 1:
            row[0] = low[0]
            continue
        for j in range(odd_columns):
            evens[j] = low[2 * j]
            odds[j] = low[2 * j + 1]
        evens[odd_columns] = low[columns - 1] if half_columns > odd_columns else low[columns - 2]
        for j in range(odd_columns):
            high[j + 1] = odds[j] - ((evens[j] + evens[j + 1]) >> one)
        high[0] = high[1]
        if half_columns > odd_columns:
            high[half_columns] = high[odd_columns]
        for j in range(half_columns):
            row[j] = evens[j] + ((high[j] + high[j + 1] + two) >> two)


def clip_to(
    values: NDArray[np.generic], first: int, last: int, slack: int, dtype: np.dtype[np.generic]
) -> tuple[NDArray[np.generic], int]:
    """Clip values to first..last.

    Returns:
        The values as `dtype`, which must hold that range, and how many lay beyond it by more than
        `slack`.
    """
    out = np.empty(values.shape, dtype)
    far = _clip(values.reshape(-1), first, last, slack, out.reshape(-1))
    return out, int(far)


@njit
def _clip(values, first, last, slack, out):  # type: ignore[no-untyped-def]
    low, high = np.int32(first), np.int32(last)
    far = 0
    for i in range(values.size):
        value = np.int32(values[i])
        clipped = min(max(value, low), high)
        far += abs(value - clipped) > slack
        out[i] = clipped
    return far


def resample(
    pixels: NDArray[np.generic],
    first: int,
    table: NDArray[np.uint16],
    row_taps: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
    column_taps: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
    out: NDArray[np.generic],
    *,
    mirror: bool = False,
) -> None:
    """Look stored values up in a table and resample them, in one pass, into `out`.

    out[i, j] = round(sum_y sum_x w_y w_x table[pixels[y, x] - first] / 2^32), for uint8 divided
    by 257 before the one rounding, half up. Look-up comes first: resampling before windowing
    gives other pictures.

    Args:
        pixels: uint8, uint16 or int16 (rows, columns); values outside the table take its ends.
        first: the stored value of table[0].
        table: uint16 (n,), outputs on the scale 0..65535.
        row_taps, column_taps: (start, count, weights) from `preprocess.resize.taps`; the weights
            of an output pixel sum to 2^16.
        out: uint8 or uint16 (len(row_taps), len(column_taps)), written in place.
        mirror: whether output columns run from right to left.
    """
    shades = _every_value(pixels.dtype, first, table)
    unsigned = pixels.view(f"uint{8 * pixels.itemsize}")
    column_starts, _, column_weights = column_taps
    _resample(unsigned, shades, *row_taps, column_starts, column_weights, out, mirror)


def _every_value(
    dtype: np.dtype[np.generic], first: int, table: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Return the table over every bit pattern of `dtype`: no index has to be clamped."""
    size = 1 << (8 * dtype.itemsize)
    lowest = -(size >> 1) if dtype.kind == "i" else 0
    start = first - lowest
    shades = np.empty(size, np.uint16)
    shades[: max(start, 0)] = table[0]
    shades[max(start, 0) : start + table.size] = table[max(-start, 0) : size - start]
    shades[start + table.size :] = table[-1]
    return np.roll(shades, lowest)


@njit
def _resample(  # type: ignore[no-untyped-def]
    pixels, shades, ys, yn, yw, xs, xw, out, mirror
):
    height, width = out.shape
    reach = xw.shape[1]  # taps of a column; those it does not need weigh 0
    left = xs[0]
    right = left
    for j in range(width):
        right = max(right, xs[j])
    right = min(right + reach, pixels.shape[1])
    span = right - left
    lines = yw.shape[1] + 1
    ring = np.empty((lines, span), np.uint16)  # looked-up source rows, each row once
    column = np.zeros(span + reach, np.uint32)
    done = np.int64(ys[0])
    eight = out.itemsize == 1
    for i in range(height):
        stop = np.int64(ys[i]) + yn[i]
        done = max(done, np.int64(ys[i]))
        while done < stop:
            source = pixels[done, left:right]
            line = ring[done % lines]
            for k in range(span):
                line[k] = shades[source[k]]
            done += 1
        # 65535 * 2^16 < 2^32: the vertical sums are exact in 32 bits.
        for t in range(yn[i]):
            weight = np.uint32(yw[i, t])
            line = ring[(ys[i] + t) % lines]
            if t == 0:
                for k in range(span):
                    column[k] = np.uint32(weight * np.uint32(line[k]))
            else:
                for k in range(span):
                    column[k] = np.uint32(column[k] + np.uint32(weight * np.uint32(line[k])))
        for j in range(width):
            base = np.uint64(xs[j] - left)
            total = np.uint64(0)
            for t in range(reach):
                total += np.uint64(column[base + np.uint64(t)]) * np.uint64(xw[j, t])
            at = width - 1 - j if mirror else j
            if eight:
                # floor(floor(a / 2^32) / 257) = floor(a / (2^32 * 257)): still one rounding
                half = np.uint64(257) << np.uint64(31)
                out[i, at] = ((total + half) >> np.uint64(32)) // np.uint64(257)
            else:
                out[i, at] = (total + (np.uint64(1) << np.uint64(31))) >> np.uint64(32)
