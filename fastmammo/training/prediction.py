"""Takes trained runs and images, gives a score for each image and each breast."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import CheckpointError, ConfigError
from fastmammo.preprocess import Config
from fastmammo.training.devices import on_first_rank, open_fabric, precision_of
from fastmammo.training.image_table import table_of_images
from fastmammo.training.images import ImagesConfig, open_images
from fastmammo.training.members import Run, check_images, open_run, scores_of
from fastmammo.training.metadata import unknown
from fastmammo.training.scored import whole_labels
from fastmammo.training.settings import LoopConfig
from fastmammo.training.table import TableOptions, check_typed, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    Event = dict[str, Any]

_WRITTEN = (
    *("path", "patient_id", "image_id", "laterality", "view", "prediction_id"),
    *("site_id", "machine_id", "cancer"),
)


def predict(
    runs: Sequence[str | os.PathLike[str]],
    source: str | os.PathLike[str],
    table: pd.DataFrame | str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    flip: bool = False,
    reduce: str | None = None,
    binarise: bool = False,
    options: TableOptions | None = None,
    images: ImagesConfig | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Callable[[Event], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Score every image by all models of some runs, and write the folder OUT.

    OUT/scores.csv has a row an image: path, patient_id, image_id, laterality, view, prediction_id,
    site_id, machine_id, cancer (where the table knows it), `score` (the mean over runs of the mean
    over each run's folds, in [0, 1]) and `spread` (standard deviation over all models).
    OUT/submission.csv has a row a breast: prediction_id, cancer.

    Args:
        runs: run folders of `train`.
        source: a folder of `convert`, made with the training's settings, or of DICOM files, which
            are made ready as the training's images were.
        table: a CSV as `read_table` takes it, or what it gives; None: all images of `source`, with
            what manifest or headers tell of them.
        out: the folder to write.
        flip: score each image and its mirror image.
        reduce: a breast's score is the "mean" or "max" of its images'; None: as the first run.
        binarise: in submission.csv 1 and 0, by the threshold that the runs chose on their
            out-of-fold scores (the mean over the runs).
        options: how the table is read; by default nothing is excluded but views that the first run
            was not trained on.
        images: where images are kept, and what if one is missing.
        device: "auto", "cpu" or "cuda". Each run's models compute in the precision of their
            training, where the device has it.
        batch_size: images (multi-view: breasts) at once on each device; None: as in the training.
        progress: called with "event": "images": done, total; "model": run, fold, done, total.
        note: called with each sentence that the user should read.

    Returns:
        What scores.csv holds.

    Raises:
        CheckpointError: a folder is no run, its weights are damaged or of another model, or the
            images were made with other settings.
        TableError: the table or the images are not fit for it.
        ConfigError: no run is named, or a value is not allowed.
    """
    if not runs:
        raise ConfigError("runs: got none, wanted at least one run folder")
    if reduce not in (None, "mean", "max"):
        raise ConfigError(f"reduce: got {reduce!r}, allowed are mean, max")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}, wanted 1 or more")
    opened = [open_run(each) for each in runs]
    fabric = open_fabric(LoopConfig(device=device, precision="32-true"))
    tell = note if note is not None and fabric.is_global_zero else _silent
    rows = _rows(table, source, opened[0], options, tell)
    _tell_of_training(opened, rows, tell)
    by_model = _by_model(fabric, opened, source, rows, images, flip, batch_size, progress, tell)
    frame = _combine(rows, by_model)
    dropped = len(rows) - len(frame)
    if dropped:
        tell(f"{dropped} of {len(rows)} images could not be read: they have no scores")
    breasts = by_breast(frame, reduce or opened[0].settings.loop.reduce)
    if binarise:
        threshold = float(np.mean([_threshold(run) for run in opened]))
        breasts["cancer"] = (breasts["cancer"] >= threshold).astype(int)
        tell(f"submission.csv: 1 from a score of {threshold:.4g}")
    on_first_rank(fabric, lambda: _write(Path(out), frame, breasts))
    return frame


def by_breast(frame: pd.DataFrame, reduce: str) -> pd.DataFrame:
    """Return the submission: prediction_id and `cancer`, the mean or maximum of the images' scores.

    The breasts stand in the order of their first images.
    """
    found = frame.groupby("prediction_id", sort=False)["score"].agg(reduce)
    breasts: pd.DataFrame = found.rename("cancer").reset_index()
    return breasts


def _silent(line: str) -> None:
    """Tell nobody."""


def _rows(
    table: pd.DataFrame | str | os.PathLike[str] | None,
    source: str | os.PathLike[str],
    run: Run,
    options: TableOptions | None,
    tell: Callable[[str], None],
) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        check_typed(table)
        rows: pd.DataFrame = table.reset_index(drop=True)
        return rows
    if table is None:
        return table_of_images(source, tell)
    if options is None:
        # a broken image wants a score too: a breast without one is missing from a submission
        options = TableOptions(exclude="none", views=run.settings.table.views)
    return read_table(table, options, labelled=False, note=tell)


