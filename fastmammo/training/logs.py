"""Takes the numbers of each epoch, leaves log.csv and, where asked for, TensorBoard's events."""

from __future__ import annotations

import csv
import io
import math
import os
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COLUMNS = (
    *("epoch", "steps", "skipped_steps", "lr", "train_loss", "positive_share"),
    *("loss", "pr_auc", "auc", "pf1_best", "best"),
    *("seconds", "wait_seconds", "images_per_second", "validation_seconds"),
)
"""The columns of log.csv.

epoch counts from 1; steps are the optimiser's so far; lr is that of the epoch's last step;
positive_share what the batches of the epoch held. loss, pr_auc, auc and pf1_best are those of the
validation fold, by breast but for the loss (mean BCE an image); best is 1 where this epoch's
weights went to best.pt. seconds are those of training, wait_seconds those of them in which the
loop stood waiting for data.
"""


def write_log(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write log.csv, one row an epoch, whole: what a resumed run did twice stands there once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in history:
        writer.writerow({name: _cell(row.get(name)) for name in COLUMNS})
    path = os.fspath(folder / "log.csv")
    write_atomic(path, [text.getvalue().encode()], f"{path}.partial")


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


class Events:
    """TensorBoard's event file of one fold, or nothing where it is not asked for.

    Raises:
        ConfigError: it is asked for, and tensorboard is not installed.
    """

    def __init__(self, folder: Path, asked: bool, epoch: int) -> None:
        self._writer: Any = None
        if not asked:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"tensorboard: asked for, but not installed ({error}). Run `pip install "
                "tensorboard`, or leave it out: log.csv is written either way"
            ) from error
        # what an earlier run wrote of the epochs that are done again is not shown
        self._writer = SummaryWriter(os.fspath(folder), purge_step=epoch + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write an epoch's numbers."""
        if self._writer is None:
            return
        for name in COLUMNS[2:]:
            value = row.get(name)
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
