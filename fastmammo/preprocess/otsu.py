"""Takes a histogram, gives the threshold between air and breast: Otsu on a logarithmic scale.

Integers on the host, and float64 only where one rounding cannot depend on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LINEAR = 64  # the scale is linear below 1/64 of the image's range and logarithmic above


@dataclass(frozen=True)
class Split:
    """Two classes of values, counted from the darkest that can be.

    threshold: air is up to this value, tissue above it.
    base: the darkest value, outliers aside. air, tissue: the classes' means.
    even: whether the air is as even as air is, and not the fat of a frame full of breast.
    own_air: pixels of air that are not padding, 0 unless nearly all of them are even.
    """

    threshold: int
    base: int
    air: int
    tissue: int
    even: bool
    own_air: int


def otsu(counts: NDArray[np.int64], padding: int, *, octaves: int = 0) -> Split | None:
    """Find Otsu's threshold (1979, IEEE Trans. SMC 9, 62-66) on a logarithmic scale.

    Args:
        counts: int64, pixels by value, padding left out; index 0 is the darkest that can be.
        padding: number of pixels of padding, which count as darkest.
        octaves: how far padding lies below the darkest value of the rest.

    Returns:
        None where nothing is to be split: no pixels, or all alike and no padding.

    On a linear scale the split of a large breast falls between fat and gland; on this one air
    lies further from fat than fat from gland.
    """
    values = np.flatnonzero(counts)
    counts = counts[values]
    if values.size == 0:
        return None
    base, cap = (int(values[quantile(counts, q)]) for q in (10, 995))
    if cap - base < 2:
        return Split(base - 1, base, base, cap, even=True, own_air=0) if padding else None
    codes = _codes(np.clip(values, base, cap) - base, cap - base) + 64 * octaves
    bins = np.zeros(int(codes[-1]) + 1, np.int64)
    np.add.at(bins, codes, counts)
    bins[0] += padding
    below, sums = np.cumsum(bins), np.cumsum(bins * np.arange(bins.size))
    above = below[-1] - below[:-1]
    # exact integers up to here; products and one division in float64 are the same everywhere
    apart = (sums[-1] * below[:-1] - sums[:-1] * below[-1]).astype(np.float64)
    between = apart * apart / np.maximum(below[:-1] * above, 1)
    best = np.flatnonzero(between == between.max())  # over empty bins all are equal: the middle
    cut = int(np.searchsorted(codes, int(best[(best.size - 1) // 2]), side="right"))
    air = _mean(values[:cut], counts[:cut]) if cut else base
    tissue = _mean(values[cut:], counts[cut:])
    # even: half of the class, or more, lies within an eighth of the way to the tissue
    run = np.concatenate(([0], np.cumsum(counts[:cut])))
    ends = np.searchsorted(values[:cut], values[:cut] + max(1, (tissue - air) // 8), side="right")
    densest = int((run[ends] - run[:-1]).max()) if cut else 0
    dark = int(run[-1])
    return Split(
        threshold=int(values[cut - 1]) if cut else base - 1,
        base=base,
        air=air,
        tissue=tissue,
        even=2 * (densest + padding) >= dark + padding,
        own_air=densest if 10 * densest >= 9 * dark else 0,
    )


def _codes(v: NDArray[np.int64], span: int) -> NDArray[np.int64]:
    """Map 0..span to a logarithmic scale of 64 steps an octave, piecewise linear."""
    x = v * (64 * _LINEAR) // span + 64
    octave = np.searchsorted(1 << np.arange(1, 20), x, side="right")  # floor(log2 x)
    codes: NDArray[np.int64] = (octave - 7) * 64 + ((x << 6) >> octave)
    return codes


def quantile(counts: NDArray[np.int64], thousandths: int) -> int:
    """Return the first index at or below which so many thousandths of the counts lie."""
    run = np.cumsum(counts)
    return int(np.searchsorted(run * 1000, int(run[-1]) * thousandths))


def _mean(values: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Return the mean of counted values, rounded down; 0 where there are none."""
    return int((values * counts).sum()) // max(1, int(counts.sum()))