def _tell_of_training(runs: Sequence[Run], rows: pd.DataFrame, tell: Callable[[str], None]) -> None:
    for run in runs:
        try:
            trained = pd.read_csv(
                run.path / "table.csv", usecols=["patient_id", "fold"], dtype={"patient_id": str}
            )
        except (OSError, ValueError):
            continue  # the run may have been copied without it: nothing is known
        if run.settings.loop.head == "network" and len(run.folds) == 1:
            # one model alone, which has not seen the patients of its own fold
            trained = trained[trained["fold"] != run.folds[0]]
        both = set(trained["patient_id"]) & set(rows["patient_id"])
        if both:
            tell(
                f"{run.path}: {len(both)} of the patients scored here are among those that its "
                "models were trained on: their scores flatter it. oof.csv has honest ones"
            )
        if run.settings.loop.head == "metadata":
            for line in unknown(rows):
                tell(f"{run.path}: {line}: imputed")


def _by_model(
    fabric: Fabric,
    runs: Sequence[Run],
    source: str | os.PathLike[str],
    rows: pd.DataFrame,
    images: ImagesConfig | None,
    flip: bool,
    batch_size: int | None,
    progress: Callable[[Event], None] | None,
    tell: Callable[[str], None],
) -> list[list[NDArray[np.float64]]]:
    """Return for each run the scores of each fold's model, by the table's rows; NaN: no image."""
    found: list[list[NDArray[np.float64]]] = [[] for _ in runs]
    total, done = sum(len(run.folds) for run in runs), 0

    def report(event: Event) -> None:
        if progress is not None and fabric.is_global_zero:
            progress(event)

    alike: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        alike.setdefault(json.dumps(run.pixels, sort_keys=True), []).append(index)
    for group in alike.values():  # runs on the same pixels read them once
        with open_images(
            source,
            rows,
            images,
            config=_preprocessing(runs[group[0]], source, fabric),
            device=fabric.device,
            progress=lambda count, whole: report(
                {"event": "images", "done": count, "total": whole}
            ),
            note=tell,
        ) as opened:
            for index in group:
                check_images(runs[index], opened)
                computes = _computes(runs[index], fabric, tell)
                for fold in runs[index].folds:
                    scores = np.full(len(rows), np.nan)
                    scores[opened.kept] = scores_of(
                        runs[index],
                        fold,
                        computes,
                        opened,
                        rows,
                        flip=flip,
                        batch_size=batch_size,
                    )
                    found[index].append(scores)
                    done += 1
                    named = {"run": os.fspath(runs[index].path), "fold": fold}
                    report({"event": "model", **named, "done": done, "total": total})
    return found


def _computes(run: Run, fabric: Fabric, tell: Callable[[str], None]) -> Fabric:
    """Return a Fabric that computes in the run's precision, where the device has it."""
    wanted, cuda = run.precision, fabric.device.type == "cuda"
    if wanted == precision_of(fabric):
        return fabric
    if cuda and wanted == "bf16-mixed":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = cuda or wanted == "bf16-mixed"
    if not has:
        tell(
            f"{run.path} was trained in {wanted}, which this device has not: its scores, in "
            "32-true, differ a little from those of the training"
        )
        return fabric
    return open_fabric(LoopConfig(device="cuda" if cuda else "cpu", precision=wanted))


def _preprocessing(run: Run, source: str | os.PathLike[str], fabric: Fabric) -> Config | None:
    """Return how DICOMs are made ready; None for converted images, which are compared instead."""
    if (Path(source) / "manifest.csv").is_file():
        return None
    values = {**run.pixels, "device": "auto" if fabric.device.type == "cuda" else "cpu"}
    return Config(**{**values, "size": tuple(values["size"])})


def _combine(rows: pd.DataFrame, by_model: list[list[NDArray[np.float64]]]) -> pd.DataFrame:
    frame = rows[[name for name in _WRITTEN if name in rows]].copy()
    frame["score"] = np.mean([np.mean(folds, axis=0) for folds in by_model], axis=0)
    every = np.array([scores for folds in by_model for scores in folds])
    frame["spread"] = every.std(axis=0)
    if "cancer" in frame and frame["cancer"].isna().all():
        frame = frame.drop(columns="cancer")
    scored: pd.DataFrame = frame[frame["score"].notna()].reset_index(drop=True)
    return scored


def _threshold(run: Run) -> float:
    try:
        metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
        return float(metrics["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run.path}: metrics.json tells no threshold ({error!r}). Has the run ended? Resume "
            "it, or leave the scores as they are"
        ) from error


def _write(out: Path, frame: pd.DataFrame, breasts: pd.DataFrame) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, each in (("scores.csv", whole_labels(frame)), ("submission.csv", breasts)):
        path = os.fspath(out / name)
        text = each.to_csv(index=False, lineterminator="\n")
        write_atomic(path, [text.encode()], f"{path}.partial")
