"""Progress of a bulk run on stderr: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

LINE_EVERY_SECONDS = 10.0


class LiveBar:
    """A context manager with rich's live bar on stderr where that is a terminal: `self._bar`."""

    _title = "{task.description}"
    _quiet = False

    def __init__(self) -> None:
        self._bar: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn(self._title),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress(LiveBar):
    """A context manager whose `update(done, total, failed, seconds)` shows rate and time left.

    Args:
        doing, done: what is done to the files, in words.
    """

    def __init__(self, doing: str = "converting", done: str = "converted") -> None:
        super().__init__()
        self._doing, self._done = doing, done
        self._task: Any = None

    def update(self, done: int, total: int, failed: int, seconds: float) -> None:
        """Show that `done` of `total` files are finished, `failed` of them failed."""
        note = _note(done, total, failed, seconds)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._doing, total=total, note=note)
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last > LINE_EVERY_SECONDS or done == total:
            self._last = time.monotonic()
            print(f"{self._done} {done}/{total}, {note}", file=sys.stderr, flush=True)


def _note(done: int, total: int, failed: int, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    left = _clock((total - done) / rate) if rate > 0 else "?"
    return f"{failed} failed, {rate:.1f} images/s, {left} left"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
