"""What every bulk run does, whatever it makes: plan, workers, journal, interruption, tables."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from fastmammo.conversion.journal import Journal
from fastmammo.conversion.names import STATE_FOLDER
from fastmammo.conversion.plan import STAYS, Plan, remove
from fastmammo.conversion.pool import Pool, watch_signals
from fastmammo.conversion.results import WITH_OUTPUT
from fastmammo.conversion.summary import SHOWN, describe
from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.conversion.inputs import Input
    from fastmammo.conversion.one_file import Message
    from fastmammo.conversion.results import Results

    Progress = Callable[[int, int, int, float], None]
    Note = Callable[[str], None]

S = TypeVar("S")

_ENTRY = (
    *("status", "reason", "message", "size", "mtime_ns", "content"),
    *("output_size", "output_crc32", "record", "seconds", "traceback"),
)
"""What of a worker's reply goes into the journal."""


class Options(Protocol):
    """What every run asks of its options."""

    @property
    def timeout_seconds(self) -> float: ...
    @property
    def fail_fast(self) -> bool: ...
    def worker_count(self, files: int, gpus: int = 0) -> int: ...


class Run(Generic[S]):
    """The parts of one run. A verb fills in what it makes of a file, and what it writes beside."""

    def __init__(
        self, inputs: list[Input], dst: str, options: Options, journal: Journal, plan: Plan
    ) -> None:
        self.start = time.monotonic()
        self.inputs, self.dst, self.journal = inputs, dst, journal
        self._options = options
        self.plan = plan
        self.results: Results = plan.results
        self.done = self.failed = self.ok = self.signal = 0
        self.fatal = ""

    # ------------------------------------------------------------ what a verb fills in

    def begin(self, note: Note | None) -> None:
        """Write what stands in DST from the start."""

    def setup(self) -> Message:
        """Return what a worker is told first; "in_hand" is how many files it takes at once."""
        raise NotImplementedError

    def drop_tables(self) -> None:
        """Remove what would tell of outputs that are being replaced; the end makes it anew."""
        remove(os.path.join(self.dst, "manifest.csv"))

    def drop_stale(self) -> None:
        """Remove what no row of the plan counts on any more."""

    def environments(self) -> list[dict[str, str]]:
        """Return variables of the workers' own, taken in turn."""
        return []

    def one_first(self) -> bool:
        """Whether the others wait for the first worker, which compiles for all."""
        return False

    def finish(self) -> None:
        """Write the tables, of what is done."""
        raise NotImplementedError

    def summary(self) -> S:
        """Return what became of the files."""
        raise NotImplementedError

    # ------------------------------------------------------------ what all share

    def go(self, progress: Progress | None, note: Note | None) -> None:
        """Do the work, from the plan to the tables.

        Raises:
            ConvertError: DST is full, or with `fail_fast` a file failed.
        """
        self.begin(note)
        settled = self.plan.make(self.inputs)
        line = describe(self.plan.kept, self.plan.again, len(self.inputs))
        if note is not None and line:
            note(line)
        if self.plan.todo or settled:
            self.drop_tables()
        self.drop_stale()
        for entry in settled:
            self.journal.add(entry)
        environments = self.environments()
        count = self._options.worker_count(len(self.plan.todo), len(environments))
        setup = self.setup()
        if environments:  # the first GPU has the most workers
            setup["device_memory"]["processes"] = -(-count // len(environments))
        pool = Pool(
            count,
            setup,
            self._options.timeout_seconds,
            in_hand=setup["in_hand"],
            environments=environments,
            one_first=self.one_first(),
        )
        restore = watch_signals(lambda number: self._interrupt(pool, number))
        try:
            if self.plan.todo:
                self._work(pool, progress)
            self._finish()
        finally:
            try:
                pool.close()
            finally:
                restore()
        if self.fatal:
            raise ConvertError(self.fatal)

    def stopped_by(self, cause: str) -> str:
        """Say how far the run came, and how to go on."""
        return (
            f"{cause}. {self.plan.kept + self.done} of {len(self.inputs)} files are done in "
            f"{self.dst}: make room or mend the cause, then run the same command again to go on"
        )

    @property
    def complete(self) -> bool:
        """Whether nothing has ended the run early."""
        return not self.fatal and not self.signal

    def _interrupt(self, pool: Pool, number: int) -> None:
        if self.signal:
            pool.abandon()
        self.signal = number
        pool.stop()

    def _work(self, pool: Pool, progress: Progress | None) -> None:
        total = len(self.plan.todo)
        for reply in pool.run(self.plan.tasks(), total):
            if "fatal" in reply:
                self.fatal = self.fatal or self.stopped_by(reply["fatal"])
                pool.stop()
                continue
            self._take(reply)
            if progress is not None:
                progress(self.done, total, self.failed, time.monotonic() - self.start)
            if self._options.fail_fast and self.failed and not self.fatal:
                self.fatal = f"fail_fast: {reply['path']} failed ({reply['reason']}): " + str(
                    reply["message"]
                )
                pool.stop()

    def _take(self, reply: Message) -> None:
        """Write one reply into the journal."""
        each: Input = reply["input"]
        entry = {"path": each.path, "settings": self.plan.settings_of(reply)}
        entry |= {name: reply[name] for name in _ENTRY if name in reply}
        if entry["status"] in WITH_OUTPUT:
            entry["output"] = self.plan.output(each)
            self.ok += entry["status"] == "ok"
        elif self.plan.discards(reply):
            # from an earlier run, or one that was killed before it could note it
            remove(self.plan.target(each))
        elif self.plan.stays(each):
            entry["message"] = f"{entry.get('message', '')}; {STAYS}"
        self.journal.add(entry)
        self.done += 1
        self.failed += entry["status"] == "failed"

    def _finish(self) -> None:
        self.journal.sync()
        try:
            self.finish()
        except OSError:
            if not self.fatal:
                raise  # else the disk is full, as is being told already

    def tally(self) -> dict[str, Any]:
        """Return what every summary has."""
        statuses: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for status, reason in self.results.tally(self.inputs):
            statuses[status] += 1
            if reason:
                reasons[f"{status}: {reason}"] += 1
        seconds = time.monotonic() - self.start
        return {
            "files": len(self.inputs),
            **{status: statuses[status] for status in ("ok", "failed", "skipped")},
            "kept": self.plan.kept,
            "merged_rows": sum(each.rows - 1 for each in self.inputs),
            "again": self.plan.again,
            "reasons": dict(sorted(reasons.items())),
            "failures": self._failures(),
            "seconds": round(seconds, 3),
            "images_per_second": round(self.ok / seconds, 3) if seconds > 0 else 0.0,
            "signal": self.signal,
            "orphans": self.plan.orphans(self.inputs),
            "stayed": self._stayed(),
            "manifest": os.path.join(self.dst, "manifest.csv"),
        }

    def _stayed(self) -> list[str]:
        """Return the outputs in DST whose inputs have failed since an earlier run made them."""
        found = []
        for each in self.inputs:
            if (self.results.get(each.path) or {}).get("status") == "failed":
                found.append(self.plan.stays(each))
        return sorted({output for output in found if output})

    def _failures(self) -> list[tuple[str, str]]:
        found = []
        for each in self.inputs:
            entry = self.results.get(each.path) or {}
            if entry.get("status") == "failed":
                message = str(entry.get("message", "")).splitlines()
                found.append((each.path, message[0] if message else str(entry.get("reason", ""))))
            if len(found) == SHOWN:
                break
        return found


def require_named(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
    """Refuse an empty SRC or DST.

    Raises:
        ConvertError: a variable that is not set must not mean the current folder.
    """
    for name, path in (("SRC", src), ("DST", dst)):
        if not os.fspath(path):
            raise ConvertError(f"{name} is empty: name a folder, or . for the current one")


def verb_of(dst: str) -> str:
    """Return which verb has made DST: "convert", "transcode", or "" where none has."""
    if not os.path.isdir(os.path.join(dst, STATE_FOLDER)):
        return ""
    try:
        with open(os.path.join(dst, "config.json"), encoding="utf-8") as file:
            verb = json.load(file).get("verb", "convert")
    except (OSError, ValueError, AttributeError):
        return ""  # a run that was killed before it wrote anything
    return str(verb)


def carry_out(
    dst: str,
    begin: Callable[[Journal], Run[S]],
    progress: Progress | None,
    note: Note | None,
) -> S:
    """Make DST, lock it, and do the run that `begin` makes of its journal.

    Raises:
        ConvertError: DST is in use, cannot be written or is full; or see `Run.go`.
    """
    try:
        os.makedirs(dst, exist_ok=True)
        journal = Journal(dst)
    except OSError as error:
        raise ConvertError(
            f"cannot write to DST {dst}: {error.strerror}. Choose another folder"
        ) from error
    with journal:
        run = begin(journal)
        try:
            run.go(progress, note)
            return run.summary()
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the caller's: whoever read the progress is gone
            code = errno.errorcode.get(error.errno or 0, "")
            raise ConvertError(run.stopped_by(f"{error.strerror} ({code})")) from error
