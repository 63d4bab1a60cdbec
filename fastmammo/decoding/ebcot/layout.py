"""Takes a header, gives which code-blocks and packets a tile has (15444-1 B.5 to B.7, B.12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.decoding.ebcot.header import Header, corrupt
from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A code-block: its band, where it lies in the band, its bit planes and coding passes, its segments
# of bytes (first and last index), and the length bits that packet headers have reached (B.10.7).
BAND, TOP, LEFT, ROWS, COLUMNS, PLANES, PASSES, FIRST, LAST, LENGTH_BITS = range(10)
BLOCK_FIELDS = 10


class Layout:
    """Where the precincts and code-blocks of a tile lie.

    first: int64, where each resolution's blocks begin, and the count of all.
    nodes: of all tag trees together.
    entries: int64 (bands of precincts, 4): first block, blocks down and across, first tree node.
    positions: int64 (precincts, 4): resolution, row and column in the image, first entry.
    """

    def __init__(self, header: Header, size: int) -> None:
        """Lay out; `size` is how many bytes the packets have: each takes one at least."""
        grid = np.zeros((header.levels + 1, 8), np.int64)
        precincts = 0
        for resolution in range(header.levels + 1):
            rows, columns = header.size(resolution)
            high, wide = header.precincts[resolution]
            down, across = -(-rows // (1 << high)), -(-columns // (1 << wide))
            less = 1 if resolution else 0  # a precinct covers half as much in each band (B-17)
            block = (
                min(header.block_rows, 1 << (high - less)),
                min(header.block_columns, 1 << (wide - less)),
            )
            grid[resolution] = (rows, columns, high, wide, down, across, *block)
            precincts += down * across
        if precincts * header.layers > size:
            raise corrupt(f"{precincts * header.layers} packets in {size} bytes")
        self.first = np.zeros(header.levels + 2, np.int64)
        bands, self.nodes = _count(grid, self.first)
        self.entries = np.zeros((bands, 4), np.int64)
        self.positions = np.zeros((precincts, 4), np.int64)
        count = int(self.first[-1])
        self._blocks: NDArray[np.int32] = np.zeros((count, BLOCK_FIELDS), np.int32)
        planes = np.array(header.planes, np.int32)
        _layout(grid, planes, self.entries, self._blocks, self.positions)

    def blocks(self) -> NDArray[np.int32]:
        """Return int32 (code-blocks, BLOCK_FIELDS), as they are before the first packet."""
        blocks: NDArray[np.int32] = self._blocks.copy()
        return blocks


def packet_order(positions: NDArray[np.int64], header: Header) -> NDArray[np.int64]:
    """Return (packets, 3): resolution, precinct, layer in the progression's order (B.12)."""
    layers = header.layers
    resolution, row, column = (np.repeat(positions[:, i], layers) for i in range(3))
    precinct = np.repeat(np.arange(len(positions)), layers)
    layer = np.tile(np.arange(layers), len(positions))
    keys = (  # the last key is the outermost loop; with one component CPRL is PCRL
        (precinct, resolution, layer),
        (precinct, layer, resolution),
        (layer, precinct, resolution),
        (layer, precinct, resolution, column, row),
        (layer, precinct, resolution, column, row),
    )
    if header.progression >= len(keys):
        raise corrupt(f"progression order {header.progression}, allowed are 0 to 4")
    return np.stack([resolution, precinct, layer], 1)[np.lexsort(keys[header.progression])]


@njit
def _extent(grid, resolution, y, x, band):  # type: ignore[no-untyped-def]
    """Return (top, left, blocks down, blocks across, bottom, right): one precinct of one band."""
    rows, columns = grid[resolution, 0], grid[resolution, 1]
    high, wide = 1 << grid[resolution, 2], 1 << grid[resolution, 3]
    if resolution:
        high, wide = high // 2, wide // 2
        rows = rows // 2 if band >= 1 else (rows + 1) // 2
        columns = columns // 2 if band != 1 else (columns + 1) // 2
    top, left = y * high, x * wide
    bottom, right = min(rows, top + high), min(columns, left + wide)
    down = across = 0
    if bottom > top and right > left:
        down = (bottom - top + grid[resolution, 6] - 1) // grid[resolution, 6]
        across = (right - left + grid[resolution, 7] - 1) // grid[resolution, 7]
    return top, left, down, across, bottom, right


@njit
def _nodes(down, across):  # type: ignore[no-untyped-def]
    """Return the nodes of a tag tree (B.10.2)."""
    count = down * across
    while down * across > 1:
        down, across = (down + 1) // 2, (across + 1) // 2
        count += down * across
    return count


@njit
def _count(grid, first):  # type: ignore[no-untyped-def]
    """Fill where each resolution's blocks begin; return (bands of precincts, tree nodes)."""
    bands = nodes = blocks = 0
    for resolution in range(len(grid)):
        first[resolution] = blocks
        for y in range(grid[resolution, 4]):
            for x in range(grid[resolution, 5]):
                for band in range(3 if resolution else 1):
                    _, _, down, across, _, _ = _extent(grid, resolution, y, x, band)
                    bands += 1
                    blocks += down * across
                    nodes += _nodes(down, across)
    first[len(grid)] = blocks
    return bands, nodes


@njit
def _layout(grid, planes, entries, blocks, positions):  # type: ignore[no-untyped-def]
    """Fill entries (first block, down, across, first node), blocks and the precincts' positions."""
    entry = block = node = precinct = 0
    levels = len(grid) - 1
    for resolution in range(levels + 1):
        high, wide = grid[resolution, 6], grid[resolution, 7]
        for y in range(grid[resolution, 4]):
            for x in range(grid[resolution, 5]):
                positions[precinct, 0] = resolution
                positions[precinct, 1] = y << (grid[resolution, 2] + levels - resolution)
                positions[precinct, 2] = x << (grid[resolution, 3] + levels - resolution)
                positions[precinct, 3] = entry
                precinct += 1
                for band in range(3 if resolution else 1):
                    top, left, down, across, bottom, right = _extent(grid, resolution, y, x, band)
                    entries[entry, 0], entries[entry, 1] = block, down
                    entries[entry, 2], entries[entry, 3] = across, node
                    entry += 1
                    node += _nodes(down, across)
                    number = band + 3 * resolution - 2 if resolution else 0
                    for i in range(down):
                        for j in range(across):
                            blocks[block, BAND] = number
                            blocks[block, TOP] = top + i * high
                            blocks[block, LEFT] = left + j * wide
                            blocks[block, ROWS] = min(high, bottom - top - i * high)
                            blocks[block, COLUMNS] = min(wide, right - left - j * wide)
                            blocks[block, PLANES] = planes[number]
                            block += 1
