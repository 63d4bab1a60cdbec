"""Reading a DICOM file: takes a path, bytes or a file object, gives a `Mammogram`."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from typing import IO, TYPE_CHECKING, Union

from fastmammo.dicom.attributes import Attributes
from fastmammo.dicom.frames import Frame, encapsulated_frames, native_frames
from fastmammo.dicom.mammogram import Mammogram
from fastmammo.dicom.syntax import SYNTAXES, TransferSyntax
from fastmammo.errors import (
    FastMammoError,
    MissingAttributeError,
    NotDicomError,
    NotImageError,
    ReadError,
    SizeBombError,
    TruncatedFileError,
    UnsupportedImageError,
    UnsupportedSyntaxError,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes]]

_PIXEL_DATA = 0x7FE00010
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 1 << 31
"""A deflated file may grow to this many bytes: beyond it is an attack, not a mammogram."""


def read(source: Source) -> Mammogram:
    """Read a mammogram's header and find each frame's codestream. No pixel is decoded.

    Args:
        source: a path, the file's bytes, or a binary file object (read to its end).

    Raises:
        NotDicomError: the bytes are not DICOM.
        TruncatedFileError: the file ends too early.
        NotImageError: a DICOM object without an image (a report, a DICOMDIR).
        MissingAttributeError, UnsupportedImageError, UnsupportedSyntaxError: no usable image.
        OSError: the path cannot be opened or read.
    """
    data, path = _load(source)
    try:
        return _read(data, path)
    except FastMammoError as error:
        error.path = path
        raise


def _load(source: Source) -> tuple[bytes | memoryview, str | None]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).cast("B"), None
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        with open(path, "rb") as file:
            return file.read(), path
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return source.read(), name if isinstance(name, str) else None
    raise TypeError(
        f"cannot read a mammogram from {type(source).__name__}; supported are a path (str, "
        "os.PathLike), bytes, bytearray, memoryview and a binary file object"
    )


def _read(data: bytes | memoryview, path: str | None) -> Mammogram:
    dataset, body, position = _parse_header(data)
    attributes = Attributes(dataset)
    if position >= len(body) and dataset.get("Rows") is None:
        name = getattr(dataset.get("SOPClassUID"), "name", "") or "unknown SOP class"
        raise NotImageError(f"a DICOM object without an image ({name}): no Rows, no Pixel Data")
    syntax = _transfer_syntax(dataset)
    rows, columns = _size(attributes)
    samples = attributes.integer("SamplesPerPixel") or 1
    allocated = _required(attributes, "BitsAllocated", "(0028,0100)")
    stored = attributes.integer("BitsStored") or allocated
    representation = attributes.integer("PixelRepresentation") or 0
    if not 1 <= stored <= allocated:
        raise UnsupportedImageError(
            f"Bits Stored (0028,0101) is {stored}, wanted 1 to Bits Allocated, {allocated}"
        )
    count = attributes.integer("NumberOfFrames")
    count = 1 if count is None else count
    if count < 1:
        raise UnsupportedImageError(f"Number of Frames (0028,0008) is {count}, wanted 1 or more")
    frames = _frames(body, position, syntax, attributes, rows, columns, samples, allocated, count)
    text = attributes.text
    luts = attributes.lookup_tables("ModalityLUTSequence", signed=representation == 1)
    return Mammogram(
        path=path,
        transfer_syntax=syntax,
        sop_class_uid=text("SOPClassUID"),
        sop_instance_uid=text("SOPInstanceUID"),
        series_instance_uid=text("SeriesInstanceUID"),
        study_instance_uid=text("StudyInstanceUID"),
        patient_id=text("PatientID"),
        modality=text("Modality"),
        presentation_intent_type=text("PresentationIntentType").upper(),
        manufacturer=text("Manufacturer"),
        manufacturer_model_name=text("ManufacturerModelName"),
        patient_age=attributes.age_years(),
        breast_implant_present=text("BreastImplantPresent").upper(),
        image_laterality=(
            text("ImageLaterality") or text("Laterality") or text("FrameLaterality")
        ).upper()[:1],
        view_position=attributes.view_position(),
        view_modifiers=attributes.view_modifiers(),
        rows=rows,
        columns=columns,
        number_of_frames=count,
        samples_per_pixel=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_first(attributes.integer("HighBit"), stored - 1),
        pixel_representation=representation,
        photometric_interpretation=text("PhotometricInterpretation").upper(),
        overlay_bits=_overlay_in_high_bits(attributes, stored),
        pixel_spacing=attributes.spacing("PixelSpacing"),
        imager_pixel_spacing=attributes.spacing("ImagerPixelSpacing"),
        estimated_radiographic_magnification_factor=attributes.number(
            "EstimatedRadiographicMagnificationFactor"
        ),
        pixel_padding_value=_signed16(attributes.integer("PixelPaddingValue"), representation),
        pixel_padding_range_limit=_signed16(
            attributes.integer("PixelPaddingRangeLimit"), representation
        ),
        rescale_slope=attributes.number("RescaleSlope"),
        rescale_intercept=attributes.number("RescaleIntercept"),
        modality_lut=luts[0] if luts else None,
        window_center=attributes.numbers("WindowCenter"),
        window_width=attributes.numbers("WindowWidth"),
        window_center_width_explanation=attributes.texts("WindowCenterWidthExplanation"),
        voi_lut_function=text("VOILUTFunction").upper(),
        voi_luts=attributes.lookup_tables("VOILUTSequence", signed=representation == 1),
        presentation_lut_shape=text("PresentationLUTShape").upper(),
        frames=frames,
        notes=tuple(attributes.notes),
    )


def _parse_header(data: bytes | memoryview) -> tuple[Dataset, memoryview, int]:
    """Return (data set, the bytes it was parsed from, where Pixel Data's tag begins in them)."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    view = memoryview(data)
    preamble = bytes(view[128:132]) == b"DICM"
    if not preamble and not _looks_like_a_data_set(bytes(view[:8])):
        raise NotDicomError(
            f"not a DICOM file: no DICM at byte 128 and no data set at byte 0 ({len(view)} bytes)"
        )
    try:
        if _DEFLATED in bytes(view[:2048]):
            return _parse_deflated(view)
        stream = BytesIO(view)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=not preamble)
        return dataset, view, stream.tell()
    except FastMammoError:
        raise
    except InvalidDicomError as error:
        raise NotDicomError(f"not a DICOM file: {error}") from error
    except EOFError as error:
        raise TruncatedFileError(
            f"the DICOM header breaks off after {len(view)} bytes: the file is truncated"
        ) from error
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it to
        raise ReadError(
            f"the DICOM header cannot be read: {type(error).__name__}: {error}"
        ) from error


