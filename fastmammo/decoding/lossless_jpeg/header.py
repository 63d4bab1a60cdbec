"""The marker segments before a lossless JPEG scan → what its decoding needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import CorruptCodestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX_BITS = 12
"""Of the look-up: 16 kB of entries, half of a core's first cache. More bits are rare."""

CODE, LONG, RUN = 1, 2, 16
"""Kinds of entries: see `Huffman`."""

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SOF, _SOS, _DHT, _FILL = 0xC3, 0xDA, 0xC4, 0xFF


@dataclass(frozen=True, eq=False)
class Huffman:
    """A Huffman table (T.81 Annex C) of difference categories, as `samples` looks codes up.

    entries: uint32 (2^INDEX_BITS,), by the next bits. Bits 24 to 31 say what is there: 0 a code and
        its difference, RUN + n so many differences of 0, CODE a code whose difference is longer,
        LONG a code that is, or is unused, or of category 16. Bits 0 to 7: of the code and its
        difference together; of one code in a run. Bits 8 to 23: the difference, modulo 2^16; for
        CODE, 8 to 15 the code's bits, 16 to 23 the category.
    first, last, offset: int32 (17,), by length: the codes of that length, and where `categories`
        has that of the first, less it. No code: last < first.
    categories: uint8 (n,), in the order of the codes.
    most_bits: of a code and its difference.
    """

    entries: NDArray[np.uint32]
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
    entries = np.full(1 << INDEX_BITS, LONG << 24, np.uint32)
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
            most = max(most, length + category % 16)  # 16 has no further bits (T.81 H.1.2.2)
            if length <= INDEX_BITS and category < 16:
                spare = INDEX_BITS - length
                entries[code << spare : (code + 1) << spare] = _entries(length, category)
                if category == 0:
                    zeros.append((code, length))
            code += 1
        index += count
        code <<= 1
    for zero in zeros:
        _add_runs(entries, *zero)
    kinds = np.frombuffer(categories, np.uint8)
    return Huffman(entries, first, last, offset, kinds, most)


def _entries(length: int, category: int) -> NDArray[np.int64] | int:
    """Return the entries of one code: by what follows it, or one where that is too long."""
    total = length + category
    if total > INDEX_BITS:
        return CODE << 24 | category << 16 | length << 8 | total
    extra = np.arange(1 << category)
    # below half of its range a difference is negative (T.81 F.1.2.1)
    differences = np.where(2 * extra < 1 << category, extra + 1 - (1 << category), extra)
    if category == 0:
        differences[0] = 0
    return np.repeat((differences & 0xFFFF) << 8 | total, 1 << (INDEX_BITS - total))


def _add_runs(entries: NDArray[np.uint32], code: int, length: int) -> None:
    """Let codes of category 0 in a row be one entry: air is little else."""
    for run in range(2, INDEX_BITS // length + 1):
        pattern = sum(code << (length * n) for n in range(run))
        spare = INDEX_BITS - run * length
        entries[pattern << spare : (pattern + 1) << spare] = (RUN + run) << 24 | length
