"""Takes the events of a training or a prediction, shows on stderr how far it is."""

from __future__ import annotations

import sys
import time
from typing import Any

from fastmammo.report.progress import LINE_EVERY_SECONDS, LiveBar


class TrainingProgress(LiveBar):
    """A context manager whose `update(event)` shows a live bar on a terminal, else lines.

    What stays (an epoch, a fold's figures, notes) is printed as a line in both cases; with `quiet`
    notes alone are.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__()
        self._quiet = quiet
        self._tasks: dict[str, Any] = {}
        self._epochs = 0

    def note(self, line: str) -> None:
        """Print a line that the user should read, `quiet` or not."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def update(self, event: dict[str, Any]) -> None:
        """Show an event of `train` or `predict`; one of an unknown kind is passed over."""
        if self._quiet:
            return
        show = getattr(self, f"_{event['event']}", None)
        if show is not None:
            show(event)

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self._quiet:
            return
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, note=note)
            self._bar.update(self._tasks[what], completed=done, total=total, note=note)
            if done >= total:  # what is done leaves the picture to what is at work
                self._bar.remove_task(self._tasks.pop(what))
        elif time.monotonic() - self._last > LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            print(f"{what} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def _comparison(self, event: dict[str, Any]) -> None:
        self.note(f"model {event['model']}")

    def _images(self, event: dict[str, Any]) -> None:
        self.count("reading images", event["done"], event["total"])

    def _model(self, event: dict[str, Any]) -> None:
        note = f"{event['run']}, fold {event['fold']}"
        self.count("models", event["done"], event["total"], note)

    def _fold(self, event: dict[str, Any]) -> None:
        self._epochs = event["epochs"]
        self.note(
            f"fold {event['fold']}: {event['training']} images to train on, "
            f"{event['validation']} held out, {event['epochs'] - event['epoch']} epochs to go"
        )

    def _step(self, event: dict[str, Any]) -> None:
        loss = event["loss"]
        note = f"loss {loss:.4f}" if isinstance(loss, float) and loss == loss else ""
        what = f"fold {event['fold']}, epoch {event['epoch']}, step"
        self.count(what, event["step"], event["steps"], note)

    def _epoch(self, event: dict[str, Any]) -> None:
        figures = [f"loss {event['train_loss']:.4f}"]
        figures += [
            f"{title} {event[name]:.3f}"
            for name, title in (("loss", "validation"), ("auc", "AUC"), ("pr_auc", "PR AUC"))
            if event[name] is not None
        ]
        self.note(
            f"fold {event['fold']}, epoch {event['epoch']}/{self._epochs}: {', '.join(figures)}; "
            f"{event['seconds']:.1f} s, {event['wait_seconds']:.1f} s of them for data"
        )

    def _scored(self, event: dict[str, Any]) -> None:
        auc = event["metrics"]["auc"]
        self.note(f"fold {event['fold']} scored" + ("" if auc is None else f": AUC {auc:.3f}"))
