"""Takes a table of scores, gives every figure of it: by image, breast, site and machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from fastmammo.errors import ConfigError, TableError
from fastmammo.training.bootstrap import draws, intervals, span
from fastmammo.training.calibration import calibration_curve
from fastmammo.training.measures import best_threshold, checked, counts, measures, pf1

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["best_threshold", "by_breast", "compare_runs", "evaluate", "pf1"]

Reduce = Literal["mean", "max"]

_POINTS = 400
"""Of a curve that is kept: enough for a picture, some 20 kB of JSON."""


def by_breast(frame: pd.DataFrame, reduce: Reduce = "mean") -> pd.DataFrame:
    """Return one row a breast: the mean or the maximum of its images' scores.

    Args:
        frame: one row an image: prediction_id, score, patient_id; cancer, site_id and machine_id
            where they are known.
        reduce: "mean", as the RSNA task's winners; "max" where one view suffices to recall.

    Returns:
        prediction_id, patient_id, score, cancer, site_id, machine_id, images (how many it has);
        in the order of the breasts' first images.

    Raises:
        ConfigError: another reduce.
        TableError: a column is absent; a breast with two labels, or of two patients.
    """
    if reduce not in ("mean", "max"):
        raise ConfigError(f"reduce: got {reduce!r}, allowed are mean, max")
    _need(frame, ("prediction_id", "patient_id", "score"))
    groups = frame.groupby("prediction_id", sort=False)
    for column in ("cancer", "patient_id"):
        if column in frame:
            several = groups[column].nunique(dropna=False)
            if (several > 1).any():
                names = ", ".join(map(str, several.index[several > 1][:3]))
                raise TableError(
                    f"metrics: {int((several > 1).sum())} breasts have images of different "
                    f"{column} ({names}): the breast's label must be one. Correct the table, or "
                    "give each breast a prediction_id of its own"
                )
    found = groups.first()
    found["score"] = groups["score"].agg(reduce)
    found["images"] = groups.size()
    columns = ["patient_id", "score", "cancer", "site_id", "machine_id", "images"]
    kept: pd.DataFrame = found[[column for column in columns if column in found]].reset_index()
    return kept


def evaluate(
    frame: pd.DataFrame,
    *,
    reduce: Reduce = "mean",
    bootstrap: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return all figures of a table of scores, ready for JSON: no NaN, None where undefined.

    Args:
        frame: one row an image: patient_id, prediction_id, cancer (0 or 1), score in [0, 1];
            site_id and machine_id where they are known.
        reduce: how a breast's score comes from its images'.
        bootstrap: rounds of drawing patients for the intervals, of breasts; 0: none.
        seed: of the drawing.
        threshold: of a positive breast or image, score >= threshold; by default that of the highest
            F1 over these breasts. Only a threshold chosen elsewhere gives an honest F1,
            sensitivity and specificity: chosen here, they are fitted to the scores they judge.

    Returns:
        image, breast: figures (`measures`); intervals: of breasts, [low, high] at 95 %; threshold;
        threshold_fitted: whether it was chosen here; confusion: [[tn, fp], [fn, tp]] of breasts;
        per_site, per_machine: of breasts; curves: roc, pr, calibration of breasts; counts; notes:
        why a figure is None.

    Raises:
        TableError: a column is absent, no row, an impossible label or score.
        ConfigError: an impossible reduce or bootstrap.
    """
    _need(frame, ("patient_id", "prediction_id", "cancer", "score"))
    if not len(frame):
        raise TableError("metrics: the table of scores has no row")
    checked(frame["cancer"], frame["score"])
    breasts = by_breast(frame, reduce)
    y, p = checked(breasts["cancer"], breasts["score"])
    notes: list[str] = []
    fitted = threshold is None
    if threshold is None and y.any():
        threshold = best_threshold(y, p)[0]
    if len(np.unique(y)) < 2:
        which = "positive" if y.any() else "negative"
        notes.append(f"all {len(y)} breasts are {which}: ROC AUC and what else needs both is None")
    found: dict[str, Any] = {
        "image": measures(frame["cancer"], frame["score"], threshold),
        "breast": measures(y, p, threshold),
        "reduce": reduce,
        "threshold": threshold,
        "threshold_fitted": fitted,
        "confusion": None if threshold is None else _confusion(y, p, threshold),
        "intervals": intervals(
            y,
            p,
            breasts["patient_id"].astype(str).to_list(),
            threshold=threshold,
            rounds=bootstrap,
            seed=seed,
        )
        if bootstrap
        else {},
        "per_site": _per(breasts, "site_id", threshold, notes),
        "per_machine": _per(breasts, "machine_id", threshold, notes),
        "curves": _curves(y, p),
        "counts": {
            "images": len(frame),
            "breasts": len(breasts),
            "patients": int(breasts["patient_id"].nunique()),
            "positive_images": int(frame["cancer"].sum()),
            "positive_breasts": int(y.sum()),
        },
        "notes": notes,
    }
    return found


