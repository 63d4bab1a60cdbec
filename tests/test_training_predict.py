"""Prediction: from one run or several, on converted images or DICOMs, with a table or without."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from training_runs import make_rows, make_set, small, table_of, write_converted

from fastmammo.errors import CheckpointError, ConfigError, TableError
from fastmammo.preprocess import Config
from fastmammo.report.evaluation import evaluate_scores
from fastmammo.testing import phantom, write_dicom
from fastmammo.training import members
from fastmammo.training.evaluation import open_batches
from fastmammo.training.image_table import table_of_images
from fastmammo.training.images import ImagesConfig
from fastmammo.training.prediction import by_breast, predict
from fastmammo.training.run import train
from fastmammo.training.scored import read_scores
from fastmammo.training.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, two runs on it (of two folds and of one), a two-stage run, and a new set."""
    folder = make_set(tmp_path_factory.mktemp("set"))
    for name, changes in (
        ("run", {"epochs": 4}),
        ("other", {"epochs": 1, "hold_out": 0.3, "seed": 5}),
        ("stages", {"head": "metadata"}),
    ):
        train(folder / "table.csv", folder / "images", folder / name, small(**changes))
    make_set(folder / "new", patients=4, positive=2, seed=8)
    return folder


def test_scores_and_submission_are_written(folder: Path, tmp_path: Path) -> None:
    new, out = folder / "new", tmp_path / "out"
    frame = predict([folder / "run"], new / "images", new / "table.csv", out)
    read = pd.read_csv(out / "scores.csv", dtype={"patient_id": str})
    assert len(frame) == len(read) == 16
    assert list(read)[:5] == ["path", "patient_id", "image_id", "laterality", "view"]
    np.testing.assert_allclose(read["score"], frame["score"])
    assert frame["score"].between(0, 1).all()
    assert (frame["spread"] > 0).all()  # two folds, two opinions
    positive = frame["cancer"] == 1
    assert frame["score"][positive].min() > frame["score"][~positive].max()
    sent = pd.read_csv(out / "submission.csv")
    assert list(sent) == ["prediction_id", "cancer"]
    wanted = frame.groupby("prediction_id")["score"].mean()
    assert sent["prediction_id"].tolist() == list(dict.fromkeys(frame["prediction_id"]))
    np.testing.assert_allclose(sent["cancer"], wanted[sent["prediction_id"]])


def test_scores_are_those_of_the_training(folder: Path, tmp_path: Path) -> None:
    """A fold's own images, by its own model alone: the out-of-fold scores."""
    run = tmp_path / "one"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "fold1")
    notes: list[str] = []
    frame = predict([run], folder / "images", folder / "table.csv", tmp_path, note=notes.append)
    # of the table's 12 patients 6 are of the fold that is left, whose model has not seen them
    assert any("6 of the patients scored here are among those" in line for line in notes)
    oof = pd.read_csv(folder / "run" / "fold0" / "oof.csv")
    both = frame.merge(oof, on="image_id", suffixes=("", "_then"))
    assert len(both) == 24
    np.testing.assert_allclose(both["score"], both["score_then"], rtol=1e-4)
    assert (frame["spread"] == 0).all()


def test_runs_are_averaged_run_by_run(folder: Path, tmp_path: Path) -> None:
    images, table = folder / "new" / "images", folder / "new" / "table.csv"
    names = ("run", "other", "stages")
    alone = [predict([folder / name], images, table, tmp_path)["score"] for name in names]
    events: list[dict[str, Any]] = []
    runs = [folder / name for name in names]
    frame = predict(runs, images, table, tmp_path, progress=events.append)
    np.testing.assert_allclose(frame["score"], np.mean(alone, axis=0), rtol=1e-6)
    models = [each for each in events if each["event"] == "model"]
    assert [(each["done"], each["total"]) for each in models] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_flipping_scores_the_mirror_images_too(folder: Path, tmp_path: Path) -> None:
    new = folder / "new"
    plain = predict([folder / "run"], new / "images", None, tmp_path)["score"]
    array = np.load(new / "images" / "images.npy")
    rows = pd.read_csv(new / "table.csv", dtype={"patient_id": str})
    write_converted(tmp_path / "mirrored", np.ascontiguousarray(array[:, :, ::-1]), rows)
    mirrored = predict([folder / "other"], tmp_path / "mirrored", None, tmp_path)["score"]
    straight = predict([folder / "other"], new / "images", None, tmp_path)["score"]
    both = predict([folder / "other"], new / "images", None, tmp_path, flip=True)["score"]
    np.testing.assert_allclose(both, (mirrored + straight) / 2, rtol=1e-5)
    assert not np.allclose(both, plain)


