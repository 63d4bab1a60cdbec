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

    Returns:
        mean_score, share, count: lists from the lowest scores up, `bins` long or as many as there
        are values.
    """
    y, p = checked(labels, scores)
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
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
