"""Takes a table, images and settings, leaves a run folder: models, out-of-fold scores, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastmammo.errors import ConfigError
from fastmammo.training.backbones import resolve
from fastmammo.training.devices import (
    algorithms,
    on_every_rank,
    on_first_rank,
    open_fabric,
    precision_of,
)
from fastmammo.training.folds import assign_folds, check_split, hold_out
from fastmammo.training.images import open_images
from fastmammo.training.loop import fit, restore
from fastmammo.training.metrics import evaluate
from fastmammo.training.one_fold import Parts, check_labels, drawn, out_of_fold, prepare
from fastmammo.training.run_folder import IMAGES, RunFolder, describe_run
from fastmammo.training.scored import CHOSEN, by_breast_figures, doubts, read_scores
from fastmammo.training.settings import Settings
from fastmammo.training.table import check_typed, read_table
from fastmammo.training.two_stage import fit_two_stage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    Event = dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        auc, (low, high) = (
            self.metrics["breast"]["auc"],
            self.metrics["intervals"].get("auc") or (None, None),
        )
        told = "unknown" if auc is None else f"{auc:.3f}"
        told += "" if low is None else f" [{low:.3f}, {high:.3f}]"
        return f"RunResult(folder={str(self.folder)!r}, folds={self.folds}, auc={told})"


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
    (with the folds), fold0, fold1... (log.csv, last.pt, best.pt, oof.csv), oof.csv, metrics.json,
    notes.json (what `note` was told of the run); images-cache (decoded DICOMs) until every fold is
    scored.

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
    if not isinstance(settings, Settings):
        raise ConfigError(
            f"settings: got {type(settings).__name__}, wanted Settings: "
            "Settings(model=ModelConfig(...), loop=LoopConfig(...))"
        )
    resolve(settings.model.model)  # a name that is none is told before anything is read
    fabric = open_fabric(settings.loop)
    notes: list[str] = []
    passing: set[str] = set()

    def tell(line: str) -> None:
        if fabric.is_global_zero and line not in notes:
            notes.append(line)
            if note is not None:
                note(line)

    def remark(line: str) -> None:
        passing.add(line)
        tell(line)

    def report(event: Event) -> None:
        if progress is not None and fabric.is_global_zero:
            progress(event)

    def read(done: int, total: int) -> None:
        report({"event": "images", "done": done, "total": total})

    rows = split(table, settings, tell)
    wanted = _wanted(rows, fold)
    for each in wanted:
        check_labels(rows, each)
    folder = RunFolder(run_folder)
    on_first_rank(fabric, lambda: folder.take(resume=settings.loop.resume))
    try:
        with (
            algorithms(settings.loop.deterministic),
            on_every_rank(
                fabric,
                lambda: open_images(
                    source,
                    rows,
                    settings.images,
                    config=settings.preprocess,
                    device=fabric.device,
                    progress=read,
                    note=tell,
                    scratch=folder.path / IMAGES,
                ),
            ) as images,
            images.all_failures(read),
        ):
            config = describe_run(
                settings,
                rows,
                images,
                source,
                precision=precision_of(fabric),
                ranks=fabric.world_size,
            )
            earlier = on_first_rank(fabric, lambda: folder.settle(config, rows))
            if earlier is not None and earlier.get("precision") != config["precision"]:
                tell(
                    f"precision: the run began in {earlier.get('precision')} and goes on in "
                    f"{config['precision']}, as this device computes: set precision to keep it"
                )
            parts = Parts(fabric, settings, rows, images, config["identity"], report, tell, remark)
            for each in wanted:
                check_labels(rows.iloc[images.kept], each)
            if settings.loop.head == "metadata":
                fit_two_stage(parts, folder, wanted)
            else:
                for each in wanted:
                    _train_fold(parts, folder, each, len(wanted))
            oof, metrics = on_first_rank(fabric, lambda: _conclude(folder, parts))
            kept = [line for line in notes if line not in passing]
            on_first_rank(fabric, lambda: folder.keep_notes(kept))
        if fabric.is_global_zero and set(_wanted(rows, None)) <= set(folder.scored_folds()):
            folder.drop_images()
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
    if isinstance(table, pd.DataFrame):
        check_typed(table)
        rows = table
    else:
        rows = read_table(table, options, note=note)
    if not (rows["fold"] >= 0).any():
        if options.hold_out:
            made = hold_out(rows, options.hold_out, options.split_seed)
        else:
            made = assign_folds(rows, options.folds, options.split_seed)
        rows = rows.assign(fold=made)
    elif note is not None and options.hold_out:
        count = rows["fold"][rows["fold"] >= 0].nunique()
        note(
            f"hold_out: not used: the table's own column fold is, with {count} folds. Leave that "
            "out by columns='fold=' to split anew"
        )
    check_split(rows, rows["fold"].to_numpy())
    whole: pd.DataFrame = rows.reset_index(drop=True)
    return whole


def _wanted(table: pd.DataFrame, fold: int | None) -> tuple[int, ...]:
    there = tuple(int(each) for each in sorted(set(table["fold"])) if each >= 0)
    if fold is not None:
        if fold not in there:
            raise ConfigError(f"fold: got {fold}, the table has {', '.join(map(str, there))}")
        return (fold,)
    return there


def _train_fold(parts: Parts, folder: RunFolder, fold: int, folds: int) -> None:
    fabric, loop = parts.fabric, parts.settings.loop
    path = folder.path / f"fold{fold}"
    on_first_rank(fabric, lambda: path.mkdir(exist_ok=True))
    training = prepare(parts, fold, path)
    how = restore(training)
    if how:
        parts.remark(how)
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


def _conclude(folder: RunFolder, parts: Parts) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Put the folds' scores together and measure them."""
    loop = parts.settings.loop
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
    metrics["epoch_chosen_by"] = loop.epoch_chosen_by
    if loop.epoch_chosen_by:
        metrics["notes"].append(CHOSEN.format(loop.epoch_chosen_by))
    if loop.head == "network":
        metrics["notes"] += loop.score_notes
    probabilities = loop.head == "metadata" or (loop.correct_prior and loop.has_posterior)
    for each in sorted(frames):
        doubt = doubts(frames[each], probabilities=probabilities)
        if doubt:
            parts.note(f"fold {each}: {doubt}")
        lines = [doubt] + ([drawn(parts, each)[1].note] if loop.head == "network" else [])
        metrics["notes"] += [f"fold {each}: {line}" for line in lines if line]
    folder.write_json("metrics.json", metrics)
    return oof, metrics
