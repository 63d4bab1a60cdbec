"""What a mammogram's header says: plain, frozen values under DICOM's names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fastmammo.dicom.codestream import inspect_codestream
from fastmammo.dicom.facts import Codestream
from fastmammo.errors import ReadError

if TYPE_CHECKING:
    import numpy as np

    from fastmammo.dicom.frames import Frame
    from fastmammo.dicom.syntax import TransferSyntax


@dataclass(frozen=True)
class Window:
    """One Window Center (0028,1050) and Window Width (0028,1051), in modality units."""

    center: float
    width: float
    explanation: str = ""


@dataclass(frozen=True, eq=False)
class LookupTable:
    """One item of a Modality or VOI LUT Sequence (PS3.3 C.11.1, C.11.2).

    Input `first_value` maps to data[0]; inputs below and above the table take its ends.
    """

    first_value: int
    data: np.ndarray
    """uint16 (entries,): the output values."""
    bits: int
    """Bits of an output value, the third value of LUT Descriptor (0028,3002): 8 to 16."""
    explanation: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Mammogram:
    """The header facts of one DICOM image and each frame's codestream. No pixel is decoded.

    Attributes bear DICOM's names in snake_case; None or an empty string or tuple stands for an
    absent or empty attribute. Lengths are in millimetres, ages in years.
    """

    path: str | None
    transfer_syntax: TransferSyntax

    # identity
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    modality: str
    presentation_intent_type: str
    """"FOR PRESENTATION", "FOR PROCESSING" or ""."""
    manufacturer: str
    manufacturer_model_name: str
    patient_age: float | None
    """Years, from Patient's Age (0010,1010): 45Y, 18M, 10W, 3D."""
    breast_implant_present: str
    """"YES", "NO" or "" (0028,1300)."""

    # geometry of the exposure
    image_laterality: str
    """"L", "R", "B" or "": Image Laterality (0020,0062), else Laterality (0020,0060), else Frame
    Laterality in the functional groups (0020,9072)."""
    view_position: str
    """"CC", "MLO", "ML", ...: View Position (0018,5101), else from View Code Sequence."""
    view_modifiers: tuple[str, ...]
    """Meanings of View Modifier Code Sequence (0054,0222), in lower case."""

    # pixels
    rows: int
    columns: int
    number_of_frames: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    """0 unsigned, 1 two's complement (0028,0103)."""
    photometric_interpretation: str
    overlay_bits: bool
    """Whether an old overlay lies in the unused high bits of Pixel Data (60xx,0102)."""

    # spacing, (row, column) in mm
    pixel_spacing: tuple[float, float] | None
    imager_pixel_spacing: tuple[float, float] | None
    estimated_radiographic_magnification_factor: float | None

    # padding
    pixel_padding_value: int | None
    pixel_padding_range_limit: int | None

    # grey scale
    rescale_slope: float | None
    rescale_intercept: float | None
    modality_lut: LookupTable | None
    window_center: tuple[float, ...]
    window_width: tuple[float, ...]
    window_center_width_explanation: tuple[str, ...]
    voi_lut_function: str
    """"LINEAR", "LINEAR_EXACT", "SIGMOID", as written; "" stands for LINEAR (C.11.2.1.3)."""
    voi_luts: tuple[LookupTable, ...]
    presentation_lut_shape: str
    """"IDENTITY", "INVERSE" or ""."""

    described_frame: int
    """Of several frames, the one whose functional groups (window, rescale, spacing) are these."""
    frames: tuple[Frame, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    """What had to be settled while reading, each a sentence."""

    @property
    def transfer_syntax_uid(self) -> str:
        return self.transfer_syntax.uid

    @property
    def windows(self) -> tuple[Window, ...]:
        """The pairs of center and width; a single width serves every center."""
        widths = self.window_width
        if len(widths) == 1:
            widths = widths * len(self.window_center)
        names = self.window_center_width_explanation
        return tuple(
            Window(center, width, names[i] if i < len(names) else "")
            for i, (center, width) in enumerate(zip(self.window_center, widths, strict=False))
        )

    @property
    def spot_compression(self) -> bool:
        return any("spot" in name for name in self.view_modifiers)

    @property
    def magnification_view(self) -> bool:
        return any("magnif" in name for name in self.view_modifiers)

    @property
    def implant_displaced(self) -> bool:
        return any("implant displaced" in name for name in self.view_modifiers)

    @property
    def signed(self) -> bool:
        """Whether the header calls the stored values two's complement."""
        return self.pixel_representation == 1

    @cached_property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) spacing in the plane of the breast, in mm, or None where nothing says it.

        Pixel Spacing (0028,0030) where it differs from Imager Pixel Spacing (0018,1164), which is
        the detector's: the image was corrected or calibrated. Where both are the same it was not
        (PS3.3 10.7.1.1), and a magnification view is as large as on the detector: then, and where
        Pixel Spacing is absent, it is Imager Pixel Spacing divided by Estimated Radiographic
        Magnification Factor (0018,1114). That factor is the ratio of two distances from the
        source (C.8.11.7), which is never below 1: such a value, or one above 10, is not used, and
        without one there is no magnification. Pixel Spacing alone is taken as it is.
        """
        imager, own = self.imager_pixel_spacing, self.pixel_spacing
        if own is not None and (imager is None or not _same(own, imager)):
            return own
        if imager is None:
            return None
        factor = self.estimated_radiographic_magnification_factor
        if factor is None or not 1.0 <= factor <= 10.0:
            factor = 1.0
        return imager[0] / factor, imager[1] / factor

    @property
    def padding_range(self) -> tuple[int, int] | None:
        """(lowest, highest) stored value that is padding (PS3.3 C.7.5.1.1.2), or None."""
        if self.pixel_padding_value is None:
            return None
        limit = self.pixel_padding_range_limit
        ends = self.pixel_padding_value, self.pixel_padding_value if limit is None else limit
        return min(ends), max(ends)

    @cached_property
    def stored_range(self) -> tuple[int, int]:
        """(lowest, highest) stored value there can be, by Bits Stored and sign.

        Pixels are clipped to it after the last wavelet level; the look-up table spans it. A signed
        codestream under an unsigned header keeps its own range.
        """
        bits, signed = self.bits_stored, self.signed
        if not signed and self.frames and self.transfer_syntax.encapsulated:
            codestream = self.codestream(self.described_frame)
            if codestream.signed:
                bits, signed = codestream.precision, True
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)

    def without_frames(self) -> Mammogram:
        """Return the same facts without the frames' bytes."""
        slim = replace(self, frames=())
        slim.__dict__["stored_range"] = self.stored_range  # a cached property that needs a frame
        return slim

    def codestream(self, frame: int = 0) -> Codestream:
        """Return the header facts of a frame's codestream (format "raw" for plain arrays).

        Raises:
            ReadError: there is no such frame.
            CorruptCodestreamError, UnsupportedImageError: see `inspect_codestream`.
        """
        data = self.frame(frame).data
        if self.transfer_syntax.family in ("native", "rle"):
            return Codestream(
                format="raw" if self.transfer_syntax.family == "native" else "rle",
                rows=self.rows,
                columns=self.columns,
                precision=self.bits_allocated,
                signed=self.signed,
                length=len(data),
                big_endian=self.transfer_syntax.big_endian,
            )
        return inspect_codestream(data, self.transfer_syntax.family)

    def frame(self, index: int) -> Frame:
        """Return one frame's bytes.

        Raises:
            ReadError: there is no such frame.
        """
        if not 0 <= index < len(self.frames):
            raise ReadError(
                f"{self.path or 'the image'} has {len(self.frames)} frame(s); "
                f"frame {index} was asked for (counted from 0)"
            )
        return self.frames[index]

    def __repr__(self) -> str:
        return (
            f"Mammogram({self.image_laterality or '?'} {self.view_position or '?'}, "
            f"{self.rows} x {self.columns}, {self.bits_stored} of {self.bits_allocated} bit"
            f"{' signed' if self.signed else ''}, {self.photometric_interpretation}, "
            f"{self.transfer_syntax.name}, {len(self.frames)} frame(s), path={self.path!r})"
        )


def _same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two spacings are one, written with more or fewer digits."""
    return all(abs(x - y) <= 1e-3 * y for x, y in zip(a, b, strict=True))
