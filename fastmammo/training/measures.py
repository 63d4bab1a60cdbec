"""Takes labels and scores, gives one figure: probabilistic F1, best threshold, sensitivities.

Labels are 0 or 1, scores probabilities in [0, 1], both one-dimensional and of equal length. A
figure that is not defined (of one class only, say) is None. scikit-learn computes what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fastmammo.errors import TableError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Counts(NamedTuple):
    """A confusion matrix at one threshold: images (or breasts)."""

    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int


def checked(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return labels and scores as float64, both (N,).

    Raises:
        TableError: lengths differ, a label that is not 0 or 1, a score that is not in [0, 1].
    """
    y, p = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise TableError(
            f"metrics: {y.shape} labels and {p.shape} scores; wanted one score for each label, "
            "both one-dimensional"
        )
    bad = ~((y == 0) | (y == 1))
    if bad.any():
        raise TableError(
            f"metrics: {np.count_nonzero(bad)} of {len(y)} labels are not 0 or 1 (the first: "
            f"{y[bad][0]}, at {int(np.flatnonzero(bad)[0])}); leave unlabelled rows out"
        )
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        raise TableError(
            f"metrics: {np.count_nonzero(bad)} of {len(p)} scores are not in [0, 1] (the first: "
            f"{p[bad][0]}, at {int(np.flatnonzero(bad)[0])}); give probabilities, not logits"
        )
    return y, p


def pf1(labels: ArrayLike, scores: ArrayLike, beta: float = 1.0) -> float:
    """Return the probabilistic F-score, the RSNA 2022 task's metric.

    Scores count as fractions of a positive: pTP = Σ p·y, pFP = Σ p·(1 - y), precision
    pTP / (pTP + pFP), recall pTP / Σ y (Yacouby and Axman, Eval4NLP 2020). 0 where pTP is 0.
    Scores beyond [0, 1] are clipped, as the official metric does.

    Args:
        labels: (N,), 0 or 1.
        scores: (N,).
        beta: weight of recall against precision.
    """
    y, p = checked(labels, np.clip(np.asarray(scores, np.float64), 0, 1))
    hits = float((p * y).sum())
    if hits == 0:
        return 0.0
    precision, recall = hits / float(p.sum()), hits / float(y.sum())
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def best_threshold(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Return the threshold of highest F1 and that F1: positive is score >= threshold.

    Every distinct score is tried. Of equals the highest threshold is taken: fewer recalls. It is
    fitted to these labels: use out-of-fold scores, and another set to tell how good it is.

    Raises:
        TableError: there is no positive label.
    """
    y, p = checked(labels, scores)
    if not y.any():
        raise TableError(
            f"best_threshold: none of {len(y)} labels is positive: every threshold has an F1 of 0"
        )
    values, hits, taken = _cut_offs(y, p)
    found = 2 * hits / (taken + y.sum())
    at = int(np.argmax(found))
    return float(values[at]), float(found[at])


def _cut_offs(y: NDArray[np.float64], p: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Distinct scores from the highest; true positives and positives at each as threshold."""
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    return p[order][ends], np.cumsum(y[order])[ends], (ends + 1).astype(np.float64)


def sensitivity_at(labels: ArrayLike, scores: ArrayLike, specificity: float) -> float | None:
    """Return the highest sensitivity of any threshold that keeps the specificity.

    No interpolation: it is a point that the model has. None where a class is absent.
    """
    y, p = checked(labels, scores)
    if len(np.unique(y)) < 2:
        return None
    false_share, true_share, _ = roc_curve(y, p, drop_intermediate=False)
    # the shares are ratios of counts: a wanted 0.9 must not be missed by a rounding
    return float(true_share[false_share <= 1 - specificity + 1e-12].max())


def counts(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Counts:
    """Return the confusion matrix where positive is score >= threshold."""
    y, p = checked(labels, scores)
    taken = p >= threshold
    hits = int(y[taken].sum())
    return Counts(
        true_negatives=int((~taken).sum() - (y.sum() - hits)),
        false_positives=int(taken.sum()) - hits,
        false_negatives=int(y.sum()) - hits,
        true_positives=hits,
    )


def measures(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, Any]:
    """Return all figures of one set of scores; None for each that is not defined.

    Args:
        labels, scores: (N,), N may be 0.
        threshold: for F1, sensitivity, specificity, precision, recall, accuracy; None: none.
    """
    from fastmammo.training.calibration import calibration_error

    y, p = checked(labels, scores)
    both = len(np.unique(y)) == 2
    found: dict[str, Any] = {
        "pf1": pf1(y, p) if y.any() else None,
        "pf1_best": best_threshold(y, p)[1] if y.any() else None,
        "auc": float(roc_auc_score(y, p)) if both else None,
        "pr_auc": float(average_precision_score(y, p)) if y.any() else None,
        "sensitivity_at_90": sensitivity_at(y, p, 0.90),
        "sensitivity_at_95": sensitivity_at(y, p, 0.95),
        "brier": float(((p - y) ** 2).mean()) if len(y) else None,
        "calibration_error": calibration_error(y, p) if len(y) else None,
        "threshold": threshold,
        "count": len(y),
        "positives": int(y.sum()),
    }
    return {**found, **_at(y, p, threshold)}


def _at(
    y: NDArray[np.float64], p: NDArray[np.float64], threshold: float | None
) -> dict[str, float | None]:
    names = ("f1", "sensitivity", "specificity", "precision", "recall", "accuracy")
    if threshold is None or not len(y):
        return dict.fromkeys(names)
    tn, fp, fn, tp = counts(y, p, threshold)
    sensitivity = _share(tp, tp + fn)
    return {
        "f1": _share(2 * tp, 2 * tp + fp + fn) if tp + fn else None,
        "sensitivity": sensitivity,
        "specificity": _share(tn, tn + fp),
        "precision": _share(tp, tp + fp),
        "recall": sensitivity,
        "accuracy": _share(tp + tn, len(y)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
