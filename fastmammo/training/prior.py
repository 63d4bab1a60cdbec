"""Takes scores of a model trained at one share of positives, gives them at another (the true one).

Oversampling, undersampling and class weights teach a model a prior that no clinic has: its scores
come out too high. For a score that is a probability, Bayes' rule undoes it exactly (Elkan, "The
foundations of cost-sensitive learning", IJCAI 2001, theorem 2; Saerens, Latinne and Decaestecker,
Neural Computation 14, 2002, equation 4). It is one shift of all logits, so no ranking changes: ROC
AUC and PR AUC stay, calibration and the probabilistic F1 do not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import ConfigError, TableError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
