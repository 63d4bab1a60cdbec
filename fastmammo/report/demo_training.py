"""`fastmammo demo --train`: phantoms → convert → train a small model → metrics → report."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fastmammo.conversion import ConvertOptions
from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import ConfigError
from fastmammo.preprocess import Config
from fastmammo.report.training import BASELINES, write_report
from fastmammo.report.training_progress import TrainingProgress
from fastmammo.testing import make_dataset
from fastmammo.training.augment import AugmentConfig
from fastmammo.training.metadata import fit_metadata
from fastmammo.training.metrics import evaluate
from fastmammo.training.models import ModelConfig
from fastmammo.training.run import train
from fastmammo.training.sampler import SamplingConfig
from fastmammo.training.settings import LoopConfig, Settings
from fastmammo.training.table import TableOptions, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PHANTOMS: dict[str, Any] = {
    "patients": 110,
    "size": (256, 208),
    "positive_share": 0.4,
    "nuisance_share": 0.0,
    "noise": 0.3,
    "lesion_kinds": ("round mass", "irregular mass", "spiculated mass"),
    "lesion_contrast": (0.7, 1.1),
    # as many years to those with cancer as to those without: age must not tell
    "age_gap": 0.0,
}
"""Of `make_dataset`: lesions that a small model can learn in a minute or two on two cores."""

SEED = 7

IMAGES = Config(size=(160, 80), flip="left")

SETTINGS = Settings(
    table=TableOptions(folds=4),
    sampling=SamplingConfig(balance="none", batch_size=16),
    augment=AugmentConfig(augment="none", flip_vertical=0.5),
    model=ModelConfig(model="small_cnn", pretrained=False, pooling="max", dropout=0.0),
    loop=LoopConfig(
        epochs=12,
        lr=3e-3,
        weight_decay=0.02,
        warmup=0.25,
        schedule="one_cycle",
        clip=5.0,
        device="cpu",
        resume=True,
    ),
)


def demo_training(
    folder: str | Path,
    *,
    seed: int = SEED,
    quiet: bool = False,
    run: Callable[..., Any],
    phantoms: dict[str, Any] | None = None,
    images: Config = IMAGES,
    settings: Settings = SETTINGS,
) -> int:
    """Make phantoms, convert them, train on them, measure out of fold, write the report.

    FOLDER gets dicom/ (with train.csv and lesions.csv), images/ (of `convert`) and run/ (of
    `train`, with report.html and baselines.json). A demo that was interrupted goes on.

    Args:
        folder: where to work.
        seed: of the phantoms.
        quiet: no progress on stderr.
        run: runs the conversion: (src, dst, config, options, quiet=...) → Summary.
        phantoms: further arguments of `make_dataset`; by default `PHANTOMS`.
        images: how phantoms become images.
        settings: of the training.

    Returns:
        The exit code of the conversion.

    Raises:
        ConfigError: FOLDER holds another demo.
    """
    root = Path(folder)
    seconds: dict[str, float] = {}
    started = last = time.perf_counter()

    def done(what: str) -> None:
        nonlocal last
        seconds[what], last = time.perf_counter() - last, time.perf_counter()

    with TrainingProgress(quiet=quiet) as progress:
        table_path = _phantoms(
            root, {**(PHANTOMS if phantoms is None else phantoms)}, seed, progress
        )
        done("phantoms")
    options = ConvertOptions(format="packed", boxes=str(root / "dicom" / "lesions.csv"))
    source = str(root / "dicom" / "train_images")
    summary = run(source, str(root / "images"), images, options, quiet=quiet)
    done("convert")
    print(summary.text())
    if summary.exit_code:
        return int(summary.exit_code)
    with TrainingProgress(quiet=quiet) as progress, _one_thread():
        result = train(
            table_path,
            root / "images",
            root / "run",
            settings,
            progress=progress.update,
            note=progress.note,
        )
        done("training")
        found = baselines(table_path, root / "images", result.oof)
        text = json.dumps(found, indent=2) + "\n"
        path = result.folder / BASELINES
        write_atomic(str(path), [text.encode()], f"{path}.partial")
        report = write_report(result.folder, note=progress.note)
        done("metrics and report")
    print(_text(result.metrics, found, settings.model.model))
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"report: {report}\ndone in {time.perf_counter() - started:.0f} s: {parts}")
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread.

    The images are so small that a second one gains little, and where other work keeps the cores
    busy the two wait for each other most of the time. The numbers do not depend on the cores then.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _phantoms(root: Path, asked: dict[str, Any], seed: int, progress: TrainingProgress) -> Path:
    """Draw the phantoms, unless an earlier run of the same demo has."""
    table = root / "dicom" / "train.csv"
    made = root / "demo.json"
    wanted = json.dumps({**asked, "seed": seed}, indent=2) + "\n"
    if table.exists():
        if not made.exists() or made.read_text(encoding="utf-8") != wanted:
            raise ConfigError(
                f"demo: {root} holds other phantoms than those of this demo: name another folder"
            )
        progress.note(f"phantoms are there already: {table.parent}")
        return table
    root.mkdir(parents=True, exist_ok=True)
    progress.note(f"drawing phantom mammograms of {asked['patients']} patients")
    write_atomic(str(made), [wanted.encode()], f"{made}.partial")
    return make_dataset(
        root / "dicom",
        seed=seed,
        on_image=lambda done, total: progress.count("phantoms", done, total),
        **asked,
    )


def baselines(
    table_path: Path, source: Path, oof: pd.DataFrame, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the AUC by breast of what can be told without looking for a lesion.

    Each is a logistic regression on one thing, fitted in the folds of the run: the images' mean
    intensity; the breast's area; the metadata (age, view, laterality, implant, density, site and
    machine).

    Args:
        table_path: the table of the run.
        source: a packed folder of `convert` that holds its images.
        oof: the run's scores, for its folds.
        seed: of the intervals.

    Returns:
        name → "auc", and its 95 % "interval".
    """
    keys = ["patient_id", "image_id"]
    table = oof[[*keys, "fold"]].merge(
        read_table(table_path).drop(columns="fold"), on=keys, how="left"
    )
    manifest = pd.read_csv(source / "manifest.csv", dtype=str, keep_default_na=False)
    rows = table[keys].merge(manifest, on=keys, how="left")
    pixels = np.load(source / "images.npy", mmap_mode="r", allow_pickle=False)
    mean = np.array([pixels[int(row)].mean() for row in rows["row"]])
    area = rows["area_share"].to_numpy(np.float64) * (
        rows["rows"].to_numpy(np.float64) * rows["columns"].to_numpy(np.float64)
    )
    places = pd.get_dummies(table[["site_id", "machine_id"]].astype(str)).to_numpy(np.float64)
    fold = table["fold"].to_numpy(np.int64)
    found: dict[str, dict[str, Any]] = {}
    for name, features, use_table in (
        ("mean intensity", mean[:, None], False),
        ("breast area", area[:, None], False),
        ("metadata", places, True),
    ):
        scores = fit_metadata(features, table, fold, use_table=use_table)[0]
        figures = evaluate(table.assign(score=scores), seed=seed)
        found[name] = {
            "auc": figures["breast"]["auc"],
            "interval": figures["intervals"].get("auc"),
        }
    return found


def _text(metrics: dict[str, Any], found: dict[str, dict[str, Any]], model: str) -> str:
    """Return the four figures side by side: only the model looks for lesions."""
    count = metrics["counts"]
    lines = [
        f"ROC AUC by breast, out of fold: {count['breasts']} breasts, "
        f"{count['positive_breasts']} with a lesion"
    ]
    rows = {
        f"the model ({model})": {
            "auc": metrics["breast"]["auc"],
            "interval": metrics["intervals"].get("auc"),
        },
        **{f"{name} alone": each for name, each in found.items()},
    }
    for name, each in rows.items():
        span = each["interval"]
        told = f"  ({span[0]:.3f} to {span[1]:.3f})" if span else ""
        lines.append(f"  {name:24}{each['auc']:.3f}{told}")
    return "\n".join(lines)
