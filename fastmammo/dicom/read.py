"""Reading a DICOM file: takes a path, bytes or a file object, gives a `Mammogram`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.dicom.attributes import Attributes
from fastmammo.dicom.frames import Frame, encapsulated_frames, native_frames
from fastmammo.dicom.mammogram import Mammogram
from fastmammo.dicom.source import Source, load, name_of, parse_header, without_image
from fastmammo.dicom.syntax import SYNTAXES, TransferSyntax
from fastmammo.errors import (
    FastMammoError,
    MissingAttributeError,
    ReadError,
    TruncatedFileError,
    UnsupportedImageError,
    UnsupportedSyntaxError,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read(source: Source, *, frame: int = 0) -> Mammogram:
    """Read a mammogram's header and find each frame's codestream. No pixel is decoded.

    Args:
        source: a path, the file's bytes, or a binary file object (read to its end).
        frame: of a multi-frame object, the frame whose functional groups (window, rescale, spacing,
            laterality) the facts are taken from; all frames' bytes are found in any case.

    Raises:
        NotDicomError: the bytes are not DICOM.
        TruncatedFileError: the file ends too early.
        NotImageError: a DICOM object without an image (a report, a DICOMDIR).
        MissingAttributeError, UnsupportedImageError, UnsupportedSyntaxError: no usable image.
        OSError: the path cannot be opened or read.
    """
    path = name_of(source)
    try:
        return _read(load(source), path, frame)
    except FastMammoError as error:
        error.path = path
        raise


def _read(data: bytes | memoryview, path: str | None, frame: int) -> Mammogram:
    try:
        return _describe(data, path, frame)
    except FastMammoError:
        raise
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it to
        raise ReadError(
            f"the DICOM header cannot be read: {type(error).__name__}: {error}"
        ) from error


def _describe(data: bytes | memoryview, path: str | None, frame: int) -> Mammogram:
    dataset, body, position = parse_header(data)
    attributes = Attributes(dataset, frame)
    if position >= len(body) and dataset.get("Rows") is None:
        raise without_image(dataset, len(data))
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
    frames = _frames(
        body,
        position,
        syntax,
        attributes,
        rows,
        columns,
        samples,
        allocated,
        count,
    )
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
        presentation_intent_type=attributes.presentation_intent_type(),
        manufacturer=text("Manufacturer"),
        manufacturer_model_name=text("ManufacturerModelName"),
        patient_age=attributes.age_years(),
        breast_implant_present=text("BreastImplantPresent").upper(),
        image_laterality=attributes.image_laterality(),
        view_position=attributes.view_position(),
        view_modifiers=attributes.view_modifiers(),
        rows=rows,
        columns=columns,
        number_of_frames=count,
        samples_per_pixel=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_high_bit(attributes, stored, allocated),
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
        # its input is the modality step's output, whose sign is settled where both are known
        voi_luts=attributes.lookup_tables("VOILUTSequence", signed=False),
        presentation_lut_shape=text("PresentationLUTShape").upper(),
        described_frame=frame,
        frames=frames,
        notes=tuple(attributes.notes),
    )


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
    start, length, vr = _pixel_data_element(body, position, syntax, attributes)
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
    if allocated == 8 and vr == "OW" and syntax.big_endian and length % 2 == 0:
        # Two pixels a word, the first in the low byte, the word's bytes swapped (PS3.5 8.1.2).
        body = memoryview(bytearray(body))
        body[start : start + length : 2], body[start + 1 : start + length : 2] = (
            bytes(body[start + 1 : start + length : 2]),
            bytes(body[start : start + length : 2]),
        )
    size = rows * columns * samples * (-(-allocated // 8))
    if allocated == 1 or samples != 1:  # refused later, by `decode`; do not fail on their size
        return (Frame(body[start : start + length]),)
    return native_frames(body[start : start + length], count, size)


def _pixel_data_element(
    body: memoryview,
    position: int,
    syntax: TransferSyntax,
    attributes: Attributes,
) -> tuple[int, int | None, str]:
    """Return (where the value begins, its length or None if undefined, its VR) of Pixel Data."""
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
    # What is written counts, not the label. As a length, these letters would be an odd number.
    vr = head[4:6].decode("latin-1")
    implicit = vr not in ("OB", "OW", "UN")
    if implicit != (syntax.uid == "1.2.840.10008.1.2"):
        attributes.notes.append(
            f"the transfer syntax is {syntax}, Pixel Data has {'no' if implicit else 'a'} VR"
        )
    at = 4 if implicit else 8
    if len(head) < at + 4:
        raise TruncatedFileError("the file ends in the middle of Pixel Data's header")
    length = int.from_bytes(head[at : at + 4], order)  # type: ignore[arg-type]
    return position + at + 4, None if length == 0xFFFFFFFF else length, vr


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


def _high_bit(attributes: Attributes, stored: int, allocated: int) -> int:
    value = attributes.integer("HighBit")
    if value is None or stored - 1 <= value < allocated:
        return stored - 1 if value is None else value
    attributes.notes.append(
        f"High Bit (0028,0102) is {value}, allowed are {stored - 1} to {allocated - 1}: "
        f"{stored - 1} is taken"
    )
    return stored - 1
