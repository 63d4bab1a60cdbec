"""Takes a DICOM file and its frames' codestreams, gives the file that holds these instead.

Every element but Transfer Syntax UID and Pixel Data stays (PS3.5 A.4): where the data set is coded
in Explicit VR Little Endian already, deflated or not, its bytes are copied as they lie there.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from fastmammo.dicom.source import parse_header
from fastmammo.encoding.data_set import LONG, VRS, Coding, explicit_little_endian
from fastmammo.errors import EncodeError, ReadError, UnsupportedImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_UNDEFINED = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xE000, 0xE0DD
_LARGEST = 0xFFFFFFFF
"""Of an entry of the Basic Offset Table, and of a fragment's length."""

Bytes = bytes | memoryview


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
    private ones too. A preamble that is a TIFF header would point at what is no longer there: it
    becomes zeros, any other stays.

    Args:
        data: the source's file.
        codestreams: one a frame, in order.
        native_bytes: how many bytes of uncompressed Pixel Data the frames are.

    Raises:
        UnsupportedImageError: an icon's pixels are compressed as the image's are, or the Pixel Data
            hold more than its frames.
        EncodeError: too large for a Basic Offset Table, or there is no SOP Class or Instance UID.
        ReadError: the data set is damaged.
    """
    dataset, body, position = parse_header(data)
    _refuse_compressed_icons(dataset)
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


def _refuse_compressed_icons(dataset: Dataset) -> None:
    """Refuse nested codestreams: they are of the old transfer syntax (PS3.3 C.7.6.1.1.6)."""
    for item in dataset.get("IconImageSequence") or ():
        if "PixelData" in item and item["PixelData"].is_undefined_length:
            raise UnsupportedImageError(
                "Icon Image Sequence (0088,0200) holds pixels in the file's own transfer syntax: "
                "they would not be in the new one"
            )


def _deflated(dataset: Dataset) -> bool:
    return getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") == _DEFLATED


def _data_set_start(view: memoryview) -> int:
    """Return where the data set begins: behind preamble and file meta information, if any."""
    at = 132 if bytes(view[128:132]) == b"DICM" else 0
    while bytes(view[at : at + 2]) == b"\x02\x00":
        if bytes(view[at + 4 : at + 6]) in LONG:
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
    """Return the file meta information (PS3.10 7.1) with another transfer syntax."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset(getattr(dataset, "file_meta", None) or {})
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
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
