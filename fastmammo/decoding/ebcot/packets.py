"""Takes a codestream and its header, gives the code-blocks and their bytes (15444-1 Annex B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.decoding.ebcot.header import Header, corrupt
from fastmammo.decoding.ebcot.layout import (
    FIRST,
    LAST,
    LENGTH_BITS,
    PASSES,
    PLANES,
    Layout,
    packet_order,
)
from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEGIN, LENGTH, NEXT = range(3)  # a segment: its bytes, and the next segment of its block or -1
SEGMENT_FIELDS = 3
MOST_PLANES = 24
"""16-bit samples have 19 in the highest band at most; tier 1 has room for so many."""

_FULL, _SHORT, _IMPOSSIBLE = -1, -2, -3
_UNKNOWN = 1 << 20  # above every layer and bit plane: a tag tree's node that is not known yet


@dataclass(frozen=True)
class CodeBlocks:
    """The code-blocks of all resolutions, those of one resolution together.

    data: uint8, the packets; blocks: int32 (count, BLOCK_FIELDS); segments: int64 (count,
    SEGMENT_FIELDS), all within `data`; first: where each resolution's blocks begin, and the count.
    """

    data: NDArray[np.uint8]
    blocks: NDArray[np.int32]
    segments: NDArray[np.int64]
    first: tuple[int, ...]


def read_blocks(view: memoryview, header: Header) -> CodeBlocks:
    """Return the code-blocks of all resolutions with their bytes.

    Whatever level is wanted, all packet headers are read: a stream that breaks off further on is
    then damaged for every level.

    Raises:
        CorruptCodestreamError: the packets break off, or claim more than their bands can hold.
    """
    whole = np.frombuffer(view, np.uint8)
    parts = [whole[start:end] for start, end in header.parts]
    data = parts[0] if len(parts) == 1 else np.concatenate([whole[:0], *parts])
    data.flags.writeable = False  # one type for the kernels, whatever the bytes came in
    layout = Layout(header, len(data))
    order = packet_order(layout.positions, header)
    room = 2 * int(layout.first[-1]) + 16
    while True:
        blocks = layout.blocks()
        segments = np.zeros((room, SEGMENT_FIELDS), np.int64)
        trees = np.zeros((2, layout.nodes, 2), np.int32)
        trees[:, :, 0] = _UNKNOWN
        status = _packets(data, order, layout.positions, layout.entries, blocks, segments, trees)
        if status != _FULL:
            break
        room *= 4  # several layers: more segments than blocks
    if status == _SHORT:
        raise corrupt("its packets break off")
    if status == _IMPOSSIBLE:
        raise corrupt(f"more coding passes than a code-block's bit planes, {MOST_PLANES} at most")
    return CodeBlocks(data, blocks, segments[:status], tuple(int(index) for index in layout.first))


_AT, _LEFT, _BYTE, _BEYOND = range(4)  # the bit reader: position, bits left of the byte, the end


@njit
def _bit(data, state):  # type: ignore[no-untyped-def]
    """Return the next bit of a packet header; after a byte FF seven bits follow (B.10.1)."""
    if state[_LEFT] == 0:
        if state[_AT] >= len(data):
            state[_BEYOND] = 1
            return 0
        state[_LEFT] = 7 if state[_BYTE] == 0xFF else 8
        state[_BYTE] = data[state[_AT]]
        state[_AT] += 1
    state[_LEFT] -= 1
    return (state[_BYTE] >> state[_LEFT]) & 1


@njit
def _bits(data, state, count):  # type: ignore[no-untyped-def]
    value = 0
    for _ in range(count):
        value = value << 1 | _bit(data, state)
    return value


@njit
def _below(data, state, tree, node, down, across, y, x, threshold, path):  # type: ignore[no-untyped-def]
    """Return whether leaf (y, x) of a tag tree is below the threshold (B.10.2)."""
    depth = 0
    while True:
        path[depth] = node + y * across + x
        depth += 1
        if down * across <= 1:
            break
        node += down * across
        down, across, y, x = (down + 1) // 2, (across + 1) // 2, y >> 1, x >> 1
    low = value = 0
    for level in range(depth - 1, -1, -1):
        at = path[level]
        low, value = max(low, tree[at, 1]), tree[at, 0]
        while low < threshold and low < value:
            if _bit(data, state):
                value = low
            else:
                low += 1
        tree[at, 0], tree[at, 1] = value, low
    return value < threshold


@njit
def _passes(data, state):  # type: ignore[no-untyped-def]
    """Return the number of new coding passes (Table B.4)."""
    if not _bit(data, state):
        return 1
    if not _bit(data, state):
        return 2
    more = _bits(data, state, 2)
    if more < 3:
        return 3 + more
    more = _bits(data, state, 5)
    if more < 31:
        return 6 + more
    return 37 + _bits(data, state, 7)


@njit
def _packets(data, order, positions, entries, blocks, segments, trees):  # type: ignore[no-untyped-def]
    """Read all packet headers (B.10), filling blocks and segments; return the segments' count."""
    count, size = 0, len(data)
    path = np.zeros(64, np.int64)
    state = np.zeros(4, np.int64)
    for i in range(len(order)):
        resolution, precinct, layer = order[i, 0], order[i, 1], order[i, 2]
        at = state[_AT]
        if at + 6 <= size and data[at] == 0xFF and data[at + 1] == 0x91:  # SOP (A.8.1)
            at += 6
        state[_AT], state[_LEFT], state[_BYTE] = at, 0, 0
        begin = count
        if _bit(data, state):
            entry = positions[precinct, 3]
            for e in range(entry, entry + (3 if resolution else 1)):
                first, down, across, node = entries[e]
                for y in range(down):
                    for x in range(across):
                        b = first + y * across + x
                        if blocks[b, PASSES]:
                            here = _bit(data, state) == 1
                        else:
                            here = _below(
                                data, state, trees[0], node, down, across, y, x, layer + 1, path
                            )
                        if not here:
                            continue
                        if blocks[b, PASSES] == 0:
                            empty = 0
                            while not _below(
                                data, state, trees[1], node, down, across, y, x, empty + 1, path
                            ):
                                empty += 1
                                if empty > blocks[b, PLANES]:
                                    return _IMPOSSIBLE
                            blocks[b, PLANES] -= empty
                            blocks[b, LENGTH_BITS] = 3
                            blocks[b, FIRST] = -1
                        passes = _passes(data, state)
                        while _bit(data, state):
                            blocks[b, LENGTH_BITS] += 1
                            if blocks[b, LENGTH_BITS] > 32:
                                return _IMPOSSIBLE
                        bits = blocks[b, LENGTH_BITS]
                        while passes >> (bits - blocks[b, LENGTH_BITS] + 1):
                            bits += 1  # floor(log2(passes)) more (B.10.7.1)
                        length = _bits(data, state, bits)
                        blocks[b, PASSES] += passes
                        if (
                            blocks[b, PLANES] > MOST_PLANES
                            or blocks[b, PASSES] > 3 * blocks[b, PLANES] - 2
                        ):
                            return _IMPOSSIBLE
                        if count == len(segments):
                            return _FULL
                        segments[count, BEGIN] = b  # until the header is read
                        segments[count, LENGTH] = length
                        segments[count, NEXT] = -1
                        if blocks[b, FIRST] < 0:
                            blocks[b, FIRST] = count
                        else:
                            segments[blocks[b, LAST], NEXT] = count
                        blocks[b, LAST] = count
                        count += 1
                if state[_BEYOND]:
                    return _SHORT
        at = state[_AT]
        if state[_BYTE] == 0xFF:  # a header never ends with FF: a stuffed byte follows (B.10.1)
            at += 1
        if at + 2 <= size and data[at] == 0xFF and data[at + 1] == 0x92:  # EPH (A.8.2)
            at += 2
        for s in range(begin, count):
            if segments[s, LENGTH] > size - at:
                return _SHORT
            segments[s, BEGIN] = at
            at += segments[s, LENGTH]
        if at > size or state[_BEYOND]:
            return _SHORT
        state[_AT] = at
    return count
