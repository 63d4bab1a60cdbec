"""Takes a file of scores, and labels, gives the figures, as JSON and as a page."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import TableError
from fastmammo.report.html import notes, page, section, write_page
from fastmammo.report.scores import headline, score_sections
from fastmammo.training.metrics import evaluate
from fastmammo.training.scored import check_rows
from fastmammo.training.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.training.metrics import Reduce
    from fastmammo.training.table import TableOptions

_IDS = ("patient_id", "image_id", "prediction_id", "laterality", "site_id", "machine_id")
_SHOWN = 3


def evaluate_scores(
    scores: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    options: TableOptions | None = None,
    reduce: Reduce = "mean",
    threshold: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], tuple[Path, Path]]:
    """Measure scores against labels; write metrics.json and report.html.

    Args:
        scores: a CSV with a row an image (`score` beside patient_id, image_id), as `predict` and
            `train` write them, or a submission: prediction_id and `cancer`, the score of a breast.
        table: the labels, a CSV as `read_table` takes it; None: the scores' own column cancer.
        out: the folder that is written; None: files beside `scores`, with its name in front.
        options: how the table is read.
        reduce, threshold, bootstrap, seed: of `metrics.evaluate`.
        note: called with each sentence that the user should read.

    Returns:
        The figures, as `metrics.evaluate` gives them, and the paths of both files.

    Raises:
        TableError: columns, labels or scores are missing or impossible; scores without a row in the
            table, or rows without a score.
        ConfigError: an impossible threshold or bootstrap.
        OSError: a file cannot be read or written.
    """
    tell = note or (lambda line: None)
    frame = scored = _read(Path(scores))
    if table is not None:
        labels = read_table(table, options, note=tell)
        frame = _join(scored, labels, os.fspath(scores), os.fspath(table))
    elif "cancer" not in frame:
        raise TableError(
            f"{os.fspath(scores)} has no labels: name the table that has them by --table"
        )
    metrics = evaluate(frame, reduce=reduce, threshold=threshold, bootstrap=bootstrap, seed=seed)
    if table is not None and "image_id" not in scored:
        metrics["notes"].append("the scores are of breasts: the figures by image are the same")
    files = _paths(Path(scores), out)
    title = f"Evaluation of {Path(scores).name}"
    where = f"{Path(scores).resolve()}" + (f"; labels: {Path(table).resolve()}" if table else "")
    content = [headline(metrics, "on these scores"), *score_sections(metrics, frame, seed)]
    if metrics["notes"]:
        content.append(section("Notes", notes(metrics["notes"])))
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomic(os.fspath(files[0]), [text.encode()], f"{files[0]}.partial")
    write_page(files[1], page(title, where, *content))
    return metrics, files


def _paths(scores: Path, out: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    if out is None:
        base = scores.with_suffix("")
        return Path(f"{base}-metrics.json"), Path(f"{base}-report.html")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "metrics.json", folder / "report.html"


def _read(path: Path) -> pd.DataFrame:
    """Return the scores with ids as text; of a submission `cancer` becomes `score`."""
    try:
        check_rows(path)
        frame = pd.read_csv(
            path, dtype=dict.fromkeys(_IDS, str), keep_default_na=False,
            na_values={"cancer": [""], "score": [""]},
        )  # fmt: skip
    except (
        csv.Error,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
    ) as error:
        raise TableError(f"{path} is no CSV: {str(error).strip()}") from error
    if "score" not in frame and {"prediction_id", "cancer"} <= set(frame.columns):
        frame = frame.rename(columns={"cancer": "score"})
    if "score" not in frame:
        raise TableError(
            f"{path}: no column score; wanted scores.csv of `predict`, oof.csv of `train`, or a "
            f"submission (prediction_id, cancer). It has {', '.join(map(str, frame.columns))}"
        )
    if not len(frame):
        raise TableError(f"{path}: no row, wanted a score a row")
    for name in {"score", "cancer"} & set(frame.columns):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise TableError(f"{path}: column {name} holds text; wanted numbers")
    return frame


def _join(frame: pd.DataFrame, labels: pd.DataFrame, scores: str, table: str) -> pd.DataFrame:
    """Give each labelled row its score, by image or, of a submission, by breast."""
    by_image = "image_id" in frame
    if by_image:
        keys = [name for name in ("patient_id", "image_id") if name in frame]
    elif "prediction_id" in frame:
        keys = ["prediction_id"]
        labels = labels.drop_duplicates("prediction_id")
    else:
        raise TableError(f"{scores}: neither image_id nor prediction_id: nothing to join by")
    twice = frame.duplicated(keys)
    if twice.any():
        raise TableError(
            f"{scores}: {int(twice.sum())} rows repeat their {' and '.join(keys)} "
            f"({_named(frame[twice], keys)}); wanted one score each"
        )
    known = ["patient_id", "image_id", "prediction_id", "cancer", "site_id", "machine_id"]
    joined = labels[known].merge(frame[[*keys, "score"]], on=keys, how="outer", indicator=True)
    for side, what in (
        ("left_only", f"rows of {table} have no score in {scores}"),
        ("right_only", f"scores of {scores} have no row in {table}"),
    ):
        rows = joined[joined["_merge"] == side]
        if len(rows):
            raise TableError(
                f"{len(rows)} {what}: {_named(rows, keys)}. Wanted the same images on both sides: "
                "exclude and views leave rows of the table out"
            )
    found: pd.DataFrame = joined.drop(columns="_merge")
    found["score"] = found["score"].astype(np.float64)
    return found


def _named(rows: pd.DataFrame, keys: list[str]) -> str:
    names = ["/".join(map(str, row)) for row in rows[keys].head(_SHOWN).to_numpy()]
    return ", ".join(names) + (", ..." if len(rows) > _SHOWN else "")
