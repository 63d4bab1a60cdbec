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
from fastmammo.report.compare import compare_models
from fastmammo.report.scores import headline, text
from fastmammo.report.training import write_report
from fastmammo.training.checkpoints import load_checkpoint
from fastmammo.training.prediction import predict
from fastmammo.training.prior import correct_prior, posterior_logits
from fastmammo.training.run import split, train
from fastmammo.training.run_folder import read_notes
from fastmammo.training.scored import CHOSEN, doubts
from fastmammo.training.table import TableOptions, split_table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


def test_a_run_learns_and_leaves_its_folder(folder: Path, tmp_path: Path) -> None:
    settings = small(epochs=5)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings)
    names = {each.name for each in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {
        *("config.json", "table.csv", "oof.csv", "metrics.json", "notes.json", "fold0", "fold1"),
    }
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
        ({"balance": "oversample", "correct_prior": False, "smoothing": 0.1}, None),
        ({"loss": "focal", "smoothing": 0.1}, None),
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


def test_a_hold_out_of_split_is_one_fold_too(folder: Path, tmp_path: Path) -> None:
    options = TableOptions(exclude="none", hold_out=1 / 3)
    split_table(folder / "table.csv", tmp_path / "split.csv", options)
    result = train(tmp_path / "split.csv", folder / "images", tmp_path / "run", small(epochs=1))
    assert result.folds == (0,)
    assert result.oof["patient_id"].nunique() == 4
    own = train(
        folder / "table.csv", folder / "images", tmp_path / "own", small(epochs=1, hold_out=1 / 3)
    )
    assert own.oof["score"].tolist() == result.oof["score"].tolist()


def test_a_hold_out_beside_folds_is_told(folder: Path) -> None:
    table = table_of(folder).assign(fold=lambda rows: (rows.index // 4 % 2).astype(int))
    notes: list[str] = []
    assert split(table, small(hold_out=0.5), notes.append)["fold"].equals(table["fold"])
    assert notes == [
        "hold_out: not used: the table's own column fold is, with 2 folds. Leave that out by "
        "columns='fold=' to split anew"
    ]


def test_a_table_that_is_not_typed_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = pd.read_csv(folder / "table.csv")
    with pytest.raises(TableError, match=r"not as read_table gives it: no column biopsy"):
        train(plain, folder / "images", tmp_path / "run", small())
    text = table_of(folder).assign(age="old")
    with pytest.raises(TableError, match="age of type"):
        train(text, folder / "images", tmp_path / "run", small())


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


@pytest.mark.parametrize(("changes", "fold"), [({"hold_out": 1 / 3}, None), ({"folds": 3}, 1)])
def test_the_stages_are_of_the_patients_that_the_metrics_are_of(
    folder: Path, tmp_path: Path, changes: dict[str, Any], fold: int | None
) -> None:
    settings, run = small(head="metadata", **changes), tmp_path / "run"
    result = train(folder / "table.csv", folder / "images", run, settings, fold=fold)
    stages = json.loads((run / "stages.json").read_text())
    assert result.metrics["counts"]["breasts"] == stages["both"]["count"] == 8
    for name in ("auc", "brier"):
        assert stages["both"][name] == pytest.approx(result.metrics["breast"][name])
    if fold is not None:  # the next fold joins the first
        again = small(head="metadata", resume=True, **changes)
        result = train(folder / "table.csv", folder / "images", run, again, fold=2)
        stages = json.loads((run / "stages.json").read_text())
        assert result.metrics["counts"]["breasts"] == stages["both"]["count"] == 16
        assert stages["both"]["auc"] == pytest.approx(result.metrics["breast"]["auc"])


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
    with pytest.raises(TableError, match="1 of the table's 48 rows has no image"):
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


@pytest.mark.parametrize(
    ("changes", "values", "note"),
    [
        ({"smoothing": 0.2}, {"smoothing": 0.2}, "label smoothing is undone"),
        ({"positive_smoothing": 0.2}, {"positive_smoothing": 0.2}, "label smoothing is undone"),
        ({"loss": "focal"}, {"kind": "focal"}, "focal loss: scores are the probabilities"),
    ],
)
def test_what_the_loss_does_to_the_scores_is_undone_first(
    folder: Path, tmp_path: Path, changes: dict[str, Any], values: dict[str, Any], note: str
) -> None:
    table = table_of(folder).assign(fold=lambda rows: (rows.index // 4 % 2).astype(int))
    run, settings = tmp_path / "run", small(epochs=1, **changes)
    result = train(table, folder / "images", run, settings, fold=0)
    told = 1 / (1 + np.exp(-posterior_logits(result.oof["logit"], **values)))
    wanted = correct_prior(told, 0.5, table["cancer"][table["fold"] == 1].mean())
    np.testing.assert_allclose(result.oof["score"], wanted, rtol=1e-9)
    assert any(line.startswith(note) for line in result.metrics["notes"])
    assert any(line.startswith(note) for line in result.notes)
    # the validation's loss is of the same scores
    history = load_checkpoint(run / "fold0" / "last.pt")["history"]
    labels, scores = (torch.tensor(result.oof[name].to_numpy()) for name in ("cancer", "score"))
    loss = torch.nn.functional.binary_cross_entropy(scores, labels)
    assert float(loss) == pytest.approx(history[-1]["loss"], rel=1e-5)
    # and a prediction's scores are made in the same way
    frame = predict([run], folder / "images", table, tmp_path / "out")
    own = frame.merge(result.oof, on="image_id", suffixes=("", "_then"))
    np.testing.assert_allclose(own["score"], own["score_then"], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"early_stop": 3, "monitor": "auc"}, "auc"),
        ({"early_stop": 3, "score_weights": "last"}, "pr_auc"),
        ({"score_weights": "best", "monitor": "loss"}, "loss"),
        ({}, None),
        ({"head": "metadata", "early_stop": 3}, None),
    ],
)
def test_an_epoch_that_was_chosen_on_the_scores_is_told(
    folder: Path, tmp_path: Path, changes: dict[str, Any], by: str | None
) -> None:
    settings = small(epochs=1, **changes)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings, fold=0)
    assert result.metrics["epoch_chosen_by"] == by
    assert (by is not None) == any("flatters" in line for line in result.metrics["notes"])
    line = CHOSEN.format(by)
    if by:
        assert line in text(result.metrics)
    assert (line in str(headline(result.metrics, "out of fold"))) == (by is not None)


def test_the_notes_of_a_run_stay_in_its_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = small(epochs=1, batch_size=2, positive_share=0.125)
    result = train(folder / "table.csv", folder / "images", run, settings, fold=0)
    assert any("50.0% of each batch are positives" in line for line in result.notes)
    assert read_notes(run) == list(result.notes)
    again = small(epochs=1, batch_size=2, positive_share=0.125, resume=True)
    more = train(folder / "table.csv", folder / "images", run, again, fold=0)
    assert "fold 0 is finished" in more.notes
    assert read_notes(run) == list(result.notes)  # that is of the call, not of the run
    page = write_report(run, cases=0).read_text()
    assert "50.0% of each batch are positives" in page
    (run / "notes.json").write_text("{")
    assert read_notes(run) == []


def test_a_comparison_marks_the_models_whose_epoch_was_chosen_on_it(
    folder: Path, tmp_path: Path
) -> None:
    settings = {
        "last": small(epochs=1),
        "best": small(epochs=1, score_weights="best", monitor="auc"),
    }
    found = compare_models(folder / "table.csv", folder / "images", tmp_path, settings, fold=0)
    lines = found.text().splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["last", "best *"]
    assert f"* {CHOSEN.format('auc')}" in lines
    page = found.page.read_text()
    assert "best *" in page
    assert CHOSEN.format("auc") in page


def test_a_training_that_has_diverged_is_told(folder: Path, tmp_path: Path) -> None:
    result = train(
        folder / "table.csv", folder / "images", tmp_path / "run", small(lr=50.0, clip=0.0), fold=0
    )
    found = [line for line in result.metrics["notes"] if line.startswith("fold 0: ")]
    assert len(found) == 1
    assert "nearly equal" in found[0] or "has diverged" in found[0]
    assert found[0] in read_notes(result.folder)
    assert found[0] in result.notes


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.25, 0.25, 0.25, 0.25 + 1e-5], "all 4 scores are nearly equal"),
        ([1.0, 1.0, 0.9, 0.0], "training has diverged"),
        ([0.3, 0.2, 0.25, 0.24], ""),
        ([0.0, 0.0, 0.0, 1.0], ""),
    ],
)
def test_scores_of_a_failed_training(scores: list[float], said: str) -> None:
    frame = pd.DataFrame({"cancer": [0.0, 0.0, 0.0, 1.0], "score": scores})
    found = doubts(frame)
    assert said in found
    assert bool(said) == bool(found)
    # plain sigmoids of a balanced training are no probabilities: their loss says nothing
    assert "diverged" not in doubts(frame, probabilities=False)


