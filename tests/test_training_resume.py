"""A run folder is one run's: it goes on to the same numbers, or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from training_killed import CHANGES
from training_runs import make_rows, make_set, small, table_of, write_converted

from fastmammo.errors import CheckpointError, ModelError, TableError, WeightsError
from fastmammo.preprocess import Config
from fastmammo.testing import phantom, write_dicom
from fastmammo.training import checkpoints, one_fold, run_folder
from fastmammo.training.checkpoints import load_checkpoint, save_checkpoint
from fastmammo.training.images import open_images
from fastmammo.training.run import RunResult, train
from fastmammo.training.run_folder import RunFolder, read_config
from fastmammo.training.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> RunResult:
    return train(folder / "table.csv", folder / "images", folder / "run", small(**CHANGES))


def state_of(run: Path) -> dict[str, bytes]:
    """Every file of a run but the lock, with its bytes."""
    files = sorted(each for each in run.rglob("*") if each.is_file() and each.name != ".lock")
    return {str(each.relative_to(run)): each.read_bytes() for each in files}


def test_a_killed_run_goes_on_to_the_same_weights_and_scores(
    folder: Path, undisturbed: RunResult, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    notes: list[str] = []
    # in the middle of epochs, in two folds; the second time while going on from the first
    command = [sys.executable, str(HERE / "training_killed.py"), str(folder), str(run)]
    done = subprocess.run([*command, "0", "2", "2"], cwd=HERE, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert not (run / "fold0" / "oof.csv").exists()
    assert load_checkpoint(run / "fold0" / "last.pt")["epoch"] == 1
    again = small(**CHANGES, resume=True)
    train(folder / "table.csv", folder / "images", run, again, note=notes.append)
    assert "fold 0 goes on after epoch 1" in notes
    for fold in ("fold0", "fold1"):
        for name in ("last.pt", "best.pt"):
            here, there = (
                load_checkpoint(each / fold / name) for each in (run, undisturbed.folder)
            )
            for part in ("weights", "module"):
                if part in here:
                    assert here[part].keys() == there[part].keys()
                    for key, value in here[part].items():
                        assert torch.equal(value, there[part][key]), (fold, name, key)
        for mine, theirs in zip(
            load_checkpoint(run / fold / "last.pt")["history"],
            load_checkpoint(undisturbed.folder / fold / "last.pt")["history"],
            strict=True,
        ):
            for name in ("epoch", "steps", "lr", "train_loss", "positive_share", "loss", "auc"):
                assert mine[name] == theirs[name], name
    for name in ("oof.csv", "metrics.json", "table.csv", "config.json", "notes.json"):
        assert (run / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name


def test_a_finished_run_that_is_resumed_changes_nothing(
    folder: Path, undisturbed: RunResult
) -> None:
    before = state_of(undisturbed.folder)
    notes: list[str] = []
    events: list[str] = []
    result = train(
        folder / "table.csv",
        folder / "images",
        undisturbed.folder,
        small(**CHANGES, resume=True),
        note=notes.append,
        progress=lambda event: events.append(event["event"]),
    )
    assert {"fold 0 is finished", "fold 1 is finished"} <= set(notes)
    assert "step" not in events
    assert state_of(undisturbed.folder) == before
    assert result.metrics == undisturbed.metrics


def test_one_fold_after_the_other_is_the_run_of_both(
    folder: Path, undisturbed: RunResult, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for fold in (1, 0):
        settings = small(**CHANGES, resume=True)
        result = train(folder / "table.csv", folder / "images", run, settings, fold=fold)
        assert result.folds == (fold,)
    assert (run / "oof.csv").read_bytes() == (undisturbed.folder / "oof.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"loop\.lr: 0\.003 there, 0\.5 here"),
        ({"model": "efficientnet_b0"}, "model.model: 'small_cnn' there, 'efficientnet_b0' here"),
        ({"folds": 3}, "table.digest"),
    ],
)
def test_other_settings_do_not_go_on(
    folder: Path, undisturbed: RunResult, change: dict[str, Any], message: str
) -> None:
    settings = small(**{**CHANGES, **change}, resume=True)
    with pytest.raises(CheckpointError, match=message):
        train(folder / "table.csv", folder / "images", undisturbed.folder, settings)


def test_another_version_does_not_go_on(
    folder: Path, undisturbed: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "version", lambda name: "9.9")
    with pytest.raises(CheckpointError, match=r"fastmammo: '.*' there, '9\.9' here"):
        train(
            folder / "table.csv",
            folder / "images",
            undisturbed.folder,
            small(**CHANGES, resume=True),
        )


def test_storage_and_device_may_differ(folder: Path, undisturbed: RunResult) -> None:
    settings = small(**CHANGES, resume=True, storage="memmap", prefetch=4)
    assert train(folder / "table.csv", folder / "images", undisturbed.folder, settings).folds


def test_other_pixels_do_not_go_on(folder: Path, undisturbed: RunResult, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", seed=1)
    settings = small(**CHANGES, resume=True)
    with pytest.raises(CheckpointError, match=r"images\.digest: '\w+' there, '\w+' here"):
        train(folder / "table.csv", other / "images", undisturbed.folder, settings)
    # a copy is the same
    shutil.copytree(folder / "images", tmp_path / "copy")
    assert train(folder / "table.csv", tmp_path / "copy", undisturbed.folder, settings).folds


def test_other_dicoms_do_not_go_on(tmp_path: Path) -> None:
    rows = make_rows(4, 4)
    for seed, row in enumerate(rows.itertuples()):
        path = tmp_path / "files" / str(row.patient_id) / f"{row.image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = phantom(96, 80, seed=seed).pixels
        write_dicom(pixels, path=path, transfer_syntax_uid="1.2.840.10008.1.2.1", seed=seed)
    rows.to_csv(tmp_path / "table.csv", index=False)
    common = {**vars(small(epochs=1)), "preprocess": Config(size=(48, 32))}
    train(tmp_path / "table.csv", tmp_path / "files", tmp_path / "run", Settings(**common), fold=0)
    again = Settings(**{**common, "loop": replace(common["loop"], resume=True)})
    args = (tmp_path / "table.csv", tmp_path / "files", tmp_path / "run", again)
    assert train(*args, fold=0).folds == (0,)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    with pytest.raises(CheckpointError, match=r"images\.digest"):
        train(*args, fold=0)


def test_other_weights_to_start_from_do_not_go_on(folder: Path, tmp_path: Path) -> None:
    path, table = tmp_path / "start.pt", table_of(folder)
    found = []
    with open_images(folder / "images", table) as images:
        for content in (b"one", b"one", b"two"):
            path.write_bytes(content)
            settings = small(model="resnet18", weights=str(path))
            made = run_folder.describe_run(settings, table, images, folder / "images")
            found.append(made["identity"]["model.weights.digest"])
        assert found[0] == found[1] != found[2]
        path.unlink()
        with pytest.raises(WeightsError, match=r"weights: .*start\.pt cannot be read \(No such"):
            run_folder.describe_run(settings, table, images, folder / "images")


def test_a_file_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    rows, files = make_rows(2, 1), []
    for row in rows.itertuples():
        files.append(tmp_path / "files" / str(row.patient_id) / f"{row.image_id}.dcm")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        pixels = phantom(96, 80).pixels
        write_dicom(pixels, path=files[-1], transfer_syntax_uid="1.2.840.10008.1.2.1")
    with open_images(
        tmp_path / "files", rows.assign(path=""), config=Config(size=(8, 8))
    ) as images:
        files[0].unlink()
        with pytest.raises(TableError, match=r"000LCC\.dcm cannot be looked at"):
            images.fingerprint()


def test_pngs_have_a_fingerprint(tmp_path: Path) -> None:
    rows = make_rows(2, 1)
    write_converted(tmp_path, np.zeros((8, 32, 16), np.uint8), rows)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "format": "png"}))
    manifest = pd.read_csv(tmp_path / "manifest.csv", dtype=str)
    manifest["output"] = manifest["image_id"] + ".png"
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    for name in manifest["output"]:
        Image.new("L", (16, 32)).save(tmp_path / name)
    with open_images(tmp_path, rows.assign(path="")) as images:
        before = images.fingerprint()
        assert images.fingerprint() == before
        Image.new("L", (16, 32), 1).save(tmp_path / "000LCC.png")
        assert images.fingerprint() != before
        (tmp_path / "000LCC.png").unlink()
        with pytest.raises(TableError, match=r"000LCC\.png cannot be read"):
            images.fingerprint()


def test_a_run_that_goes_on_in_another_precision_is_told(folder: Path, tmp_path: Path) -> None:
    args = (folder / "table.csv", folder / "images", tmp_path)
    train(*args, small(epochs=1), fold=0)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"precision": "32-true"', '"precision": "bf16-mixed"'))
    result = train(*args, small(epochs=1, resume=True), fold=1)
    assert any("began in bf16-mixed and goes on in 32-true" in line for line in result.notes)


@pytest.mark.parametrize("killed", ["config.json", "table.csv"])
def test_a_run_that_is_killed_as_it_begins_can_begin_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    args = (folder / "table.csv", folder / "images", tmp_path / "run")
    write = run_folder.write_atomic

    def die(path: str, parts: Any, partial: str) -> None:
        if Path(path).name == killed:
            Path(partial).write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, parts, partial)

    monkeypatch.setattr(run_folder, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        train(*args, small(epochs=1), fold=0)
    monkeypatch.undo()
    # without config.json nothing has begun; with it the run says what it is
    train(*args, small(epochs=1, resume=killed == "table.csv"), fold=0)
    assert (tmp_path / "run" / "table.csv").exists()


def test_a_run_folder_that_is_not_empty_is_refused(
    folder: Path, undisturbed: RunResult, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is not empty: it holds config\.json.*resume"):
        train(folder / "table.csv", folder / "images", undisturbed.folder, small(**CHANGES))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"it holds thesis\.tex, but no config\.json"):
        train(folder / "table.csv", folder / "images", tmp_path, small(resume=True))


def test_a_run_folder_in_use_is_refused(folder: Path, tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.take(resume=False)
    with pytest.raises(CheckpointError, match=r"another run works on .* \(process \d+\)"):
        train(folder / "table.csv", folder / "images", tmp_path / "run", small())
    first.release()
    second = RunFolder(tmp_path / "run")
    second.take(resume=False)
    second.release()


def test_a_run_folder_that_cannot_be_made_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write to .*: Not a directory"):
        train(folder / "table.csv", folder / "images", tmp_path / "file" / "run", small())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run folder: config.json cannot be read"),
        ("{", "config.json is damaged"),
        ('{"format": "packed"}', "is not that of a training run"),
    ],
)
def test_a_config_that_is_no_run_s_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        run_folder.read_config(tmp_path)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_program(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def later_format(path: Path) -> None:
    torch.save({"kind": checkpoints.KIND, "format": 99, "identity": {"fastmammo": "7.0"}}, path)


class Harmful:
    """What a pickle can do to whoever loads it."""

    ran = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return setattr, (Harmful, "ran", True)


def harmful(path: Path) -> None:
    torch.save({"kind": checkpoints.KIND, "format": 1, "weights": Harmful()}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "no checkpoint at"),
        (truncate, r"is damaged: it is cut short, at \d+ bytes.*train its fold again with resume"),
        (empty, "is damaged: it is empty"),
        (other_program, "is no checkpoint of fastmammo"),
        (later_format, r"has format 99, wanted 1\. It was written by fastmammo 7\.0"),
        (harmful, "holds more than tensors and plain values"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_told(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": {"a": torch.zeros(100)}, "epoch": 3})
    assert load_checkpoint(path)["epoch"] == 3
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    assert not Harmful.ran


def test_what_to_do_about_damage_fits_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"PK")
    (tmp_path / "best.pt").touch()
    with pytest.raises(CheckpointError, match=r"or copy best\.pt, the weights of the best epoch"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"trained from its start \(best\.pt beside it can"):
        load_checkpoint(path, resuming=True)


def test_a_start_that_failed_uses_nothing_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (folder / "table.csv", folder / "images", tmp_path / "run")
    with pytest.raises(ModelError, match="got 'smal_cnn'"):
        train(*args, small(model="smal_cnn"))
    assert not (tmp_path / "run").exists()

    def fail(*given: Any, **named: Any) -> None:
        raise WeightsError("not downloaded")

    monkeypatch.setattr(one_fold, "build_model", fail)
    with pytest.raises(WeightsError, match="not downloaded"):
        train(*args, small(epochs=1, lr=1e-4))
    monkeypatch.undo()
    # other settings, and no resume
    result = train(*args, small(epochs=1), fold=0)
    assert read_config(result.folder)["settings"]["loop"]["lr"] == 3e-3
    with pytest.raises(CheckpointError, match="is not empty"):
        train(*args, small(epochs=1), fold=0)


def test_a_run_that_is_refused_leaves_no_folder(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder)
    table.loc[5, "image_id"] = "elsewhere"
    with pytest.raises(TableError, match="has no image"):
        train(table, folder / "images", tmp_path / "run", small())
    assert not (tmp_path / "run").exists()
    (tmp_path / "own").mkdir()
    with pytest.raises(TableError, match="has no image"):
        train(table, folder / "images", tmp_path / "own", small())
    assert not list((tmp_path / "own").iterdir())


def test_a_lock_that_was_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the run that held it removed it: it would lock nobody out."""
    first = RunFolder(tmp_path)
    lock, removed = run_folder.fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        lock(file, how)
        if not removed:
            removed.append((tmp_path / ".lock").unlink())

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    first.take(resume=False)
    with pytest.raises(CheckpointError, match="another run works on"):
        RunFolder(tmp_path).take(resume=False)
    first.release()