def _looks_like_a_data_set(head: bytes) -> bool:
    """Whether bytes without a preamble begin with a tag of group 0002 or 0008, either endian."""
    if len(head) < 8:
        return False
    little = int.from_bytes(head[0:2], "little"), int.from_bytes(head[2:4], "little")
    big = int.from_bytes(head[0:2], "big"), int.from_bytes(head[2:4], "big")
    return any(group in (2, 8) and element < 0x2000 for group, element in (little, big))


def _parse_deflated(view: memoryview) -> tuple[Dataset, memoryview, int]:
    """Inflate the data set (PS3.5 A.5) with a limit, which dcmread has not, and parse it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    stream = BytesIO(view)
    stream.seek(128 + 4)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(view[stream.tell() :], _MAX_INFLATED)
    except zlib.error as error:
        raise ReadError(f"the deflated data set cannot be inflated: {error}") from error
    if inflater.unconsumed_tail:
        raise SizeBombError(
            f"the deflated data set grows beyond {_MAX_INFLATED} bytes from {len(view)}: refused"
        )
    body = BytesIO(inflated)
    dataset = read_dataset(body, False, True, stop_when=lambda tag, vr, length: tag == _PIXEL_DATA)
    dataset.file_meta = FileMetaDataset(meta)
    return dataset, memoryview(inflated), body.tell()


def _transfer_syntax(dataset: Dataset) -> TransferSyntax:
    uid = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if not uid:
        # A bare data set: how it was parsed tells the uncompressed syntax it can be.
        implicit, little = dataset.original_encoding
        uid = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        if little is False:
            uid = "1.2.840.10008.1.2.2"
    if str(uid) not in SYNTAXES:
        name = getattr(uid, "name", "")
        raise UnsupportedSyntaxError(
            f"transfer syntax {uid}{f' ({name})' if name and name != uid else ''} is not one that "
            f"fastmammo decodes; it decodes {', '.join(s.name for s in SYNTAXES.values())}"
        )
    return SYNTAXES[str(uid)]


def _required(attributes: Attributes, keyword: str, tag: str) -> int:
    value = attributes.integer(keyword)
    if value is None:
        raise MissingAttributeError(f"{keyword} {tag} is absent or empty: the pixels have no shape")
    return value


def _size(attributes: Attributes) -> tuple[int, int]:
    rows = _required(attributes, "Rows", "(0028,0010)")
    columns = _required(attributes, "Columns", "(0028,0011)")
    if rows < 1 or columns < 1:
        raise UnsupportedImageError(
            f"Rows (0028,0010) is {rows} and Columns (0028,0011) is {columns}, "
            "wanted 1 or more of each"
        )
    return rows, columns


def _frames(
    body: memoryview,
    position: int,
    syntax: TransferSyntax,
    attributes: Attributes,
    rows: int,
    columns: int,
    samples: int,
    allocated: int,
    count: int,
) -> tuple[Frame, ...]:
    start, length = _pixel_data_element(body, position, syntax, attributes)
    if syntax.encapsulated:
        if length is not None:
            raise ReadError(
                f"Pixel Data (7FE0,0010) has a defined length ({length}) but {syntax} needs "
                "fragments: the transfer syntax or the element is wrong"
            )
        frames, notes = encapsulated_frames(
            body[start:],
            count,
            attributes.raw("ExtendedOffsetTable"),
            one_fragment_a_frame=syntax.family == "rle",
        )
        attributes.notes.extend(notes)
        return frames
    if length is None:
        raise ReadError(
            f"Pixel Data (7FE0,0010) is in fragments but {syntax} is uncompressed: "
            "the transfer syntax is wrong"
        )
    if start + length > len(body):
        raise TruncatedFileError(
            f"Pixel Data (7FE0,0010) claims {length} bytes, {len(body) - start} are left: "
            "the file is truncated"
        )
    size = rows * columns * samples * (-(-allocated // 8))
    if allocated == 1 or samples != 1:  # refused later, by `decode`; do not fail on their size
        return (Frame(body[start : start + length]),)
    return native_frames(body[start : start + length], count, size)


def _pixel_data_element(
    body: memoryview, position: int, syntax: TransferSyntax, attributes: Attributes
) -> tuple[int, int | None]:
    """Return (where the value begins, its length or None if undefined) of Pixel Data."""
    order = "big" if syntax.big_endian else "little"
    head = bytes(body[position : position + 12])
    if len(head) < 8:
        if attributes.raw("Rows") is not None and len(body) > position:
            raise TruncatedFileError("the file ends in the middle of Pixel Data's tag")
        raise UnsupportedImageError(
            "no Pixel Data (7FE0,0010): the object describes an image but holds no pixels"
        )
    group = int.from_bytes(head[0:2], order)  # type: ignore[arg-type]
    element = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if (group, element) != (0x7FE0, 0x0010):
        raise UnsupportedImageError(
            f"no Pixel Data (7FE0,0010) but ({group:04X},{element:04X}): float pixel data is not "
            "something that fastmammo decodes"
        )
    explicit = syntax.uid != "1.2.840.10008.1.2" and head[4:6].isalpha()
    at = 8 if explicit else 4
    if len(head) < at + 4:
        raise TruncatedFileError("the file ends in the middle of Pixel Data's header")
    length = int.from_bytes(head[at : at + 4], order)  # type: ignore[arg-type]
    return position + at + 4, None if length == 0xFFFFFFFF else length


def _overlay_in_high_bits(attributes: Attributes, stored: int) -> bool:
    """Whether an overlay of the retired kind shares the pixels' words (PS3.3-2004 C.9.2)."""
    for group in range(0x6000, 0x6020, 2):
        element = attributes.element(group, 0x0102)
        if element is not None and element >= stored:
            return True
    return False


def _signed16(value: int | None, representation: int) -> int | None:
    """Pixel Padding Value is US or SS; files with the wrong one hold the same 16 bits."""
    if value is not None and representation == 1 and value > 32767:
        return value - 65536
    if value is not None and representation == 0 and value < 0:
        return value + 65536
    return value


def _first(value: int | None, default: int) -> int:
    return default if value is None else value
