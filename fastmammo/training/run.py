"""Takes a table, images and settings, leaves a run folder: models, out-of-fold scores, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastmammo.errors import ConfigError
from fastmammo.training.devices import algorithms, on_first_rank, open_fabric
from fastmammo.training.folds import assign_folds, check_split, hold_out
from fastmammo.training.images import open_images
from fastmammo.training.loop import fit, restore
from fastmammo.training.metrics import evaluate
from fastmammo.training.one_fold import Parts, check_labels, out_of_fold, prepare
from fastmammo.training.run_folder import RunFolder, describe_run
from fastmammo.training.scored import by_breast_figures, read_scores
from fastmammo.training.settings import Settings
from fastmammo.training.table import read_table
from fastmammo.training.two_stage import fit_two_stage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    Event = dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run has left in its folder.

    folds: those that this call was to train; one that was finished before is among them.
    oof: the rows of all folds that are done, as oof.csv has them: `scored.SCORED`, score, logit.
    metrics: metrics.json: what `metrics.evaluate` gives on them, and by fold.
    notes: what the user should know.
    """

    folder: Path
    folds: tuple[int, ...]
    oof: pd.DataFrame
    metrics: dict[str, Any]
    notes: tuple[str, ...]


def train(
    table: pd.DataFrame | str | os.PathLike[str],
    source: str | os.PathLike[str],
    run_folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    fold: int | None = None,
    progress: Callable[[Event], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> RunResult:
    """Train one fold or all of them, score each fold by the model that has not seen it.

    The table's column `fold` is the split where it has one (fold -1: in no validation, in every
    training); else patients are held out or spread over folds as `settings.table` says. Under
    torchrun every process calls this, and the first one writes.

    The run folder gets config.json (settings, versions, what the run's identity is), table.csv
    (with the folds), fold0, fold1... (log.csv, last.pt, best.pt, oof.csv), oof.csv, metrics.json.

    Args:
        table: a CSV as `read_table` takes it, or what it gives.
        source: a folder of `convert`, or of DICOM files, made ready by `settings.preprocess`.
        fold: train this fold alone; None: all.
        progress: called on the first rank with events, dicts with "event":
            "images": done, total; "fold": fold, folds, epochs, epoch (done before), training and
            validation (images); "step": fold, epoch, step, steps, loss (the last one looked at),
            lr, waited (seconds); "epoch": fold and what log.csv has; "scored": fold, metrics (by
            breast); "done": metrics.
        note: called on the first rank with a line that the user should read.

    Raises:
        TableError, LeakError: the table, its split or its images are not fit for it.
        CheckpointError: the run folder is in use, not empty (without `resume`), or of other
            settings, data or version.
        ModelError, WeightsError: the model cannot be had.
        DivergedError: the loss is no number any more.
        ConfigError: a setting does not fit the machine or the table.
    """
    settings = settings or Settings()
    fabric = open_fabric(settings.loop)
    notes: list[str] = []

    def tell(line: str) -> None:
        if fabric.is_global_zero and line not in notes:
            notes.append(line)
            if note is not None:
                note(line)

    def report(event: Event) -> None:
        if progress is not None and fabric.is_global_zero:
            progress(event)

    rows = split(table, settings, tell)
    wanted = _wanted(rows, settings, fold)
    for each in wanted:
        check_labels(rows, each)
    folder = RunFolder(run_folder)
    on_first_rank(fabric, lambda: folder.take(resume=settings.loop.resume))
    try:
        with (
            algorithms(settings.loop.deterministic),
            open_images(
                source,
                rows,
                settings.images,
                config=settings.preprocess,
                device=fabric.device,
                progress=lambda done, total: report(
                    {"event": "images", "done": done, "total": total}
                ),
                note=tell,
            ) as images,
        ):
            config = describe_run(settings, rows, images, source)
            on_first_rank(fabric, lambda: folder.settle(config, rows))
            parts = Parts(fabric, settings, rows, images, config["identity"], report, tell)
            for each in wanted:
                check_labels(rows.iloc[images.kept], each)
            if settings.loop.head == "metadata":
                fit_two_stage(parts, folder, wanted)
            else:
                for each in wanted:
                    _train_fold(parts, folder, each, len(wanted))
            oof, metrics = on_first_rank(fabric, lambda: _conclude(folder, settings, rows))
    finally:
        folder.release()
    report({"event": "done", "metrics": metrics})
    return RunResult(folder.path, wanted, oof, metrics, tuple(notes))


def split(
    table: pd.DataFrame | str | os.PathLike[str],
    settings: Settings,
    note: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Return the table with its folds: its own, or those that `settings.table` asks for.

    Raises:
        TableError, LeakError: see `read_table`, `assign_folds` and `check_split`.
    """
    options = settings.table
    rows = table if isinstance(table, pd.DataFrame) else read_table(table, options, note=note)
    if not (rows["fold"] >= 0).any():
        if options.hold_out:
            made = hold_out(rows, options.hold_out, options.split_seed)
        else:
            made = assign_folds(rows, options.folds, options.split_seed)
        rows = rows.assign(fold=made)
    check_split(rows, rows["fold"].to_numpy())
    whole: pd.DataFrame = rows.reset_index(drop=True)
    return whole


def _wanted(table: pd.DataFrame, settings: Settings, fold: int | None) -> tuple[int, ...]:
    there = tuple(int(each) for each in sorted(set(table["fold"])) if each >= 0)
    if fold is not None:
        if fold not in there:
            raise ConfigError(f"fold: got {fold}, the table has {', '.join(map(str, there))}")
        return (fold,)
    # held out once: fold 1 is what is trained on, and no fold of a cross-validation
    return (0,) if settings.table.hold_out and set(there) == {0, 1} else there


def _train_fold(parts: Parts, folder: RunFolder, fold: int, folds: int) -> None:
    fabric, loop = parts.fabric, parts.settings.loop
    path = folder.path / f"fold{fold}"
    on_first_rank(fabric, lambda: path.mkdir(exist_ok=True))
    training = prepare(parts, fold, path)
    how = restore(training)
    if how:
        parts.note(how)
    parts.progress(
        {
            "event": "fold",
            **{"fold": fold, "folds": folds, "epochs": loop.epochs, "epoch": training.epoch},
            "training": len(parts.rows(fold, training=True)),
            "validation": len(parts.rows(fold, training=False)),
        }
    )
    scored = path / "oof.csv"
    if training.finished and on_first_rank(fabric, scored.exists):
        return
    fit(training)
    frame = out_of_fold(parts, training)
    on_first_rank(fabric, lambda: folder.write_table(f"fold{fold}/oof.csv", frame))
    if fabric.is_global_zero:
        found = by_breast_figures(frame, loop.reduce)
        parts.progress({"event": "scored", "fold": fold, "metrics": found})


def _conclude(
    folder: RunFolder, settings: Settings, table: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Put the folds' scores together and measure them."""
    loop = settings.loop
    frames = {
        int(path.parent.name.removeprefix("fold")): read_scores(path)
        for path in folder.path.glob("fold*/oof.csv")
    }
    oof = pd.concat([frames[each] for each in sorted(frames)], ignore_index=True)
    folder.write_table("oof.csv", oof)
    metrics = evaluate(oof, reduce=loop.reduce, seed=loop.seed)
    metrics["folds"] = {
        str(each): by_breast_figures(frames[each], loop.reduce) for each in sorted(frames)
    }
    folder.write_json("metrics.json", metrics)
    return oof, metrics
