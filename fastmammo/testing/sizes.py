"""The frames of common detectors: rows, columns and pitch."""

from __future__ import annotations

from typing import NamedTuple


class VendorSize(NamedTuple):
    """The frame of a detector: rows, columns, and mm between pixels."""

    rows: int
    columns: int
    pixel_spacing: float


VENDOR_SIZES = {
    "GE 19x23": VendorSize(2294, 1914, 0.10),
    "85 um 18x24": VendorSize(2776, 2082, 0.085),
    "GE 24x31": VendorSize(3062, 2394, 0.10),
    "Hologic 18x24": VendorSize(3328, 2560, 0.07),
    "Hologic 24x29": VendorSize(4096, 3328, 0.07),
    "MicroDose 24x26": VendorSize(5355, 4915, 0.05),
}
"""Frames that archives of screening hold, by detector and its centimetres."""
