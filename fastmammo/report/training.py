"""Takes a run folder, writes its report: one page with figures, curves, images, settings, times."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmammo.errors import CheckpointError
from fastmammo.report import charts
from fastmammo.report.cases import choose, load_cases
from fastmammo.report.gallery import gallery, legend
from fastmammo.report.html import (
    Markup,
    element,
    join,
    notes,
    number,
    page,
    section,
    svg,
    table,
    thirds,
    write_page,
)
from fastmammo.report.scores import headline, score_sections
from fastmammo.training.members import Run, open_run
from fastmammo.training.model_config import PRESETS
from fastmammo.training.run_folder import read_notes
from fastmammo.training.scored import read_scores

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME = "report.html"
BASELINES = "baselines.json"
"""In the run folder, where someone has measured them: name → auc, interval."""

_CASES = {
    "false alarms": (
        "False alarms",
        "Breasts without cancer that were called positive, the highest scores first. Are they "
        "truly negative, or mislabelled; what did the model take for a lesion: a scar, a clip, a "
        "fold of skin?",
    ),
    "highest negatives": (
        "Breasts without cancer that score highest",
        "Are they truly negative, or mislabelled; what did the model take for a lesion?",
    ),
    "misses": (
        "Misses",
        "Breasts with cancer that were called negative, the lowest scores first, each by its "
        "highest-scored image: the view in which the cancer could best have been seen.",
    ),
    "lowest positives": (
        "Lowest-scored cancers",
        "Of the breasts with cancer those that score lowest, each by its highest-scored image.",
    ),
    "hits": (
        "Found cancers",
        "Breasts with cancer that were called positive, the highest scores first. Does the heat "
        "lie on the lesion?",
    ),
    "highest positives": (
        "Highest-scored cancers",
        "Breasts with cancer that score highest. Does the heat lie on the lesion?",
    ),
}
_FOLD_FIGURES = ("auc", "pr_auc", "pf1", "pf1_best", "sensitivity_at_90", "brier")


def write_report(
    run_folder: str | os.PathLike[str],
    *,
    cases: int = 6,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Write RUN/report.html.

    Images and heat maps are shown where the run's images are still where they were; what cannot be
    shown stands among the page's notes.

    Args:
        run_folder: of `train`, with scores of one fold or more.
        cases: images of each kind (false alarms, misses, found cancers), at most; 0: none.
        note: called with each of the page's own notes.

    Returns:
        The page's path.

    Raises:
        CheckpointError: it is no run folder, or the run has no scores yet.
        OSError: the page cannot be written.
    """
    run = open_run(run_folder)
    try:
        metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
        oof = read_scores(run.path / "oof.csv")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{run.path}: metrics.json and oof.csv are not there yet ({error}). Has the run ended? "
            "Go on with it by resume"
        ) from error
    remarks: list[str] = []
    content: list[object] = [
        headline(metrics, "out of fold"),
        _summary(run, metrics),
        _learning(run, remarks),
        *score_sections(metrics, oof, seed=run.settings.loop.seed),
        _folds(metrics),
        _stages(run),
        _baselines(run, metrics),
        _cases(run, metrics, oof, cases, remarks),
        _time(run),
    ]
    said = list(dict.fromkeys((*metrics["notes"], *read_notes(run.path), *remarks)))
    content += [section("Notes", notes(said)) if said else "", _settings(run)]
    when = datetime.fromtimestamp((run.path / "metrics.json").stat().st_mtime)
    subtitle = (
        f"{run.settings.model.model}, {run.path.resolve()}, {when:%Y-%m-%d %H:%M}, fastmammo "
        f"{run.config.get('fastmammo', '')}"
    )
    path = run.path / NAME
    title = f"Training report: {run.path.resolve().name}"
    write_page(path, page(title, subtitle, *content))
    for line in remarks if note is not None else ():
        note(f"report: {line}")  # type: ignore[misc]
    return path


