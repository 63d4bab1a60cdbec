"""Takes the inputs and the journal, gives what is kept from earlier runs and what is to be done."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastmammo.conversion.one_file import (
    NOT_FOUND,
    OF_THE_RUN,
    UNREADABLE,
    crc32,
    sha256,
    unreadable,
)
from fastmammo.conversion.packed import NAME
from fastmammo.conversion.results import FILTERED, WITH_OUTPUT
from fastmammo.errors import NotDicomError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from fastmammo.conversion.inputs import Input
    from fastmammo.conversion.journal import Entry, Journal
    from fastmammo.conversion.one_file import Message
    from fastmammo.conversion.packed import Packed
    from fastmammo.conversion.results import Results

STAYS = "what an earlier run made of it stays"
"""Said in the row of a file that has failed, and whose output is still there."""


@dataclass
class Plan:
    """What a run has to do. An earlier result counts while settings, input and output are as they
    were; failed files are tried again. Other filters alone make nothing again: what they leave out
    keeps its entry and its output. So does an input that is not there or cannot be read now, as on
    a disk that is not mounted: this run's tables say that it failed, and nothing is lost."""

    dst: str
    results: Results
    packed: Packed | None
    settings: str
    by_content: bool
    todo: list[Input] = field(default_factory=list)
    kept: int = 0

    @property
    def journal(self) -> Journal:
        return self.results.journal

    again: dict[str, int] = field(default_factory=dict)
    """How many files with an earlier result are done again, by cause."""

    def make(self, inputs: Sequence[Input]) -> list[Entry]:
        """Sort the inputs into kept and to be done; return entries of those settled at once."""
        settled = []
        redo = []
        outputs = {self.output(each): each.path for each in inputs if each.name}
        for each in inputs:
            earlier = self.journal.get(each.path)
            found = self._settled(each)
            cause = ""
            if found is None and earlier is not None:
                try:
                    cause = self._changed(each, earlier)
                except OSError as error:
                    found = unreadable(error, each.path)
                if cause:
                    found = self.refused(each, earlier)
            if found is not None:
                found = {"path": each.path, "settings": self.settings, **found}
                if earlier is not None and self._holds(each, earlier, outputs):
                    message = f"{found['message']}; {STAYS}"
                    self.results.held[each.path] = found | {"status": "failed", "message": message}
                elif earlier != found:
                    settled.append(found)
                    if earlier is not None:
                        redo.append(each)
                continue
            if earlier is not None and not cause:
                self.kept += 1
                continue
            if earlier is not None:
                self.again[cause] = self.again.get(cause, 0) + 1
                redo.append(each)
            self.todo.append(each)
        self._forget(redo, outputs)
        return settled

    def orphans(self, inputs: Sequence[Input]) -> list[str]:
        """Return the outputs in DST, sorted, whose inputs are gone, or left out by the filters."""
        current = {each.path for each in inputs if not self._filtered(each.path)}
        found = set()
        for path in self.journal.paths():
            if path not in current:
                output = (self.journal.get(path) or {}).get("output", "")
                if output and output != NAME and os.path.exists(os.path.join(self.dst, output)):
                    found.add(output)
        # another input may have taken the name: "x" that of "x.dcm"
        return sorted(found - {self.output(each) for each in inputs if each.path in current})

    def _filtered(self, path: str) -> bool:
        if not self.results.filters:
            return False
        return (self.results.get(path) or {}).get("reason") == FILTERED

    def output(self, each: Input) -> str:
        """Return the manifest's output column: the path in DST."""
        return NAME if self.packed is not None else each.name + ".png"

    def target(self, each: Input) -> str:
        """Return the path that the worker writes."""
        if self.packed is not None:
            return self.packed.row_path(each.name)
        return os.path.join(self.dst, self.output(each))

    def discards(self, reply: Message) -> bool:
        """Whether a file that gave no output now loses what an earlier run has made of it.

        It is no image of what the input is now, or not with these settings; but an input that
        cannot be read at this moment may be what it was.
        """
        return reply.get("reason") not in (NOT_FOUND, UNREADABLE)

    def refused(self, each: Input, earlier: Entry) -> Message | None:
        """Return why an earlier result must not be replaced, as a failure; or None."""
        return None

    def stays(self, each: Input) -> str:
        """Return the output of an input that has failed, where an earlier run's is there, or ""."""
        if each.path in self.results.held:
            return str((self.journal.get(each.path) or {}).get("output", ""))
        there = each.name and self.packed is None and os.path.isfile(self.target(each))
        return self.output(each) if there else ""

    def settings_of(self, reply: Message) -> str:
        """Return what a worker's reply depends on: its journal entry keeps it."""
        return self.settings

    def other_settings(self, earlier: Entry) -> bool:
        """Whether an earlier result was made with settings that do not give this run's."""
        return bool(earlier["settings"] != self.settings)

    def tasks(self) -> Iterator[Message]:
        """Yield what the pool and its workers need to know of each file."""
        for each in self.todo:
            yield {
                "path": each.path,
                "input": each,
                "send": {
                    "path": each.path,
                    "source": each.source,
                    "target": self.target(each),
                    "content": self.by_content,
                    "meant": each.meant,
                },
            }

    def _settled(self, each: Input) -> Message | None:
        """Return what is known without a worker: it was settled in the search, or is no file."""
        if each.status:
            return {"status": each.status, "reason": each.reason, "message": each.message}
        try:
            mode = os.stat(each.source).st_mode
        except OSError as error:
            return unreadable(error, each.path)
        if stat.S_ISREG(mode):
            return None
        # opening a named pipe would wait for ever
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        status = "failed" if each.meant else "skipped"
        return {"status": status, "reason": "not a file", "message": f"it is {what}"}

    def _changed(self, each: Input, earlier: Entry) -> str:
        """Return why an earlier result does not count, or "" if it does."""
        unmeant = earlier.get("reason") == NotDicomError().reason and each.meant
        if earlier["status"] == "failed" or unmeant:
            return "failed before"
        if self.other_settings(earlier):
            return "settings changed"
        if self._input_changed(each, earlier):
            return "input changed"
        seen = self.results.seen(earlier)
        if seen is None:
            return "no longer filtered"
        if seen["status"] in WITH_OUTPUT and self._lost(each, earlier):
            return "output missing or changed"
        return ""

    def _input_changed(self, each: Input, earlier: Entry) -> bool:
        now = os.stat(each.source)
        if not self.by_content:
            was = [earlier.get("size"), earlier.get("mtime_ns")]
            return [now.st_size, now.st_mtime_ns] != was
        if now.st_size != earlier.get("size"):
            return True
        return sha256(each.source) != earlier.get("content")

    def _lost(self, each: Input, earlier: Entry) -> bool:
        if earlier["output"] != self.output(each):
            return True
        if self.packed is not None:
            return not self.packed.has(each.path, each.name)
        try:
            if os.stat(self.target(each)).st_size != earlier["output_size"]:
                return True
            checked = self.by_content and "output_crc32" in earlier
            return checked and crc32(self.target(each)) != earlier["output_crc32"]
        except OSError:
            return True

    def _holds(self, each: Input, earlier: Entry, outputs: dict[str, str]) -> bool:
        """Whether the earlier output of an input that cannot be read stays, and its entry."""
        if earlier["status"] not in WITH_OUTPUT:
            return False
        output = earlier["output"]
        if output == NAME:  # an array of other settings is replaced as a whole
            same = self.packed is not None and not self.other_settings(earlier)
            return same and self.packed is not None and self.packed.has(each.path, each.name)
        # another input may have taken the name
        taken = outputs.get(output, each.path) != each.path
        return not taken and os.path.isfile(os.path.join(self.dst, output))

    def _forget(self, redo: list[Input], to_come: Container[str]) -> None:
        """Let the journal promise nothing of inputs that are done again: it is out of date.

        Outputs stay until those `to_come` replace them; those of which none does go.
        """
        if not redo:
            return
        outputs = [(self.journal.get(each.path) or {}).get("output", "") for each in redo]
        self.journal.redo(each.path for each in redo)
        for each, output in zip(redo, outputs, strict=True):
            if output and output != NAME and output not in to_come:
                remove(os.path.join(self.dst, output))
            if self.packed is not None:
                remove(self.packed.row_path(each.name))


def remove(path: str) -> None:
    """Remove a file if it is there; a name that can be no file's is none."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno in OF_THE_RUN and not isinstance(error, FileNotFoundError):
            raise
