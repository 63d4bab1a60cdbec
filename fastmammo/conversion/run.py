"""A bulk run: takes SRC and DST, leaves DST whole, gives a summary."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from fastmammo.conversion.in_hand import IN_HAND
from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.conversion.journal import Journal
from fastmammo.conversion.lesions import Boxes, drop_boxes, read_boxes
from fastmammo.conversion.manifest import write_config, write_tables
from fastmammo.conversion.options import ConvertOptions
from fastmammo.conversion.packed import Packed
from fastmammo.conversion.plan import Plan, remove
from fastmammo.conversion.pool import Pool, watch_signals
from fastmammo.conversion.results import Results
from fastmammo.conversion.summary import SHOWN, Summary, describe
from fastmammo.conversion.warm import never_compiled
from fastmammo.decoding import cuda_runtime
from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.conversion.worker import Message
    from fastmammo.preprocess import Config

    Progress = Callable[[int, int, int, float], None]

PREPROCESSOR = "fastmammo.preprocess:Preprocessor"

_ENTRY = (
    *("status", "reason", "message", "size", "mtime_ns", "content"),
    *("output_size", "record", "seconds", "traceback"),
)
"""What of a worker's reply goes into the journal."""


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    config: Config | None = None,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    preprocessor: str = PREPROCESSOR,
) -> Summary:
    """Convert every mammogram of SRC into DST, and go on where an earlier run stopped.

    DST gets one PNG a file (or `images.npy`), manifest.csv with one row a file, timings.csv,
    config.json, and boxes.csv where a table of lesion boxes is given. A file that fails is a row
    with its reason; outputs appear whole or not at all; a second run keeps what is done, unless
    settings, the input or the output have changed. SIGINT or SIGTERM ends the run after the files
    in hand; a second one at once.

    Args:
        src: a folder, a DICOM file, a list (.txt) or a CSV: see `find_inputs`.
        dst: the folder to write; made where it does not exist.
        config: what becomes of the pixels; `Config()` by default.
        options: how the run goes; `ConvertOptions()` by default.
        progress: called with (files done by this run, files this run has to do, failed, seconds).
        note: called before the work with a line on what is kept and what is done again, and with
            one that says why device "auto" is the CPU.
        preprocessor: "module:class" of what prepares an image, imported by each worker.

    Raises:
        BackendUnavailableError: device "cuda", and CuPy or a GPU is not there.
        ConfigError: a setting is not allowed, or the table of boxes is of no use.
        ConvertError: the run cannot start or go on: SRC is empty, DST is in use by another run,
            cannot be written or is full; with `fail_fast`, a file failed. What is done stays done.
        WorkerError: no worker process can be started.
        OutputCollisionError: two inputs would give one output name.
    """
    from fastmammo.preprocess import Config

    config, why = (config or Config()).resolved_why()
    if config.device == "cuda":
        cuda_runtime.require()
    options = options or ConvertOptions()
    for name, path in (("SRC", src), ("DST", dst)):
        if not os.fspath(path):  # a variable that is not set must not mean the current folder
            raise ConvertError(f"{name} is empty: name a folder, or . for the current one")
    destination = os.path.abspath(dst)
    inputs = find_inputs(
        src,
        destination,
        image_root=options.image_root,
        path_column=options.path_column,
        follow_links=options.follow_links,
    )
    boxes = None
    if options.boxes is not None:
        boxes = read_boxes(
            options.boxes,
            destination,
            image_root=options.image_root,
            path_column=options.path_column,
        )
    try:
        os.makedirs(destination, exist_ok=True)
        journal = Journal(destination)
    except OSError as error:
        raise ConvertError(
            f"cannot write to DST {destination}: {error.strerror}. Choose another folder"
        ) from error
    with journal:
        run = _Run(inputs, destination, config, options, journal, preprocessor, boxes)
        run.device_reason = why
        try:
            return run.go(os.fspath(src), progress, note)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the caller's: whoever read the progress is gone
            code = errno.errorcode.get(error.errno or 0, "")
            raise ConvertError(run.stopped_by(f"{error.strerror} ({code})")) from error


