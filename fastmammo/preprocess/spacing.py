"""Takes a crop box and a spacing in mm, gives the part of the frame that whole pixels of it cover.

An output has whole pixels, a box any length. Rather than rounding the size and missing the spacing
by up to half a pixel in the length, the box is widened to a whole number of output pixels: its
edges then lie between the frame's pixels, which the resampler's weights can express exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastmammo.errors import DoesNotFitError, NoPixelSpacingError

if TYPE_CHECKING:
    from fastmammo.dicom import Mammogram

_SLACK = 1e-6
"""Of an output pixel: a length that is whole but for rounding takes no pixel more."""


def require_spacing(m: Mammogram) -> tuple[float, float]:
    """Return (row, column) spacing of the frame in mm.

    Raises:
        NoPixelSpacingError: the header tells none.
    """
    if m.spacing_mm is None:
        raise NoPixelSpacingError(
            "no pixel spacing: the header has neither Pixel Spacing (0028,0030) nor Imager Pixel "
            "Spacing (0018,1164), so that no size in mm is known; leave spacing_mm out to fit the "
            "image to the size instead"
        )
    return m.spacing_mm


def box_at_spacing(
    box: tuple[int, int, int, int],
    frame: tuple[int, int],
    frame_mm: tuple[float, float],
    wanted_mm: float,
    size: tuple[int, int],
    side: str,
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Return the box that is resampled, in pixels of the frame, and its (rows, columns) at the
    wanted spacing.

    Along the columns the edge of the chest wall stays where it is and the other one moves; without
    a known side, and along the rows, both move alike. Where that would pass the frame's edge the
    box is shifted inward; where the frame is too short to be shifted in, the last, incomplete pixel
    is left out. So the box loses nothing of the breast, but for less than one output pixel where it
    takes up the whole frame.

    Args:
        box: (row0, column0, row1, column1) that is to be kept.
        frame: (rows, columns).
        frame_mm: (row, column) spacing of the frame's pixels; each axis is taken by its own.
        wanted_mm: spacing of the output's pixels, along both axes.
        size: (rows, columns) of the output.
        side: "L", the chest wall is at the box's first column, "R", at its last, or "".

    Raises:
        DoesNotFitError: it needs more pixels than `size`, or the frame is less than one pixel.
    """
    steps = wanted_mm / frame_mm[0], wanted_mm / frame_mm[1]
    counts = (
        _count(box[2] - box[0], frame[0], steps[0]),
        _count(box[3] - box[1], frame[1], steps[1]),
    )
    if 0 in counts:
        length = min(frame[0] * frame_mm[0], frame[1] * frame_mm[1])
        raise DoesNotFitError(
            f"the frame is {length:.4g} mm wide or high, less than one pixel of the {wanted_mm:g} "
            "mm asked for: choose a finer spacing_mm"
        )
    if counts[0] > size[0] or counts[1] > size[1]:
        lengths = (box[2] - box[0]) * frame_mm[0], (box[3] - box[1]) * frame_mm[1]
        fits = max(lengths[0] / size[0], lengths[1] / size[1])
        raise DoesNotFitError(
            f"at {wanted_mm:g} mm a pixel the image needs {counts[0]}x{counts[1]} pixels, size is "
            f"{size[0]}x{size[1]}: choose a larger size, a coarser spacing_mm (from "
            f"{math.ceil(fits * 1000) / 1000:g} for this image), or crop to the breast with a "
            "smaller margin"
        )
    row0, row1 = _span(box[0], box[2], frame[0], counts[0] * steps[0], 0.5)
    fixed = {"L": 0.0, "R": 1.0}.get(side, 0.5)
    column0, column1 = _span(box[1], box[3], frame[1], counts[1] * steps[1], fixed)
    return (row0, column0, row1, column1), counts


def _count(length: int, limit: int, step: float) -> int:
    """Return how many pixels of `step` cover a length, or fit into the limit where that is less."""
    return min(math.ceil(length / step - _SLACK), math.floor(limit / step + _SLACK))


def _span(first: int, last: int, limit: int, length: float, share: float) -> tuple[float, float]:
    """Return a span of `length` in [0, limit]: `share` of what it is longer goes before `first`."""
    start = first - (length - (last - first)) * share
    start = max(0.0, min(start, limit - length))
    return start, min(start + length, float(limit))
