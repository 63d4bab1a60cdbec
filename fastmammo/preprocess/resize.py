"""Resampling in fixed point: takes edges in full-resolution pixels, gives integer weights.

The weights are built once on the host, as cumulative shares rounded to 2^-16, so that those of an
output pixel sum to exactly 2^16 and the pixel is the same on every device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmammo.kernels.cpu import WEIGHT_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Taps(NamedTuple):
    """For each of n output pixels along one axis: the source samples it is made of."""

    starts: NDArray[np.int32]
    """(n,) first source sample."""
    counts: NDArray[np.int32]
    """(n,) how many samples."""
    weights: NDArray[np.int32]
    """(n, largest count); the first `counts[i]` of row i are used, and sum to 2^16."""


def fit(source: tuple[float, float], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (rows, columns) of source's aspect that fits target, at least 1 x 1."""
    scale = min(target[0] / source[0], target[1] / source[1])
    return (
        max(1, min(target[0], round(source[0] * scale))),
        max(1, min(target[1], round(source[1] * scale))),
    )


@functools.lru_cache(maxsize=256)
def taps(samples: int, first: float, last: float, out: int, level: int) -> Taps:
    """Return the weights that resample [first, last) to `out` pixels.

    Args:
        samples: how many samples the source has along the axis at this level.
        first, last: the edges of the kept part, in pixels of the full resolution.
        out: the number of output pixels.
        level: the source's wavelet level r. Sample k of the low-pass band lies at the centre of
            full-resolution pixel 2^r k, so the edge x lies at x / 2^r + (0.5 - 0.5 / 2^r) on the
            sample axis; taking the band for an ordinary smaller image shifts it by
            (2^r - 1) / 2 pixels and costs 5 to 21 dB.

    The kernel is the exact area mean (a box as wide as the output pixel) where every pixel was
    decoded and the image shrinks; where it grows, and on levels, whose samples are points rather
    than areas, the mean over the output pixel of the linear interpolant.
    """
    step = float(1 << level)
    shift = 0.5 - 0.5 / step
    edges: NDArray[Any] = (first + (last - first) * np.arange(out + 1) / out) / step + shift
    linear = level > 0 or last - first < out
    reach = 1.0 if linear else 0.5
    low = np.floor(edges[:-1] - 0.5 - reach).astype(np.int64)
    high = np.ceil(edges[1:] - 0.5 + reach).astype(np.int64)
    width = int((high - low).max()) + 1
    index = low[:, None] + np.arange(width)
    # The share of an output pixel that lies at or before sample k: cumulative by construction.
    centres = index + 0.5
    share = _integral(centres, edges[:-1, None], edges[1:, None], linear)
    total = share[:, -1:]
    fixed = np.floor(share / total * (1 << WEIGHT_BITS) + 0.5).astype(np.int64)
    fixed[:, -1] = 1 << WEIGHT_BITS
    weights = np.diff(fixed, axis=1, prepend=0)
    return _clamped(index, weights, samples)


def _integral(
    centres: NDArray[Any],
    start: NDArray[Any],
    stop: NDArray[Any],
    linear: bool,
) -> NDArray[Any]:
    """Return cumulative weights: the sum over samples up to each centre of its kernel's integral
    over [start, stop)."""

    def below(t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Integral of a sample's basis function from minus infinity to t."""
        if not linear:
            return np.clip(t + 0.5, 0.0, 1.0)
        t = np.clip(t, -1.0, 1.0)
        return np.where(t < 0, 0.5 * (1 + t) ** 2, 1 - 0.5 * (1 - t) ** 2)

    weights = below(stop - centres) - below(start - centres)
    return np.cumsum(np.maximum(weights, 0.0), axis=1)


def _clamped(index: NDArray[np.int64], weights: NDArray[np.int64], samples: int) -> Taps:
    """Fold weights beyond the ends onto the end samples, and drop leading and trailing zeros."""
    clamped = np.clip(index, 0, samples - 1)
    rows = np.arange(len(index))
    base = clamped[:, 0]
    folded = np.zeros_like(weights)
    np.add.at(folded, (rows[:, None], clamped - base[:, None]), weights)
    used = folded > 0
    lead = used.argmax(axis=1)
    last = folded.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    count = last - lead + 1
    columns = np.minimum(lead[:, None] + np.arange(count.max()), folded.shape[1] - 1)
    packed = np.take_along_axis(folded, columns, axis=1)
    packed[np.arange(count.max()) >= count[:, None]] = 0
    made = Taps((base + lead).astype(np.int32), count.astype(np.int32), packed.astype(np.int32))
    for array in made:
        array.setflags(write=False)
    return made
