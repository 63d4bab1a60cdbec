"""Takes stored values on a small level, gives the box that holds the breast, or says why not.

In this order: histogram and Otsu's threshold on a logarithmic scale; bright lines along the
frame's edges cut off; opening; the largest part; growth down to the brightness of the air;
box, laterality and flags. Pixels are only compared, counted and shifted, and the threshold is
found on the host from the histogram, so every device gives the same box.

Values named v below are stored values turned so that bright is tissue, counted from 0:
value - first, and last - value under MONOCHROME1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.kernels.components import components, dilated, histogram, largest, opened
from fastmammo.preprocess.otsu import Split, otsu, quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Box = tuple[int, int, int, int]

LONGER_SIDE = 640
"""The breast is sought on the first level whose longer side is at most this, in pixels."""

_TINY = 0.01  # share of the frame below which the largest part is a label or noise, no breast


@dataclass(frozen=True)
class Roi:
    """Where the breast is.

    box: (row0, column0, row1, column1) of the full frame, half open, margin included.
    laterality: "L" where the chest wall is at the left edge, "R" at the right, "" undecided; by
        content alone.
    threshold: Otsu's, as a stored value turned so that bright is tissue (under MONOCHROME1
        first + last - value): the brightest air.
    area_share: pixels of the breast / pixels of the frame, 0 to 1.
    flags: what a reader of the manifest should know; empty where all is well.
    mask: bool (level rows, level columns), the breast on the ROI level; None where none was found.
    """

    box: tuple[int, int, int, int]
    laterality: str
    threshold: int
    area_share: float
    flags: tuple[str, ...]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class _Image:
    """Stored values and how to read them. background: padding, never breast."""

    values: NDArray[np.integer[Any]]
    first: int
    last: int
    inverted: bool
    background: Mask

    @cached_property
    def padded(self) -> bool:
        """Whether there is any background."""
        return bool(self.background.any())

    def above(self, v: int) -> Mask:
        """Return the pixels brighter than v that are not padding."""
        bright: Mask = (
            self.values < self.last - v if self.inverted else self.values > self.first + v
        )
        return bright & ~self.background if self.padded else bright

    def counts(self, where: Mask | None = None) -> NDArray[np.int64]:
        """Count the pixels that are not padding, by v."""
        kept = ~self.background if where is None else where & ~self.background
        found = histogram(self.values, self.first, self.last, kept)
        return found[::-1] if self.inverted else found

    def lines(self, index: slice, axis: int) -> NDArray[np.int64]:
        """Return some rows (axis 0) or columns (axis 1) as v."""
        taken = (self.values[index] if axis == 0 else self.values[:, index].T).astype(np.int64)
        return self.last - taken if self.inverted else taken - self.first

    def part(self, box: Box) -> _Image:
        """Return the image inside a box."""
        at = slice(box[0], box[2]), slice(box[1], box[3])
        return _Image(self.values[at], self.first, self.last, self.inverted, self.background[at])


def roi_level(rows: int, columns: int) -> int:
    """Return the wavelet level on which the breast is sought.

    Args:
        rows, columns: of the full frame.

    Returns:
        The smallest r at which the longer side, ceil(n / 2^r), is at most 640; 0 for small
        images. It depends on nothing else, so that every scale and syntax gives the same box.
    """
    level = 0
    while -(-max(rows, columns) // (1 << level)) > LONGER_SIDE:
        level += 1
    return level


def find_breast(
    small: NDArray[np.integer[Any]],
    *,
    level: int,
    rows: int,
    columns: int,
    first: int,
    last: int,
    inverted: bool,
    padding: tuple[int, int] | None,
    margin_pixels: int,
) -> Roi:
    """Find the breast on a small level.

    Args:
        small: uint8, uint16 or int16 (ceil(rows / 2^level), ceil(columns / 2^level)), stored
            values clipped to first..last; sample k lies at full-resolution pixel 2^level * k.
        level: of `small`.
        rows, columns: of the full frame.
        first, last: range of the stored values.
        inverted: True for MONOCHROME1 (PS3.3 C.7.6.3.1.2): the lowest value is white.
        padding: (lowest, highest) stored value of Pixel Padding Value and Range Limit
            (PS3.3 C.7.5.1.1.2): these pixels are background.
        margin_pixels: full-resolution pixels added on every side of the box.

    Returns:
        The box, never empty and inside the frame. Where no breast is found it is the full frame,
        and a flag "full frame: ..." says why: blank, tiny, no air.
    """
    padded = np.zeros(small.shape, np.bool_)
    if padding is not None:
        padded = (small >= padding[0]) & (small <= padding[1])
    flags: list[str] = []
    image, counts = _with_constant_background(_Image(small, first, last, inverted, padded), flags)
    split = _split(image, counts)
    if split is None:
        return _full_frame(rows, columns, first, "blank")
    inside = _inside_borders(image, split)
    if inside != (0, 0, *small.shape):
        flags.append("bright border")
        image = image.part(inside)
        split = _split(image, image.counts())
        if split is None:
            return _full_frame(rows, columns, first, "blank")
    main = largest(opened(image.above(split.threshold), _radius(image.values.shape)))
    if main is not None and image.background.any() and sum(_touched(main)) >= 3:
        main, split = _without_padding(image, main, split, flags)
    threshold = first + split.threshold
    if main is None:
        return _full_frame(rows, columns, threshold, "blank")
    share = np.count_nonzero(main) / small.size
    if share < _TINY:
        return _full_frame(rows, columns, threshold, "tiny", share)
    if not split.even:
        return _full_frame(rows, columns, threshold, "no air", share)
    walls = inside[1] == 0, inside[3] == small.shape[1]  # whether a side is the frame's own edge
    part = _grown(image, main, split, walls)
    if all(_touched(part)):
        flags.append("touches all edges")
    mask = np.zeros(small.shape, np.bool_)
    mask[inside[0] : inside[2], inside[1] : inside[3]] = part
    box = _to_full(_tight(mask), inside, small.shape, level, rows, columns, margin_pixels)
    return Roi(
        box, _laterality(part), threshold, np.count_nonzero(mask) / small.size, tuple(flags), mask
    )


def _full_frame(rows: int, columns: int, threshold: int, why: str, share: float = 0.0) -> Roi:
    """Return the whole frame as the box, saying why."""
    flags = (f"full frame: {why}",) if why == "no air" else (why, f"full frame: {why}")
    return Roi((0, 0, rows, columns), "", threshold, share, flags, None)


def _with_constant_background(image: _Image, flags: list[str]) -> tuple[_Image, NDArray[np.int64]]:
    """Count the values, and make a value that fills much of the frame background: it is padding.

    Suppressed air and what surrounds a collimated field are one value each, which may be brighter
    than fat, and some machines do not declare it. The white of an implant is one value too, but
    the brightest.
    """
    counts = image.counts()
    total = int(counts.sum())
    if total == 0:
        return image, counts
    background = image.background
    darkest, peak = int(np.flatnonzero(counts)[0]), int(np.argmax(counts))
    bright = quantile(counts, 900)
    for v, least in ((darkest, 32), (peak, 8)):
        if not 0 < total <= counts[v] * least:
            continue
        others = counts.copy()
        others[v] = 0  # it may fill so much of the frame that it is the 90th percentile itself
        if v < quantile(others, 900):
            stored = image.last - v if image.inverted else image.first + v
            background = background | (image.values == stored)
            if 2 * v > bright:
                flags.append(f"constant background {stored}")
            counts[v] = 0
    image = _Image(image.values, image.first, image.last, image.inverted, background)
    return image, counts


def _radius(shape: tuple[int, ...]) -> int:
    """Return the opening's radius in pixels: lines thinner than about twice this are no breast."""
    return max(max(shape) // 200, 1 if max(shape) >= 64 else 0)


def _split(image: _Image, counts: NDArray[np.int64]) -> Split | None:
    """Split air from breast; None if all is alike.

    Padding is dark. If there is air of its own beside it, an even class of some size, they are
    one class; if not, padding lies far below the darkest fat.
    """
    padding = int(np.count_nonzero(image.background))
    found = otsu(counts, padding)
    if found is None or padding == 0 or found.own_air * 20 >= image.values.size:
        return found
    return otsu(counts, padding, octaves=3)


def _inside_borders(image: _Image, split: Split) -> Box:
    """Return the box that is left when bright lines are cut off the frame's edges.

    These are film borders and light that came in beside the collimator: lines nearly all bright,
    and either even and brighter than tissue, or at an end a few lines on. Where the line is
    brighter than tissue by half from end to end, a little air beside it is end enough; but without
    any it may be the glow of the chest wall.
    """
    bright = image.above(split.threshold)
    glare = split.tissue + (split.tissue - split.air) // 2
    ends: list[int] = []
    for axis in (0, 1):
        lines, length = image.values.shape[axis], image.values.shape[1 - axis]
        most = lines // 12
        tolerance = (split.tissue - split.air) // 8
        for order in (slice(0, most + 4), slice(None, -most - 5, -1)):
            cut = 0
            taken = image.lines(order, axis)
            near = (bright[order] if axis == 0 else bright[:, order].T).sum(axis=1) * 100 // length
            for n in range(most):
                if near[n] < 95:
                    if n > cut + 1:
                        break
                    continue
                middle = int(np.sort(taken[n])[length // 2])
                same = int((np.abs(taken[n] - middle) <= tolerance).sum())
                even = same * 10 >= length * 9 and middle > split.tissue
                glaring = int((taken[n] > glare).sum()) * 20 >= length * 19
                if even or int(near[n : n + 4].min()) < (95 if glaring else 60):
                    cut = n + 1
            # a sample of a level spans several pixels: the next one may be half border
            ends.append(cut + 1 if cut else 0)
    rows, columns = image.values.shape
    return ends[0], ends[2], rows - ends[1], columns - ends[3]


def _without_padding(
    image: _Image, main: Mask, split: Split, flags: list[str]
) -> tuple[Mask, Split]:
    """Redo Otsu without the padding, and keep that if the breast then touches fewer edges.

    Beside much darker padding the air itself may pass for tissue.
    """
    again = otsu(image.counts(), 0)
    if again is not None and again.even:
        other = largest(opened(image.above(again.threshold), _radius(main.shape)))
        if other is not None and sum(_touched(other)) < sum(_touched(main)):
            flags.append("otsu without padding")
            return other, again
    return main, split


def _grown(image: _Image, main: Mask, split: Split, walls: tuple[bool, bool]) -> Mask:
    """Grow the largest part to what is brighter than nearly all of the air far from it.

    The skin line is darker than Otsu's threshold, as little tissue lies in the beam. What hangs
    on the chest wall above and below is thin and was opened away: it comes back too. A bright
    line along the frame's edge must not.
    """
    longer, radius = max(main.shape), _radius(main.shape)
    thick = dilated(main, radius)
    near = dilated(thick, max(1, longer // 25) - radius)
    far = ~near & ~image.above(split.threshold)
    bright = image.above(_air_limit(image, far, split))
    glare = image.above(split.tissue + (split.tissue - split.air) // 2) & ~thick
    band = 2 * radius + 1
    glare[band:-band, band:-band] = False
    labels, _ = components(main | (bright & (near | _hanging(main, bright, walls)) & ~glare))
    found: Mask = labels == labels[np.unravel_index(int(np.argmax(main)), main.shape)]
    return found


def _air_limit(image: _Image, far: Mask, split: Split) -> int:
    """Return the v that nearly all of the air lies at or below."""
    counts, area = image.counts(far), int(np.count_nonzero(far))
    known = int(counts.sum())
    if area * 100 < far.size:  # too little air to go by
        return split.base + (split.threshold - split.base) // 2
    if known * 10 < area:  # the air is padding: what is not padding is breast
        return -1
    limit = max(split.base + (split.threshold - split.base) // 8, quantile(counts, 995))
    return min(limit, split.threshold)


def _hanging(main: Mask, bright: Mask, walls: tuple[bool, bool]) -> Mask:
    """Return short runs of bright pixels along rows, from a side that `main` lies against.

    Not beside a border that was cut off, of which a rim may be left.
    """
    out = np.zeros(main.shape, np.bool_)
    reach = min(max(main.shape) // 16, main.shape[1] - 1)
    for wall, turn in zip(walls, (slice(None), slice(None, None, -1)), strict=True):
        if wall and main[:, turn][:, 0].any():
            run = np.logical_and.accumulate(bright[:, turn][:, : reach + 1], axis=1)
            out[:, turn][:, : reach + 1] |= run & ~run[:, -1:]
    return out


def _touched(mask: Mask) -> tuple[bool, bool, bool, bool]:
    """Return whether a mask touches the top, bottom, left and right edge."""
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    top, bottom, left, right = (bool(edge.any()) for edge in edges)
    return top, bottom, left, right


def _tight(mask: Mask) -> Box:
    """Return the half-open box of a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1


def _to_full(
    box: Box,
    inside: Box,
    shape: tuple[int, ...],
    level: int,
    rows: int,
    columns: int,
    margin: int,
) -> Box:
    """Map a box on the small level to full-resolution pixels and add the margin.

    Sample k stands for the pixels [2^r k - 2^(r-1), 2^r k + 2^(r-1)), and a part breast one at
    the edge may be too dark: hence half a sample more. Where the box ends at a border that was
    cut off, one more comes in, as the sample there is part breast.
    """
    one, half = 1 << level, (1 << level) >> 1
    found: list[int] = []
    for axis, last in ((0, rows), (1, columns)):
        start, stop = (box[axis] << level) - 2 * half, box[axis + 2] << level
        if box[axis] == inside[axis] > 0:
            start -= one
        if box[axis + 2] == inside[axis + 2] < shape[axis]:
            stop += one
        elif box[axis + 2] == shape[axis]:
            stop = last
        found += [max(0, start - margin), min(last, stop + margin)]
    return found[0], found[2], found[1], found[3]


def _laterality(mask: Mask) -> str:
    """Return the side that the breast lies against, or leans to where it touches no edge."""
    rows, columns = mask.shape
    left, right = int(mask[:, 0].sum()), int(mask[:, -1].sum())
    top, bottom = int(mask[0].sum()), int(mask[-1].sum())
    if max(left, right) * 10 >= rows:
        return "L" if left >= 2 * right else "R" if right >= 2 * left else ""
    if max(top, bottom) * 4 >= columns:
        return ""  # the chest wall is above or below
    lean = int((mask.sum(axis=0) * (2 * np.arange(columns) + 1 - columns)).sum())
    if abs(lean) * 5 < int(mask.sum()) * columns:
        return ""
    return "L" if lean < 0 else "R"
