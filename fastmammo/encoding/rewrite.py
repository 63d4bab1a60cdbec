"""Takes a DICOM file and its frames' codestreams, gives the file that holds these instead.

Every element of the data set but Pixel Data stays (PS3.5 A.4): where it is coded in Explicit VR
Little Endian already, deflated or not, its bytes are copied as they lie there.
"""

from __future__ import annotations

import re
import struct
from itertools import count
from typing import TYPE_CHECKING

import fastmammo
from fastmammo.dicom.source import parse_header
from fastmammo.encoding.data_set import LONG, VRS, Coding, explicit_little_endian
from fastmammo.errors import EncodeError, FastMammoError, ReadError, UnsupportedImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"

IMPLEMENTATION_CLASS_UID = "2.25.229623046474289732359303251283198523156"
"""This package's own, made of a UUID (PS3.5 B.2): who writes a file says so (PS3.10 7.1)."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_UNDEFINED = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xE000, 0xE0DD
_LARGEST = 0xFFFFFFFF
"""Of an entry of the Basic Offset Table, and of a fragment's length."""

Bytes = bytes | memoryview

_NESTED = re.compile(_PIXEL_DATA + rb"(?:(?:OB|OW|UN)\0\0)?\xff\xff\xff\xff\xfe\xff\x00\xe0")
"""The header of an encapsulated Pixel Data, in explicit or implicit VR, and its first item's."""


def rewritten(
    data: bytes | memoryview,
    codestreams: Sequence[bytes],
    transfer_syntax_uid: str = HTJ2K_LOSSLESS_RPCL,
    *,
    native_bytes: int | None = None,
) -> list[Bytes]:
    """Return the bytes, in pieces, of the same object with other codestreams.

    Pixel Data is one fragment a frame after a filled Basic Offset Table, an Extended Offset Table
    that was there is gone with its Pixel Data (PS3.3 C.7.6.3.1.8 allows one of both). Group lengths
    of the data set go where it has to be coded anew. File meta information keeps its elements,
    private ones too, but for those that name the writer: this package now. A preamble that is a
    TIFF header would point at what is no longer there: it becomes zeros, any other stays.

    Args:
        data: the source's file.
        codestreams: one a frame, in order.
        native_bytes: how many bytes of uncompressed Pixel Data the frames are.

    Raises:
        UnsupportedImageError: nested pixels, an icon's say, are compressed as the image's are, or
            the Pixel Data hold more than its frames.
        EncodeError: too large for a Basic Offset Table, or there is no SOP Class or Instance UID.
        ReadError: the data set, or the file meta information, is damaged.
    """
    try:
        return _rewritten(data, codestreams, transfer_syntax_uid, native_bytes)
    except (FastMammoError, MemoryError):
        raise
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it to
        raise ReadError(
            f"the header cannot be written anew: {type(error).__name__}: {error}; it is damaged"
        ) from error


def require_counted_frames(data: Bytes, frames: int) -> None:
    """Refuse encapsulated Pixel Data with more codestreams than frames, before any is decoded.

    Raises:
        UnsupportedImageError: the rest would be lost.
    """
    dataset, body, position = parse_header(data)
    first, stop = pixel_data_value(body, position, Coding(implicit=False, big_endian=False))
    _refuse_further_frames(dataset, body[first:stop], frames)


