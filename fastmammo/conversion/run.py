"""Converts: takes SRC and DST, leaves DST whole with images, gives a summary."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from fastmammo.conversion.engine import Run, carry_out, require_named, verb_of
from fastmammo.conversion.in_hand import IN_HAND
from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.conversion.lesions import Boxes, drop_boxes, read_boxes
from fastmammo.conversion.manifest import write_config, write_tables
from fastmammo.conversion.options import ConvertOptions
from fastmammo.conversion.packed import NAME as ARRAY
from fastmammo.conversion.packed import Packed
from fastmammo.conversion.plan import Plan
from fastmammo.conversion.results import Results
from fastmammo.conversion.summary import Summary
from fastmammo.conversion.warm import never_compiled
from fastmammo.decoding import cuda_runtime
from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.conversion.engine import Note, Progress
    from fastmammo.conversion.journal import Journal
    from fastmammo.conversion.one_file import Message
    from fastmammo.preprocess import Config

PREPROCESSOR = "fastmammo.preprocess:Preprocessor"


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    config: Config | None = None,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
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
    require_named(src, dst)
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
    if verb_of(destination) == "transcode":
        raise ConvertError(
            f"DST {destination} holds what `transcode` made: it would be replaced. Choose another "
            "folder"
        )
    return carry_out(
        destination,
        lambda journal: _Conversion(
            inputs, destination, config, options, journal, preprocessor, boxes, os.fspath(src), why
        ),
        progress,
        note,
    )


class _Conversion(Run[Summary]):
    """A run that makes images."""

    def __init__(
        self,
        inputs: list[Input],
        dst: str,
        config: Config,
        options: ConvertOptions,
        journal: Journal,
        preprocessor: str,
        boxes: Boxes | None,
        src: str,
        device_reason: str,
    ) -> None:
        self.boxes = boxes
        self.box_outcomes: dict[str, int] = {}
        self.src, self.config, self.options = src, config, options
        self.device_reason = device_reason
        self.preprocessor = preprocessor
        # made for both formats: an array of earlier settings must not outlive them
        self.array = Packed(dst, config, journal)
        self.packed = self.array if options.format == "packed" else None
        text = f"{config.digest()} {options.format} {preprocessor}"
        settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        results = Results(journal, options.filters)
        plan = Plan(dst, results, self.packed, settings, options.compare == "content")
        super().__init__(inputs, dst, options, journal, plan)

    def begin(self, note: Note | None) -> None:
        settings = {
            "src": self.src,
            "format": self.options.format,
            "filters": [each.to_dict() for each in self.options.filters],
            "boxes": self.options.boxes,
            "config": self.config.pixels_to_dict(),
            # what earlier runs have made stays, whatever made it: each row has its decoder
            "last_run": {"device": self.config.device, "strict": self.config.strict},
            "digest": self.config.digest(),
        }
        write_config(self.dst, self.journal, settings)
        if note is not None and self.device_reason:
            note(f"device: {self.config.device} ({self.device_reason})")

    def drop_tables(self) -> None:
        super().drop_tables()
        drop_boxes(self.dst)

    def drop_stale(self) -> None:
        self.array.drop_stale(wanted=self.packed is not None)

    def environments(self) -> list[dict[str, str]]:
        """Return what gives each worker one GPU."""
        if self.config.device != "cuda":
            return []
        return [{"CUDA_VISIBLE_DEVICES": name} for name in cuda_runtime.visible_devices()]

    def one_first(self) -> bool:
        return never_compiled()

    def setup(self) -> Message:
        cuda = self.config.device == "cuda"
        return {
            "config": self.config.to_dict(),
            "preprocessor": self.preprocessor,
            "partial_folder": self.journal.partial_folder,
            "format": self.options.format,
            # CUDA maps all memory, the host's and every GPU's, into each process's addresses
            "memory_limit_mb": 0 if cuda else self.options.memory_limit_mb,
            "filters": [each.to_dict() for each in self.options.filters],
            "in_hand": IN_HAND if cuda else 1,
            **({"device_memory": {"megabytes": self.options.device_memory_mb}} if cuda else {}),
        }

    def finish(self) -> None:
        if self.packed is not None and self.complete:
            items = [
                (each.path, each.name)
                for each in self.inputs
                if (self.results.get(each.path) or {}).get("status") == "ok"
                or self.plan.stays(each) == ARRAY
            ]
            if not self.packed.holds(items):
                self.drop_tables()  # their rows are those of the array as it is now
            self.packed.gather(items, lambda: bool(self.signal))
        row = self.packed.row if self.packed is not None else (lambda _: None)
        write_tables(self.dst, self.inputs, self.results, row)
        self._write_boxes(row)

    def _write_boxes(self, row: Callable[[str], int | None]) -> None:
        if self.boxes is None:
            drop_boxes(self.dst)  # an earlier run's, of boxes that this one was not given
            return
        size, packed = self.config.size, self.packed is not None
        found = self.boxes.write(self.dst, self.inputs, self.results, size, row, packed=packed)
        self.box_outcomes = found

    def summary(self) -> Summary:
        return Summary(
            **self.tally(),
            converted=self.ok,
            device=self.config.device,
            device_reason=self.device_reason,
            boxes=self.box_outcomes,
            boxes_empty=0 if self.boxes is None else self.boxes.empty,
            array_pending=self.packed is not None and bool(self.signal),
        )
