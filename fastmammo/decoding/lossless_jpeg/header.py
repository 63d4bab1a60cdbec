"""The marker segments before a lossless JPEG scan → what its decoding needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import CorruptCodestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX_BITS = 11
"""At most, of the look-up: 8 kB of entries; a code that is longer is rare, and searched for."""

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SOF, _SOS, _DHT, _FILL = 0xC3, 0xDA, 0xC4, 0xFF


@dataclass(frozen=True, eq=False)
class Huffman:
    """A Huffman table (T.81 Annex C) of difference categories, as `samples` looks codes up.

    entries: uint32 (2^index_bits,), by the next bits: bits 0 to 7 code and difference together,
        8 to 15 the code alone, 16 to 23 the category, 24 to 31 how many codes of category 0 stand
        there in a row, if more than one: then the lower fields are those of one of them. 0 for
        codes that are longer, unused or of category 16.
    first, last, offset: int32 (17,), by length: the codes of that length, and where `categories`
        has that of the first, less it. No code: last < first.
    categories: uint8 (n,), in the order of the codes.
    most_bits: of a code and its difference.
    """

    entries: NDArray[np.uint32]
    index_bits: int
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    offset: NDArray[np.int32]
    categories: NDArray[np.uint8]
    most_bits: int


@dataclass(frozen=True, eq=False)
class Scan:
    """Where the entropy-coded data begins, and how it is coded."""

    start: int
    predictor: int
    point_transform: int
    huffman: Huffman


def read_scan(view: memoryview) -> Scan:
    """Read a codestream up to its first scan, whose frame header `dicom.jpeg` has checked.

    Raises:
        CorruptCodestreamError: a segment breaks off, the scan's table is absent or impossible.
    """
    tables: dict[int, tuple[list[int], bytes]] = {}
    position, component = 2, -1
    try:
        while True:
            while view[position + 1] == _FILL:
                position += 1
            marker = view[position + 1]
            position += 2
            if marker in _STANDALONE:
                continue
            end = position + int.from_bytes(view[position : position + 2], "big")
            if marker == _DHT:
                _read_tables(bytes(view[position + 2 : end]), tables)
            elif marker == _SOF:
                component = view[position + 8]
            elif marker == _SOS:
                if (view[position + 2], view[position + 3]) != (1, component):
                    raise CorruptCodestreamError(
                        f"the lossless JPEG's scan has {view[position + 2]} components from "
                        f"{view[position + 3]} on, its frame has one, {component}"
                    )
                table = view[position + 4] >> 4
                predictor, shift = view[position + 5], view[position + 7] & 15
                break
            position = end
        view[end - 1]
    except IndexError:
        raise CorruptCodestreamError(
            f"the lossless JPEG's header breaks off: {len(view)} bytes; the file may be truncated"
        ) from None
    if table not in tables:
        raise CorruptCodestreamError(
            f"the lossless JPEG's scan takes Huffman table {table}, which is not there (DHT); "
            f"there are {sorted(tables) or 'none'}"
        )
    return Scan(end, predictor, shift, _huffman(*tables[table]))


def _read_tables(segment: bytes, tables: dict[int, tuple[list[int], bytes]]) -> None:
    """Take the tables of one DHT segment (T.81 B.2.4.2); those of class 0, DC or lossless."""
    position = 0
    while position < len(segment):
        counts = list(segment[position + 1 : position + 17])
        values = segment[position + 17 : position + 17 + sum(counts)]
        if len(counts) < 16 or len(values) < sum(counts):
            raise CorruptCodestreamError(
                f"the lossless JPEG's Huffman table (DHT) breaks off: {len(segment)} bytes"
            )
        if segment[position] < 16:
            tables[segment[position]] = counts, values
        position += 17 + sum(counts)


def _huffman(counts: list[int], categories: bytes) -> Huffman:
    """Make the look-up of a table given as codes per length, 1 to 16, and their categories."""
    if not categories or max(categories) > 16:
        raise CorruptCodestreamError(
            f"the lossless JPEG's Huffman table has the categories {list(categories)}, wanted some "
            "of 0 to 16"
        )
    bits = min(INDEX_BITS, max(n + 1 for n in range(16) if counts[n]))
    entries = np.zeros(1 << bits, np.uint32)
    first, last, offset = (np.zeros(17, np.int32) for _ in range(3))
    code, index, most = 0, 0, 0
    zeros: list[tuple[int, int]] = []
    for length, count in enumerate(counts, 1):
        first[length], last[length], offset[length] = code, code + count - 1, index - code
        if code + count > 1 << length:
            raise CorruptCodestreamError(
                f"the lossless JPEG's Huffman table has more codes of up to {length} bits than "
                "there can be"
            )
        for category in categories[index : index + count]:
            total = length + category % 16  # category 16 has no further bits (T.81 H.1.2.2)
            most = max(most, total)
            if length <= bits and category < 16:
                at = code << (bits - length)
                span = 1 << (bits - length)
                entries[at : at + span] = total | length << 8 | category << 16
                if category == 0:
                    zeros.append((code, length))
            code += 1
        index += count
        code <<= 1
    for zero in zeros:
        _add_runs(entries, bits, *zero)
    kinds = np.frombuffer(categories, np.uint8)
    return Huffman(entries, bits, first, last, offset, kinds, most)


def _add_runs(entries: NDArray[np.uint32], bits: int, code: int, length: int) -> None:
    """Let codes of category 0 in a row be one entry: air is little else."""
    for run in range(2, bits // length + 1):
        pattern = sum(code << (length * n) for n in range(run))
        spare = bits - run * length
        at = pattern << spare
        entries[at : at + (1 << spare)] = length | length << 8 | run << 24
