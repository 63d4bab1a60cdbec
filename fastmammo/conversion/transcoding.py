"""Transcodes: takes SRC and DST, leaves DST whole with DICOM files in HTJ2K, gives a summary."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.engine import Run, carry_out, require_named, verb_of
from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.conversion.manifest import one_line, write_config, write_csv, write_timings
from fastmammo.conversion.names import STATE_FOLDER
from fastmammo.conversion.options import TranscodeOptions
from fastmammo.conversion.plan import Plan
from fastmammo.conversion.results import WITH_OUTPUT, Results
from fastmammo.conversion.transcode_summary import TranscodeSummary
from fastmammo.conversion.warm import never_compiled
from fastmammo.encoding import HTJ2K_LOSSLESS_RPCL, require_encoder
from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastmammo.conversion.engine import Note, Progress
    from fastmammo.conversion.journal import Entry, Journal
    from fastmammo.conversion.worker import Message

TRANSCODER = "fastmammo.conversion.transcoder:Transcoder"

COLUMNS = (
    *("path", "listed", "status", "reason", "message", "output", "source_syntax"),
    *("bytes_before", "bytes_after", "frames", "precision", "decoder", "verified_by"),
)
"""Of the manifest."""

_STAGES = ("read", "decode", "encode", "verify", "write", "total")
_OWN = frozenset({"manifest.csv", "timings.csv", "config.json"})


def transcode(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    options: TranscodeOptions | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
    transcoder: str = TRANSCODER,
) -> TranscodeSummary:
    """Write every mammogram of SRC into DST again as HTJ2K Lossless RPCL, with the same pixels.

    HTJ2K decodes many times faster than JPEG 2000: every later pass over the archive gains. A file
    keeps its path below SRC, its SOP Instance UID and every element but Transfer Syntax UID and
    Pixel Data. Each written file is read back from the disk before it takes its name, decoded by
    another library than its encoder's, and compared with the source bit for bit; one that differs
    is not kept, and its row says why. A second run keeps what is done, as `convert`'s does.

    DST gets manifest.csv, timings.csv and config.json too. Files that need no transcoding (HTJ2K),
    or get none (lossy, colour, no image), are copied as they are, or skipped: `options.others`.

    Args:
        src: a folder, a DICOM file, a list (.txt) or a CSV: see `find_inputs`.
        dst: the folder to write; made where it does not exist, else empty or of an earlier run.
        options: how the run goes; `TranscodeOptions()` by default.
        progress: called with (files done by this run, files this run has to do, failed, seconds).
        note: called before the work with a line on what is kept and what is done again.
        transcoder: "module:class" of what makes and checks a file, imported by each worker.

    Raises:
        BackendUnavailableError: no encoder is installed: says what to do.
        ConfigError: an option that says nothing about such a SRC.
        ConvertError: the run cannot start or go on: SRC is empty or lies in DST, DST holds other
            things, is in use, cannot be written or is full; with `fail_fast`, a file failed.
        WorkerError: no worker process can be started.
    """
    require_encoder()
    options = options or TranscodeOptions()
    require_named(src, dst)
    destination = os.path.abspath(dst)
    inputs = find_inputs(
        src,
        destination,
        image_root=options.image_root,
        path_column=options.path_column,
        follow_links=options.follow_links,
        keep_names=True,
    )
    _refuse_destination(destination, inputs)
    inputs = [_not_reserved(each) for each in inputs]
    return carry_out(
        destination,
        lambda journal: _Transcoding(
            inputs, destination, options, journal, transcoder, os.fspath(src)
        ),
        progress,
        note,
    )


def _refuse_destination(dst: str, inputs: list[Input]) -> None:
    """Refuse to write over anything that no earlier run of this verb has written.

    Raises:
        ConvertError: says what lies there.
    """
    if os.path.isdir(dst) and verb_of(dst) != "transcode":
        found = sorted(set(os.listdir(dst)) - {STATE_FOLDER})
        if found:
            made = "what `convert` made" if verb_of(dst) else f"other files ({found[0]}, ...)"
            raise ConvertError(
                f"DST {dst} holds {made}: outputs have the names of their inputs, and would "
                "replace what has the same. Name a new or empty folder"
            )
    real = os.path.realpath(dst) + os.sep
    for folder in sorted({os.path.dirname(each.source) for each in inputs if each.source}):
        if (os.path.realpath(folder) + os.sep).startswith(real):
            raise ConvertError(
                f"SRC has files in DST itself ({folder}): outputs could replace inputs. Name a "
                "folder for DST that holds none of them"
            )


def _not_reserved(each: Input) -> Input:
    """Fail an input whose output would be one of the run's own files."""
    first = each.name.split("/")[0].lower()
    if each.name not in _OWN and first != STATE_FOLDER:
        return each
    if not each.meant and each.name in _OWN:  # in a folder: a table is no DICOM
        return each._replace(
            name="", status="skipped", reason="not dicom", message="its name is that of a table"
        )
    message = f"its output would have the name of a file of the run itself, {each.name}: rename it"
    return each._replace(name="", status="failed", reason="reserved name", message=message)