def test_a_folder_of_convert_is_no_failed_start(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not empty"):
        train(folder / "table.csv", folder / "images", folder / "images", small())


def test_a_checkpoint_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_weights_of_another_model_are_named() -> None:
    module = torch.nn.Linear(3, 2)
    weights = {"weight": torch.zeros(4, 3), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_weights(Path("best.pt"), module, weights)
    for text in ("weight: (4, 3) there, (2, 3) here", "bias: absent there", "extra: unknown here"):
        assert text in str(caught.value)


def test_a_checkpoint_of_another_fold_or_model_does_not_go_on(
    folder: Path, undisturbed: RunResult, tmp_path: Path
) -> None:
    """Files that were copied from elsewhere, under a config.json that fits."""
    run = tmp_path / "run"
    (run / "fold0").mkdir(parents=True)
    for name in ("config.json", "table.csv"):
        (run / name).write_bytes((undisturbed.folder / name).read_bytes())
    last = run / "fold0" / "last.pt"
    last.write_bytes((undisturbed.folder / "fold1" / "last.pt").read_bytes())
    settings = small(**CHANGES, resume=True)
    with pytest.raises(CheckpointError, match=r"is of another run.*fold: 1 there, 0 here"):
        train(folder / "table.csv", folder / "images", run, settings)
    state = load_checkpoint(undisturbed.folder / "fold0" / "last.pt")
    save_checkpoint(last, {**state, "optimiser": {"state": {}, "param_groups": []}})
    with pytest.raises(CheckpointError, match="the optimiser's state is not of this run"):
        train(folder / "table.csv", folder / "images", run, settings)


def test_config_json_says_what_the_run_is(undisturbed: RunResult) -> None:
    config = json.loads((undisturbed.folder / "config.json").read_text())
    assert config["versions"].keys() >= {"fastmammo", "torch", "timm", "python"}
    assert config["settings"]["loop"]["seed"] == 0
    assert config["source"]["size"] == [32, 16]
    assert config["identity"]["images.size"] == [32, 16]
    assert config["identity"]["table.rows"] == 48
