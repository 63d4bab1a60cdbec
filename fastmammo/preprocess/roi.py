"""Takes stored values on a small level, gives the box that holds the breast, or says why not.

In this order: histogram and Otsu's threshold on a logarithmic scale; bright lines along the
frame's edges cut off; opening; the largest part; growth down to the brightness of the air;
box, laterality and flags. Pixels are only compared, counted and shifted, and the threshold is
found on the host from the histogram, so every device gives the same box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.kernels.components import components, histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Counts = NDArray[np.int64]
    Box = tuple[int, int, int, int]

LONGER_SIDE = 640
"""The breast is sought on the largest level whose longer side is at most this, in pixels."""

_TINY = 0.01  # share of the frame below which the largest part is no breast but a label or noise
_FLAT = 64  # the scale is linear below 1/64 of the image's range and logarithmic above


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


@dataclass(frozen=True)
class Roi:
    """Where the breast is.

    box: (row0, column0, row1, column1) of the full frame, half open, margin included.
    laterality: "L" where the chest wall is at the left edge, "R" at the right, "" undecided;
        by content alone.
    threshold: Otsu's; seed pixels are brighter. In stored values where bright is tissue: under
        MONOCHROME1 compare with first + last - value.
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
    """The small image and how to read it; `values` compare as stored, answers are bright-is-tissue."""

    values: NDArray[np.generic]
    first: int
    last: int
    inverted: bool
    excluded: Mask | None  # padding: always background

    def above(self, threshold: int) -> Mask:
        """Return the pixels brighter than a threshold that are not padding."""
        if self.inverted:
            mask: Mask = self.values < self.first + self.last - threshold
        else:
            mask = self.values > threshold
        return mask if self.excluded is None else mask & ~self.excluded

    def counts(self, where: Mask | None = None) -> Counts:
        """Count v' - first over the pixels that are not padding."""
        kept = where if self.excluded is None else ~self.excluded
        if where is not None and self.excluded is not None:
            kept = where & ~self.excluded
        values = self.values if kept is None else self.values[kept]
        found = histogram(values, self.first, self.last)
        return found[::-1] if self.inverted else found


