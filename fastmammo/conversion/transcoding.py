"""Transcodes: takes SRC and DST, leaves DST whole with DICOM files in HTJ2K, gives a summary."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.engine import Run, carry_out, require_named, verb_of
from fastmammo.conversion.inputs import Input, begins_as_dicom, find_inputs
from fastmammo.conversion.manifest import one_line, write_config, write_csv, write_timings
from fastmammo.conversion.names import OWN_FILES, STATE_FOLDER
from fastmammo.conversion.options import TranscodeOptions
from fastmammo.conversion.plan import Plan
from fastmammo.conversion.results import WITH_OUTPUT, Results
from fastmammo.conversion.transcode_summary import TranscodeSummary
from fastmammo.dicom.source import load, parse_header
from fastmammo.encoding import HTJ2K_LOSSLESS_RPCL, require_encoder
from fastmammo.errors import ConvertError, FastMammoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastmammo.conversion.engine import Note, Progress
    from fastmammo.conversion.journal import Entry, Journal
    from fastmammo.conversion.one_file import Message

TRANSCODER = "fastmammo.conversion.transcoder:Transcoder"

COLUMNS = (
    *("path", "listed", "status", "reason", "message", "output", "source_syntax"),
    *("bytes_before", "bytes_after", "frames", "precision", "decoder", "verified_by"),
)
"""Of the manifest."""

_STAGES = ("read", "decode", "encode", "verify", "write", "total")


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
    Pixel Data. Each written file is read back before it takes its name (from the disk: the system
    is asked to drop it from its cache), decoded by another library than its encoder's, and compared
    bit for bit with the source, decoded by an established library too; one that differs is not
    kept, and its row says why. A second run keeps what is done, as `convert`'s does. No output is
    removed because its source is missing or damaged: another takes its name once it is verified.

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
    # a file may be a link into DST where its folder is none; most are no links at all
    for each in inputs:
        if not each.name or not os.path.islink(each.source):
            continue
        if os.path.realpath(each.source).startswith(real):
            raise ConvertError(
                f"{each.path} in SRC is a link into DST itself ({os.readlink(each.source)}): its "
                "output could replace the only copy. Remove the link, or name another folder for "
                "DST"
            )


def _instance(path: str) -> str:
    """Return a file's SOP Instance UID, "" where it has none or cannot be read."""
    try:
        return str(parse_header(load(path))[0].get("SOPInstanceUID", ""))
    except (OSError, FastMammoError):
        return ""


def _not_reserved(each: Input) -> Input:
    """Fail an input whose output would be one of the run's own files, or lie below its name.

    What is no DICOM, and was not named by the user, is skipped, as it is under any name: an
    earlier run's tables, say.
    """
    first = each.name.split("/")[0]
    # in any case: to some file systems that is one name
    if not each.name or first.lower() not in (STATE_FOLDER, *OWN_FILES):
        return each
    if not each.meant and not begins_as_dicom(each.source):
        message = f"no DICOM file, below the name {first} of one of the run's own"
        return each._replace(name="", status="skipped", reason="not dicom", message=message)
    message = f"its output would have, or lie below, the name {first} of the run's own: rename it"
    return each._replace(name="", status="failed", reason="reserved name", message=message)


class _Plan(Plan):
    """Outputs have the names of inputs; --others matters only to files that are not transcoded."""

    others = "copy"

    def make(self, inputs: Sequence[Input]) -> list[Entry]:
        self._copies: dict[str, list[Any]] = {}
        return super().make(inputs)

    def discards(self, reply: Message) -> bool:
        """Whether a copy goes that was asked for once, and that `others` leaves out now.

        Nothing else is ever removed: a source may be damaged since, and its output be the only
        good one. It stays until another has been verified and takes its name.
        """
        as_it_was = [reply.get("size"), reply.get("mtime_ns")]
        return reply["status"] == "skipped" and self._copies.get(reply["path"]) == as_it_was

    def refused(self, each: Input, earlier: Entry) -> Message | None:
        """Refuse to replace an output by that of another image which has the same name.

        A second SRC whose files are called alike would replace the first one's, one by one.
        """
        if earlier["status"] not in WITH_OUTPUT:
            return None
        now, was = _instance(each.source), _instance(os.path.join(self.dst, earlier["output"]))
        if not now or not was or now == was:
            return None
        message = (
            f"its SOP Instance UID is {now}, that of {earlier['output']} in DST {was}: an earlier "
            "run took it from another file. Name another DST, or remove that output first"
        )
        return {"status": "failed", "reason": "another image", "message": message}

    def output(self, each: Input) -> str:
        return each.name

    def settings_of(self, reply: Message) -> str:
        if reply["status"] != "ok" and "source_syntax" in reply.get("record", {}):
            return f"{self.settings} {self.others}"
        return self.settings

    def other_settings(self, earlier: Entry) -> bool:
        return earlier["settings"] not in (self.settings, f"{self.settings} {self.others}")

    def _changed(self, each: Input, earlier: Entry) -> str:
        cause = super()._changed(each, earlier)
        if cause == "settings changed" and earlier["status"] == "copied":
            self._copies[each.path] = [earlier["size"], earlier["mtime_ns"]]
        return cause


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
