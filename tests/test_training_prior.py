"""Scores at another share of positives: by Bayes' rule, and seen in a simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmammo.errors import ConfigError, TableError
from fastmammo.training.losses import Loss
from fastmammo.training.prior import (
    correct_prior,
    posterior_logits,
    prior_offset,
    weighted_share,
)

SHARES = st.floats(0.001, 0.999)


@given(score=st.floats(1e-9, 1 - 1e-9), trained=SHARES, true=SHARES)
def test_it_is_bayes_rule(score: float, trained: float, true: float) -> None:
    # the likelihood ratio does not depend on the prior
    ratio = score / (1 - score) * (1 - trained) / trained
    wanted = ratio * true / (ratio * true + 1 - true)
    corrected = correct_prior(score, trained, true)
    assert corrected == pytest.approx(wanted, rel=1e-9)
    assert correct_prior(corrected, true, trained) == pytest.approx(score, rel=1e-6)
    logit = np.log(score / (1 - score)) + prior_offset(trained, true)
    assert corrected == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)


def test_ends_order_shape_and_prior_itself() -> None:
    scores = np.array([[0, 0.125, 0.5], [0.9, 0.99, 1]], np.float32)
    found = correct_prior(scores, 0.125, 0.02)
    assert found.shape == scores.shape
    assert found.dtype == np.float64
    assert (np.diff(found.ravel()) > 0).all()
    assert (found.flat[0], found.flat[-1]) == (0, 1)
    assert found[0, 1] == pytest.approx(0.02)  # a score at the prior says nothing of the image
    assert correct_prior(scores, 0.3, 0.3) == pytest.approx(scores)


def simulate(
    random: np.random.Generator, share: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels and a measurement whose true posterior is known."""
    labels = random.random(count) < share
    return labels, random.normal(labels * 2.0, 1.0)


def posterior(measured: np.ndarray, share: float) -> np.ndarray:
    odds = share / (1 - share) * np.exp(2 * measured - 2)
    return odds / (1 + odds)


def test_oversampled_scores_are_calibrated_after_it() -> None:
    labels, measured = simulate(np.random.default_rng(0), 0.02, 200_000)
    scores = posterior(measured, 0.125)  # what a perfect model trained at 1/8 says
    corrected = correct_prior(scores, 0.125, 0.02)
    np.testing.assert_allclose(corrected, posterior(measured, 0.02), rtol=1e-9)
    assert scores.mean() > 0.07
    assert corrected.mean() == pytest.approx(labels.mean(), abs=0.001)
    for low, high in ((0, 0.01), (0.01, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        rows = (corrected >= low) & (corrected < high)
        error = abs(corrected[rows].mean() - labels[rows].mean())
        assert error < 4 * np.sqrt(0.25 / rows.sum()) * 2 * np.sqrt(high)


def test_a_fitted_model_is_calibrated_after_it() -> None:
    """A logistic regression on oversampled rows, or with weights, then scored on true ones."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(1)
    labels, measured = simulate(random, 0.02, 100_000)
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
    repeated = random.choice(positives, round(len(negatives) / 7))
    rows = np.concatenate((negatives, repeated))
    sampled = linear_model.LogisticRegression(C=1e6).fit(measured[rows, None], labels[rows])
    weight = len(negatives) / len(positives)
    weights = np.where(labels, weight, 1.0)
    weighted = linear_model.LogisticRegression(C=1e6).fit(measured[:, None], labels, weights)
    for model, trained in ((sampled, 1 / 8), (weighted, weighted_share(labels.mean(), weight))):
        scores = model.predict_proba(measured[:, None])[:, 1]
        assert scores.mean() > 0.07
        corrected = correct_prior(scores, trained, float(labels.mean()))
        assert corrected.mean() == pytest.approx(labels.mean(), rel=0.05)
        brier = [np.mean((each - labels) ** 2) for each in (scores, corrected)]
        assert brier[1] < brier[0]


def test_shares_of_weights() -> None:
    assert weighted_share(0.02, 49) == pytest.approx(0.5)
    assert weighted_share(0.3, 1) == pytest.approx(0.3)


def test_what_is_no_share_or_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained_share: got 0"):
        correct_prior([0.5], 0, 0.5)
    with pytest.raises(ConfigError, match="true_share: got 1"):
        prior_offset(0.5, 1)
    with pytest.raises(ConfigError, match="share: got nan"):
        weighted_share(float("nan"), 1)
    with pytest.raises(ConfigError, match="pos_weight: got 0"):
        weighted_share(0.5, 0)
    with pytest.raises(TableError, match=r"2 of 3 scores are no probabilities \(the first: 1.5\)"):
        correct_prior([0.5, 1.5, np.nan], 0.5, 0.1)


def optimum(loss: Loss, posterior: float) -> float:
    """The logit at which the expected loss of images with this share of positives is lowest."""
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [logit], max_iter=400, tolerance_grad=1e-13, line_search_fn="strong_wolfe"
    )

    def expected() -> torch.Tensor:
        solver.zero_grad()
        # Loss computes in float32: its terms for one label of each kind, in float64
        ends = [loss._cancer(logit, torch.full((1,), label).double()) for label in (0.0, 1.0)]
        total = ((1 - posterior) * ends[0] + posterior * ends[1]).sum()
        total.backward()
        return total

    solver.step(expected)
    return float(logit.detach())


@pytest.mark.parametrize("posterior", [0.0075, 0.364])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"smoothing": 0.1},
        {"positive_smoothing": 0.2},
        {"kind": "focal"},
        {"kind": "focal", "gamma": 0.5},
        {"kind": "focal", "gamma": 0.0},
    ],
)
def test_the_true_probability_comes_back_whatever_the_loss(
    posterior: float, values: dict[str, Any]
) -> None:
    """A network at its optimum, trained at 1 positive in 8; where it is used there is 1 in 50."""
    taught = float(correct_prior(posterior, 0.02, 0.125))
    logit = optimum(Loss(**values), taught)
    shifted = posterior_logits([logit], **values) + prior_offset(0.125, 0.02)
    assert 1 / (1 + np.exp(-shifted[0])) == pytest.approx(posterior, rel=1e-3)
    if values and values.get("gamma") != 0:  # a shift of the plain sigmoid is far off
        plain = 1 / (1 + np.exp(-(logit + prior_offset(0.125, 0.02))))
        assert abs(plain - posterior) > 0.05 * posterior


@pytest.mark.parametrize(
    "values",
    [
        {"smoothing": 0.1},
        {"smoothing": 0.5},
        {"positive_smoothing": 0.3},
        {"kind": "focal"},
        {"kind": "focal", "gamma": 10.0},
    ],
)
def test_no_two_scores_become_one(values: dict[str, Any]) -> None:
    logits = np.linspace(-20, 20, 2001)
    found = posterior_logits(logits, **values)
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()
    assert np.isfinite(posterior_logits([-1e4, 1e4], **values)).all()


def test_plain_labels_stay_as_they_are_and_two_ways_at_once_are_refused() -> None:
    logits = np.array([-900.0, 0.3, 40.0])
    assert np.array_equal(posterior_logits(logits), logits)
    with pytest.raises(ConfigError, match="focal loss with label smoothing"):
        posterior_logits(logits, kind="focal", smoothing=0.1)