def _rewritten(
    data: Bytes, codestreams: Sequence[bytes], transfer_syntax_uid: str, native_bytes: int | None
) -> list[Bytes]:
    dataset, body, position = parse_header(data)
    start = 0 if _deflated(dataset) else _data_set_start(memoryview(data))
    coding = Coding(
        # what is written counts, not the label; no length of a first element is two capitals
        implicit=bytes(body[start + 4 : start + 6]) not in VRS,
        big_endian=dataset.original_encoding[1] is False,
        signed=dataset.get("PixelRepresentation") == 1,
    )
    first, stop = pixel_data_value(body, position, coding)
    if native_bytes is not None and stop - first > native_bytes + native_bytes % 2:
        raise UnsupportedImageError(
            f"Pixel Data (7FE0,0010) holds {stop - first} bytes, its frames {native_bytes}: what "
            "the rest is, nothing says"
        )
    if native_bytes is None:
        _refuse_further_frames(dataset, body[first:stop], len(codestreams))
        _refuse_nested_codestreams(body[start:position], body[stop:])
    if coding.implicit or coding.big_endian:
        before: Bytes = explicit_little_endian(body, start, position, coding)
        after: Bytes = explicit_little_endian(body, stop, len(body), coding, pixels=True)
    else:
        before, after = body[start : _group_start(dataset, position)], body[stop:]
    return [
        _preamble(data),
        b"DICM",
        _file_meta(dataset, transfer_syntax_uid),
        before,
        *_pixel_data(codestreams),
        after,
    ]


def pixel_data_value(body: memoryview, position: int, coding: Coding) -> tuple[int, int]:
    """Return where the value of the Pixel Data element at `position` begins and the element ends.

    Raises:
        ReadError: its fragments are damaged, or it is not coded as what comes before it.
    """
    if (bytes(body[position + 4 : position + 6]) not in (b"OB", b"OW", b"UN")) != coding.implicit:
        raise ReadError("Pixel Data (7FE0,0010) has a VR and the data set none, or the reverse")
    at = position + (4 if coding.implicit else 8)
    (length,) = struct.unpack_from(coding.order + "I", body, at)
    first = at = at + 4
    if length != _UNDEFINED:
        return first, min(at + int(length), len(body))
    while at + 8 <= len(body):
        group, element, length = struct.unpack_from("<HHI", body, at)
        at += 8
        if (group, element) == (0xFFFE, _SEQUENCE_END):
            return first, at
        if (group, element) != (0xFFFE, _ITEM):
            raise ReadError(f"({group:04X},{element:04X}) at byte {at - 8} among fragments")
        at += length
    return first, len(body)


