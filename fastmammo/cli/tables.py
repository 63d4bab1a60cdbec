"""The verbs on tables: explore, split, evaluate. They need the extra `train`, imported late."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from fastmammo.cli.extra import add_output, need_files, need_folder, note, trainer
from fastmammo.cli.flags import add_fields, take_fields

if TYPE_CHECKING:
    import argparse


# ---------------------------------------------------------------- explore


def add_explore(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `explore`."""
    with trainer():
        from fastmammo.training.table import TableOptions

    parser.add_argument("table", help="a CSV with a row an image, like RSNA's train.csv")
    parser.add_argument(
        "source",
        nargs="?",
        default=None,
        help="a folder of `convert`, or of DICOMs: example images of each group are shown, and how "
        "many images there are",
    )
    parser.add_argument(
        "--out", default="explore.html", metavar="FILE", help="the page that is written"
    )
    parser.add_argument(
        "--examples", type=int, default=6, metavar="INT", help="example images of each group"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the examples")
    add_fields(parser, TableOptions, "table", leave_out=("folds", "hold_out", "split_seed"))
    add_output(parser)


def explore(parsed: argparse.Namespace) -> int:
    """Run `explore`."""
    need_files(table=parsed.table)
    need_folder(parsed.source)
    with trainer():
        from fastmammo.report.explore import explore as write
        from fastmammo.training.table import TableOptions
    found = write(
        parsed.table,
        parsed.source,
        parsed.out,
        options=take_fields(parsed, TableOptions),
        examples=parsed.examples,
        seed=parsed.seed,
        note=note,
    )
    print(json.dumps(found.to_dict(), indent=2) if parsed.json else found.text())
    return 0


# ---------------------------------------------------------------- split


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `split`."""
    with trainer():
        from fastmammo.training.table import TableOptions

    parser.add_argument("table", help="a CSV with a row an image, like RSNA's train.csv")
    parser.add_argument("out", help="the CSV that is written: the table's columns, and fold")
    add_fields(parser, TableOptions, "table")
    add_output(parser)


def split(parsed: argparse.Namespace) -> int:
    """Run `split`."""
    need_files(table=parsed.table)
    with trainer():
        from fastmammo.training.table import TableOptions, split_table
    options = take_fields(parsed, TableOptions)
    counts = split_table(parsed.table, parsed.out, options, note=note)
    if parsed.json:
        print(json.dumps({"out": parsed.out, "folds": counts.to_dict("records")}, indent=2))
    else:
        shown = counts.assign(positive_share=[f"{v:.2%}" for v in counts["positive_share"]])
        print(shown.rename(columns=lambda name: name.replace("_", " ")).to_string(index=False))
        print(f"written: {parsed.out}")
    return 0


# ---------------------------------------------------------------- evaluate


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    with trainer():
        from fastmammo.training.table import TableOptions

    parser.add_argument(
        "scores", help="scores.csv or submission.csv of `predict`, or oof.csv of `train`"
    )
    parser.add_argument(
        "--table", default=None, metavar="CSV", help="the labels, where the scores have none"
    )
    parser.add_argument(
        "--out",
        default=None,
        metavar="FOLDER",
        help="the folder for metrics.json and report.html; by default they stand beside SCORES, "
        "with its name in front",
    )
    parser.add_argument(
        "--reduce", default="mean", choices=("mean", "max"), help="a breast's score of its images'"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=None,
        metavar="FLOAT",
        help="of a positive breast: one chosen on other data; by default it is chosen on these",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="INT", help="rounds for the intervals"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the bootstrap")
    add_fields(parser, TableOptions, "table", leave_out=("folds", "hold_out", "split_seed"))
    add_output(parser)


def evaluate(parsed: argparse.Namespace) -> int:
    """Run `evaluate`."""
    need_files(scores=parsed.scores, table=parsed.table)
    with trainer():
        from fastmammo.report.evaluation import evaluate_scores
        from fastmammo.report.scores import text
        from fastmammo.training.table import TableOptions
    metrics, files = evaluate_scores(
        parsed.scores,
        table=parsed.table,
        out=parsed.out,
        options=take_fields(parsed, TableOptions),
        reduce=parsed.reduce,
        threshold=parsed.threshold,
        bootstrap=parsed.bootstrap,
        seed=parsed.seed,
        note=note,
    )
    if parsed.json:
        print(json.dumps(metrics, indent=2))
    else:
        print(text(metrics))
        print(f"written: {', '.join(map(os.fspath, files))}")
    return 0
