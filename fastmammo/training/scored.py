"""Takes a table of scores, gives what runs tell of it: its columns, its figures by breast."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmammo.errors import TableError
from fastmammo.training.measures import measures
from fastmammo.training.metrics import by_breast

if TYPE_CHECKING:
    from fastmammo.training.metrics import Reduce

SCORED = (
    *("image_id", "patient_id", "laterality", "prediction_id", "site_id", "machine_id", "view"),
    *("cancer", "fold"),
)
"""The table's columns that stand beside an out-of-fold `score` and `logit`."""


CHOSEN = "the epoch was chosen by {} on the same fold, which flatters these figures"
"""Of a run whose epochs were chosen on the scores that are measured: see `epoch_chosen_by`."""


def by_breast_figures(frame: pd.DataFrame, reduce: Reduce) -> dict[str, Any]:
    """Return the figures of `measures` by breast, without intervals and curves."""
    breasts = by_breast(frame, reduce)
    return measures(breasts["cancer"], breasts["score"], None)


_NO_SPREAD = 1e-3
"""Spread of all scores, as a share of the labels' variance, below which they tell nothing."""

_MUCH_WORSE = 10.0
"""How many times the loss of a constant score stands for a training that has diverged."""


def doubts(frame: pd.DataFrame, *, probabilities: bool = True) -> str:
    """Say why scores look as if the training had failed; "" where they do not.

    A network that has diverged to finite numbers ends like any other: its scores tell.

    Args:
        frame: with cancer (0, 1; both are there) and score.
        probabilities: whether the scores mean the probability of cancer, so that their loss does.
    """
    labels, scores = (frame[name].to_numpy(np.float64) for name in ("cancer", "score"))
    share = labels.mean()
    if np.ptp(scores) <= _NO_SPREAD * share * (1 - share):
        return (
            f"all {len(scores)} scores are nearly equal ({scores.min():.6g} to {scores.max():.6g}):"
            " the model tells nothing. Take a lower lr, or more epochs"
        )
    within = scores.clip(1e-12, 1 - 1e-12)
    loss = -np.mean(labels * np.log(within) + (1 - labels) * np.log1p(-within))
    constant = -(share * np.log(share) + (1 - share) * np.log1p(-share))
    if probabilities and loss > _MUCH_WORSE * constant:
        return (
            f"the loss of the scores is {loss:.3g}, one score for all images would have "
            f"{constant:.3g}: training has diverged. Take a lower lr, or a longer warmup"
        )
    return ""


def whole_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table to be written with cancer as 0 and 1, not 0.0 and 1.0."""
    if "cancer" not in frame:
        return frame
    whole: pd.DataFrame = frame.assign(cancer=frame["cancer"].astype("Int64"))
    return whole


def read_scores(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of scores that a run has written: ids are text, "" where unknown.

    Raises:
        TableError: a column is missing, or a row has too few or too many cells.
    """
    check_rows(path)
    text = dict.fromkeys((*SCORED[:7], "path"), str)
    frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"cancer": [""]})
    missing = [name for name in ("patient_id", "prediction_id", "score") if name not in frame]
    if missing:
        raise TableError(f"{os.fspath(path)}: no column {', '.join(missing)}: is it of a run?")
    if "cancer" in frame and frame["cancer"].dtype.kind in "iu":
        frame["cancer"] = frame["cancer"].astype(np.float64)
    return frame


def check_rows(path: str | os.PathLike[str]) -> None:
    """Refuse what pandas fills up in silence: the last row of a file that was cut."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise TableError(
                    f"{os.fspath(path)}: line {reader.line_num} has {len(row)} cells, the header "
                    f"{len(header)}: was the file cut as it was written? Write it again"
                )