def test_flipping_scores_the_mirror_images_of_a_two_stage_run_too(
    folder: Path, tmp_path: Path
) -> None:
    new, run = folder / "new", [folder / "stages"]
    array = np.load(new / "images" / "images.npy")
    rows = pd.read_csv(new / "table.csv", dtype={"patient_id": str})
    write_converted(tmp_path / "mirrored", np.ascontiguousarray(array[:, :, ::-1]), rows)
    mirrored = predict(run, tmp_path / "mirrored", None, tmp_path)["score"]
    straight = predict(run, new / "images", None, tmp_path)["score"]
    both = predict(run, new / "images", None, tmp_path, flip=True)["score"]
    np.testing.assert_allclose(both, (mirrored + straight) / 2, rtol=1e-5)
    assert not np.allclose(both, straight)


def test_models_compute_as_in_their_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its precision, by its micro-batches; the scores are those of the training exactly."""
    run = tmp_path / "run"
    settings = small(epochs=1, precision="bf16-mixed", accumulate=4)
    oof = train(folder / "table.csv", folder / "images", run, settings, fold=0).oof
    sizes: list[int] = []

    def spy(fabric: Any, images: Any, rows: Any, batch_size: int, **more: Any) -> Any:
        sizes.append(batch_size)
        return open_batches(fabric, images, rows, batch_size, **more)

    monkeypatch.setattr(members, "open_batches", spy)
    table = table_of(folder)
    own = table[table["image_id"].isin(oof["image_id"])].reset_index(drop=True)
    found = predict([run], folder / "images", own, tmp_path / "out")
    assert found["score"].tolist() == oof["score"].tolist()
    predict([run], folder / "images", own, tmp_path / "out", batch_size=3)
    assert sizes == [2, 3]
    # what the device has not is told
    path, notes = run / "config.json", list[str]()
    path.write_text(path.read_text().replace('"precision": "bf16-mixed",\n  "ranks"',
                                             '"precision": "16-mixed",\n  "ranks"'))  # fmt: skip
    plain = predict([run], folder / "images", own, tmp_path / "out", note=notes.append)
    assert any("was trained in 16-mixed, which this device has not" in line for line in notes)
    assert plain["score"].tolist() != found["score"].tolist()
    np.testing.assert_allclose(plain["score"], found["score"], atol=0.05)


def test_a_submission_may_be_binary_and_of_the_highest_score(folder: Path, tmp_path: Path) -> None:
    new = folder / "new"
    notes: list[str] = []
    frame = predict(
        [folder / "run"],
        new / "images",
        new / "table.csv",
        tmp_path,
        reduce="max",
        binarise=True,
        note=notes.append,
    )
    threshold = json.loads((folder / "run" / "metrics.json").read_text())["threshold"]
    sent = pd.read_csv(tmp_path / "submission.csv")
    wanted = by_breast(frame, "max")
    assert sent["cancer"].tolist() == (wanted["cancer"] >= threshold).astype(int).tolist()
    assert f"submission.csv: 1 from a score of {threshold:.4g}" in notes


def test_without_a_table_the_manifest_tells(folder: Path, tmp_path: Path) -> None:
    new = folder / "new"
    told = predict([folder / "run"], new / "images", None, tmp_path)
    tabled = predict([folder / "run"], new / "images", new / "table.csv", tmp_path)
    assert "cancer" not in told
    for name in ("patient_id", "image_id", "laterality", "view", "prediction_id", "score"):
        assert told[name].tolist() == tabled[name].tolist()


def test_images_made_with_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = make_rows(2, 1)
    images = np.zeros((8, 32, 16), np.uint8)
    write_converted(tmp_path / "images", images, rows, flip="left")
    with pytest.raises(CheckpointError, match="flip: 'none' there, 'left' here"):
        predict([folder / "run"], tmp_path / "images", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_told_or_left_out(folder: Path, tmp_path: Path) -> None:
    new = folder / "new"
    table = pd.read_csv(new / "table.csv", dtype={"patient_id": str})
    table.loc[0, "image_id"] = "elsewhere"
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(TableError, match="1 of the table's 16 rows has no image"):
        predict([folder / "run"], new / "images", tmp_path / "table.csv", tmp_path / "out")
    notes: list[str] = []
    frame = predict(
        [folder / "run"],
        new / "images",
        tmp_path / "table.csv",
        tmp_path / "out",
        images=ImagesConfig(missing="drop"),
        note=notes.append,
    )
    assert len(frame) == 15
    assert "1 of 16 images could not be read: they have no scores" in notes


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ("config", "is no run folder: config.json cannot be read"),
        ("folds", r"no fold has been trained to its end: there is no fold\*/last\.pt"),
        ("settings", r"was trained by fastmammo .*: settings of loop: got hyperlr"),
        ("model", r"last\.pt is of another model: heads\.cancer.*absent there"),
        ("metrics", "metrics.json tells no threshold"),
    ],
)
def test_a_run_that_is_not_whole_is_told(
    folder: Path, tmp_path: Path, break_it: str, message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    path = run / "config.json"
    if break_it == "config":
        path.unlink()
    elif break_it == "folds":
        (run / "fold0" / "last.pt").unlink()
        (run / "fold1" / "oof.csv").unlink()
    elif break_it == "settings":
        path.write_text(path.read_text().replace('"weight_decay"', '"hyperlr"', 1))
    elif break_it == "model":
        config = json.loads(path.read_text())
        config["settings"]["model"]["model"] = "resnet18"
        path.write_text(json.dumps(config))
    else:
        (run / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        predict([run], folder / "new" / "images", None, tmp_path / "out", binarise=True)


def test_a_two_stage_run_that_is_not_whole_is_told(folder: Path, tmp_path: Path) -> None:
    for name, message in (("metadata.json", "the run has not ended"), ("features.pt", "features")):
        run = tmp_path / name
        shutil.copytree(folder / "stages", run)
        (run / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            predict([run], folder / "new" / "images", None, tmp_path / "out")
    shutil.copytree(folder / "stages", tmp_path / "run")
    (tmp_path / "run" / "metadata.json").unlink()
    (tmp_path / "run" / "metadata.json").mkdir()
    with pytest.raises(CheckpointError, match=r"metadata\.json cannot be read"):
        predict([tmp_path / "run"], folder / "new" / "images", None, tmp_path / "out")


def test_a_table_that_holds_no_scores_is_refused(folder: Path) -> None:
    with pytest.raises(TableError, match="no column prediction_id, score: is it of a run"):
        read_scores(folder / "table.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": []}, "runs: got none, wanted at least one"),
        ({"reduce": "median"}, "reduce: got 'median', allowed are mean, max"),
        ({"batch_size": 0}, "batch_size: got 0, wanted 1 or more"),
    ],
)
def test_what_cannot_be_asked_for(
    folder: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    given = {"runs": [folder / "run"], **values}
    with pytest.raises(ConfigError, match=message):
        predict(source=folder / "new" / "images", table=None, out=tmp_path, **given)


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms as DICOM, <patient>/<image>.dcm, and their table."""
    folder = tmp_path_factory.mktemp("dicoms")
    rows = make_rows(4, 4)
    for seed, row in enumerate(rows.itertuples()):
        side, view = str(row.laterality), str(row.view)
        made = phantom(96, 80, seed=seed)
        path = folder / "files" / str(row.patient_id) / f"{row.image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(
            made.pixels,
            path=path,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            laterality=side,
            view_position=view,
            patient_id=str(row.patient_id),
            seed=seed,
        )
    rows.to_csv(folder / "table.csv", index=False)
    return folder


