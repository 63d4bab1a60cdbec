"""Metrics: against test vectors, scikit-learn and cases counted by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from fastmammo.errors import ConfigError, TableError
from fastmammo.training.bootstrap import FIGURES, draws, intervals
from fastmammo.training.calibration import calibration_curve, calibration_error
from fastmammo.training.measures import (
    best_threshold,
    checked,
    counts,
    measures,
    pf1,
    sensitivity_at,
)
from fastmammo.training.metrics import by_breast, compare_runs, evaluate


def scored(
    seed: int = 0, patients: int = 60, share: float = 0.2, skill: float = 1.0
) -> pd.DataFrame:
    """A table of scores: two breasts a patient, two images a breast."""
    generator = np.random.default_rng(seed)
    breasts = np.arange(2 * patients)
    cancer = (np.random.default_rng(99).random(2 * patients) < share).astype(float)
    rows = []
    for breast in breasts:
        for _ in range(2):
            logit = skill * (2 * cancer[breast] - 1) + generator.normal() - 1
            rows.append(
                {
                    "patient_id": f"p{breast // 2}",
                    "prediction_id": f"p{breast // 2}_{'LR'[breast % 2]}",
                    "cancer": cancer[breast],
                    "score": 1 / (1 + math.exp(-logit)),
                    "site_id": str(1 + breast // 2 % 2),
                    "machine_id": "49",
                }
            )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- probabilistic F1


@pytest.mark.parametrize(("score", "wanted"), [(0.02, 0.0203), (0.1, 0.0342), (1.0, 0.0405)])
def test_pf1_of_constant_predictions_on_the_rsna_set(score: float, wanted: float) -> None:
    labels = np.zeros(23_826)
    labels[:492] = 1
    assert pf1(labels, np.full(len(labels), score)) == pytest.approx(wanted, abs=5e-5)


def test_pf1_by_hand() -> None:
    # pTP 0.9 + 0.2, pFP 0.3: precision 1.1 / 1.4, recall 1.1 / 2
    precision, recall = 1.1 / 1.4, 1.1 / 2
    wanted = 2 * precision * recall / (precision + recall)
    assert pf1([1, 1, 0], [0.9, 0.2, 0.3]) == pytest.approx(wanted)
    assert pf1([1, 0], [0.0, 1.0]) == 0
    assert pf1([0, 0], [0.5, 0.5]) == 0
    assert pf1([1, 0], [3.0, -2.0]) == 1, "clipped, as the official metric does"
    assert pf1([1, 1, 0], [0.9, 0.2, 0.3], beta=2) == pytest.approx(
        5 * precision * recall / (4 * precision + recall)
    )


def test_pf1_of_hard_predictions_is_f1() -> None:
    generator = np.random.default_rng(0)
    y, p = generator.integers(0, 2, 200), generator.integers(0, 2, 200)
    assert pf1(y, p) == pytest.approx(f1_score(y, p))


# ---------------------------------------------------------------- thresholds

LABELS_AND_SCORES = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 1)),
        arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])),
    )
)


@given(LABELS_AND_SCORES)
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_the_best_of_all(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    if not y.any():
        return
    threshold, found = best_threshold(y, p)
    of_all = {t: f1_score(y, p >= t) for t in np.unique(p)}
    assert found == pytest.approx(max(of_all.values()))
    assert of_all[threshold] == pytest.approx(found)
    assert threshold == max(t for t, value in of_all.items() if value > found - 1e-12)


@given(LABELS_AND_SCORES, st.sampled_from([0.5, 0.9, 0.95]))
@settings(max_examples=60, deadline=None)
def test_sensitivity_at_a_specificity(
    case: tuple[np.ndarray, np.ndarray], specificity: float
) -> None:
    y, p = case
    found = sensitivity_at(y, p, specificity)
    if len(set(y)) < 2:
        assert found is None
        return
    points = []
    for threshold in [*np.unique(p), 2.0]:
        tn, fp, fn, tp = counts(y, p, threshold)
        if tn / (tn + fp) >= specificity - 1e-12:
            points.append(tp / (tp + fn))
    assert found == pytest.approx(max(points))


def test_sensitivity_at_90_by_hand() -> None:
    # ten negatives: one may lie above the threshold
    y = [0] * 10 + [1] * 4
    p = [*np.linspace(0.1, 0.5, 10), 0.9, 0.48, 0.3, 0.2]
    assert sensitivity_at(y, p, 0.9) == 0.5
    assert sensitivity_at(y, p, 0.95) == 0.25


# ---------------------------------------------------------------- all figures


@given(LABELS_AND_SCORES, st.sampled_from([0.1, 0.3, 0.75]))
@settings(max_examples=60, deadline=None)
def test_figures_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    y, p = case
    found = measures(y, p, threshold)
    taken = p >= threshold
    assert (
        list(counts(y, p, threshold)) == confusion_matrix(y, taken, labels=[0, 1]).ravel().tolist()
    )
    assert found["accuracy"] == pytest.approx((taken == y).mean())
    assert found["brier"] == pytest.approx(brier_score_loss(y, p, pos_label=1))
    if y.any():
        assert found["sensitivity"] == found["recall"] == pytest.approx(recall_score(y, taken))
        assert found["f1"] == pytest.approx(f1_score(y, taken, zero_division=0))
        assert found["pr_auc"] == pytest.approx(average_precision_score(y, p))
    else:
        assert found["sensitivity"] is found["pr_auc"] is found["pf1"] is None
    if len(set(y)) == 2:
        assert found["auc"] == pytest.approx(roc_auc_score(y, p))
        assert found["specificity"] == pytest.approx(recall_score(1 - y, ~taken))
    else:
        assert found["auc"] is found["sensitivity_at_90"] is None


def test_figures_of_nothing() -> None:
    found = measures([], [], 0.5)
    assert found["count"] == 0
    assert {found[name] for name in ("auc", "pf1", "accuracy", "brier")} == {None}


def test_labels_and_scores_are_checked() -> None:
    with pytest.raises(TableError, match="one score for each label"):
        checked([0, 1], [0.5])
    with pytest.raises(TableError, match=r"1 of 3 labels are not 0 or 1 \(the first: nan, at 2\)"):
        checked([0, 1, np.nan], [0.5] * 3)
    with pytest.raises(TableError, match=r"2 of 3 scores are not in \[0, 1\] \(the first: 1.5"):
        checked([0, 1, 1], [1.5, 0.5, np.nan])
    with pytest.raises(TableError, match="none of 2 labels is positive"):
        best_threshold([0, 0], [0.1, 0.2])


# ---------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    y, p = [0, 1, 1, 1], [0.2, 0.4, 0.9, 0.7]
    curve = calibration_curve(y, p, bins=2)
    assert curve["mean_score"] == pytest.approx([0.3, 0.8])
    assert curve["share"] == [0.5, 1.0]
    assert curve["count"] == [2, 2]
    assert calibration_error(y, p, bins=2) == pytest.approx((0.2 * 2 + 0.2 * 2) / 4)


def test_equal_scores_are_in_one_bin() -> None:
    """The order of the rows, often sorted by label, must not tell."""
    y = np.repeat([0.0, 1.0], [980, 20])
    assert calibration_error(y, np.full(1000, 0.02)) == pytest.approx(0)
    assert calibration_curve(y, np.full(1000, 0.02))["count"] == [1000]
    p = np.round(np.random.default_rng(0).random(1000), 1)
    order = np.random.default_rng(1).permutation(1000)
    assert calibration_error(y, p) == pytest.approx(calibration_error(y[order], p[order]))
    distinct = calibration_curve(y, np.linspace(0, 1, 1000))
    assert distinct["count"] == [100] * 10
    assert calibration_curve([], [])["count"] == []


def test_curves_of_many_breasts_keep_their_steep_parts() -> None:
    generator = np.random.default_rng(0)
    cancer = (np.arange(20_000) < 400).astype(float)
    score = 1 / (1 + np.exp(-(generator.normal(size=20_000) + 2 * cancer - 3)))
    ids = [f"{i}" for i in range(20_000)]
    frame = pd.DataFrame(
        {"patient_id": ids, "prediction_id": ids, "cancer": cancer, "score": score}
    )
    curves = evaluate(frame, bootstrap=0)["curves"]
    recall = np.array(curves["pr"]["recall"])
    assert len(recall) <= 400
    assert np.abs(np.diff(recall)).max() < 0.01
    assert (recall[0], recall[-1]) == (1.0, 0.0)
    assert np.trapezoid(curves["pr"]["precision"], -recall) == pytest.approx(
        average_precision_score(cancer, score), abs=0.01
    )
    roc = curves["roc"]
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(
        roc_auc_score(cancer, score), abs=0.001
    )


def test_true_probabilities_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    p = generator.random(50_000) ** 2
    y = generator.random(50_000) < p
    assert calibration_error(y, p) < 0.01
    assert calibration_error(y, np.sqrt(p)) > 0.1


# ---------------------------------------------------------------- by breast


def test_by_breast() -> None:
    frame = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "a"],
            "prediction_id": ["a_L", "a_L", "b_R", "a_R"],
            "cancer": [1.0, 1.0, 0.0, 0.0],
            "score": [0.2, 0.8, 0.3, 0.1],
            "site_id": ["1", "1", "2", "1"],
        }
    )
    mean = by_breast(frame)
    assert mean["prediction_id"].to_list() == ["a_L", "b_R", "a_R"]
    assert mean["score"].to_list() == [0.5, 0.3, 0.1]
    assert mean["images"].to_list() == [2, 1, 1]
    assert by_breast(frame, "max")["score"].to_list() == [0.8, 0.3, 0.1]
    with pytest.raises(ConfigError, match="reduce: got 'median', allowed are mean, max"):
        by_breast(frame, "median")  # type: ignore[arg-type]
    with pytest.raises(TableError, match=r"1 breasts have images of different cancer \(a_L\)"):
        by_breast(frame.assign(cancer=[1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(TableError, match=r"different patient_id \(a_L\)"):
        by_breast(frame.assign(patient_id=["a", "b", "b", "a"]))
    with pytest.raises(TableError, match="lacks score"):
        by_breast(frame.drop(columns="score"))


# ---------------------------------------------------------------- evaluate


def test_evaluate() -> None:
    frame = scored()
    found = evaluate(frame, bootstrap=200)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    breasts = frame.groupby("prediction_id").agg({"cancer": "first", "score": "mean"})
    assert found["breast"]["auc"] == pytest.approx(roc_auc_score(breasts.cancer, breasts.score))
    assert found["image"]["auc"] == pytest.approx(roc_auc_score(frame.cancer, frame.score))
    assert found["threshold"] == best_threshold(breasts.cancer, breasts.score)[0]
    assert found["threshold_fitted"]
    assert found["breast"]["f1"] == found["breast"]["pf1_best"]
    assert np.sum(found["confusion"]) == 120
    assert set(found["per_site"]) == {"1", "2"}
    assert set(found["per_machine"]) == {"49"}
    assert found["per_machine"]["49"]["auc"] == found["breast"]["auc"]
    assert found["counts"] == {
        "images": 240,
        "breasts": 120,
        "patients": 60,
        "positive_images": int(frame.cancer.sum()),
        "positive_breasts": int(breasts.cancer.sum()),
    }
    assert set(found["intervals"]) == set(FIGURES)
    low, high = found["intervals"]["auc"]
    assert low < found["breast"]["auc"] < high
    roc = found["curves"]["roc"]
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(found["breast"]["auc"])
    assert evaluate(frame, bootstrap=200) == found, "seeded"
    given_threshold = evaluate(frame, bootstrap=0, threshold=0.9)
    assert given_threshold["threshold"] == 0.9
    assert not given_threshold["threshold_fitted"]
    assert given_threshold["intervals"] == {}


def test_evaluate_where_a_class_is_absent() -> None:
    frame = scored(share=0.0)
    found = evaluate(frame, bootstrap=20)
    json.dumps(found, allow_nan=False)
    assert found["breast"]["auc"] is found["threshold"] is found["confusion"] is None
    assert found["curves"]["roc"] is None
    assert "all 120 breasts are negative" in found["notes"][0]
    assert set(found["intervals"]) == {"brier"}
    one_site = scored()
    one_site.loc[one_site["site_id"] == "2", "cancer"] = 0.0
    found = evaluate(one_site, bootstrap=0)
    assert found["per_site"]["2"]["auc"] is None
    assert any(note.startswith("site_id 2: all 60 breasts are negative") for note in found["notes"])


def test_evaluate_refuses() -> None:
    with pytest.raises(TableError, match="lacks cancer; it has patient_id"):
        evaluate(scored().drop(columns="cancer"))
    with pytest.raises(TableError, match="no row"):
        evaluate(scored().iloc[:0])
    with pytest.raises(TableError, match=r"scores are not in \[0, 1\]"):
        evaluate(scored().assign(score=2.0))


# ---------------------------------------------------------------- bootstrap


def test_drawn_figures_equal_those_of_repeated_rows() -> None:
    """Weights stand for repetition: each round must equal scikit-learn on the repeated breasts."""
    breasts = by_breast(scored(patients=20))
    breasts["score"] = breasts["score"].round(1)  # ties
    drawn = draws(
        breasts["cancer"],
        {"": breasts["score"]},
        breasts["patient_id"].to_list(),
        threshold=0.3,
        rounds=30,
        seed=5,
    )[""]
    _, patient = np.unique(breasts["patient_id"], return_inverse=True)
    times = np.random.default_rng(5).multinomial(20, np.full(20, 1 / 20), size=30)
    for at in range(30):
        rows = breasts.loc[np.repeat(np.arange(40), times[at][patient])]
        wanted = measures(rows["cancer"], rows["score"], 0.3)
        for name in FIGURES:
            if wanted[name] is None:
                assert not np.isfinite(drawn[name][at]), name
            else:
                assert drawn[name][at] == pytest.approx(wanted[name]), name


def test_patients_are_drawn_whole() -> None:
    """Breasts that say the same twice must not make an interval narrower."""
    y = np.tile([0.0, 0.0, 0.0, 1.0], 25)
    p = np.clip(0.3 * y + np.random.default_rng(0).random(100) * 0.7, 0, 1)
    once = intervals(y, p, [str(i) for i in range(100)], threshold=None, rounds=400)["auc"]
    patients = [str(i) for i in range(100)] * 4
    four = np.tile(y, 4), np.tile(p, 4)
    whole = intervals(*four, patients, threshold=None, rounds=400)["auc"]
    assert whole == pytest.approx(once)
    each = intervals(*four, [str(i) for i in range(400)], threshold=None, rounds=400)["auc"]
    assert each[1] - each[0] < 0.7 * (once[1] - once[0])
    with pytest.raises(ConfigError, match="got 0 rounds"):
        intervals(y, p, patients[:100], threshold=None, rounds=0)


def test_compare_runs() -> None:
    frames = {
        "poor": scored(1, skill=0.2),
        "good": scored(2, skill=2.0),
        "twin": scored(1, skill=0.2),
    }
    found = compare_runs(frames, rounds=200)
    assert set(found) == {"good", "twin"}
    auc = found["good"]["auc"]
    assert auc["interval"][0] > 0.05
    assert auc["interval"][0] < auc["difference"] < auc["interval"][1]
    assert found["twin"]["auc"] == {"difference": 0, "interval": [0, 0]}
    with pytest.raises(TableError, match="wanted two or more"):
        compare_runs({"one": scored()})
    with pytest.raises(TableError, match="other and poor score other breasts"):
        compare_runs({"poor": scored(), "other": scored(patients=30)})
