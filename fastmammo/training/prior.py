"""Takes scores of a model trained at one share of positives, gives them at another (the true one).

Oversampling, undersampling and class weights teach a model a prior that no clinic has: its scores
come out too high. For a score that is a probability, Bayes' rule undoes it exactly (Elkan, "The
foundations of cost-sensitive learning", IJCAI 2001, theorem 2; Saerens, Latinne and Decaestecker,
Neural Computation 14, 2002, equation 4). It is one shift of all logits, so no ranking changes: ROC
AUC and PR AUC stay, calibration and the probabilistic F1 do not.

A sigmoid is a probability where the loss has its optimum there: cross entropy with plain labels.
Label smoothing and a focal loss have it elsewhere, but tell where: `posterior_logits` goes back to
the probability first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import ConfigError, TableError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


_BENT = 1e-3
"""Probability below which `posterior_logits` of smoothed labels is bent, not exact."""


def correct_prior(
    scores: ArrayLike, trained_share: float, true_share: float
) -> NDArray[np.float64]:
    """Give the scores that the same model means where positives have another share.

    Args:
        scores: any shape, probabilities in [0, 1].
        trained_share: share of positives among the images of the training's batches, in (0, 1).
        true_share: their share where the scores are used, in (0, 1).

    Returns:
        float64 of the same shape, in [0, 1]; 0 stays 0, 1 stays 1, the order stays.

    Raises:
        ConfigError: a share that is not inside of (0, 1).
        TableError: a score that is not in [0, 1].
    """
    positive, negative = _weights(trained_share, true_share)
    values = np.asarray(scores, np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise TableError(
            f"correct_prior: {np.count_nonzero(bad)} of {values.size} scores are no probabilities "
            f"(the first: {values[bad].flat[0]}), wanted 0 to 1: give sigmoids, not logits"
        )
    raised = values * positive
    # the denominator is never 0: both weights are more than 0, and p and 1 - p are never 0 together
    return np.asarray(raised / (raised + (1 - values) * negative))


def prior_offset(trained_share: float, true_share: float) -> float:
    """Give what to add to a logit for what `correct_prior` does to its sigmoid.

    Raises:
        ConfigError: a share that is not inside of (0, 1).
    """
    positive, negative = _weights(trained_share, true_share)
    return math.log(positive / negative)


def posterior_logits(
    logits: ArrayLike,
    *,
    kind: str = "bce",
    smoothing: float = 0.0,
    positive_smoothing: float = 0.0,
    gamma: float = 2.0,
) -> NDArray[np.float64]:
    """Give the logits of the probabilities at which a loss has its optimum at `logits`.

    Smoothed labels: (p - low) / (high - low), p the sigmoid, low and high the smoothed labels.
    Beyond these, where only a network that is too sure goes, it falls off so slowly that no two
    scores become one: a cut would make ties, and change the ranking. Focal loss: Charoenphakdee,
    Vongkulbhisal, Chairatanakul and Sugiyama, "On focal loss for class-posterior probability
    estimation", CVPR 2021. Either rises with the logits: no ranking changes.

    Args:
        logits: any shape.
        kind: of `Loss`: "bce" or "focal".
        smoothing, positive_smoothing, gamma: of `Loss`.

    Raises:
        ConfigError: a focal loss with smoothed labels, whose optimum is not always at one place.
    """
    values = np.asarray(logits, np.float64)
    low, high = smoothing / 2, 1 - smoothing / 2 - positive_smoothing
    if kind == "focal":
        if low > 0 or high < 1:
            raise ConfigError(
                "posterior_logits: got a focal loss with label smoothing, wanted one of the two: "
                "together their optimum tells no probability"
            )
        return np.asarray(_focal(values, gamma) - _focal(-values, gamma))
    if low == 0 and high == 1:
        return values
    within = np.clip(values, -700, 700)
    probability, other = 1 / (1 + np.exp(-within)), 1 / (1 + np.exp(within))
    positive, negative = (probability - low) / (high - low), (other - (1 - high)) / (high - low)
    # each side is bent where it can fall below 0 alone: else it is exact
    positive = _above_0(positive) if low > 0 else positive
    negative = _above_0(negative) if high < 1 else negative
    return np.asarray(np.log(np.minimum(positive, 1)) - np.log(np.minimum(negative, 1)))


def _above_0(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bend what lies below _BENT into a hyperbola: smooth, rising, more than 0."""
    below = np.minimum(values, _BENT)
    return np.where(values < _BENT, _BENT**2 / (2 * _BENT - below), values)


def _focal(logits: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Give the logarithm of how fast the loss of a negative rises with its probability."""
    softplus = np.logaddexp(0, logits)
    log_probability = -np.logaddexp(0, -logits)
    with np.errstate(divide="ignore"):
        eased = np.log(gamma * softplus)  # -inf where gamma is 0
    return np.asarray((gamma - 1) * log_probability + np.logaddexp(eased, logits))


def weighted_share(share: float, pos_weight: float) -> float:
    """Give the share of positives that a loss with `pos_weight` trains at.

    A positive that counts w times in the loss is as good as w positives.

    Args:
        share: share of positives among the images of the batches, in (0, 1).
        pos_weight: more than 0.

    Raises:
        ConfigError: a share that is not inside of (0, 1), or a weight that is not more than 0.
    """
    _check_share("share", share)
    if not 0 < pos_weight < math.inf:
        raise ConfigError(f"pos_weight: got {pos_weight!r}, wanted a number more than 0")
    return share * pos_weight / (share * pos_weight + 1 - share)


def _weights(trained_share: float, true_share: float) -> tuple[float, float]:
    _check_share("trained_share", trained_share)
    _check_share("true_share", true_share)
    return true_share / trained_share, (1 - true_share) / (1 - trained_share)


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"{name}: got {share!r}, wanted a share of positives between 0 and 1")
