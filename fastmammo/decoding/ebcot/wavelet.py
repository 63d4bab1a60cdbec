"""Takes a resolution's code-blocks and the image below it, gives the image (15444-1 Annex F)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.decoding.ebcot.codeblock import Decoder
from fastmammo.decoding.ebcot.layout import TOP
from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.ebcot.header import Header
    from fastmammo.decoding.ebcot.packets import CodeBlocks

NOT_CLIPPED = (0, -(1 << 31), (1 << 31) - 1)


def lowest(found: CodeBlocks, header: Header) -> NDArray[np.int32]:
    """Return resolution 0, the LL band, int32 (rows, columns), around 0."""
    out = np.zeros(header.size(0), np.int32)
    blocks = found.blocks[: found.first[1]]
    Decoder(found, blocks)(0, len(blocks), 0, out[np.newaxis])
    return out


def finer(
    found: CodeBlocks,
    header: Header,
    resolution: int,
    image: NDArray[np.int32],
    out: NDArray[np.int32] | NDArray[np.uint16],
    limits: tuple[int, int, int] = NOT_CLIPPED,
) -> None:
    """Write resolution 1 or above to `out`, from the resolution below it.

    The bands are decoded in strips of one code-block's height, which stay in the cache until they
    are joined.

    Args:
        image: int32 (rows, columns) of the resolution below, around 0.
        out: int32 or uint16 of the resolution's size. Signed values wrap around in uint16: seen
            as int16 they are right.
        limits: (offset, lowest, highest): values are shifted, then clipped.
    """
    high = header.block_rows
    rows, columns = out.shape
    begin, end = found.first[resolution : resolution + 2]
    blocks = found.blocks[begin:end]
    strips = blocks[:, TOP] // high
    order = np.argsort(strips, kind="stable")
    count = -(-(rows - rows // 2) // high)
    starts = np.searchsorted(strips[order], np.arange(count + 1)).tolist()
    decode = Decoder(found, blocks[order])
    bands = np.empty((3, high, columns - columns // 2), np.int32)
    carried = np.empty((5, columns), np.int32)
    bounds = np.array(limits, np.int64)
    for strip in range(count):
        bands[:] = 0
        decode(starts[strip], starts[strip + 1], strip * high, bands)
        _join(bands, image, carried, out, bounds, strip * high)


@njit
def _join(bands, image, carried, out, limits, begin):  # type: ignore[no-untyped-def]
    """Undo one step of the 5/3 transform for the rows of a strip that begins at row `begin`.

    bands: HL, LH, HH of the strip. carried: five rows of the image, of which two are needed again:
    the last odd row after the horizontal step, and the last even row, finished.
    """
    rows, columns = out.shape
    odd_rows, odd_columns = rows // 2, columns // 2
    for y in range(begin, min(begin + bands.shape[1], rows - odd_rows)):
        line = y - begin
        flip = y & 1
        high, next_high = carried[flip], carried[1 - flip]
        even, next_even = carried[2 + flip], carried[3 - flip]
        low = carried[4]
        _across(image[y], bands[0, line], odd_columns, low, next_even)
        above, below = high, high
        if y < odd_rows:
            _across(bands[1, line], bands[2, line], odd_columns, next_high, next_even)
            below = next_high
        if y == 0:
            above = below
        if odd_rows:
            for x in range(columns):
                next_even[x] = low[x] - (np.int32(above[x] + below[x] + 2) >> 2)
        else:
            for x in range(columns):
                next_even[x] = low[x]
        _clip(next_even, out[2 * y], limits)
        if y:
            _odd(above, even, next_even, out[2 * y - 1], limits)
        if 2 * y + 2 == rows:
            _odd(below, next_even, next_even, out[2 * y + 1], limits)


@njit
def _across(low, high, count, out, even):  # type: ignore[no-untyped-def]
    """Undo the horizontal step (F.3.8.2): `count` high samples; `even` is scratch."""
    columns = len(out)
    if count == 0:
        out[0] = low[0]
        return
    even[0] = low[0] - (np.int32(2 * high[0] + 2) >> 2)
    for x in range(1, count):
        even[x] = low[x] - (np.int32(high[x - 1] + high[x] + 2) >> 2)
    if columns > 2 * count:
        even[count] = low[count] - (np.int32(2 * high[count - 1] + 2) >> 2)
        out[2 * count] = even[count]
    else:
        even[count] = even[count - 1]
    for x in range(count):
        out[2 * x] = even[x]
        out[2 * x + 1] = high[x] + (np.int32(even[x] + even[x + 1]) >> 1)


@njit
def _odd(high, above, below, out, limits):  # type: ignore[no-untyped-def]
    offset, lowest, highest = np.int32(limits[0]), np.int32(limits[1]), np.int32(limits[2])
    for x in range(len(out)):
        value = np.int32(high[x] + (np.int32(above[x] + below[x]) >> 1))
        out[x] = min(max(np.int32(value + offset), lowest), highest)


@njit
def _clip(line, out, limits):  # type: ignore[no-untyped-def]
    offset, lowest, highest = np.int32(limits[0]), np.int32(limits[1]), np.int32(limits[2])
    for x in range(len(out)):
        out[x] = min(max(np.int32(line[x] + offset), lowest), highest)
