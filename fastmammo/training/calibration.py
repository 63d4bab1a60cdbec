"""Takes labels and scores, tells whether a score of 0.1 means one cancer in ten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.training.measures import checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def calibration_curve(
    labels: ArrayLike, scores: ArrayLike, bins: int = 10
) -> dict[str, list[float]]:
    """Return mean score and share of positives in bins of (nearly) equal counts.

    With 2 % positives nearly all scores are small: bins of equal width would leave most empty.
    Equal scores are in one bin, so that the order of the rows tells nothing.

    Returns:
        mean_score, share, count: lists from the lowest scores up, `bins` long, or fewer where
        there are fewer distinct scores.
    """
    y, p = checked(labels, scores)
    values, counts = np.unique(p, return_counts=True)
    if not len(values):
        return {"mean_score": [], "share": [], "count": []}
    order = np.argsort(p, kind="stable")
    ends = np.cumsum(counts)
    # each bin goes on to the end of the run of equal scores that its wanted end falls into
    wanted = np.arange(1, bins + 1) * len(p) / bins
    cuts = np.unique(ends[np.searchsorted(ends, wanted - 1e-9)])
    parts = np.split(order, cuts[:-1])
    return {
        "mean_score": [float(p[part].mean()) for part in parts],
        "share": [float(y[part].mean()) for part in parts],
        "count": [len(part) for part in parts],
    }


def calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error: mean distance of score and share, weighted by count.

    Naeini, Cooper and Hauskrecht, AAAI 2015, here over bins of equal counts.
    """
    curve = calibration_curve(labels, scores, bins)
    count = np.array(curve["count"], np.float64)
    apart = np.abs(np.array(curve["mean_score"]) - np.array(curve["share"]))
    return float((apart * count).sum() / count.sum())
