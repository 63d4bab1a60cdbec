"""Opening a source: takes a path, bytes or a file object, gives its data set up to Pixel Data."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from typing import IO, TYPE_CHECKING, Union

from fastmammo.errors import (
    NotDicomError,
    NotImageError,
    ReadError,
    SizeBombError,
    TruncatedFileError,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes]]

_PIXEL_DATA = 0x7FE00010
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_FILE = 1 << 32
"""Bytes; the largest tomosynthesis objects have about 2 GB."""
_MAX_INFLATED = 1 << 30
"""A deflated file may grow to this many bytes: beyond it is an attack, not a mammogram."""
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def load(source: Source) -> bytes | memoryview:
    """Return the source's bytes, if its first 132 say that it is DICOM.

    Raises:
        NotDicomError, SizeBombError: it is not, or it is larger than any mammogram.
        OSError, TypeError: it cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = memoryview(source).cast("B")
        _require_dicom(bytes(data[:132]), len(data))
        return data
    if isinstance(source, (str, os.PathLike)):
        # unbuffered: a buffer that holds the head would have all of the file copied once more
        with open(source, "rb", buffering=0) as file:
            # 132 bytes tell: a 30 GB archive beside the images must not be read into memory
            _require_dicom(file.read(132), os.fstat(file.fileno()).st_size)
            file.seek(0)
            return file.read()
    if hasattr(source, "read"):
        content = source.read()
        _require_dicom(bytes(content[:132]), len(content))
        return content
    raise TypeError(
        f"cannot read a mammogram from {type(source).__name__}; supported are a path (str, "
        "os.PathLike), bytes, bytearray, memoryview and a binary file object"
    )


def name_of(source: Source) -> str | None:
    """Return the source's path, where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else None


def _require_dicom(head: bytes, size: int) -> None:
    if not looks_like_dicom(head):
        raise NotDicomError(
            f"not a DICOM file: no DICM at byte 128 and no data set at byte 0 ({size} bytes)"
        )
    if size > _MAX_FILE:
        raise SizeBombError(f"a file of {size} bytes; the limit is {_MAX_FILE}")


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM's: the preamble and DICM (PS3.10 7.1), or, in a
    bare data set, a tag of group 0002 or 0008, of either byte order."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    little = int.from_bytes(head[0:2], "little"), int.from_bytes(head[2:4], "little")
    big = int.from_bytes(head[0:2], "big"), int.from_bytes(head[2:4], "big")
    return any(group in (2, 8) and element < 0x2000 for group, element in (little, big))


def parse_header(data: bytes | memoryview) -> tuple[Dataset, memoryview, int]:
    """Return (data set, the bytes it was parsed from, where Pixel Data's tag begins in them)."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_dataset

    view = memoryview(data)
    preamble = bytes(view[128:132]) == b"DICM"
    try:
        # bytes are shared, a view would be copied: as many bytes as the file has
        stream = BytesIO(data if isinstance(data, bytes) else view)
        if preamble:
            stream.seek(132)
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, n: tag >> 16 != 2)
            if meta.get("TransferSyntaxUID") == _DEFLATED:
                inflated = _inflate(view[stream.tell() :])
                stream = BytesIO(inflated)
                dataset = read_dataset(
                    stream, False, True, stop_when=lambda tag, vr, n: tag == _PIXEL_DATA
                )
                dataset.set_original_encoding(False, True)
                dataset.file_meta = FileMetaDataset(meta)
                return dataset, memoryview(inflated), stream.tell()
            stream.seek(0)
        found = pydicom.dcmread(stream, stop_before_pixels=True, force=not preamble)
        return found, view, stream.tell()
    except InvalidDicomError as error:
        raise NotDicomError(f"not a DICOM file: {error}") from error
    except EOFError as error:
        raise TruncatedFileError(
            f"the DICOM header breaks off after {len(view)} bytes: the file is truncated"
        ) from error


def _inflate(deflated: memoryview) -> bytes:
    """Inflate a data set (PS3.5 A.5) with a limit, which pydicom's reader has not."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(deflated, _MAX_INFLATED)
    except zlib.error as error:
        raise ReadError(f"the deflated data set cannot be inflated: {error}") from error
    if inflater.unconsumed_tail:
        raise SizeBombError(
            f"the deflated data set grows beyond {_MAX_INFLATED} bytes from {len(deflated)}: "
            "refused"
        )
    if not inflater.eof:
        raise TruncatedFileError("the deflated data set breaks off: the file is truncated")
    return inflated


def without_image(dataset: Dataset, size: int) -> ReadError:
    """Return why there is no image: an object of another kind, or an image cut off."""
    meta = getattr(dataset, "file_meta", {})
    uid = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    name = str(getattr(uid, "name", "") or "")
    known = bool(name) and name != uid  # not a private one, and not cut off in the middle
    if uid == _MEDIA_DIRECTORY or (known and "Image Storage" not in name):
        return NotImageError(f"a DICOM object without an image ({name}): no Rows, no Pixel Data")
    return TruncatedFileError(
        f"the file ends after {size} bytes, before Rows and Pixel Data"
        f"{f' of its {name}' if known else ''}: it is truncated, or no image"
    )