class _Run:
    """The parts of one run, from the plan to the tables."""

    def __init__(
        self,
        inputs: list[Input],
        dst: str,
        config: Config,
        options: ConvertOptions,
        journal: Journal,
        preprocessor: str,
        boxes: Boxes | None,
    ) -> None:
        self.start = time.monotonic()
        self.boxes = boxes
        self.box_outcomes: dict[str, int] = {}
        self.inputs, self.dst, self.config, self.options = inputs, dst, config, options
        self.journal = journal
        self.preprocessor = preprocessor
        # made for both formats: an array of earlier settings must not outlive them
        self.array = Packed(dst, config, journal)
        self.packed = self.array if options.format == "packed" else None
        text = f"{config.digest()} {options.format} {preprocessor}"
        self.settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        by_content = options.compare == "content"
        self.results = Results(journal, options.filters)
        self.plan = Plan(dst, self.results, self.packed, self.settings, by_content)
        self.done = self.failed = self.ok = self.signal = 0
        self.fatal = ""
        self.device_reason = ""

    def go(
        self, src: str, progress: Progress | None, note: Callable[[str], None] | None
    ) -> Summary:
        self._write_config(src)
        if note is not None and self.device_reason:
            note(f"device: {self.config.device} ({self.device_reason})")
        settled = self.plan.make(self.inputs)
        line = describe(self.plan.kept, self.plan.again, len(self.inputs))
        if note is not None and line:
            note(line)
        if self.plan.todo or settled:
            self._drop_tables()
        self.array.drop_stale(wanted=self.packed is not None)
        for entry in settled:
            self.journal.add(entry)
        environments = self._environments()
        count = self.options.worker_count(len(self.plan.todo), len(environments))
        setup = self._setup()
        if environments:  # the first GPU has the most workers
            setup["device_memory"] = {
                "megabytes": self.options.device_memory_mb,
                "processes": -(-count // len(environments)),
            }
        pool = Pool(
            count,
            setup,
            self.options.timeout_seconds,
            in_hand=setup["in_hand"],
            environments=environments,
            one_first=never_compiled(),
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
        return self._summary()

    def _drop_tables(self) -> None:
        """Remove what would tell of outputs that are being replaced; the end makes it anew."""
        remove(os.path.join(self.dst, "manifest.csv"))
        drop_boxes(self.dst)

    def stopped_by(self, cause: str) -> str:
        """Say how far the run came, and how to go on."""
        return (
            f"{cause}. {self.plan.kept + self.done} of {len(self.inputs)} files are done in "
            f"{self.dst}: make room or mend the cause, then run the same command again to go on"
        )

    def _environments(self) -> list[dict[str, str]]:
        """Return what gives each worker one GPU."""
        if self.config.device != "cuda":
            return []
        return [{"CUDA_VISIBLE_DEVICES": name} for name in cuda_runtime.visible_devices()]

    def _setup(self) -> Message:
        return {
            "config": self.config.to_dict(),
            "preprocessor": self.preprocessor,
            "partial_folder": self.journal.partial_folder,
            "format": self.options.format,
            # CUDA maps all memory, the host's and every GPU's, into each process's addresses
            "memory_limit_mb": 0 if self.config.device == "cuda" else self.options.memory_limit_mb,
            "filters": [each.to_dict() for each in self.options.filters],
            "in_hand": IN_HAND if self.config.device == "cuda" else 1,
        }

    def _write_config(self, src: str) -> None:
        settings = {
            "src": src,
            "format": self.options.format,
            "filters": [each.to_dict() for each in self.options.filters],
            "boxes": self.options.boxes,
            "config": self.config.pixels_to_dict(),
            # what earlier runs have made stays, whatever made it: each row has its decoder
            "last_run": {"device": self.config.device, "strict": self.config.strict},
            "digest": self.config.digest(),
        }
        write_config(self.dst, self.journal, settings)

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
            if self.options.fail_fast and self.failed and not self.fatal:
                self.fatal = f"fail_fast: {reply['path']} failed ({reply['reason']}): " + str(
                    reply["message"]
                )
                pool.stop()

    def _take(self, reply: Message) -> None:
        """Write one reply into the journal."""
        each: Input = reply["input"]
        entry = {"path": each.path, "settings": self.settings}
        entry |= {name: reply[name] for name in _ENTRY if name in reply}
        if entry["status"] == "ok":
            entry["output"] = self.plan.output(each)
            self.ok += 1
        else:
            # from a run that was killed before it could note it
            remove(self.plan.target(each))
        self.journal.add(entry)
        self.done += 1
        self.failed += entry["status"] == "failed"

    def _finish(self) -> None:
        self.journal.sync()
        complete = not self.fatal and not self.signal
        if self.packed is not None and complete:
            items = [
                (each.path, each.name)
                for each in self.inputs
                if (self.results.get(each.path) or {}).get("status") == "ok"
            ]
            if not self.packed.holds(items):
                self._drop_tables()  # their rows are those of the array as it is now
            self.packed.gather(items, lambda: bool(self.signal))
        row = self.packed.row if self.packed is not None else (lambda _: None)
        try:
            write_tables(self.dst, self.inputs, self.results, row)
            self._write_boxes(row)
        except OSError:
            if not self.fatal:
                raise  # else the disk is full, as is being told already

    def _write_boxes(self, row: Callable[[str], int | None]) -> None:
        if self.boxes is None:
            drop_boxes(self.dst)  # an earlier run's, of boxes that this one was not given
            return
        size, packed = self.config.size, self.packed is not None
        found = self.boxes.write(self.dst, self.inputs, self.results, size, row, packed=packed)
        self.box_outcomes = found

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

    def _summary(self) -> Summary:
        statuses: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for status, reason in self.results.tally(self.inputs):
            statuses[status] += 1
            if reason:
                reasons[f"{status}: {reason}"] += 1
        seconds = time.monotonic() - self.start
        return Summary(
            files=len(self.inputs),
            ok=statuses["ok"],
            failed=statuses["failed"],
            skipped=statuses["skipped"],
            kept=self.plan.kept,
            converted=self.ok,
            merged_rows=sum(each.rows - 1 for each in self.inputs),
            again=self.plan.again,
            reasons=dict(sorted(reasons.items())),
            failures=self._failures(),
            seconds=round(seconds, 3),
            images_per_second=round(self.ok / seconds, 3) if seconds > 0 else 0.0,
            signal=self.signal,
            device=self.config.device,
            device_reason=self.device_reason,
            orphans=self.plan.orphans(self.inputs),
            boxes=self.box_outcomes,
            boxes_empty=0 if self.boxes is None else self.boxes.empty,
            array_pending=self.packed is not None and bool(self.signal),
            manifest=os.path.join(self.dst, "manifest.csv"),
        )
