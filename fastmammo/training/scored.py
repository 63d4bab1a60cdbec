"""Takes a table of scores, gives what runs tell of it: its columns, its figures by breast."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

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


def by_breast_figures(frame: pd.DataFrame, reduce: Reduce) -> dict[str, Any]:
    """Return the figures of `measures` by breast, without intervals and curves."""
    breasts = by_breast(frame, reduce)
    return measures(breasts["cancer"], breasts["score"], None)


def read_scores(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of scores that a run has written: ids are text, "" where unknown.

    Raises:
        TableError: a column is missing.
    """
    text = dict.fromkeys((*SCORED[:7], "path"), str)
    frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"cancer": [""]})
    missing = [name for name in ("patient_id", "prediction_id", "score") if name not in frame]
    if missing:
        raise TableError(f"{os.fspath(path)}: no column {', '.join(missing)}: is it of a run?")
    return frame