def _refuse_further_frames(dataset: Dataset, value: memoryview, frames: int) -> None:
    """Refuse codestreams that Number of Frames does not count: they would be lost.

    Args:
        value: of Pixel Data: the Basic Offset Table's item, the fragments, the delimiter.
    """
    extended = dataset.get("ExtendedOffsetTable")
    counts = [len(extended) // 8 if isinstance(extended, bytes) else 0]
    at = begun = 0
    for number in count():
        group, element, length = struct.unpack_from("<HHI", value, at)
        if (group, element) != (0xFFFE, _ITEM):
            break
        if number == 0:
            counts.append(length // 4)
        else:
            begun += _begins_codestream(value[at + 8 : at + 16])
        at += 8 + length
        if at + 8 > len(value):
            break
    found = max(*counts, begun)
    if found > frames:
        raise UnsupportedImageError(
            f"Pixel Data (7FE0,0010) holds {found} codestreams, by its offset table or as its "
            f"fragments begin, Number of Frames (0028,0008) says {frames}: the rest would be lost"
        )


def _begins_codestream(head: memoryview) -> bool:
    """Whether a fragment's first 8 bytes begin a JPEG, a JPEG 2000 or an RLE frame."""
    segments, first = struct.unpack("<II", bytes(head).ljust(8, b"\0"))
    return (
        bytes(head[:4]) == b"\xff\x4f\xff\x51"
        or bytes(head[:3]) == b"\xff\xd8\xff"
        or bytes(head) == b"\0\0\0\x0cjP  "
        # PS3.5 G.5: how many segments, at most 15, then where the first is: behind this header
        or (1 <= segments <= 15 and first == 64)
    )


def _refuse_nested_codestreams(*pieces: memoryview) -> None:
    """Refuse nested pixels of the file's own transfer syntax: they would not be in the new one.

    They are Pixel Data of undefined length (PS3.5 A.4) in an item of whatever sequence: an icon's
    (PS3.3 C.7.6.1.1.6), a private thumbnail's, one of VR UN. They are found by their first bytes,
    as sequences of VR UN need not be readable; what only looks like it is copied, no more.
    """
    for piece in pieces:
        if found := _NESTED.search(piece):
            raise UnsupportedImageError(
                f"a nested Pixel Data (7FE0,0010), an icon's say, at byte {found.start()} of "
                f"{len(piece)}, holds pixels in the file's own transfer syntax: they would not be "
                "in the new one"
            )


def _deflated(dataset: Dataset) -> bool:
    return getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") == _DEFLATED


def _data_set_start(view: memoryview) -> int:
    """Return where the data set begins: behind preamble and file meta information, if any."""
    at = 132 if bytes(view[128:132]) == b"DICM" else 0
    while bytes(view[at : at + 2]) == b"\x02\x00":
        vr = bytes(view[at + 4 : at + 6])
        if vr not in VRS:  # against the standard in Implicit VR, which readers understand
            at += 8 + struct.unpack_from("<I", view, at + 4)[0]
        elif vr in LONG:
            at += 12 + struct.unpack_from("<I", view, at + 8)[0]
        else:
            at += 8 + struct.unpack_from("<H", view, at + 6)[0]
    return at


def _group_start(dataset: Dataset, position: int) -> int:
    """Return where the elements of Pixel Data's group begin: offset tables, a group length."""
    starts = [position]
    for tag in dataset.keys():  # noqa: SIM118 - a Dataset iterates over elements
        if tag >> 16 == 0x7FE0:
            raw = dataset.get_item(tag)
            vr = str(raw.VR).encode() if raw is not None else b""
            tell = getattr(raw, "value_tell", None) or getattr(raw, "file_tell", None)
            if tell:
                starts.append(int(tell) - (12 if vr in LONG else 8))
    return min(starts)


def _preamble(data: bytes | memoryview) -> bytes:
    head = bytes(data[:132])
    if head[128:] != b"DICM" or head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return bytes(128)
    return head[:128]


def _file_meta(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return the file meta information (PS3.10 7.1) with another transfer syntax and writer."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset(getattr(dataset, "file_meta", None) or {})
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"FASTMAMMO_{fastmammo.__version__}"[:16]
    for name, own in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        if not meta.get(name) and dataset.get(own):
            setattr(meta, name, dataset.get(own))
    buffer = DicomBytesIO()
    try:
        write_file_meta_info(buffer, meta, enforce_standard=True)
    except (ValueError, AttributeError) as error:
        raise EncodeError(
            f"the file meta information cannot be written: {' '.join(str(error).split())}; a DICOM "
            "file needs a SOP Class UID and a SOP Instance UID"
        ) from error
    return buffer.getvalue()


def _pixel_data(codestreams: Sequence[bytes]) -> list[Bytes]:
    """Return Pixel Data (7FE0,0010), one fragment a frame, its Basic Offset Table filled."""
    offsets, pieces, offset = [], [], 0
    for codestream in codestreams:
        pad = len(codestream) % 2
        offsets.append(offset)
        pieces += [struct.pack("<HHI", 0xFFFE, _ITEM, len(codestream) + pad), codestream]
        pieces.append(bytes(pad))  # after EOC, as PS3.5 A.4 has it
        offset += 8 + len(codestream) + pad
    if offsets[-1] > _LARGEST:
        raise EncodeError(
            f"the frames take {offset} bytes: more than a Basic Offset Table can tell, {_LARGEST}"
        )
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    return [
        _PIXEL_DATA + struct.pack("<2sHI", b"OB", 0, _UNDEFINED),
        struct.pack("<HHI", 0xFFFE, _ITEM, len(table)) + table,
        *pieces,
        struct.pack("<HHI", 0xFFFE, _SEQUENCE_END, 0),
    ]
