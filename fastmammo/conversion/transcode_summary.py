"""Takes what became of a transcoding run's files, gives its summary: numbers, text, exit code."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field
from typing import Any

from fastmammo.conversion.summary import count_of, describe, stayed


@dataclass(frozen=True)
class TranscodeSummary:
    """What became of the files of `transcode`."""

    files: int
    """Inputs found; `ok`, `copied`, `failed` and `skipped` count those that are done, in this run
    or before."""
    ok: int
    """In HTJ2K Lossless RPCL now, verified."""
    copied: int
    """Not transcoded, the same bytes."""
    failed: int
    skipped: int
    kept: int
    """Done by an earlier run and still good, skipped files included."""
    transcoded: int
    """Files transcoded by this run; the other `ok` ones were kept."""
    bytes_before: int = 0
    """Of the files with an output, before, and of their outputs."""
    bytes_after: int = 0
    merged_rows: int = 0
    """Rows of a list or CSV that name a file which an earlier row names: it is one input."""
    again: dict[str, int] = field(default_factory=dict)
    """Done again although an earlier run had them, by cause."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many files failed, or were copied or skipped, by reason."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(path, message) of the first files that failed, in the manifest's order."""
    seconds: float = 0.0
    images_per_second: float = 0.0
    """`transcoded`, divided by the run's time."""
    signal: int = 0
    """SIGINT or SIGTERM, if that ended the run early; else 0."""
    orphans: list[str] = field(default_factory=list)
    """Outputs in DST whose inputs this run did not find: they stay, in no manifest row."""
    stayed: list[str] = field(default_factory=list)
    """Outputs in DST as an earlier run made them, whose inputs have failed now: not there, say."""
    manifest: str = ""

    @property
    def unfinished(self) -> int:
        """Files that an interrupted run has left to the next."""
        return self.files - self.ok - self.copied - self.failed - self.skipped

    @property
    def exit_code(self) -> int:
        """0 fine, 1 some files failed or none has an output, 130 or 143 ended by a signal."""
        if self.signal:
            return 128 + self.signal
        return int(self.failed > 0 or self.ok + self.copied == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-able values."""
        return {**asdict(self), "unfinished": self.unfinished, "exit_code": self.exit_code}

    def text(self) -> str:
        """Return the summary in a few lines, for people."""
        kept = self.ok - self.transcoded
        done = f"{self.ok} transcoded" + (f" ({kept} of them before)" if kept else "")
        rate = f" ({self.images_per_second:.1f} images/s)" if self.transcoded else ""
        lines = [
            f"{done}, {self.copied} copied, {self.failed} failed, {self.skipped} skipped, of "
            f"{count_of(self.files, 'file')} in {self.seconds:.1f} s{rate}"
        ]
        if self.bytes_before:
            lines.append(
                f"{self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after "
                f"({self.bytes_after / self.bytes_before:.0%})"
            )
        if self.again:
            lines.append(describe(self.kept, self.again, self.files))
        if self.merged_rows:
            lines.append(
                f"{count_of(self.merged_rows, 'row')} merged: a file that several rows name is "
                "transcoded once"
            )
        lines += [f"  {count} {reason}" for reason, count in self.reasons.items()]
        lines += [f"  {path}: {message}" for path, message in self.failures]
        if self.failed > len(self.failures) > 0:
            lines.append(
                f"  and {self.failed - len(self.failures)} more that failed: see the manifest"
            )
        if self.ok + self.copied == 0 and not self.signal:
            lines.append("no file was transcoded")
        if self.stayed:
            lines.append(stayed(self.stayed))
        if self.orphans:
            more = ", ..." if len(self.orphans) > 1 else ""
            lines.append(
                f"in DST, of inputs that are gone, in no manifest row: "
                f"{count_of(len(self.orphans), 'output')} ({self.orphans[0]}{more}); delete what "
                "is not wanted, or use another DST"
            )
        if self.signal:
            lines.append(
                f"ended by {signal.Signals(self.signal).name} with {self.unfinished} files to do: "
                "run the same command again to go on"
            )
        lines.append(f"manifest: {self.manifest}")
        return "\n".join(lines)
