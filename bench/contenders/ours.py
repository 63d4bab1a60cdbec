"""fastmammo as a user runs it: `convert`, a folder → PNG files, its workers' start included."""

from __future__ import annotations

import csv
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import fastmammo
from contenders.turns import Turn, digest, running_rate, side_by_side
from fastmammo.conversion.in_hand import IN_HAND
from fastmammo.decoding import BACKENDS, FrameDecoder

if TYPE_CHECKING:
    from contenders.turns import Job


_warm: set[tuple[str, str]] = set()
"""Who has decoded which transfer syntax in this process, and loaded what is compiled."""


class Plan(NamedTuple):
    """A source, the levels of it that the codec decodes, in order, and the bytes that they are."""

    path: str
    levels: list[int]
    decoded_bytes: int


@dataclass(frozen=True)
class Ours:
    """`convert` with one scale, decoder and device.

    share: of the job's height that the output has.
    """

    scale: str
    backend: str = "auto"
    device: str = "cpu"
    share: float = 1.0
    start_included = True

    def missing(self) -> str | None:
        """Return what the decoder lacks here, or None."""
        return None if self.backend == "auto" else BACKENDS[self.backend].missing()

    def size(self, height: int) -> tuple[int, int]:
        rows = round(height * self.share)
        return rows, rows // 2

    def workers(self, workers: int) -> int:
        """Return how many processes: on cuda one, which has many files in hand, on one GPU."""
        return 1 if self.device == "cuda" else workers

    def turn(self, job: Job) -> Turn:
        config = fastmammo.Config(
            size=self.size(job.height),
            scale=self.scale,
            backend=self.backend,
            device=self.device,
            strict=self.device == "cuda",  # what the CPU decoded would be no figure of the GPU's
        )
        workers = self.workers(job.workers)
        moments: list[float] = []
        summary = fastmammo.convert(
            job.files[0].parent,
            job.out,
            config=config,
            options=fastmammo.ConvertOptions(workers=workers),
            progress=lambda *_: moments.append(time.perf_counter()),
        )
        if summary.signal:  # `convert` took it for its own: it was meant for all of us
            _end_by(summary.signal)
        if summary.failed or summary.ok != len(job.files):
            raise RuntimeError(summary.text())
        stages = [
            {name: float(value) for name, value in row.items() if name != "path"}
            for row in _table(job.out / "timings.csv")
        ]
        rows = _table(job.out / "manifest.csv")
        plans = [self._plan(*pair) for pair in zip(job.sources, rows, strict=False)]
        names = {row["decoder"] for row in rows}
        levels = sorted({int(row["level"]) for row in rows})
        return Turn(
            stages,
            statistics.fmean(each.decoded_bytes for each in plans),
            running_rate(moments, workers * (IN_HAND if self.device == "cuda" else 1)),
            f"{' / '.join(sorted(names))}, level {' and '.join(map(str, levels))}",
            plans,
        )

    def _plan(self, source: Path, row: dict[str, str]) -> Plan:
        """Return what the codec decodes of a source, as `preprocess.planning` asks for it."""
        mammogram = fastmammo.read(source)
        decoder = FrameDecoder(mammogram, backend=self.backend, device=self.device)
        level, small = int(row["level"]), int(row["roi_level"])
        whole = self.scale == "full" and not decoder.incremental
        levels = [small, level]
        if whole or decoder.codec_levels < max(levels):
            levels = [0]  # the others are made from the whole frame
        cells = decoder.dtype.itemsize
        decoded = sum(
            -(-mammogram.rows // (1 << each)) * -(-mammogram.columns // (1 << each)) * cells
            for each in set(levels)
        )
        return Plan(str(source), list(dict.fromkeys(levels)), decoded)

    def decode_only(self, job: Job, turn: Turn, seconds: float) -> tuple[int, float] | None:
        plans: list[Plan] = turn.plan
        if "numpy" in turn.decoder:
            return None  # uncompressed: there is nothing to decode
        if self.device == "cuda":
            return decode_on_gpu(plans, self.backend, seconds)
        tasks = [(plans[int(path.stem) % len(plans)], self.backend) for path in job.files]
        return side_by_side(job.own.map(decode_seconds, tasks), job.own.count)

    def digests(self, job: Job) -> list[str] | None:
        tasks = [(str(path), self.backend, self.device) for path in job.sources]
        return (
            [stored_digest(t) for t in tasks]
            if self.device == "cuda"
            else job.own.map(stored_digest, tasks)
        )


def stored_digest(task: tuple[str, str, str]) -> str:
    """Return `digest` of one file's stored values."""
    path, backend, device = task
    pixels: Any = fastmammo.decode(fastmammo.read(path), backend=backend, device=device)
    return digest(pixels if device == "cpu" else getattr(pixels, "get", lambda: pixels)())


def _table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _end_by(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def decode_seconds(task: tuple[Plan, str]) -> float:
    """Return the seconds that a decoder takes for a plan's levels; the file lies in memory."""
    plan, backend = task
    mammogram = fastmammo.read(Path(plan.path).read_bytes())
    key = backend, mammogram.transfer_syntax_uid
    while True:
        start = time.perf_counter()
        decoder = FrameDecoder(mammogram, backend=backend)
        for level in plan.levels:
            decoder.at(level)
        taken = time.perf_counter() - start
        if key in _warm:
            return taken
        _warm.add(key)


def decode_on_gpu(plans: list[Plan], backend: str, seconds: float) -> tuple[int, float]:
    """Return frames and seconds of a GPU's decoder with as many in hand as `convert` has."""
    import cupy

    from fastmammo.decoding.frames_in_flight import Decoder

    opened = [(fastmammo.read(Path(each.path).read_bytes()), each.levels) for each in plans]
    flight = Decoder() if backend == "nvjpeg2000" else None
    turns = numbers()

    def work(end: float) -> int:
        count = 0
        with cupy.cuda.Stream(non_blocking=True) as stream:
            while time.perf_counter() < end:
                mammogram, levels = opened[next(turns) % len(opened)]
                decoder = FrameDecoder(
                    mammogram, device="cuda", backend=backend, strict=True, flight=flight
                )
                for level in levels:
                    decoder.at(level)
                stream.synchronize()
                count += 1
        return count

    try:
        with ThreadPoolExecutor(IN_HAND) as threads:
            for length in (0.5, seconds):  # the first warms up
                start = time.perf_counter()
                done = sum(threads.map(work, [start + length] * IN_HAND))
                cupy.cuda.Device().synchronize()
                taken = time.perf_counter() - start
    finally:
        if flight is not None:
            flight.close()
    return done, taken
