"""The verbs on models: train, predict, compare. They need the extra `train`, imported late."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmammo.cli.extra import add_output, need_files, need_folder, trainer
from fastmammo.cli.flags import add_fields, device, given_fields, take_fields
from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastmammo.training.settings import Settings


# ---------------------------------------------------------------- train


def _parts() -> dict[str, type[Any]]:
    """Return the classes of the settings that are flags, by their names in `Settings`."""
    with trainer():
        from fastmammo.training.settings import PARTS
    return {name: kind for name, kind in PARTS.items() if name != "preprocess"}


_FIRST = ("model", "size", "epochs", "lr", "batch_size", "balance", "resume")
"""Fields that matter for a first run: `--help` shows them before the many others."""

_EXAMPLES = """Examples:
  fastmammo train train.csv images run --fold 0 --epochs 5 --batch-size 32
  fastmammo train train.csv images run --epochs 5 --batch-size 32 --resume
"""


def _add_settings(parser: argparse.ArgumentParser, *, leave_out: tuple[str, ...] = ()) -> None:
    """Add the flags of all settings, the fields of their classes: the most used ones first."""
    from fastmammo.preprocess import Config

    parts = _parts()
    first = parser.add_argument_group("for a first run")
    for name in _FIRST:
        for config in (*parts.values(), Config):
            if name in {each.name for each in fields(config)} and name not in leave_out:
                add_fields(parser, config, first, only=(name,), only_given=config is Config)
    first.add_argument(
        "--fold", type=int, default=None, metavar="INT", help="train this fold alone; else all"
    )
    for name, config in parts.items():
        add_fields(parser, config, name, leave_out=(*leave_out, *_FIRST))
    add_fields(
        parser,
        Config,
        "images from DICOMs (a folder of `convert` is taken as it is)",
        leave_out=("device", *_FIRST),
        only_given=True,
    )


def _settings(parsed: argparse.Namespace, **model: Any) -> Settings:
    """Make the settings of what the command line has set; `model` replaces fields of the model."""
    from fastmammo.preprocess import Config
    from fastmammo.training.settings import Settings

    parts = {name: given_fields(parsed, config) for name, config in _parts().items()}
    parts["model"] |= model
    converted = os.path.isfile(os.path.join(parsed.source, "manifest.csv"))
    pixels = {
        name: value for name, value in given_fields(parsed, Config).items() if name != "device"
    }
    if converted and pixels:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in pixels)
        raise ConfigError(
            f"{given}: {parsed.source} holds converted images, which stay as `convert` has made "
            "them. Leave it out, or name the folder of DICOMs"
        )
    # one flag is the device of both: what trains on a GPU is decoded there, where that can be
    device = "cpu" if parsed.device == "cpu" else "auto"
    return Settings(
        **{name: config(**parts[name]) for name, config in _parts().items()},
        preprocess=None if converted else Config(**pixels, device=device),
    )


@contextmanager
def _says_what_is_kept(folder: str) -> Iterator[None]:
    """Say after Ctrl-C which epochs are kept in a run folder, or those in it, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        lines = []
        root = Path(folder)
        for log in sorted((*root.glob("fold*/log.csv"), *root.glob("*/fold*/log.csv"))):
            epochs = len(log.read_text(encoding="utf-8").splitlines()) - 1
            if epochs > 0 and (log.parent / "last.pt").is_file():
                lines.append(f"kept: epoch {epochs} of {log.parent}")
        if lines:
            lines.append("go on by the same command with --resume")
        else:
            lines.append(f"no epoch was finished in {folder}: begin again with --resume")
        print("\n".join(lines), file=sys.stderr)
        raise


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    parser.add_argument("table", help="a CSV with a row an image, like RSNA's train.csv")
    parser.add_argument("source", help="a folder of `convert` (png or packed), or of DICOMs")
    parser.add_argument("run_folder", metavar="run", help="the folder for all that the run leaves")
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write RUN/report.html",
    )
    _add_settings(parser)
    add_output(parser)
    parser.epilog = f"{_EXAMPLES}\n{parser.epilog or ''}"