def test_dicoms_train_and_are_scored_as_the_training_saw_them(
    dicoms: Path, folder: Path, tmp_path: Path
) -> None:
    base = small(epochs=1, batch_size=4)
    settings = Settings(**{**vars(base), "preprocess": Config(size=(48, 32), flip="left")})
    run = tmp_path / "run"
    result = train(dicoms / "table.csv", dicoms / "files", run, settings)
    assert len(result.oof) == 16
    shutil.rmtree(run / "fold1")
    frame = predict([run], dicoms / "files", None, tmp_path / "out")
    assert frame["prediction_id"].tolist() == [
        f"{patient}_{side}"
        for patient, side in zip(frame["patient_id"], frame["laterality"], strict=True)
    ]
    assert set(frame["view"]) == {"CC", "MLO"}
    oof = pd.read_csv(run / "oof.csv")
    both = frame.merge(oof[oof["fold"] == 0], on="image_id", suffixes=("", "_then"))
    assert len(both) == 8
    np.testing.assert_allclose(both["score"], both["score_then"], rtol=1e-4)
    with pytest.raises(CheckpointError, match="size"):
        predict([run], folder / "new" / "images", None, tmp_path / "out")


def test_headers_tell_what_the_layout_does_not(dicoms: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((dicoms / "files").rglob("*.dcm"))[:4]):
        shutil.copy(path, tmp_path / f"{number}.dcm")
    (tmp_path / "readme.txt").write_text("no DICOM")
    whole = (tmp_path / "0.dcm").read_bytes()
    (tmp_path / "torn.dcm").write_bytes(whole[: len(whole) // 2])
    notes: list[str] = []
    table = table_of_images(tmp_path, notes.append)
    assert table["image_id"].tolist() == ["0", "1", "2", "3"]
    assert set(table["patient_id"]) == {"000"}
    assert set(table["prediction_id"]) == {"000_L", "000_R"}
    assert table["cancer"].isna().all()
    assert (table["fold"] == -1).all()
    assert any(line.startswith("1 files cannot be read") for line in notes)


def test_an_image_that_tells_no_patient_stands_for_itself(tmp_path: Path) -> None:
    rows = make_rows(2, 1).assign(patient_id="", laterality="")
    write_converted(tmp_path, np.zeros((8, 32, 16), np.uint8), rows)
    notes: list[str] = []
    table = table_of_images(tmp_path, notes.append)
    assert table["patient_id"].tolist() == rows["image_id"].tolist()
    assert table["prediction_id"].nunique() == 8
    assert notes == [
        "8 of 8 images tell no patient: each is scored by itself",
        "8 of 8 images tell no laterality: their scores are by patient",
    ]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(TableError, match="holds no mammogram"):
        table_of_images(tmp_path)
    (tmp_path / "manifest.csv").write_text("name\nx\n")
    with pytest.raises(TableError, match=r"has no column path, status: no manifest"):
        table_of_images(tmp_path)


def test_only_patients_that_a_model_was_trained_on_are_told(folder: Path, tmp_path: Path) -> None:
    oof = read_scores(folder / "other" / "oof.csv")
    table = table_of(folder)
    held = table[table["patient_id"].isin(oof["patient_id"])]
    notes: list[str] = []
    predict([folder / "other"], folder / "images", held, tmp_path, note=notes.append)
    assert not any("flatters" in line or "flatter" in line for line in notes)
    # a two-stage model is fitted on all rows in the end
    predict([folder / "stages"], folder / "images", held, tmp_path, note=notes.append)
    count = held["patient_id"].nunique()
    assert any(f"{count} of the patients scored here" in line for line in notes)


def test_what_a_two_stage_run_does_not_know_is_told(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    predict([folder / "stages"], folder / "new" / "images", None, tmp_path, note=notes.append)
    assert any("age, implant, density unknown for 16 of 16 images: imputed" in n for n in notes)
    notes.clear()
    table = folder / "new" / "table.csv"
    predict([folder / "stages"], folder / "new" / "images", table, tmp_path, note=notes.append)
    assert not any("imputed" in line for line in notes)


def test_labels_are_written_as_whole_numbers(folder: Path, tmp_path: Path) -> None:
    table = folder / "new" / "table.csv"
    predict([folder / "run"], folder / "new" / "images", table, tmp_path)
    for path in (tmp_path / "scores.csv", folder / "run" / "oof.csv"):
        written = pd.read_csv(path, dtype=str)
        assert set(written["cancer"]) == {"0", "1"}
        assert read_scores(path)["cancer"].dtype == np.float64


def test_scores_that_are_cut_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "run" / "oof.csv").read_text()
    (tmp_path / "cut.csv").write_text(whole[: whole.rstrip().rindex(",")])
    with pytest.raises(TableError, match=r"line 49 has 10 cells, the header 11: was the file cut"):
        read_scores(tmp_path / "cut.csv")
    with pytest.raises(TableError, match=r"line 49 has 10 cells, the header 11: was the file cut"):
        evaluate_scores(tmp_path / "cut.csv")