def _summary(run: Run, metrics: Mapping[str, Any]) -> Markup:
    """Return what was done, in words."""
    count, settings, source = metrics["counts"], run.settings, run.config["source"]
    loop, sampling = settings.loop, settings.sampling
    share = count["positive_breasts"] / max(1, count["breasts"])
    trained = sorted(map(int, metrics.get("folds", {}))) or list(run.folds)
    folds = pd.read_csv(run.path / "table.csv", usecols=["fold"])["fold"]
    there = sorted(set(folds[folds >= 0]))
    of_folds = "" if len(trained) == len(there) else f" of {len(there)}"
    balance = {
        "oversample": f"positives repeated to {sampling.positive_share:.3g} of every batch",
        "undersample": f"{sampling.undersample_ratio:g} negatives kept for each positive",
        "pos_weight": "positives weigh more in the loss",
        "none": "classes as they are",
    }[sampling.balance]
    size = source["size"]
    rows = [
        ("scored", f"{count['positive_breasts']:,} of {count['breasts']:,} breasts positive "
                   f"({share:.2%}); {count['patients']:,} patients, {count['images']:,} images"),
        ("by", f"{len(trained)}{of_folds} folds by patient: each image by the model that has not "
               f"seen its patient; a breast's score is the {loop.reduce} of its images'"),
        ("model", f"{settings.model.model}, pooling {settings.model.pooling}"
                  + ("" if settings.model.multiview == "none"
                     else f", views of a breast pooled by {settings.model.multiview}")),
        ("images", f"{size[0]} × {size[1]} pixels, {source['bits']} bits{_mirrored(source)}; "
                   f"augmentation {settings.augment.augment}"),
        ("training", f"{loop.epochs} epochs, batches of {sampling.batch_size}, {balance}; lr "
                     f"{loop.lr:g}, {loop.schedule}; {loop.loss}; seed {loop.seed}"),
    ]  # fmt: skip
    if loop.head == "metadata":
        rows[-1] = ("head", "logistic regression on frozen image features, age, view, laterality, "
                            "implant and density")  # fmt: skip
    cells = [
        element("tr", element("td", name, class_="text"), element("td", words, class_="text"))
        for name, words in rows
    ]
    return element("div", element("table", *cells), class_="wide summary")


def _mirrored(source: Mapping[str, Any]) -> str:
    """Say whether sides were mirrored: who looks at the images must know."""
    side = source.get("config", {}).get("flip", "none")
    return "" if side == "none" else f", mirrored where the chest wall was not {side}"


def _logs(run: Run) -> dict[int, pd.DataFrame]:
    found = {}
    for path in run.path.glob("fold*/log.csv"):
        log = pd.read_csv(path)
        if len(log):
            found[int(path.parent.name.removeprefix("fold"))] = log
    return dict(sorted(found.items()))


def _learning(run: Run, remarks: list[str]) -> Markup:
    logs = _logs(run)
    if not logs:
        if run.settings.loop.head != "metadata":
            remarks.append("No learning curves: no fold*/log.csv")
        return Markup("")
    drawn = charts.learning_curves(
        {fold: {str(name): log[name].to_list() for name in log} for fold, log in logs.items()}
    )
    epochs = max(int(log["epoch"].max()) for log in logs.values())
    return section(
        "How it learnt",
        thirds(*(svg(each, f"{what}, by epoch and fold") for what, each in drawn.items())),
        lead=f"{epochs} epochs. Metrics are those of each fold's held-out patients. The training "
        "loss is that of batches as the training saw them: where they were balanced or augmented, "
        "its height does not compare with the validation loss.",
    )


def _folds(metrics: Mapping[str, Any]) -> Markup:
    folds = metrics.get("folds") or {}
    if len(folds) < 2:
        return Markup("")
    heads = ("fold", "breasts", "positive", "ROC AUC", "PR AUC", "prob. F1", "best F1",
             "sens. at 90 %", "Brier")  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (name, each["count"], each["positives"], *(each[figure] for figure in _FOLD_FIGURES))
        for name, each in folds.items()
    ]
    spread: list[object] = ["spread (sd)", "", ""]
    for figure in _FOLD_FIGURES:
        values = [each[figure] for each in folds.values() if each[figure] is not None]
        spread.append(float(np.std(values, ddof=1)) if len(values) > 1 else None)
    lead = "By breast. The spread over folds is that of models and patients together."
    return section("Folds", table(heads, [*rows, spread]), lead=lead)