def train(parsed: argparse.Namespace) -> int:
    """Run `train`."""
    need_files(table=parsed.table)
    need_folder(parsed.source)
    with trainer():
        from fastmammo.report.scores import text
        from fastmammo.report.training import write_report
        from fastmammo.report.training_progress import TrainingProgress
        from fastmammo.training.devices import speaks
        from fastmammo.training.run import train as run
    settings = _settings(parsed)
    with _says_what_is_kept(parsed.run_folder), TrainingProgress(quiet=parsed.quiet) as progress:
        result = run(
            parsed.table,
            parsed.source,
            parsed.run_folder,
            settings,
            fold=parsed.fold,
            progress=progress.update,
            note=progress.note,
        )
    if not speaks():
        return 0
    report = write_report(result.folder, note=progress.note) if parsed.report else None
    if parsed.json:
        found: dict[str, Any] = {
            "run": os.fspath(result.folder),
            "report": report and os.fspath(report),
            "folds": list(result.folds),
            "notes": list(result.notes),
            "metrics": result.metrics,
        }
        print(json.dumps(found, indent=2))
    else:
        print(text(result.metrics))
        print(f"run: {result.folder}" + (f"\nreport: {report}" if report else ""))
    return 0


# ---------------------------------------------------------------- predict


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `predict`."""
    with trainer():
        from fastmammo.training.images_config import ImagesConfig

    parser.add_argument("runs", nargs="+", metavar="run", help="run folders: scores are averaged")
    parser.add_argument(
        "source", help="a folder of `convert`, or of DICOMs, made ready as those of the training"
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="the folder for scores.csv, submission.csv"
    )
    parser.add_argument(
        "--table", default=None, metavar="CSV", help="which images, and what is known of them"
    )
    parser.add_argument("--flip", action="store_true", help="score each image's mirror image too")
    parser.add_argument(
        "--reduce",
        default=None,
        choices=("mean", "max"),
        help="a breast's score from its images'; by default as in the training",
    )
    parser.add_argument(
        "--binarise",
        action="store_true",
        help="1 and 0 in submission.csv, by the threshold that the run chose out of fold",
    )
    parser.add_argument(
        "--device",
        default="auto",
        type=device,
        choices=("auto", "cpu", "cuda"),
        help="device that scores",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=None,
        metavar="INT",
        help="images (multi-view: breasts) at once on a device; by default as in the training",
    )
    add_fields(parser, ImagesConfig, "images")
    add_output(parser)


def predict(parsed: argparse.Namespace) -> int:
    """Run `predict`."""
    need_files(table=parsed.table)
    need_folder(parsed.source)
    with trainer():
        from fastmammo.report.training_progress import TrainingProgress
        from fastmammo.training.devices import speaks
        from fastmammo.training.images_config import ImagesConfig
        from fastmammo.training.prediction import predict as run
    with TrainingProgress(quiet=parsed.quiet) as progress:
        frame = run(
            parsed.runs,
            parsed.source,
            parsed.table,
            parsed.out,
            flip=parsed.flip,
            reduce=parsed.reduce,
            binarise=parsed.binarise,
            images=take_fields(parsed, ImagesConfig),
            device=parsed.device,
            batch_size=parsed.batch_size,
            progress=progress.update,
            note=progress.note,
        )
    if not speaks():
        return 0
    found = {
        "images": len(frame),
        "breasts": int(frame["prediction_id"].nunique()),
        "scores": os.path.join(parsed.out, "scores.csv"),
        "submission": os.path.join(parsed.out, "submission.csv"),
    }
    if parsed.json:
        print(json.dumps(found, indent=2))
    else:
        print(
            f"{found['images']} images of {found['breasts']} breasts: {found['scores']}, "
            f"{found['submission']}"
        )
    return 0


# ---------------------------------------------------------------- compare


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `compare`."""
    parser.add_argument("table", help="a CSV with a row an image, like RSNA's train.csv")
    parser.add_argument("source", help="a folder of `convert` (png or packed), or of DICOMs")
    parser.add_argument(
        "out", help="the folder for a run of each model, compare.html, compare.json"
    )
    parser.add_argument(
        "--models",
        required=True,
        metavar="NAMES",
        help="models separated by commas; the others are compared with the first",
    )
    _add_settings(parser, leave_out=("model", "weights"))
    add_output(parser)


def compare(parsed: argparse.Namespace) -> int:
    """Run `compare`."""
    need_files(table=parsed.table)
    need_folder(parsed.source)
    names = [name.strip() for name in parsed.models.split(",") if name.strip()]
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"--models: got {parsed.models!r}, wanted two or more, each once")
    with trainer():
        from fastmammo.report.compare import compare_models
        from fastmammo.report.training_progress import TrainingProgress
        from fastmammo.training.devices import speaks
    settings = {name: _settings(parsed, model=name) for name in names}
    with _says_what_is_kept(parsed.out), TrainingProgress(quiet=parsed.quiet) as progress:
        found = compare_models(
            parsed.table,
            parsed.source,
            parsed.out,
            settings,
            fold=parsed.fold,
            progress=progress.update,
            note=progress.note,
        )
    if not speaks():
        return 0
    print(json.dumps(found.to_dict(), indent=2) if parsed.json else found.text())
    return 0
