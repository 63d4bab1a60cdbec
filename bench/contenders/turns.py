"""What a contender is given and what it gives back: a job of files, a turn's times."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from contenders.processes import Processes


@dataclass(frozen=True)
class Job:
    """Files to convert.

    files: of one folder, named by number; for `Way.turn` it holds no others.
    sources: the files that they are links to, or copies of; each once.
    out: an empty folder; the image of 00007.dcm is 00007.png there.
    height: of the output, rows.
    workers: processes.
    peers, own: processes that stay between turns; `own` keep freed memory, as `convert`'s do.
    """

    files: list[Path]
    sources: list[Path]
    out: Path
    height: int
    workers: int
    peers: Processes
    own: Processes


@dataclass(frozen=True)
class Turn:
    """What a turn tells beside the time that it took.

    running_per_second: images/s from when all processes were at work; None: as of the whole turn.
    stages: seconds of each stage, a dict an image.
    decoded_bytes: stored values that the decoder gave, of an image, mean.
    decoder: who decoded, and at which levels.
    plan: what `Way.decode_only` is to decode, by source; of no meaning to others.
    """

    stages: list[dict[str, float]]
    decoded_bytes: float
    running_per_second: float | None = None
    decoder: str = ""
    plan: Any = field(default=None, repr=False)

    def stage_ms(self) -> dict[str, float]:
        """Return the median milliseconds of each stage."""
        return {
            name: round(statistics.median(each[name] for each in self.stages) * 1e3, 2)
            for name in self.stages[0]
        }


class Way(Protocol):
    """How a contender is run."""

    @property
    def start_included(self) -> bool:
        """Whether a turn starts processes; else they are warm, as `Job.peers` are."""

    def turn(self, job: Job) -> Turn:
        """Convert a job's files."""

    def decode_only(self, job: Job, turn: Turn, seconds: float) -> tuple[int, float] | None:
        """Decode a job's files and do nothing else, with a turn's processes and levels.

        Args:
            seconds: for which a GPU decodes; processes decode every file of the job, once.

        Returns:
            How many frames, and the seconds that they take; None where nothing is to be decoded.
        """

    def digests(self, job: Job) -> list[str] | None:
        """Return `digest` of each source's stored values; None: they are not to be had."""


def digest(pixels: np.ndarray[Any, Any]) -> str:
    """Return one name for the same stored values, whatever type holds them."""
    values = np.ascontiguousarray(pixels, np.int32)
    return f"{values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"


def side_by_side(seconds: Sequence[float], workers: int) -> tuple[int, float]:
    """Return how many frames, and the seconds that processes side by side take for them.

    Args:
        seconds: of each frame; what the others did not need is not lost time of the decoder's.
    """
    return len(seconds), sum(seconds) / workers


def rate_of(done: Sequence[tuple[int, float]]) -> float:
    """Return the sum of count / seconds over processes that worked side by side."""
    return sum(count / seconds for count, seconds in done if seconds)


def running_rate(times: Sequence[float], workers: int) -> float | None:
    """Return files/s once each process has done one, by the moments when files were done."""
    if len(times) < 2 * workers or times[-1] <= times[workers - 1]:
        return None
    return (len(times) - workers) / (times[-1] - times[workers - 1])
