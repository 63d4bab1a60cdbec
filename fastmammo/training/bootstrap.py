"""Takes labels, scores and patients, gives intervals: whole patients are drawn again and again.

A patient's breasts are alike, so intervals that draw breasts one by one are too narrow. Each round
draws as many patients as there are, with replacement (Efron and Tibshirani 1993); a breast counts
as often as its patient was drawn. All rounds are computed at once from weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import ConfigError
from fastmammo.training.measures import checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

_VALUES_AT_ONCE = 500_000
"""Weights held at a time: a dozen arrays of some 4 MB."""

FIGURES = (
    "pf1",
    "auc",
    "pr_auc",
    "sensitivity_at_90",
    "sensitivity_at_95",
    "f1",
    "sensitivity",
    "specificity",
    "precision",
    "accuracy",
    "brier",
)


def intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: Sequence[str] | NDArray[np.str_],
    *,
    threshold: float | None,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """Return [low, high] of each figure: percentiles over the rounds in which it is defined.

    Args:
        labels, scores: (N,) of breasts (or images).
        patients: (N,), whose breast it is.
        threshold: of F1, sensitivity, specificity, precision, accuracy; None leaves them out.
        rounds: of drawing.
        seed: of the drawing.
        level: share of the rounds inside.

    Raises:
        ConfigError: rounds below 1.
    """
    drawn = draws(labels, {"": scores}, patients, threshold=threshold, rounds=rounds, seed=seed)
    return {name: span(values, level) for name, values in drawn[""].items() if _some(values)}


def draws(
    labels: ArrayLike,
    scores: dict[str, ArrayLike],
    patients: Sequence[str] | NDArray[np.str_],
    *,
    threshold: float | None,
    rounds: int,
    seed: int,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return each figure in each round, for several scores of the same breasts: paired.

    Args:
        scores: name → (N,).

    Returns:
        name → figure → (rounds,), NaN in rounds that drew one class only.
    """
    if rounds < 1:
        raise ConfigError(f"bootstrap: got {rounds} rounds, wanted 1 or more, or none at all")
    _, patient = np.unique(np.asarray(patients, str), return_inverse=True)
    found: dict[str, dict[str, list[NDArray[np.float64]]]] = {name: {} for name in scores}
    for weights in _weights(patient, rounds, seed):
        for name, values in scores.items():
            for figure, drawn in _figures(labels, values, weights, threshold).items():
                found[name].setdefault(figure, []).append(drawn)
    return {
        name: {figure: np.concatenate(parts) for figure, parts in figures.items()}
        for name, figures in found.items()
    }


def span(values: NDArray[np.float64], level: float = 0.95) -> list[float]:
    """Return the percentile interval of the rounds in which the figure is defined."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _some(values: NDArray[np.float64]) -> bool:
    return not bool(np.isnan(values).all())


def _weights(patient: NDArray[np.intp], rounds: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each breast counts, some rounds at a time: (rounds, N)."""
    generator = np.random.default_rng(seed)
    count = int(patient.max()) + 1
    step = max(1, _VALUES_AT_ONCE // max(len(patient), count))
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        times = generator.multinomial(count, np.full(count, 1 / count), size=size)
        yield times[:, patient].astype(np.float64)


def _figures(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: NDArray[np.float64],
    threshold: float | None,
) -> dict[str, NDArray[np.float64]]:
    """Each figure with these weights: (rounds,) arrays."""
    y, p = checked(labels, scores)
    order = np.argsort(-p, kind="stable")
    y, p, weights = y[order], p[order], weights[:, order]
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        positives, negatives = weights @ y, weights @ (1 - y)
        # rates at each distinct score as threshold, from the highest; a point (0, 0) in front
        hits = np.cumsum(weights * y, axis=1)[:, ends]
        wrong = np.cumsum(weights * (1 - y), axis=1)[:, ends]
        found = {"pf1": 2 * (weights @ (p * y)) / (weights @ p + positives)}
        front = np.zeros((len(weights), 1))
        true_share = np.hstack([front, hits]) / positives[:, None]
        false_share = np.hstack([front, wrong]) / negatives[:, None]
        steps = np.diff(false_share, axis=1)
        found["auc"] = (steps * (true_share[:, 1:] + true_share[:, :-1]) / 2).sum(axis=1)
        taken = hits + wrong
        precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
        found["pr_auc"] = (np.diff(true_share, axis=1) * precision).sum(axis=1)
        for name, specificity in (("sensitivity_at_90", 0.90), ("sensitivity_at_95", 0.95)):
            kept = np.where(false_share <= 1 - specificity + 1e-12, true_share, 0)
            found[name] = np.where(negatives > 0, kept.max(axis=1), np.nan)
        if threshold is not None:
            tp, fp = weights @ (y * (p >= threshold)), weights @ ((1 - y) * (p >= threshold))
            found["f1"] = 2 * tp / (tp + fp + positives)
            found["sensitivity"] = tp / positives
            found["specificity"] = 1 - fp / negatives
            found["precision"] = tp / (tp + fp)
            found["accuracy"] = (tp + negatives - fp) / (positives + negatives)
        found["brier"] = (weights @ (p - y) ** 2) / weights.sum(axis=1)
        for name in ("pf1", "f1"):
            if name in found:
                found[name] = np.where(positives > 0, found[name], np.nan)
    return found
