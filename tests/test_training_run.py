"""A run: its splits, its balancing, its scores, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from training_runs import make_set, small, table_of

from fastmammo.errors import ConfigError, LeakError, TableError
from fastmammo.training.checkpoints import load_checkpoint
from fastmammo.training.prior import correct_prior
from fastmammo.training.run import train

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


def test_a_run_learns_and_leaves_its_folder(folder: Path, tmp_path: Path) -> None:
    settings = small(epochs=5)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings)
    names = {each.name for each in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "table.csv", "oof.csv", "metrics.json", "fold0", "fold1"}
    for fold in ("fold0", "fold1"):
        held = {each.name for each in (tmp_path / "run" / fold).iterdir()}
        assert held == {"best.pt", "last.pt", "log.csv", "oof.csv"}
    assert result.metrics["breast"]["auc"] > 0.95
    assert result.metrics["counts"]["images"] == len(result.oof) == 48
    assert set(result.metrics["folds"]) == {"0", "1"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == result.metrics
    table = table_of(folder)
    merged = result.oof.merge(table, on=["patient_id", "image_id"], suffixes=("", "_table"))
    assert (merged["cancer"] == merged["cancer_table"]).all()
    # each image is scored by the fold of its patient
    written = pd.read_csv(tmp_path / "run" / "table.csv", dtype={"patient_id": str})
    folds = dict(zip(written["patient_id"], written["fold"], strict=True))
    assert [folds[each] for each in result.oof["patient_id"]] == result.oof["fold"].tolist()


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"balance": "oversample", "positive_share": 0.5}, 0.5),
        ({"balance": "undersample", "undersample_ratio": 3.0}, 0.25),
        ({"balance": "pos_weight"}, 0.5),
        ({"balance": "none"}, None),
        ({"balance": "oversample", "correct_prior": False}, None),
    ],
)
def test_scores_are_corrected_for_the_balancing(
    folder: Path, tmp_path: Path, changes: dict[str, Any], trained: float | None
) -> None:
    table = table_of(folder).assign(fold=lambda rows: (rows.index // 4 % 2).astype(int))
    settings = small(epochs=1, **changes)
    oof = train(table, folder / "images", tmp_path / "run", settings, fold=0).oof
    plain = torch.tensor(oof["logit"].to_numpy()).sigmoid().numpy()
    rows = table[table["fold"] == 1]
    wanted = plain
    if trained is not None:
        wanted = correct_prior(plain, trained, rows["cancer"].mean())
    np.testing.assert_allclose(oof["score"], wanted, rtol=1e-9)


def test_rows_in_no_fold_are_trained_on_and_never_scored(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder)
    patient = table["patient_id"].astype(int)
    table["fold"] = np.where(patient >= 8, -1, patient % 2)
    events: list[dict[str, Any]] = []
    result = train(
        table, folder / "images", tmp_path / "run", small(epochs=1), progress=events.append
    )
    assert result.folds == (0, 1)
    assert set(result.oof["patient_id"].astype(int)) == set(range(8))
    sizes = [(e["training"], e["validation"]) for e in events if e["event"] == "fold"]
    assert sizes == [(32, 16), (32, 16)]


def test_a_hold_out_is_one_fold(folder: Path, tmp_path: Path) -> None:
    settings = small(epochs=1, hold_out=1 / 3)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings)
    assert result.folds == (0,)
    assert result.oof["patient_id"].nunique() == 4


def test_a_breast_has_one_score_of_a_multi_view_model(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder)
    # a third image of one breast, and a breast of one image
    table.loc[1, "laterality"] = "R"
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    table.loc[table["patient_id"] == "000", "cancer"] = 0.0
    settings = small(
        epochs=6, multiview="attention", auxiliary="view,density,age,biopsy", batch_size=6
    )
    oof = train(table, folder / "images", tmp_path / "run", settings).oof
    assert len(oof) == len(table)
    assert (oof.groupby("prediction_id")["score"].nunique() == 1).all()
    breasts = oof.drop_duplicates("prediction_id")
    positive = breasts["cancer"] == 1
    assert breasts["score"][positive].mean() > breasts["score"][~positive].mean()


def test_the_two_stage_model_scores_by_features_and_metadata(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = small(head="metadata")
    result = train(
        folder / "table.csv", folder / "images", tmp_path / "run", settings, note=notes.append
    )
    assert any("metadata betrays the site" in line for line in notes)
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert stages.keys() == {"image", "metadata", "both"}
    assert stages["both"]["auc"] == pytest.approx(result.metrics["breast"]["auc"])
    before = (tmp_path / "run" / "metadata.json").stat().st_mtime_ns
    again = small(head="metadata", resume=True)
    train(folder / "table.csv", folder / "images", tmp_path / "run", again, note=notes.append)
    assert "folds 0, 1 are finished" in notes
    assert (tmp_path / "run" / "metadata.json").stat().st_mtime_ns == before


def test_a_patient_in_two_folds_is_refused(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder)
    table["fold"] = np.arange(len(table)) % 2  # split by image
    with pytest.raises(LeakError, match="12 patients stand in more than one fold"):
        train(table, folder / "images", tmp_path / "run", small())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        ("0", "fold 0: none of the 24 training images is positive"),
        ("1", "fold 0: none of the 24 validation images is positive"),
    ],
)
def test_a_fold_without_positives_is_refused(
    folder: Path, tmp_path: Path, positive: str, message: str
) -> None:
    table = table_of(folder)
    table["fold"] = (table["patient_id"].astype(int) % 2).astype(int)
    table["cancer"] = ((table["fold"] == int(positive)) & (table["laterality"] == "L")).astype(
        float
    )
    with pytest.raises(TableError, match=message):
        train(table, folder / "images", tmp_path / "run", small())


def test_a_fold_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fold: got 7, the table has 0, 1"):
        train(folder / "table.csv", folder / "images", tmp_path / "run", small(), fold=7)


def test_images_that_are_not_there_are_told_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    table = table_of(folder)
    table.loc[5, "image_id"] = "elsewhere"
    run = tmp_path / "run"
    with pytest.raises(TableError, match="1 of the table's 48 rows have no image"):
        train(table, folder / "images", run, small())
    # nothing stands in the way of the next attempt
    result = train(table, folder / "images", run, small(missing="drop", epochs=1))
    assert len(result.oof) == 47
    assert "elsewhere" not in set(result.oof["image_id"])
    assert any("left out" in line for line in result.notes)


def test_the_best_weights_are_scored_where_asked_for(folder: Path, tmp_path: Path) -> None:
    common = {"epochs": 4, "lr": 1e-2, "monitor": "loss"}
    table = table_of(folder).assign(fold=lambda rows: (rows.index // 4 % 2).astype(int))
    for which in ("best", "last"):
        run = tmp_path / which
        settings = small(score_weights=which, **common)
        oof = train(table, folder / "images", run, settings, fold=0).oof
        history = load_checkpoint(run / "fold0" / "last.pt")["history"]
        epoch = load_checkpoint(run / "fold0" / f"{which}.pt")["epoch"]
        labels, logits = (torch.tensor(oof[name].to_numpy()) for name in ("cancer", "score"))
        loss = torch.nn.functional.binary_cross_entropy(logits, labels)
        assert float(loss) == pytest.approx(history[epoch - 1]["loss"], rel=1e-5)
    assert small(early_stop=2).loop.scored_weights == "best"
    assert small().loop.scored_weights == "last"
