"""Takes stored values, gives a valid Digital Mammography DICOM object in any transfer syntax."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastmammo.dicom.syntax import SYNTAXES
from fastmammo.errors import ConfigError
from fastmammo.testing.encode import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from pydicom import Dataset

JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.90"

MAMMOGRAPHY_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"

OffsetTable = Literal["basic", "empty", "extended", "wrong"]

# Table CID 4014 of PS3.16, and the SNOMED code of the breast
_VIEW_CODES = {
    "CC": ("399162004", "cranio-caudal"),
    "MLO": ("399368009", "medio-lateral oblique"),
    "ML": ("399260004", "medio-lateral"),
    "LM": ("399352003", "latero-medial"),
}

# PS3.3 C.7.6.1.1.5: the method that made an image lossy
_LOSSY_METHODS = {
    "jpeg": "ISO_10918_1",
    "jpeg-ls": "ISO_14495_1",
    "jpeg2000": "ISO_15444_1",
    "htj2k": "ISO_15444_15",
}


def write_dicom(
    pixels: NDArray[Any],
    *,
    path: str | Path | None = None,
    transfer_syntax_uid: str = JPEG2000_LOSSLESS,
    bits_stored: int = 12,
    photometric_interpretation: str = "MONOCHROME2",
    window_center: float | Sequence[float] | None = None,
    window_width: float | Sequence[float] | None = None,
    voi_lut_function: str | None = None,
    laterality: str = "L",
    view_position: str = "CC",
    patient_id: str = "phantom",
    seed: int = 0,
    pixel_spacing: float = 0.07,
    fragments: int = 1,
    offset_table: OffsetTable = "basic",
    attributes: Mapping[str, Any] | None = None,
    **coding: Any,
) -> bytes:
    """A Digital Mammography X-Ray Image, For Presentation (PS3.3 A.27), as the bytes of its file.

    The same arguments give the same bytes.

    Args:
        pixels: the stored values as they are to be written, (rows, columns) or
            (frames, rows, columns), uint8, uint16, int8 or int16. For MONOCHROME1 they are given
            inverted already: see `Phantom.stored`. A signed dtype gives PixelRepresentation 1.
        path: where to write the file too; its folder must exist. None writes none.
        transfer_syntax_uid: any of `fastmammo.dicom.syntax.SYNTAXES`.
        bits_stored: BitsStored; BitsAllocated is that of the dtype.
        photometric_interpretation: "MONOCHROME1" or "MONOCHROME2".
        window_center, window_width: in stored values; several give several windows. By default
            the whole range of `bits_stored`.
        voi_lut_function: "LINEAR", "LINEAR_EXACT", "SIGMOID", or None to leave it out.
        laterality: ImageLaterality, "L" or "R".
        view_position: ViewPosition, "CC" or "MLO" mostly.
        patient_id: PatientID; the study's UID is derived from it.
        seed: the image's UIDs are derived from it, with the patient, side and view.
        pixel_spacing: mm between pixels at the detector, written as ImagerPixelSpacing and
            PixelSpacing.
        fragments: fragments a frame, for an encapsulated syntax.
        offset_table: "basic" or "extended" (PS3.5 A.4), "empty" (an item of length 0), or
            "wrong" (a basic one that points elsewhere, as some writers leave behind).
        attributes: DICOM keyword → value, set last; the value None removes the attribute.
        coding: settings of `encode` (precision, jp2, tile, levels, predictor, quality ...).

    Returns:
        The file, preamble and file meta information included.

    Raises:
        ConfigError: a setting that is not allowed.
    """
    syntax = SYNTAXES.get(transfer_syntax_uid)
    if syntax is None:
        raise ConfigError(
            f"write_dicom: transfer_syntax_uid {transfer_syntax_uid}; "
            f"wanted one of {list(SYNTAXES)}"
        )
    frames = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    codestreams = [
        encode(frame, transfer_syntax_uid, bits_stored=bits_stored, **coding) for frame in frames
    ]
    dataset = _dataset(transfer_syntax_uid, (patient_id, laterality, view_position, str(seed)))
    dataset.PatientID = patient_id
    dataset.PatientName = f"Phantom^{patient_id}"
    _describe_view(dataset, laterality, view_position, pixel_spacing)
    _describe_pixels(dataset, frames, bits_stored, photometric_interpretation)
    low = -(1 << (bits_stored - 1)) if pixels.dtype.kind == "i" else 0
    dataset.WindowCenter = _decimal(
        low + (1 << (bits_stored - 1)) if window_center is None else window_center
    )
    dataset.WindowWidth = _decimal(1 << bits_stored if window_width is None else window_width)
    if voi_lut_function is not None:
        dataset.VOILUTFunction = voi_lut_function
    _describe_loss(dataset, frames, codestreams, transfer_syntax_uid, coding)
    if syntax.encapsulated:
        _encapsulate(dataset, codestreams, fragments, offset_table)
    else:
        _embed(dataset, codestreams)
    for keyword, value in (attributes or {}).items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    if path is not None:
        Path(path).write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _dataset(transfer_syntax_uid: str, identity: tuple[str, ...]) -> Dataset:
    """The patient, study, series, equipment and SOP common modules."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    patient_id = identity[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    dataset.SOPClassUID = MAMMOGRAPHY_FOR_PRESENTATION
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["fastmammo instance", *identity])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["fastmammo study", patient_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["fastmammo series", *identity])
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = (
        "20200101"
    )
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = "120000"
    dataset.PatientBirthDate = "19600101"
    dataset.PatientSex = "F"
    dataset.PatientAge = "060Y"
    dataset.StudyID = "1"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = "fastmammo phantom"
    dataset.ManufacturerModelName = "fastmammo.testing"
    return dataset