def test_positives_that_are_commoner_than_a_batch_shows_are_told(
    folder: Path, tmp_path: Path
) -> None:
    settings = small(epochs=1, positive_share=0.125)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings)
    for fold in (0, 1):
        line = f"fold {fold}: 25.0% of the training rows are positive, more than the 12.5%"
        for notes in (result.metrics["notes"], read_notes(result.folder)):
            assert any(each.startswith(line) for each in notes)


def test_a_result_is_shown_in_a_line(folder: Path, tmp_path: Path) -> None:
    settings = small(epochs=1)
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings, fold=1)
    breast = result.metrics["breast"]["auc"]
    assert repr(result).startswith(
        f"RunResult(folder={str(tmp_path / 'run')!r}, folds=(1,), auc={breast:.3f}"
    )
    assert len(repr(result)) < 300


def test_settings_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings: got ModelConfig, wanted Settings"):
        train(folder / "table.csv", folder / "images", tmp_path / "run", small().model)  # type: ignore[arg-type]


def test_features_of_random_weights_are_told(folder: Path, tmp_path: Path) -> None:
    settings = small(head="metadata", pretrained=True)  # small_cnn has none
    result = train(folder / "table.csv", folder / "images", tmp_path / "run", settings)
    assert any("its weights are random" in line for line in result.notes)
