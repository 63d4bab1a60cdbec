"""The verbs of the trainer: what each prints, writes and returns."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from training_runs import make_set

from fastmammo.cli import main
from fastmammo.cli.imaging import run_convert
from fastmammo.errors import ConfigError
from fastmammo.preprocess import Config
from fastmammo.report.demo_training import SETTINGS, demo_training
from fastmammo.report.training_progress import TrainingProgress
from fastmammo.training.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

VERBS = ("explore", "split", "train", "predict", "evaluate", "compare")
SMALL = (
    *("--exclude", "none", "--folds", "2", "--batch-size", "8", "--positive-share", "0.5"),
    *("--model", "small_cnn", "--no-pretrained", "--epochs", "1", "--lr", "0.003"),
    *("--device", "cpu", "--storage", "ram", "--augment", "light"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    arguments = [str(folder / "table.csv"), str(folder / "images"), str(path)]
    assert main(["train", *arguments, *SMALL, "--quiet"]) == 0
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Exit codes: 0 fine" in out
    if verb in ("train", "compare"):
        for flag in (
            *("--exclude", "--folds", "--balance", "--positive-share", "--batch-size", "--storage"),
            *("--augment", "--pooling", "--epochs", "--lr", "--resume", "--head", "--size"),
            *("--fold ", "--json", "--quiet"),
        ):
            assert flag in out, flag


def test_flags_are_the_fields_of_the_settings() -> None:
    """Every field of every part has a flag, and no two parts a field of the same name."""
    from fastmammo.cli.training import _parts

    names = [name for part in _parts().values() for name in part.__dataclass_fields__]
    assert len(names) == len(set(names))
    assert {*_parts(), "preprocess"} == set(Settings.__dataclass_fields__)


def test_train(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"report.html", "metrics.json", "oof.csv"} <= {each.name for each in run.iterdir()}
    paths = [str(folder / "table.csv"), str(folder / "images")]
    again = tmp_path / "run"
    arguments = ["train", *paths, str(again), *SMALL, "--fold", "1", "--no-report"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["folds"] == [1]
    assert found["report"] is None
    assert found["metrics"]["counts"]["images"] == 24
    assert "fold 1: 24 images to train on, 24 held out, 1 epochs to go" in printed.err
    assert re.search(r"fold 1, epoch 1/1: loss [\d.]+, validation [\d.]+, AUC", printed.err)
    assert not (again / "report.html").exists()
    # the other fold joins the one that is there
    assert main([*arguments[:-3], "--resume"]) == 0
    printed = capsys.readouterr()
    assert "6 of 24 breasts positive, 12 patients, 48 images" in printed.out
    assert f"report: {again / 'report.html'}" in printed.out
    assert "fold 1 is finished" in printed.err
    settings = json.loads((again / "config.json").read_text())["settings"]
    assert settings["preprocess"] is None
    assert settings["loop"]["lr"] == 0.003


def test_train_cannot_run(
    folder: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [str(folder / "table.csv"), str(folder / "images")]
    for arguments, message in (
        (["x.csv", paths[1], "r"], r"table: got 'x.csv', there is no such file; wanted a CSV"),
        ([paths[1], paths[1], "r"], r"table: got .*images', is a folder; wanted a CSV"),
        ([paths[0], "gone", "r"], "images: gone is no folder"),
        ([*paths, str(run), *SMALL], "is not empty: it holds"),
        ([*paths, "r", "--size", "64x32", "--bits", "16"], "--size, --bits: .* converted images"),
        ([*paths, "r", "--batch-size", "0"], "batch_size: got 0, allowed is"),
        ([*paths, "r", "--exclude", "none", "--model", "efficient_b0", "--no-pretrained"],
         "efficientnet_b0"),
    ):  # fmt: skip
        assert main(["train", *arguments, "--quiet"]) == 2, message
        error = capsys.readouterr().err.splitlines()[-1]  # notes may come before it
        assert error.startswith("fastmammo train: ")
        assert re.search(message, error), error


def test_what_is_not_understood_is_said_in_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The message is not buried under the options: usage, and what is wrong."""
    predict = ["predict", "run", "images", "--out", "o"]
    for arguments, message in (
        (["train", "t", "s", "r", "--balance", "both"], "invalid choice: 'both'"),
        (["train", "t", "s", "r", "--epoch-count", "3"], "not understood: --epoch-count 3"),
        ([*predict, "--binarise", "0.5"], "error: --binarise takes no value, got '0.5'"),
        (["predict", "run", "images"], "the following arguments are required: --out"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        usage, error = capsys.readouterr().err.splitlines()
        assert message in error
        assert usage.startswith(f"usage: fastmammo {arguments[0]} [options] ")
    assert usage.endswith("[options] run [run ...] source --out FOLDER")


def test_help_shows_first_what_a_first_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: fastmammo train [options] table source run\n")
    first = out.partition("for a first run:")[2].partition("\n\n")[0]
    flags = re.findall(r"^  (--[a-z-]+)", first, re.MULTILINE)
    wanted = ["model", "size", "epochs", "lr", "batch-size", "balance", "resume", "fold"]
    assert flags == [f"--{name}" for name in wanted]
    rest = out.partition("for a first run:")[2].partition("\n\n")[2]
    assert not set(flags) & set(re.findall(r"^  (--[a-z-]+)", rest, re.MULTILINE))
    assert "--report, --no-report" in out
    assert out.count("\n  fastmammo train train.csv images run ") == 2


def test_ctrl_c_says_what_is_kept(
    folder: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastmammo.training.run.train", stop)
    paths = [str(folder / "table.csv"), str(folder / "images")]
    assert main(["train", *paths, str(run), *SMALL]) == 130
    assert capsys.readouterr().err.splitlines() == [
        f"kept: epoch 1 of {run / 'fold0'}",
        f"kept: epoch 1 of {run / 'fold1'}",
        "go on by the same command with --resume",
        "fastmammo train: interrupted",
    ]
    assert main(["train", *paths, str(tmp_path / "new"), *SMALL]) == 130
    assert "no epoch was finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", "gone.csv"], "table: got 'gone.csv', there is no such file"),
        (["split", "gone.csv", "out.csv"], "table: got 'gone.csv', there is no such file"),
        (["evaluate", "gone.csv"], "scores: got 'gone.csv', there is no such file"),
        (["train", "gone.csv", "images", "run"], "table: got 'gone.csv'"),
        (["compare", "gone.csv", "images", "out", "--models", "a,b"], "table: got 'gone.csv'"),
        (["predict", "run", "gone", "--out", "out"], "images: gone is no folder"),
        (["train", "--help"], ""),
        (["explore", "table.csv"], ""),
        (["split", "table.csv", "out.csv", "--folds", "2"], ""),
    ],
)
def test_what_needs_no_network_does_not_wait_for_torch(
    arguments: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "table.csv", tmp_path / "table.csv")
    code = (
        "import sys; from fastmammo.cli import main\n"
        f"try: result = main({arguments!r})\n"
        "except SystemExit as stop: result = stop.code\n"
        "assert not {'torch', 'timm', 'lightning_fabric'} & set(sys.modules)\n"
        "sys.exit(result)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == (2 if message else 0), done.stderr
    assert message in done.stderr


def test_quiet_keeps_notes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.read_csv(folder / "table.csv", dtype=str)
    rows.loc[0, "cancer"] = "0"  # the other view of the breast stays positive
    rows.to_csv(tmp_path / "t.csv", index=False)
    arguments = ["explore", str(tmp_path / "t.csv"), "--out", str(tmp_path / "p.html"), "--quiet"]
    assert main([*arguments, "--mixed-breasts", "any"]) == 0
    assert "both labels" in capsys.readouterr().err


def test_settings_of_dicoms(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of images reach the settings where the source is a folder of DICOMs."""
    seen: list[Settings] = []

    def stop(table: str, source: str, run: str, settings: Settings, **_: Any) -> None:
        seen.append(settings)
        raise ConfigError("stop")

    monkeypatch.setattr("fastmammo.training.run.train", stop)
    table = str(folder / "table.csv")
    arguments = ["train", table, str(tmp_path), "r", "--quiet"]
    assert main([*arguments, "--size", "64x32", "--flip", "left", "--device", "cpu"]) == 2
    assert main(arguments) == 2
    assert seen[0].preprocess == Config(size=(64, 32), flip="left", device="cpu")
    assert seen[1].preprocess == Config(device="auto")


def test_split(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folds.csv"
    arguments = ["split", str(folder / "table.csv"), str(out), "--folds", "3"]
    assert main([*arguments, "--exclude", "none"]) == 0
    printed = capsys.readouterr().out
    assert f"written: {out}" in printed
    assert "25.00%" in printed
    assert set(pd.read_csv(out)["fold"]) == {0, 1, 2}
    assert main([*arguments, "--exclude", "none", "--json"]) == 0
    assert [each["patients"] for each in json.loads(capsys.readouterr().out)["folds"]] == [4] * 3
    assert main([*arguments[:-1], "30"]) == 2
    assert "fewer than the 30 folds" in capsys.readouterr().err


def test_predict_and_evaluate(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "scores", str(folder / "table.csv")
    images = str(folder / "images")
    assert main(["predict", str(run), str(run), images, "--out", str(out), "--flip"]) == 0
    printed = capsys.readouterr()
    assert "48 images of 24 breasts" in printed.out
    assert "its models were trained on" in printed.err
    scores = out / "scores.csv"
    assert list(pd.read_csv(out / "submission.csv")) == ["prediction_id", "cancer"]
    assert main(["evaluate", str(scores)]) == 2
    assert "name the table that has them by --table" in capsys.readouterr().err
    assert main(["evaluate", str(scores), "--table", table, "--exclude", "none"]) == 0
    printed = capsys.readouterr()
    assert "6 of 24 breasts positive" in printed.out
    assert f"written: {out / 'scores-metrics.json'}, {out / 'scores-report.html'}" in printed.out
    arguments = ["evaluate", str(run / "oof.csv"), "--out", str(tmp_path), "--bootstrap", "20"]
    assert main([*arguments, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["breast"] == json.loads((run / "metrics.json").read_text())["breast"]
    assert main(["predict", str(folder), images, "--out", str(out)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["predict", str(run), images, "--out", str(out), "--batch-size", "0"]) == 2
    assert "batch_size: got 0, wanted 1 or more" in capsys.readouterr().err


def test_explore(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    arguments = ["explore", str(folder / "table.csv"), str(folder / "images"), "--out", str(out)]
    assert main(arguments) == 0
    assert "48 images, 24 breasts, 12 patients" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8").count("<img ") > 10
    assert main([*arguments[:2], "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["positive_breasts"] == 6


def test_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder / "table.csv"), str(folder / "images"), str(tmp_path / "out")]
    flags = [flag for flag in SMALL if flag not in ("--model", "small_cnn")]
    for models in ("small_cnn", "small_cnn,small_cnn"):
        assert main(["compare", *paths, "--models", models, *flags]) == 2
        assert "--models: got 'small_cnn" in capsys.readouterr().err
    models = "small_cnn,test_resnet.r160_in1k"
    assert main(["compare", *paths, "--models", models, *flags, "--fold", "0", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"test_resnet.r160_in1k - small_cnn: ROC AUC [+-][\d.]+ \([+-]", out)
    assert {"small_cnn", "test_resnet.r160_in1k", "compare.html", "compare.json"} == {
        each.name for each in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("arguments", [["train", "--help"], ["explore", "a"], ["demo", "--train"]])
def test_without_the_extra_it_says_what_to_install(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pandas'] = None\n"
        f"from fastmammo.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert re.fullmatch(
        rf"fastmammo {arguments[0]}: needs the extra train: pip install 'fastmammo\[train\]' "
        r"\((torch|pandas) is not installed\)\n",
        done.stderr,
    )


def test_the_demo_takes_no_count_with_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path), "--train", "--count", "3"]) == 2
    assert "--count and --phantom-size: not with --train" in capsys.readouterr().err


def test_the_demo_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    settings = replace(
        SETTINGS,
        table=replace(SETTINGS.table, folds=2),
        loop=replace(SETTINGS.loop, epochs=1),
    )
    options: dict[str, Any] = {
        "phantoms": {"patients": 6, "size": (64, 52), "positive_share": 0.5, "workers": 1},
        "images": Config(size=(32, 16), flip="left"),
        "settings": settings,
        "run": run_convert,
    }
    root = tmp_path / "demo"
    assert demo_training(root, **options) == 0
    printed = capsys.readouterr()
    for name in ("the model (small_cnn)", "mean intensity alone", "breast area alone"):
        assert re.search(rf"{re.escape(name)} +0\.\d{{3}}  \(0\.\d+ to ", printed.out), name
    assert re.search(r"metadata alone +\d\.\d{3}", printed.out)
    assert "drawing phantom mammograms of 6 patients" in printed.err
    assert (root / "run" / "report.html").is_file()
    found = json.loads((root / "run" / "baselines.json").read_text())
    assert list(found) == ["mean intensity", "breast area", "metadata"]
    page = (root / "run" / "report.html").read_text(encoding="utf-8")
    assert "Is it the lesion that it sees?" in page
    assert "lesion of the table of boxes" in page
    # again: everything is there
    assert demo_training(root, quiet=True, **options) == 0
    with pytest.raises(ConfigError, match="holds other phantoms than those of this demo"):
        demo_training(root, seed=1, **options)


def test_progress_tells_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events: list[dict[str, Any]] = [
        {"event": "fold", "fold": 0, "epochs": 2, "epoch": 0, "training": 3, "validation": 1},
        {"event": "step", "fold": 0, "epoch": 1, "step": 1, "steps": 2, "loss": None},
        {"event": "scored", "fold": 0, "metrics": {"auc": None}},
        {"event": "model", "run": "r", "fold": 0, "done": 1, "total": 1},
        {"event": "images", "done": 1, "total": 1},
        {"event": "comparison", "model": "m"},
        {"event": "of a later version"},
    ]
    for quiet in (True, False):
        with TrainingProgress(quiet=quiet) as progress:
            for event in events:
                progress.update(event)
            progress.note("a note")
        lines = capsys.readouterr().err.splitlines()
        told = ["fold 0: 3 images to train on, 1 held out, 2 epochs to go", "fold 0 scored"]
        assert lines == (["a note"] if quiet else [*told, "model m", "a note"])


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with TrainingProgress() as progress:
        progress.update({"event": "images", "done": 1, "total": 2})
        progress.note("[a] note")
        progress.update({"event": "images", "done": 2, "total": 2})
    assert "[a] note" in capsys.readouterr().err