def _describe_view(
    dataset: Dataset, laterality: str, view_position: str, pixel_spacing: float
) -> None:
    """The DX series, anatomy, positioning and mammography image modules (PS3.3 C.8.11)."""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.BodyPartExamined = "BREAST"
    dataset.OrganExposed = "BREAST"
    dataset.ImageLaterality = laterality
    dataset.ViewPosition = view_position
    across = "A" if laterality == "L" else "P"  # PS3.3 C.7.6.1.1.1: rows run from or to the chest
    down = "R" if laterality == "L" else "L"  # the lateral side is above in a CC view
    dataset.PatientOrientation = [across, down if view_position == "CC" else f"F{down}"]
    dataset.AnatomicRegionSequence = [_code("76752008", "Breast")]
    if view_position in _VIEW_CODES:
        view = _code(*_VIEW_CODES[view_position])
        view.ViewModifierCodeSequence = []
        dataset.ViewCodeSequence = [view]
    dataset.PositionerType = "MAMMOGRAPHIC"
    dataset.DetectorType = "DIRECT"
    dataset.ImagerPixelSpacing = _decimal([pixel_spacing, pixel_spacing])
    dataset.PixelSpacing = _decimal([pixel_spacing, pixel_spacing])
    dataset.EstimatedRadiographicMagnificationFactor = "1"
    dataset.PartialView = "NO"
    dataset.BreastImplantPresent = "NO"
    dataset.AcquisitionContextSequence = []


def _code(value: str, meaning: str) -> Dataset:
    """A SNOMED CT code item (PS3.3 8.8)."""
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = "SCT"
    code.CodeMeaning = meaning
    return code


def _describe_pixels(
    dataset: Dataset, frames: NDArray[Any], bits_stored: int, photometric_interpretation: str
) -> None:
    """The image pixel and DX image modules (PS3.3 C.7.6.3, C.8.11.3)."""
    inverse = photometric_interpretation == "MONOCHROME1"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric_interpretation
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.BitsAllocated = 8 * frames.dtype.itemsize
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = int(frames.dtype.kind == "i")
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1 if inverse else 1
    dataset.RescaleIntercept = "0"
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "US"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.BurnedInAnnotation = "NO"


def _describe_loss(
    dataset: Dataset,
    frames: NDArray[Any],
    codestreams: Sequence[bytes],
    transfer_syntax_uid: str,
    coding: Mapping[str, Any],
) -> None:
    """What the general image module says of lossy compression (PS3.3 C.7.6.1.1.5)."""
    syntax = SYNTAXES[transfer_syntax_uid]
    lossy = not syntax.lossless and not coding.get("reversible")
    dataset.LossyImageCompression = "01" if lossy or coding.get("point_transform") else "00"
    if lossy:
        ratio = frames.nbytes / sum(map(len, codestreams))
        dataset.LossyImageCompressionRatio = _decimal(round(ratio, 2))
        dataset.LossyImageCompressionMethod = _LOSSY_METHODS[syntax.family]


def _embed(dataset: Dataset, frames: Sequence[bytes]) -> None:
    """Native pixel data (PS3.5 8.1.1): OW, or OB for bytes, whose order no swap may change."""
    data = b"".join(frames)
    dataset.PixelData = data + b"\x00" * (len(data) % 2)
    implicit = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    wide = dataset.BitsAllocated > 8 or implicit
    dataset["PixelData"].VR = "OW" if wide else "OB"


def _encapsulate(
    dataset: Dataset, frames: Sequence[bytes], fragments: int, offset_table: OffsetTable
) -> None:
    """Encapsulated pixel data (PS3.5 A.4) with the offset table that was asked."""
    from pydicom.encaps import encapsulate, encapsulate_extended

    shortest = min(map(len, frames))
    most = math.ceil(shortest / 2)  # a fragment holds an even number of bytes, and some
    if not 1 <= fragments <= most:
        raise ConfigError(f"write_dicom: fragments {fragments}; wanted 1 to {most}")
    if offset_table == "extended":
        if fragments != 1:
            raise ConfigError(
                f"write_dicom: fragments {fragments} with an extended offset table; "
                "wanted 1 (PS3.3 C.7.6.3.1.8)"
            )
        data, offsets, lengths = encapsulate_extended(list(frames))
        dataset.ExtendedOffsetTable = offsets
        dataset.ExtendedOffsetTableLengths = lengths
    else:
        data = encapsulate(
            list(frames), fragments_per_frame=fragments, has_bot=offset_table != "empty"
        )
    if offset_table == "wrong":
        table = np.frombuffer(data, dtype="<u4", count=len(frames), offset=8) + 6
        data = data[:8] + table.astype("<u4").tobytes() + data[8 + table.nbytes :]
    dataset.PixelData = data
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _decimal(value: Any) -> Any:
    """A number, or several, as DICOM decimal strings of at most 16 characters (PS3.5 6.2)."""
    if isinstance(value, (int, float)):
        return f"{value:.10g}"
    return [f"{number:.10g}" for number in value]