def find_breast(
    small: NDArray[np.generic],
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
        The box, never empty and inside the frame. Without a breast it is the full frame, and a
        flag "full frame: ..." says why.
    """
    excluded = None
    if padding is not None:
        excluded = (small >= padding[0]) & (small <= padding[1])
    image = _Image(small, first, last, inverted, excluded)
    image = _with_constant_background(image)
    everywhere = np.ones(small.shape, np.bool_)
    split = _otsu(image.counts(), small.size)
    if split is None:
        return _full_frame(rows, columns, first, "blank")
    inside = _without_borders(image, image.above(first + split.threshold), everywhere, split)
    if not inside.all():
        split = _otsu(image.counts(inside), int(inside.sum())) or split
    seed = image.above(first + split.threshold) & inside
    main = _largest(_opened(seed, _radius(small.shape)))
    if main is None:
        return _full_frame(rows, columns, first + split.threshold, "blank")
    flags: list[str] = []
    if excluded is not None and sum(_touched(main)) >= 3:
        again = _otsu(image.counts(inside), 0)
        if again is not None and again.flat:
            other = _largest(
                _opened(image.above(first + again.threshold) & inside, _radius(small.shape))
            )
            if other is not None and sum(_touched(other)) < sum(_touched(main)):
                main, split = other, again
                seed = image.above(first + again.threshold) & inside
                flags.append("otsu without padding")
    threshold = first + split.threshold
    share = int(main.sum()) / small.size
    if share < _TINY:
        return _full_frame(rows, columns, threshold, "tiny", share)
    mask = _grown(image, main, seed, inside, split)
    share = int(mask.sum()) / small.size
    box = _to_full(_tight(mask), small.shape, level, rows, columns, margin_pixels)
    if all(_touched(mask)):
        flags.append("touches all edges")
    return Roi(box, _laterality(mask[_slices(inside)]), threshold, share, tuple(flags), mask)


def _with_constant_background(image: _Image) -> _Image:
    """Exclude a value that fills so much of the frame that it can only be padding not declared.

    Suppressed air and the surroundings of a collimated field are one value, and that value may
    be brighter than fat. A saturated implant is one value too, but the brightest.
    """
    counts = image.counts()
    total = int(counts.sum())
    if total == 0:
        return image
    peak = int(np.argmax(counts))
    darkest = int(np.flatnonzero(counts)[0])
    for index, least in ((darkest, 32), (peak, 8)):
        if counts[index] * least >= total and index < _quantile(counts, 900):
            value = image.last - index if image.inverted else image.first + index
            same = image.values == value
            excluded = same if image.excluded is None else image.excluded | same
            image = _Image(image.values, image.first, image.last, image.inverted, excluded)
    return image


@dataclass(frozen=True)
class _Split:
    """Two classes: up to `threshold` air, above it tissue. In v' - first, where bright is tissue.

    base: the darkest value, outliers aside. air, tissue: means of the classes.
    flat: whether the darker class is as even as air is.
    """

    threshold: int
    base: int
    air: int
    tissue: int
    flat: bool
    eta: float


def _otsu(counts: Counts, total: int) -> _Split | None:
    """Otsu's threshold (1979, IEEE Trans. SMC 9, 62-66) on a logarithmic scale; None if blank.

    Args:
        counts: by value, padding left out.
        total: pixels in all; those not in `counts` are padding and count as darkest. 0: leave out.

    On a linear scale the split of a large breast falls between fat and gland; on this one air
    lies further from fat than fat from gland.
    """
    kept = int(counts.sum())
    if kept == 0:
        return None
    base, cap = _quantile(counts, 10), _quantile(counts, 995)
    if cap - base < 2:
        return None
    codes = _codes(counts.size, base, cap)
    bins = np.bincount(codes, weights=counts, minlength=int(codes[-1]) + 1).astype(np.int64)
    bins[0] += max(0, total - kept)
    below = np.cumsum(bins)
    sums = np.cumsum(bins * np.arange(bins.size))
    below, above, sums, whole = below[:-1], below[-1] - below[:-1], sums[:-1], sums[-1]
    if not ((below > 0) & (above > 0)).any():
        return None
    # exact integers up to here; one square and one division in float64 are the same everywhere
    apart = (whole * below - sums * (below + above)).astype(np.float64)
    weight = np.where((below > 0) & (above > 0), below * above, 1)
    between = apart * apart / weight
    best = np.flatnonzero(between == between.max())  # a run of empty bins: take its middle
    code = int(best[(best.size - 1) // 2])
    threshold = int(np.searchsorted(codes, code, side="right")) - 1
    values = np.arange(counts.size)
    dark, bright = counts[: threshold + 1], counts[threshold + 1 :]
    air = int((dark * values[: threshold + 1]).sum() // max(1, dark.sum()))
    tissue = int((bright * values[threshold + 1 :]).sum() // max(1, bright.sum()))
    width = max(1, (tissue - air) // 8)
    run = np.cumsum(dark)
    run[width:] -= run[:-width].copy()
    flat = int(run.max()) * 10 >= 3 * int(dark.sum())
    n = bins.sum(); k = np.arange(bins.size); mu=(bins*k).sum()/n; var=(bins*(k-mu)**2).sum()/n
    return _Split(threshold, base, air, tissue, flat, float(between.max()/n/n/var))


def _quantile(counts: Counts, thousandths: int) -> int:
    """Return the lowest index at or below which so many thousandths of the counts lie."""
    run = np.cumsum(counts)
    return int(np.searchsorted(run * 1000, int(run[-1]) * thousandths))


def _codes(size: int, base: int, cap: int) -> NDArray[np.int64]:
    """Map indices 0..size-1 to a logarithmic scale of 64 steps an octave, piecewise linear."""
    x = np.clip(np.arange(size, dtype=np.int64) - base, 0, cap - base)
    x = x * (64 * _FLAT) // (cap - base) + 64
    octave = np.searchsorted(1 << np.arange(1, 20), x, side="right")  # floor(log2 x)
    return (octave - 7) * 64 + ((x << 6) >> octave)


def _radius(shape: tuple[int, ...]) -> int:
    """Return the opening's radius: lines thinner than twice this are not breast."""
    longer = max(shape)
    return max(longer // 200, 1 if longer >= 64 else 0)


def _dilated(mask: Mask, radius: int) -> Mask:
    """Return the pixels within `radius` rows and columns of the mask."""
    out = mask
    for axis in (0, 1):
        reach = 0
        while reach < radius:
            step = min(2 * reach + 1, radius - reach)
            source = out if axis == 0 else out.T
            wider = source.copy()
            wider[step:] |= source[:-step]
            wider[:-step] |= source[step:]
            out = wider if axis == 0 else wider.T
            reach += step
    return out


def _opened(mask: Mask, radius: int) -> Mask:
    """Return the union of the squares of side 2 radius + 1 that fit into the mask and the frame."""
    if radius == 0:
        return mask
    core = ~_dilated(~mask, radius)
    core[:radius] = core[-radius:] = False
    core[:, :radius] = core[:, -radius:] = False
    return _dilated(core, radius)


def _largest(mask: Mask) -> Mask | None:
    """Return the largest part, the first of equals; None if the mask is empty."""
    labels, sizes = components(mask)
    if sizes.size < 2:
        return None
    found: Mask = labels == 1 + int(np.argmax(sizes[1:]))
    return found


def _without_borders(image: _Image, seed: Mask, inside: Mask, split: _Split) -> Mask:
    """Cut bright lines off the frame's edges: film borders, collimator leaks, light stripes.

    A line is a border if nearly all of it is bright, and either even, or gone a few lines on.
    """
    inside = inside.copy()
    values = image.values.astype(np.int32) - image.first
    if image.inverted:
        values = image.last - image.first - values
    tolerance = (split.tissue - split.air) // 8
    for turned in (False, True):
        v, s, keep = (a.T if turned else a for a in (values, seed, inside))
        lines, length = v.shape
        most = lines // 12
        bright = s.sum(axis=1)
        for order in (range(lines), range(lines - 1, -1, -1)):
            cut = 0
            for n in range(most):
                line = v[order[n]]
                if bright[order[n]] * 20 < length * 19:
                    if n >= cut + 2:
                        break
                    continue
                middle = int(np.sort(line)[length // 2])
                even = int((abs(line - middle) <= tolerance).sum()) * 10 >= length * 9
                gone = any(
                    bright[order[m]] * 10 < length * 6 for m in range(n + 1, min(n + 4, lines))
                )
                if (even and middle > split.tissue) or gone:
                    cut = n + 1
            for n in range(min(cut, lines)):
                keep[order[n]] = False
    return inside


def _grown(image: _Image, main: Mask, seed: Mask, inside: Mask, split: _Split) -> Mask:
    """Grow the largest part to what is brighter than nearly all of the air far from it.

    The skin line is darker than Otsu's threshold where little tissue lies in the beam. What
    hangs on the chest wall above and below is thin and was opened away, and comes back too; a
    bright line along the frame's edge does not.
    """
    longer = max(main.shape)
    radius = _radius(main.shape)
    edge = np.ones(main.shape, np.bool_)
    band = 2 * radius + 1
    edge[band:-band, band:-band] = False
    glare = edge & image.above(image.first + split.tissue + (split.tissue - split.air) // 2)
    glare &= ~_dilated(main, radius)
    fold = _hanging(main, seed, longer // 16)
    allowed = (_dilated(main, max(1, longer // 25)) & inside) & ~glare
    far = inside & ~_dilated(main, max(1, longer // 25)) & ~seed
    low = _air_limit(image, far, split)
    mask = main | (allowed & image.above(image.first + low)) | (fold & inside & ~glare)
    labels, _ = components(mask)
    found: Mask = labels == labels.reshape(-1)[int(np.argmax(main))]
    return found


def _air_limit(image: _Image, far: Mask, split: _Split) -> int:
    """Return the value (in v' - first) that nearly all of the air stays below or at."""
    counts = image.counts(far)
    known, area = int(counts.sum()), int(far.sum())
    if area * 100 < far.size:  # too little air to go by
        return split.base + (split.threshold - split.base) // 2
    if known * 10 < area:  # the air is padding: whatever is not padding is breast
        return -1
    low = max(split.base + (split.threshold - split.base) // 8, _quantile(counts, 995))
    return min(low, split.threshold)


def _hanging(main: Mask, seed: Mask, reach: int) -> Mask:
    """Return runs of seed pixels, at most `reach` long, that start at a side that `main` touches."""
    out = np.zeros(seed.shape, np.bool_)
    for turn in (slice(None), slice(None, None, -1)):
        if main[:, turn][:, 0].any():
            run = np.logical_and.accumulate(seed[:, turn], axis=1)
            run &= ~run[:, min(reach, run.shape[1] - 1), np.newaxis]
            out[:, turn] |= run
    return out


def _touched(mask: Mask) -> tuple[bool, bool, bool, bool]:
    """Return whether a mask touches the top, bottom, left and right edge."""
    return bool(mask[0].any()), bool(mask[-1].any()), bool(mask[:, 0].any()), bool(mask[:, -1].any())


def _tight(mask: Mask) -> Box:
    """Return the half-open box of a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1


def _slices(inside: Mask) -> tuple[slice, slice]:
    """Return the rows and columns that are left of the frame."""
    row0, column0, row1, column1 = _tight(inside)
    return slice(row0, row1), slice(column0, column1)


def _to_full(
    box: Box, shape: tuple[int, ...], level: int, rows: int, columns: int, margin: int
) -> Box:
    """Map a box on the small level to full-resolution pixels and add the margin.

    Sample k stands for the pixels [2^r k - 2^(r-1), 2^r k + 2^(r-1)).
    """
    half = (1 << level) >> 1
    row0, column0 = ((n << level) - half - margin for n in box[:2])
    row1, column1 = ((n << level) - half + margin + (level == 0) * 0 for n in box[2:])
    if box[2] == shape[0]:
        row1 = rows
    if box[3] == shape[1]:
        column1 = columns
    return max(0, row0), max(0, column0), min(rows, row1), min(columns, column1)


def _laterality(mask: Mask) -> str:
    """Return the side that the breast lies against: the chest wall's."""
    rows, columns = mask.shape
    left, right = int(mask[:, 0].sum()), int(mask[:, -1].sum())
    for side, own, other in (("L", left, right), ("R", right, left)):
        if own * 10 >= rows and own >= 2 * other:
            return side
    if max(left, right) * 10 >= rows or max(int(mask[0].sum()), int(mask[-1].sum())) * 4 >= columns:
        return ""
    lean = int((mask.sum(axis=0) * (2 * np.arange(columns) + 1 - columns)).sum())
    if abs(lean) * 5 < int(mask.sum()) * columns:
        return ""
    return "L" if lean < 0 else "R"


def _full_frame(rows: int, columns: int, threshold: int, why: str, share: float = 0.0) -> Roi:
    """Return the whole frame as the box, saying why."""
    return Roi((0, 0, rows, columns), "", threshold, share, (why, f"full frame: {why}"), None)
