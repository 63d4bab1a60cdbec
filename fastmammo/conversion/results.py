"""Takes the journal and this run's filters, gives what became of each input as this run has it.

The journal keeps what was done, whatever the filters were: other filters read no file again that
they can judge by its record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.conversion.filters import FACTS, refusal
from fastmammo.errors import FilteredError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastmammo.conversion.filters import Filters
    from fastmammo.conversion.inputs import Input
    from fastmammo.conversion.journal import Entry, Journal

FILTERED = FilteredError("").reason

WITH_OUTPUT = ("ok", "copied")
"""Statuses of files that have an output; "copied" is `transcode`'s, byte for byte."""


class Results:
    """The entries of the journal, seen through filters that must all hold."""

    def __init__(self, journal: Journal, filters: tuple[Filters, ...]) -> None:
        self.journal = journal
        self.filters = filters
        self.held: dict[str, Entry] = {}
        """What this run tells of inputs that it cannot read, while their entries stay."""

    def get(self, path: str) -> Entry | None:
        """Return what became of an input, or None where that is still to be found out."""
        if path in self.held:
            return self.held[path]
        entry = self.journal.get(path)
        return None if entry is None else self.seen(entry)

    def seen(self, entry: Entry) -> Entry | None:
        """Return an entry as it is under these filters: None if they no longer leave it out."""
        left_out = entry.get("reason") == FILTERED
        if entry["status"] != "ok" and not left_out:
            return entry
        record = entry.get("record", {})
        message = refusal(self.filters, record)
        if not message:
            return None if left_out else entry
        return {
            "path": entry["path"],
            "status": "skipped",
            "reason": FILTERED,
            "message": message,
            "record": {name: record[name] for name in FACTS if name in record},
        }

    def tally(self, inputs: Sequence[Input]) -> Iterator[tuple[str, str]]:
        """Yield (status, reason) of every input that is done."""
        for each in inputs:
            entry = self.get(each.path)
            if entry is not None:
                yield entry["status"], entry.get("reason", "")
