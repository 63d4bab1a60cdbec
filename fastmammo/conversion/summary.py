"""Takes what became of a run's files, gives its summary: numbers, text, and the exit code."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 3
"""Failed files that a summary names; the manifest has all."""


@dataclass(frozen=True)
class Summary:
    """What became of a run's files."""

    files: int
    """Inputs found; `ok`, `failed` and `skipped` count those that are done, in this run or
    before."""
    ok: int
    failed: int
    skipped: int
    kept: int
    """Done by an earlier run and still good, skipped files included."""
    converted: int
    """Images finished by this run; the other `ok` ones were kept."""
    merged_rows: int = 0
    """Rows of a list or CSV that name a file which an earlier row names: it is one input."""
    again: dict[str, int] = field(default_factory=dict)
    """Done again although an earlier run had them, by cause."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many files failed or were skipped, by reason."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(path, message) of the first SHOWN files that failed, in the manifest's order."""
    seconds: float = 0.0
    images_per_second: float = 0.0
    """`converted`, divided by the run's time."""
    signal: int = 0
    """SIGINT or SIGTERM, if that ended the run early; else 0."""
    device: str = "cpu"
    """Where this run decodes and computes, "cpu" or "cuda"."""
    device_reason: str = ""
    """Why device "auto" was the CPU, or ""."""
    orphans: list[str] = field(default_factory=list)
    """Outputs in DST whose inputs this run did not find, or left out by its filters: they stay, in
    no manifest row."""
    boxes: dict[str, int] = field(default_factory=dict)
    """How many lesion boxes were "mapped", and how many were not, by reason."""
    boxes_empty: int = 0
    """Rows of the table of boxes that have none."""
    array_pending: bool = False
    """Whether `images.npy` still waits for the rest of an interrupted run."""
    stayed: list[str] = field(default_factory=list)
    """Outputs in DST as an earlier run made them, whose inputs have failed now: not there, say."""
    manifest: str = ""

    @property
    def unfinished(self) -> int:
        """Files that an interrupted run has left to the next."""
        return self.files - self.ok - self.failed - self.skipped

    @property
    def exit_code(self) -> int:
        """0 fine, 1 some files failed or none was converted, 130 or 143 ended by a signal."""
        return 128 + self.signal if self.signal else int(self.failed > 0 or self.ok == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-able values."""
        return {**asdict(self), "unfinished": self.unfinished, "exit_code": self.exit_code}

    def text(self) -> str:
        """Return the summary in a few lines, for people."""
        kept = self.ok - self.converted
        done = f"{self.converted} converted now, {kept} kept" if kept else f"{self.ok} converted"
        rate = f" ({self.images_per_second:.1f} images/s)" if self.converted else ""
        lines = [
            f"{done}, {self.failed} failed, {self.skipped} skipped, of "
            f"{count_of(self.files, 'file')} in {self.seconds:.1f} s{rate}"
        ]
        if self.device_reason:
            lines.append(f"device: {self.device} ({self.device_reason})")
        if self.again:
            lines.append(describe(self.kept, self.again, self.files))
        if self.merged_rows:
            rows = count_of(self.merged_rows, "row")
            lines.append(f"{rows} merged: of a file that several rows name, one image is made")
        lines += [f"  {count} {reason}" for reason, count in self.reasons.items()]
        lines += [f"  {path}: {message}" for path, message in self.failures]
        if self.failed > len(self.failures) > 0:
            lines.append(
                f"  and {self.failed - len(self.failures)} more that failed: see the manifest"
            )
        if self.ok == 0 and not self.signal:
            lines.append("no image was converted")
        if self.stayed:
            lines.append(stayed(self.stayed))
        if self.orphans:
            more = ", ..." if len(self.orphans) > 1 else ""
            lines.append(
                f"in DST, of inputs that are gone or filtered out, in no manifest row: "
                f"{count_of(len(self.orphans), 'output')} ({self.orphans[0]}{more}); delete what "
                "is not wanted, or use another DST"
            )
        if self.boxes:
            lines.append(_boxes(self.boxes, self.boxes_empty))
        if self.array_pending:
            lines.append("images.npy is made when all files are done")
        if self.signal:
            lines.append(
                f"ended by {signal.Signals(self.signal).name} with {self.unfinished} files to do: "
                "run the same command again to go on"
            )
        lines.append(f"manifest: {self.manifest}")
        return "\n".join(lines)


def _boxes(outcomes: dict[str, int], empty: int) -> str:
    """Say how many lesion boxes boxes.csv has, and why the others are not on an output."""
    reasons = ", ".join(f"{count} {name}" for name, count in outcomes.items() if name != "mapped")
    lost = sum(outcomes.values()) - outcomes["mapped"]
    parts = [f"boxes.csv: {count_of(outcomes['mapped'], 'box')} mapped"]
    parts += [f"{lost} not ({reasons})"] if lost else []
    parts += [f"{count_of(empty, 'row')} without a box left out"] if empty else []
    return ", ".join(parts)


def stayed(outputs: list[str]) -> str:
    """Say which outputs of failed inputs are still there."""
    more = ", ..." if len(outputs) > 1 else ""
    return (
        "in DST as an earlier run made them, of inputs that have failed now: "
        f"{count_of(len(outputs), 'output')} ({outputs[0]}{more})"
    )


def count_of(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural where it is."""
    plural = "es" if noun.endswith("x") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def describe(kept: int, again: dict[str, int], total: int) -> str:
    """Say what a second run keeps and why it does the rest again; empty for a first run."""
    if not kept and not again:
        return ""
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(again.items()))
    redone = f"; {sum(again.values())} done again: {causes}" if again else ""
    return f"{kept} of {total} files kept from an earlier run{redone}"
