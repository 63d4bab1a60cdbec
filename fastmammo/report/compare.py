"""Takes a table, images and several settings, trains each alike, and tabulates what came out."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import ConfigError
from fastmammo.report import charts
from fastmammo.report.html import Markup, element, number, page, section, svg, table, write_page
from fastmammo.report.scores import NAMES
from fastmammo.report.training import write_report
from fastmammo.training.devices import speaks
from fastmammo.training.metrics import compare_runs
from fastmammo.training.models import build_model
from fastmammo.training.run import train
from fastmammo.training.scored import CHOSEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastmammo.training.settings import Settings

_FIGURES = ("auc", "pr_auc", "pf1", "f1", "sensitivity_at_90", "brier")
_SHORT = {"pr_auc": "PR AUC", "f1": "best F1", "sensitivity_at_90": "sens. at 90 %",
          "pf1": "prob. F1"}  # fmt: skip


_FEW = 20
"""Positive patients from which on an interval by drawing patients is believed."""


@dataclass(frozen=True)
class Comparison:
    """What models trained alike came to.

    models: name → run (folder), metrics (of `evaluate`), parameters, seconds (of all its folds'
        epochs, validation too).
    differences: of `compare_runs`: name → figure → difference to the first, and its interval.
    positive_patients: patients with cancer among those scored.
    page: the HTML page.
    """

    models: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    positive_patients: int
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values, without the curves."""
        models = {
            name: {
                **each,
                "metrics": {k: v for k, v in each["metrics"].items() if k != "curves"},
            }
            for name, each in self.models.items()
        }
        found: dict[str, Any] = {"models": models, "differences": self.differences}
        found |= {"positive_patients": self.positive_patients, "caveat": self.caveat}
        return {**found, "page": os.fspath(self.page)}

    @property
    def caveat(self) -> str:
        """What is to be known where positive patients are few; "" where they are not."""
        count = self.positive_patients
        if count >= _FEW:
            return ""
        return (
            f"{count} positive patient{'s' * (count != 1)}: too few to tell models apart. With "
            f"fewer than {_FEW} of them, drawing patients gives intervals that are too narrow"
        )

    @property
    def chosen(self) -> list[str]:
        """What is to be known of models whose epochs were chosen on the scores compared here."""
        by = [each["metrics"].get("epoch_chosen_by") for each in self.models.values()]
        return [CHOSEN.format(each) for each in dict.fromkeys(filter(None, by))]

    def text(self) -> str:
        """Return the table as aligned text, and the differences to the first model."""
        first = next(iter(self.models))
        heads = ["model", *(_title(name) for name in _FIGURES), "parameters", "minutes"]
        rows = [heads]
        for name, each in self.models.items():
            breast = each["metrics"]["breast"]
            figures = ["–" if breast[key] is None else f"{breast[key]:.3f}" for key in _FIGURES]
            mark = " *" if each["metrics"].get("epoch_chosen_by") else ""
            rows.append(
                [
                    f"{name}{mark}",
                    *figures,
                    f"{each['parameters']:,}",
                    f"{each['seconds'] / 60:.1f}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines += [f"* {line}" for line in self.chosen]
        for name, figures_of in self.differences.items():
            for key, each in figures_of.items():
                low, high = each["interval"]
                lines.append(
                    f"{name} - {first}: {_title(key)} {each['difference']:+.3f} "
                    f"({low:+.3f} to {high:+.3f})"
                )
        lines += [f"note: {self.caveat}"] * bool(self.caveat)
        return "\n".join([*lines, f"page: {self.page}"])


def compare_models(
    table_path: str | os.PathLike[str] | pd.DataFrame,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Mapping[str, Settings],
    *,
    fold: int | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Comparison:
    """Train each of several settings on the same folds; write OUT/compare.html and compare.json.

    Each gets a run folder OUT/<name>, with its report; with `resume` runs that are there go on, or
    are taken as they are. The budget is the settings': the same epochs and batches, not the same
    seconds.

    Args:
        table_path: as of `train`.
        source: as of `train`.
        out: the folder for all of it.
        settings: name → settings; the others are compared with the first.
        fold, progress, note: as of `train`.

    Raises:
        ConfigError: fewer than two, or two names that give one folder.
        ModelError: no such model, or not for such images; before anything is trained or written.
        WeightsError: pretrained weights cannot be had; before anything is trained or written.
        FastMammoError: of `train`, before or while a model is trained.
    """
    folders = {name: re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") for name in settings}
    if len(set(folders.values())) < max(2, len(folders)):
        raise ConfigError(
            f"compare: got {', '.join(settings) or 'nothing'}, wanted two or more, with names that "
            "differ"
        )
    size = _image_size(Path(source), next(iter(settings.values())))
    for each in settings.values():  # the second's name may be wrong: known before hours of training
        build_model(each.model, image_size=size)
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    models: dict[str, dict[str, Any]] = {}
    scores: dict[str, pd.DataFrame] = {}
    for name, each in settings.items():
        if progress is not None:
            progress({"event": "comparison", "model": name})
        started = time.perf_counter()
        result = train(
            table_path,
            source,
            root / folders[name],
            each,
            fold=fold,
            progress=progress,
            note=note,
        )
        scores[name] = result.oof
        if speaks():
            write_report(result.folder, note=note)
        models[name] = {
            "run": os.fspath(result.folder),
            "metrics": result.metrics,
            "parameters": _parameters(result.folder),
            "seconds": _seconds(result.folder) or time.perf_counter() - started,
        }
    reduce = next(iter(settings.values())).loop.reduce
    differences = compare_runs(scores, reduce=reduce)
    one = next(iter(scores.values()))
    positive = int(one.loc[one["cancer"] == 1, "patient_id"].nunique())
    found = Comparison(models, differences, positive, root / "compare.html")
    if speaks():
        text = json.dumps(found.to_dict(), indent=2) + "\n"
        write_atomic(os.fspath(root / "compare.json"), [text.encode()], f"{root}/compare.partial")
        write_page(found.page, _page(found, settings))
    return found


def _image_size(source: Path, settings: Settings) -> tuple[int, int] | None:
    """Return rows and columns of the images, where they are known before they are opened."""
    if settings.preprocess is not None:
        return settings.preprocess.size
    try:
        made = json.loads((source / "config.json").read_text(encoding="utf-8"))
        rows, columns = made["config"]["size"]
    except (OSError, ValueError, KeyError, TypeError):  # `train` says what is wrong with it
        return None
    return int(rows), int(columns)


def _parameters(folder: Path) -> int:
    """Return how many weights the model has, as its checkpoint tells."""
    from fastmammo.training.checkpoints import load_checkpoint

    for path in sorted(folder.glob("fold*/last.pt")) or sorted(folder.glob("features.pt")):
        weights = load_checkpoint(path)["weights"]
        # buffers, such as a BatchNorm's counter, are no weights that are learnt, but few
        return int(sum(each.numel() for each in weights.values() if each.is_floating_point()))
    return 0


def _seconds(folder: Path) -> float:
    """Return how long all folds took, whichever call trained them."""
    logs = [pd.read_csv(path) for path in folder.glob("fold*/log.csv")]
    return float(sum(log["seconds"].sum() + log["validation_seconds"].sum() for log in logs))


def _title(name: str) -> str:
    return _SHORT.get(name, NAMES[name])


def _page(found: Comparison, settings: Mapping[str, Settings]) -> str:
    first = next(iter(found.models))
    one = settings[first]
    metrics = found.models[first]["metrics"]
    count = metrics["counts"]
    heads = ("model", *(_title(name) for name in _FIGURES), "parameters", "minutes")
    rows = [
        (
            f"{name} *" if each["metrics"].get("epoch_chosen_by") else name,
            *(_with_span(each["metrics"], figure) for figure in _FIGURES),
            each["parameters"],
            number(each["seconds"] / 60, 1),
        )
        for name, each in found.models.items()
    ]
    drawn = {
        name: each["metrics"]
        for name, each in found.models.items()
        if each["metrics"]["breast"]["auc"] is not None
    }
    chart: Markup | str = ""
    if drawn:
        values = [each["breast"]["auc"] for each in drawn.values()]
        spans = [
            each["intervals"].get("auc", [value] * 2)
            for each, value in zip(drawn.values(), values, strict=True)
        ]
        chart = svg(
            charts.models(list(drawn), values, spans, "ROC AUC by breast, 95 % interval"),
            "ROC AUC of each model",
        )
    pairs = [
        (name, _title(figure), Markup(f"{each['difference']:+.3f}"),
         Markup(f"{each['interval'][0]:+.3f} to {each['interval'][1]:+.3f}"),
         "" if found.caveat or each["interval"][0] <= 0 <= each["interval"][1] else "differs")
        for name, figures in found.differences.items()
        for figure, each in figures.items()
    ]  # fmt: skip
    share = count["positive_breasts"] / max(1, count["breasts"])
    return page(
        "Models compared",
        f"{count['positive_breasts']:,} of {count['breasts']:,} breasts positive ({share:.2%}), "
        f"{count['patients']:,} patients; each {one.loop.epochs} epochs, batches of "
        f"{one.sampling.batch_size}, balance {one.sampling.balance}, lr {one.loop.lr:g}, seed "
        f"{one.loop.seed}",
        section(
            "Out of fold, by breast",
            table(heads, rows),
            *(element("p", f"* {line}") for line in found.chosen),
            element("div", chart, style="max-width:680px"),
            lead="The same folds, epochs and batches for each; minutes are those of this machine.",
        ),
        section(
            f"Differences to {first}",
            element("p", element("b", f"{found.caveat}.")) if found.caveat else "",
            table(("model", "figure", "difference", "95 % interval", ""), pairs, left=2),
            lead="Paired: each round draws patients once for both models, so that what is hard for "
            "both cancels. An interval without 0 is a difference that other patients would show "
            "too; other seeds of the training may still turn it round.",
        ),
    )


def _with_span(metrics: Mapping[str, Any], name: str) -> Markup:
    value, span = metrics["breast"][name], metrics["intervals"].get(name)
    if value is None or not span:
        return number(value)
    under = element("span", f"{span[0]:.3f}–{span[1]:.3f}", class_="none")
    return Markup(number(value) + Markup("<br>") + under)
