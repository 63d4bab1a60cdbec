"""Finding frames in Pixel Data (PS3.5 A.4): takes the element's bytes, gives one string a frame.

Fragments are found by walking the item tags, never by searching for markers in the data; the
offset tables are believed only where they point at items.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from fastmammo.errors import ReadError, TruncatedFileError

_ITEM = 0xE000
_SEQUENCE_END = 0xE0DD


@dataclass(frozen=True)
class Frame:
    """One frame's bytes, as they lie in the file; `fragments` says from how many pieces."""

    data: bytes | memoryview
    fragments: int = 1

    def __reduce__(self) -> tuple[type[Frame], tuple[bytes, int]]:
        return Frame, (bytes(self.data), self.fragments)  # a view of the file cannot be pickled


@dataclass(frozen=True)
class _Fragment:
    offset: int
    """Of the item's tag, from the first byte after the Basic Offset Table."""
    data: memoryview


def native_frames(data: memoryview, count: int, size: int) -> tuple[Frame, ...]:
    """Return `count` frames of `size` bytes each from uncompressed Pixel Data.

    Raises:
        TruncatedFileError: there are fewer bytes than count * size.
    """
    if len(data) < count * size:
        raise TruncatedFileError(
            f"Pixel Data (7FE0,0010) holds {len(data)} bytes, wanted {count} frame(s) of {size} "
            "bytes: the file is truncated, or Rows, Columns or Bits Allocated are wrong"
        )
    return tuple(Frame(data[i * size : (i + 1) * size]) for i in range(count))


def encapsulated_frames(
    data: memoryview,
    count: int,
    extended_offsets: bytes | None = None,
    *,
    one_fragment_a_frame: bool = False,
) -> tuple[tuple[Frame, ...], list[str]]:
    """Return the frames of encapsulated Pixel Data, and notes on what had to be settled.

    Args:
        data: the bytes after the element's header, from the offset table item on.
        count: Number of Frames (0028,0008).
        extended_offsets: the value of Extended Offset Table (7FE0,0001), if present.
        one_fragment_a_frame: for RLE, where several fragments a frame are not allowed (PS3.5 A.4.2)
            and a note is due if they occur.

    Raises:
        TruncatedFileError: a fragment is longer than what is left of the file.
        ReadError: no fragment, or the fragments cannot be shared out among the frames.
    """
    table, fragments, notes = _walk(data)
    if not fragments:
        raise ReadError("Pixel Data (7FE0,0010) is encapsulated but holds no fragment")
    if count == 1:
        if one_fragment_a_frame and len(fragments) > 1:
            notes.append(f"one RLE frame in {len(fragments)} fragments, joined")
        groups = [fragments]
    else:
        groups = _share(fragments, count, table, extended_offsets, notes)
    return tuple(_join(group) for group in groups), notes


def _walk(data: memoryview) -> tuple[tuple[int, ...], list[_Fragment], list[str]]:
    """Return (basic offset table, fragments, notes)."""
    notes: list[str] = []
    table: tuple[int, ...] = ()
    fragments: list[_Fragment] = []
    position, first = 0, None
    while True:
        if position + 8 > len(data):
            if position < len(data) or not fragments:
                raise TruncatedFileError(
                    f"Pixel Data ends at byte {len(data)} in the middle of an item tag: "
                    "the file is truncated"
                )
            notes.append("no sequence delimiter after the last fragment")
            break
        group, element, length = struct.unpack_from("<HHI", data, position)
        if group == 0xFFFE and element == _SEQUENCE_END:
            break
        if group != 0xFFFE or element != _ITEM:
            raise ReadError(
                f"Pixel Data byte {position}: tag ({group:04X},{element:04X}) where an item "
                "(FFFE,E000) or the sequence delimiter should be; the fragments are damaged"
            )
        if position + 8 + length > len(data):
            raise TruncatedFileError(
                f"Pixel Data byte {position}: a fragment of {length} bytes, only "
                f"{len(data) - position - 8} are left: the file is truncated"
            )
        value = data[position + 8 : position + 8 + length]
        if first is None:  # the first item is always the Basic Offset Table, empty or not
            if length % 4:
                notes.append(f"Basic Offset Table of {length} bytes ignored: not a multiple of 4")
            else:
                table = struct.unpack(f"<{length // 4}I", value)
            first = position + 8 + length
        else:
            fragments.append(_Fragment(position - first, value))
        position += 8 + length
    return table, fragments, notes


def _share(
    fragments: list[_Fragment],
    count: int,
    table: tuple[int, ...],
    extended: bytes | None,
    notes: list[str],
) -> list[list[_Fragment]]:
    """Share fragments out among frames: by offset tables, by count, or by their first bytes."""
    if isinstance(extended, bytes):
        offsets = struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
        if groups := _by_offsets(fragments, offsets, count):
            return groups
        notes.append("Extended Offset Table ignored: it does not point at the frames' fragments")
    if table:
        if groups := _by_offsets(fragments, table, count):
            return groups
        notes.append("Basic Offset Table ignored: it does not point at the frames' fragments")
    if len(fragments) == count:
        return [[fragment] for fragment in fragments]
    starts = [fragment.offset for fragment in fragments if _begins(fragment.data)]
    if groups := _by_offsets(fragments, tuple(starts), count):
        notes.append("frames told apart by where codestreams begin: no usable offset table")
        return groups
    raise ReadError(
        f"{len(fragments)} fragments for {count} frames, no usable offset table, and {len(starts)} "
        "fragments begin a codestream: Number of Frames (0028,0008) or the fragments are wrong"
    )


def _by_offsets(
    fragments: list[_Fragment], offsets: tuple[int, ...], count: int
) -> list[list[_Fragment]] | None:
    index = {fragment.offset: i for i, fragment in enumerate(fragments)}
    if len(offsets) != count or not all(offset in index for offset in offsets):
        return None
    starts = [index[offset] for offset in offsets]
    if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        return None
    ends = [*starts[1:], len(fragments)]
    return [fragments[a:b] for a, b in zip(starts, ends, strict=True)]


def _begins(data: memoryview) -> bool:
    head = bytes(data[:4])
    return head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) or head == b"\x00\x00\x00\x0c"


def _join(group: list[_Fragment]) -> Frame:
    if len(group) == 1:
        return Frame(group[0].data)
    return Frame(b"".join(fragment.data for fragment in group), fragments=len(group))