class _Plan(Plan):
    """Outputs have the names of inputs; --others matters only to files that are not transcoded."""

    others = "copy"

    def output(self, each: Input) -> str:
        return each.name

    def settings_of(self, reply: Message) -> str:
        if reply["status"] != "ok" and "source_syntax" in reply.get("record", {}):
            return f"{self.settings} {self.others}"
        return self.settings

    def other_settings(self, earlier: Entry) -> bool:
        return earlier["settings"] not in (self.settings, f"{self.settings} {self.others}")


class _Transcoding(Run[TranscodeSummary]):
    """A run that makes DICOM files."""

    def __init__(
        self,
        inputs: list[Input],
        dst: str,
        options: TranscodeOptions,
        journal: Journal,
        transcoder: str,
        src: str,
    ) -> None:
        self.src, self.options, self.transcoder = src, options, transcoder
        text = f"transcode {HTJ2K_LOSSLESS_RPCL} {transcoder}"
        settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        by_content = options.compare == "content"
        plan = _Plan(dst, Results(journal, ()), None, settings, by_content)
        plan.others = options.others
        super().__init__(inputs, dst, options, journal, plan)

    def begin(self, note: Note | None) -> None:
        settings = {
            "verb": "transcode",
            "src": self.src,
            "transfer_syntax_uid": HTJ2K_LOSSLESS_RPCL,
            "others": self.options.others,
        }
        write_config(self.dst, self.journal, settings)

    def one_first(self) -> bool:
        return never_compiled()

    def setup(self) -> Message:
        return {
            "transcoder": self.transcoder,
            "others": self.options.others,
            "partial_folder": self.journal.partial_folder,
            "memory_limit_mb": self.options.memory_limit_mb,
            "in_hand": 1,
        }

    def finish(self) -> None:
        folder = self.journal.partial_folder
        write_csv(self.dst, "manifest.csv", list(COLUMNS), self._rows(), folder)
        write_timings(self.dst, self.inputs, self.results, _STAGES)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for each in self.inputs:
            entry = self.results.get(each.path)
            if entry is not None:
                yield {
                    **entry.get("record", {}),
                    "path": each.path,
                    "listed": each.listed,
                    "status": entry["status"],
                    "reason": entry.get("reason", ""),
                    "message": one_line(entry.get("message", "")),
                    "output": entry.get("output", ""),
                    "bytes_before": entry.get("size", ""),
                    "bytes_after": entry.get("output_size", ""),
                }

    def summary(self) -> TranscodeSummary:
        before = after = copied = 0
        for each in self.inputs:
            entry = self.results.get(each.path) or {}
            if entry.get("status") in WITH_OUTPUT:
                before += entry["size"]
                after += entry["output_size"]
                copied += entry["status"] == "copied"
        return TranscodeSummary(
            **self.tally(),
            copied=copied,
            transcoded=self.ok,
            bytes_before=before,
            bytes_after=after,
        )
