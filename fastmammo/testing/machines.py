"""The machines of an RSNA-shaped set: what each writes into its files.

Ids, sites, shares, the syntaxes' and photometric mixture and the missing PixelPaddingValue of 190,
210 and 216 are those of the RSNA Screening Mammography set. Size, syntax and window function by
machine are known of 21 and 29 alone (from headers that others published); the rest is chosen so
that everything occurs and SIGMOID has a fifth of the images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.testing.sizes import VENDOR_SIZES, VendorSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.testing.phantom import Phantom

_JPEG2000, _JPEG_LOSSLESS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"

PADDING_RANGE = 3044, 3204
"""Stored values of the background of machine 29, whose tissue lies below them (MONOCHROME1)."""


@dataclass(frozen=True)
class Machine:
    """One mammography unit.

    share: its part of the images. size: its usual frame. voi_lut_function: None where it is left
    out. windows: how many window values a file has. declares_padding: whether the files have
    PixelPaddingValue. high_padding: suppressed air is `PADDING_RANGE` in place of white or black.
    coding: settings of `encode`.
    """

    machine_id: int
    site_id: int
    share: float
    size: VendorSize
    transfer_syntax_uid: str
    manufacturer: str
    photometric_interpretation: str = "MONOCHROME2"
    voi_lut_function: str | None = None
    windows: int = 1
    bits_stored: int = 12
    declares_padding: bool = True
    has_pixel_spacing: bool = True
    high_padding: bool = False
    coding: dict[str, Any] = field(default_factory=dict)


_GE, _GE_LARGE = VENDOR_SIZES["GE 19x23"], VENDOR_SIZES["GE 24x31"]
_HOLOGIC, _HOLOGIC_LARGE = VENDOR_SIZES["Hologic 18x24"], VENDOR_SIZES["Hologic 24x29"]
_BOXED = {"jp2": True, "precision": 16}  # as the pixels of the set were written

MACHINES: tuple[Machine, ...] = (
    Machine(49, 1, 0.430, _HOLOGIC, _JPEG2000, "Hologic", windows=3, coding=_BOXED),
    Machine(
        48, 2, 0.159, _GE, _JPEG_LOSSLESS, "GE", "MONOCHROME1", voi_lut_function="LINEAR", windows=3
    ),
    Machine(
        29,
        2,
        0.151,
        VENDOR_SIZES["MicroDose 24x26"],
        _JPEG2000,
        "Sectra",
        "MONOCHROME1",
        voi_lut_function="SIGMOID",
        windows=4,
        bits_stored=16,
        high_padding=True,
        coding=_BOXED,
    ),
    Machine(
        21,
        2,
        0.150,
        VENDOR_SIZES["85 um 18x24"],
        _JPEG2000,
        "Siemens",
        has_pixel_spacing=False,
        coding=_BOXED,
    ),
    Machine(93, 1, 0.035, _GE_LARGE, _JPEG_LOSSLESS, "GE", voi_lut_function="LINEAR"),
    Machine(
        216,
        1,
        0.035,
        _GE,
        _JPEG_LOSSLESS,
        "GE",
        voi_lut_function="SIGMOID",
        declares_padding=False,
    ),
    Machine(210, 1, 0.019, _GE, _JPEG2000, "GE", declares_padding=False, coding=_BOXED),
    Machine(
        170,
        1,
        0.017,
        _HOLOGIC_LARGE,
        _JPEG2000,
        "Hologic",
        voi_lut_function="SIGMOID",
        coding=_BOXED,
    ),
    Machine(190, 1, 0.003, _GE_LARGE, _JPEG_LOSSLESS, "GE", "MONOCHROME1", declares_padding=False),
    Machine(197, 1, 0.001, _HOLOGIC_LARGE, _JPEG_LOSSLESS, "Hologic"),
)


def stored_by(machine: Machine, image: Phantom) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """The values that a machine stores for an image, and what `write_dicom` says about them.

    Args:
        machine: one of `MACHINES`.
        image: of 12 bits.

    Returns:
        Stored values (rows, columns) uint16, and keyword arguments of `write_dicom`.
    """
    inverted = machine.photometric_interpretation == "MONOCHROME1"
    center, width = image.window_center, image.window_width
    attributes: dict[str, Any] = {"Manufacturer": machine.manufacturer}
    if machine.high_padding:
        low, high = PADDING_RANGE
        pixels = np.uint16(low - 1) - (image.pixels.astype(np.uint32) * (low - 1) // 4095).astype(
            np.uint16
        )
        if image.padding is not None:
            pixels[(image.pixels == image.padding) & ~image.mask] = low
        center, width = (low - 1) * (1 - center / 4096), width * (low - 1) / 4096
        attributes |= {"PixelPaddingValue": low, "PixelPaddingRangeLimit": high}
    else:
        pixels = image.stored(machine.photometric_interpretation)
        center = 4095 - center if inverted else center
        padding = image.stored_padding(machine.photometric_interpretation)
        if machine.declares_padding and padding is not None:
            attributes["PixelPaddingValue"] = padding
    if not machine.has_pixel_spacing:
        attributes["PixelSpacing"] = None
    if image.label_box is not None:
        attributes["BurnedInAnnotation"] = "YES"
    if image.nuisances.implant:
        attributes["BreastImplantPresent"] = "YES"
    centers = [round(center + 218 * step, 2) for step in (0, 0, 1, -1)][: machine.windows]
    return pixels, {
        "photometric_interpretation": machine.photometric_interpretation,
        "bits_stored": machine.bits_stored,
        "window_center": centers if machine.windows > 1 else centers[0],
        "window_width": [width] * machine.windows if machine.windows > 1 else width,
        "voi_lut_function": machine.voi_lut_function,
        "pixel_spacing": image.pixel_spacing,
        "attributes": attributes,
    }
