"""The two-stage model: fitted inside the folds, kept as JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fastmammo.errors import CheckpointError, ConfigError, TableError
from fastmammo.training.metadata import COLUMNS, MetadataModel, columns_of, fit_metadata


def table(count: int = 400, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    age = generator.normal(58, 10, count)
    cancer = (age + generator.normal(0, 8, count) > 66).astype(float)
    age[::7] = np.nan
    return pd.DataFrame(
        {
            "patient_id": [str(i // 4) for i in range(count)],
            "laterality": np.where(np.arange(count) % 2, "L", "R"),
            "view": np.where(np.arange(count) % 4 < 2, "CC", "MLO"),
            "age": age,
            "implant": np.where(np.arange(count) % 3, 0.0, np.nan),
            "density": np.where(np.arange(count) % 5, "B", ""),
            "cancer": cancer,
        }
    )


def folds(count: int = 400) -> np.ndarray:
    return np.arange(count) // 4 % 4


def test_columns() -> None:
    found = columns_of(table(8), 58.0)
    assert found.shape == (8, len(COLUMNS))
    assert not np.isnan(found).any()
    named = dict(zip(COLUMNS, found[0], strict=True))
    assert named["age"] == 58.0
    assert named["age missing"] == named["view CC"] == named["implant missing"] == 1
    assert named["left"] == named["implant"] == named["density B"] == 0


def test_metadata_and_features_each_help() -> None:
    rows, generator = table(), np.random.default_rng(1)
    labels = rows["cancer"].to_numpy()
    features = generator.normal(size=(400, 60))
    features[:, 0] += labels
    aucs = {}
    for name, values, use in (
        ("both", features, True),
        ("image", features, False),
        ("metadata", None, True),
    ):
        scores, _ = fit_metadata(values, rows, folds(), use_table=use)
        aucs[name] = roc_auc_score(labels, scores)
    assert aucs["both"] > aucs["metadata"] > 0.7
    assert 0.6 < aucs["image"] < aucs["both"]


def test_a_row_is_scored_by_a_model_that_has_not_seen_it() -> None:
    """Features that name the row, labels without any pattern: a model that had seen them knew."""
    rows, generator = table(120), np.random.default_rng(3)
    rows["cancer"] = generator.integers(0, 2, 120).astype(float)
    features = generator.normal(size=(120, 119))
    scores, model = fit_metadata(features, rows, folds(120), use_table=False)
    assert roc_auc_score(rows["cancer"], scores) < 0.65
    assert roc_auc_score(rows["cancer"], model.scores(features, rows)) > 0.7
    fold = folds(120)
    changed = rows.assign(cancer=np.where(fold == 0, 1 - rows["cancer"], rows["cancer"]))
    again, _ = fit_metadata(features, changed, fold, use_table=False)
    assert np.array_equal(again[fold == 0], scores[fold == 0]), "a fold's labels touch its scores"
    assert not np.array_equal(again[fold == 1], scores[fold == 1])


def test_rows_of_no_fold_are_fitted_on_in_every_fold_and_never_scored() -> None:
    rows = table()
    fold = np.where(np.arange(400) < 40, -1, folds())
    scores, model = fit_metadata(None, rows, fold)
    assert np.isnan(scores[:40]).all()
    assert not np.isnan(scores[40:]).any()
    other = rows.assign(cancer=np.where(fold < 0, 1 - rows["cancer"], rows["cancer"]))
    again, others = fit_metadata(None, other, fold)
    assert others.to_json() != model.to_json()
    for one in range(4):
        assert not np.array_equal(again[fold == one], scores[fold == one])


def test_the_folds_that_are_asked_for_are_scored() -> None:
    rows, fold = table(), folds()
    every, whole = fit_metadata(None, rows, fold)
    scores, model = fit_metadata(None, rows, fold, folds=(2,))
    assert np.array_equal(scores[fold == 2], every[fold == 2])
    assert np.isnan(scores[fold != 2]).all()
    assert model.to_json() == whole.to_json()


@pytest.mark.parametrize(("width", "use"), [(0, True), (40, True), (40, False)])
def test_json_keeps_every_score(width: int, use: bool) -> None:
    rows = table()
    features = np.random.default_rng(0).normal(size=(400, width))
    _, model = fit_metadata(features if width else None, rows, folds(), use_table=use)
    again = MetadataModel.from_json(model.to_json())
    assert np.array_equal(again.scores(features, rows), model.scores(features, rows))
    assert bool(model.notes) is use
    if use:
        assert "betrays the site" in model.notes[0]


def test_what_is_refused() -> None:
    rows = table()
    with pytest.raises(ConfigError, match="neither features nor use_table"):
        fit_metadata(None, rows, folds(), use_table=False)
    with pytest.raises(TableError, match=r"features \(3, 2\), 400 folds and 400 rows"):
        fit_metadata(np.zeros((3, 2)), rows, folds())
    with pytest.raises(TableError, match=r"fold 0: the rows to fit have labels \[0.0\]"):
        fit_metadata(None, rows.assign(cancer=0.0), folds())
    _, model = fit_metadata(np.zeros((400, 3)) + np.arange(400)[:, None], rows, folds())
    with pytest.raises(TableError, match=r"got features \(400, 2\), wanted \(400, 3\)"):
        model.scores(np.zeros((400, 2)), rows)
    other = {**json.loads(model.to_json()), "version": 0}
    with pytest.raises(CheckpointError, match="version 0 with"):
        MetadataModel.from_json(json.dumps(other))
    for text in ("{", "[]", "{}", '{"version": 1}'):
        with pytest.raises(CheckpointError, match="not the JSON that to_json writes"):
            MetadataModel.from_json(text)