def compare_runs(
    frames: Mapping[str, pd.DataFrame],
    *,
    reduce: Reduce = "mean",
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return how each table of scores differs from the first, on the same drawn patients.

    Two intervals that overlap say little: the same breasts are hard for both models. Here each
    round draws patients once for all, and the difference is what is spread.

    Args:
        frames: name → one row an image, as for `evaluate`; the same breasts in each.

    Returns:
        name → figure ("auc", "pr_auc", "pf1") → {"difference", "interval": [low, high] at 95 %}, of
        all names but the first; figures that are not defined are left out.

    Raises:
        TableError: fewer than two tables, or other breasts or labels in one.
    """
    if len(frames) < 2:
        raise TableError(f"compare: got {len(frames)} tables of scores, wanted two or more")
    first, *others = frames
    breasts = {
        name: by_breast(frame, reduce).sort_values("prediction_id", ignore_index=True)
        for name, frame in frames.items()
    }
    one = breasts[first]
    for name in others:
        same = breasts[name][["prediction_id", "cancer"]].equals(one[["prediction_id", "cancer"]])
        if not same:
            raise TableError(
                f"compare: {name} and {first} score other breasts, or with other labels "
                f"({len(breasts[name])} and {len(one)}); a comparison needs the same table"
            )
    y = one["cancer"].to_numpy()
    drawn = draws(
        y,
        {name: breasts[name]["score"].to_numpy() for name in frames},
        one["patient_id"].astype(str).to_list(),
        threshold=None,
        rounds=rounds,
        seed=seed,
    )
    figures = {name: measures(y, breasts[name]["score"], None) for name in frames}
    found: dict[str, dict[str, Any]] = {}
    for name in others:
        found[name] = {}
        for figure in ("auc", "pr_auc", "pf1"):
            apart = drawn[name][figure] - drawn[first][figure]
            here, there = figures[name][figure], figures[first][figure]
            if here is not None and there is not None and not np.isnan(apart).all():
                found[name][figure] = {"difference": here - there, "interval": span(apart)}
    return found


def _need(frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    absent = [name for name in names if name not in frame]
    if absent:
        raise TableError(
            f"metrics: the table of scores lacks {', '.join(absent)}; it has "
            f"{', '.join(map(str, frame.columns))}"
        )


def _confusion(y: NDArray[np.float64], p: NDArray[np.float64], threshold: float) -> list[list[int]]:
    tn, fp, fn, tp = counts(y, p, threshold)
    return [[tn, fp], [fn, tp]]


def _per(
    breasts: pd.DataFrame, column: str, threshold: float | None, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """Figures of each site or machine, at the one threshold."""
    if column not in breasts:
        return {}
    found = {}
    for value, part in breasts.groupby(breasts[column].astype(str), sort=True):
        if str(value) in ("", "nan"):
            continue
        found[str(value)] = measures(part["cancer"], part["score"], threshold)
        if part["cancer"].nunique() < 2:
            which = "positive" if part["cancer"].any() else "negative"
            notes.append(f"{column} {value}: all {len(part)} breasts are {which}: no ROC AUC")
    return found


def _curves(y: NDArray[np.float64], p: NDArray[np.float64]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "roc": None,
        "pr": None,
        "calibration": calibration_curve(y, p),
    }
    if len(np.unique(y)) == 2:
        false_share, true_share, _ = roc_curve(y, p)
        kept = _thinned(false_share, true_share)
        found["roc"] = {"fpr": false_share[kept].tolist(), "tpr": true_share[kept].tolist()}
    if y.any():
        precision, recall, _ = precision_recall_curve(y, p)
        kept = _thinned(recall, precision)
        found["pr"] = {"recall": recall[kept].tolist(), "precision": precision[kept].tolist()}
    return found


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions of a curve's kept points: some equally far from each other along it, both ends.

    Not every so-manieth: nearly all points of a precision and recall curve lie where all are called
    positive, and its first half has but one for each of a few hundred positives.
    """
    if len(x) <= _POINTS:
        return np.arange(len(x))
    along = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], _POINTS)))