def _stages(run: Run) -> Markup:
    """Return what image and metadata score alone, of a two-stage run."""
    try:
        stages = json.loads((run.path / "stages.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Markup("")
    rows = [(name, each["auc"], each["pr_auc"], each["pf1_best"]) for name, each in stages.items()]
    return section(
        "What image and metadata tell alone",
        table(("scores of", "ROC AUC", "PR AUC", "best F1"), rows),
        lead="Metadata betrays the site: where sites differ in what they record and in their share "
        "of cancers, such a model scores hospitals. Judge it per site.",
    )


def _baselines(run: Run, metrics: Mapping[str, Any]) -> Markup:
    """Return what can be told without looking for lesions, where it has been measured."""
    try:
        found = json.loads((run.path / BASELINES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Markup("")
    spans = {"the model": metrics["intervals"].get("auc")}
    spans |= {name: each["interval"] for name, each in found.items()}
    values = {"the model": metrics["breast"]["auc"], **{k: v["auc"] for k, v in found.items()}}
    rows = [
        (name, value, f"{spans[name][0]:.3f} to {spans[name][1]:.3f}" if spans[name] else None)
        for name, value in values.items()
    ]
    return section(
        "Is it the lesion that it sees?",
        table(("scores of", "ROC AUC", "95 % interval"), rows),
        lead="What can be guessed without looking for a lesion, by logistic regressions fitted in "
        "the same folds. Near 0.5 is chance.",
    )


def _cases(
    run: Run, metrics: Mapping[str, Any], oof: pd.DataFrame, count: int, remarks: list[str]
) -> Markup:
    if not count:
        return Markup("")
    text = {"patient_id": str, "image_id": str, "prediction_id": str, "path": str}
    rows = pd.read_csv(run.path / "table.csv", dtype=text, keep_default_na=False,
                       na_values={"fold": [""]})  # fmt: skip
    chosen = choose(oof, count, metrics["threshold"], metrics["reduce"])
    loaded = load_cases(run, rows, chosen, remarks)
    parts: list[Markup] = []
    for name, group in loaded.items():
        if group:
            title, words = _CASES[name]
            parts += [element("h3", title), element("p", words, class_="lead"), gallery(group)]
    return section("Images to look at", *parts, lead=legend(loaded)) if parts else Markup("")


def _time(run: Run) -> Markup:
    rows: list[tuple[object, ...]] = []
    for fold, log in _logs(run).items():
        steps = log["steps"].diff().fillna(log["steps"]).clip(lower=1)
        for name, chosen in (("first epoch", log.index < 1), ("later epochs", log.index >= 1)):
            part, count = log[chosen], float(steps[chosen].sum())
            if len(part):
                seconds, waited = float(part["seconds"].sum()), float(part["wait_seconds"].sum())
                rows.append(
                    (
                        f"fold {fold}, {name}",
                        f"{1000 * seconds / count:.1f} ms",
                        f"{1000 * waited / count:.2f} ms",
                        f"{waited / seconds:.1%}" if seconds else number(None),
                        float(part["images_per_second"].mean()),
                        f"{seconds / len(part):.1f} s",
                        f"{float(part['validation_seconds'].mean()):.1f} s",
                    )
                )
    if not rows:
        return Markup("")
    heads = ("", "a step", "of it, waiting for data", "share", "images/s", "training an epoch",
             "validation")  # fmt: skip
    lead = (
        "A step is all of it: data, forward, backward, weights. The first epoch holds what is done "
        "once: decoding, compiling, filling the store."
    )
    return section("Time, and waiting for data", table(heads, _with_digits(rows)), lead=lead)


def _with_digits(rows: list[tuple[object, ...]]) -> list[list[object]]:
    return [[number(v, 1) if isinstance(v, float) else v for v in row] for row in rows]


def _settings(run: Run) -> Markup:
    parts = []
    for name, values in run.config["settings"].items():
        cells = [
            element("tr", element("td", key, class_="text"), element("td", _shown(value)))
            for key, value in (values or {}).items()
            if not (key == "pretrained" and PRESETS.get(values["model"]) == "small_cnn")
        ]
        if cells:
            parts.append(element("div", element("h3", name), element("table", *cells)))
    versions = ", ".join(f"{name} {value}" for name, value in run.config["versions"].items())
    return section(
        "All settings", element("div", *parts, class_="settings"), element("p", versions)
    )


def _shown(value: Any) -> Markup:
    if value is None or value == "":
        return number(None)
    return join([value if isinstance(value, str) else json.dumps(value)])
