"""Contenders and files → their rates: rounds of turns, ratios within a round, the limits beside."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from common import quartiles
from contenders import STAND_IN, YARDSTICK
from disturbed import disturbed
from phantom_files import linked
from usage import GpuMeter, copy_rate, cpu_seconds, drop_from_cache

if TYPE_CHECKING:
    from pathlib import Path

    from comparing import Compared
    from contenders import Contender
    from contenders.turns import Job, Turn

RSNA_IMAGES, RSNA_BYTES = 54706, 294e9
"""The training set of RSNA's screening mammography challenge."""


@dataclass(frozen=True)
class Settings:
    """How long and how often.

    seconds: that a turn takes, about.
    cold: whether files are dropped from the system's cache before each turn.
    """

    seconds: float
    rounds: int
    cores: int
    cold: bool = False


@dataclass(frozen=True)
class Sample:
    """One turn of one contender; rates in images a second.

    decode_only: None where nothing is decoded, or the round is not of those that time it.
    """

    whole: float
    running: float
    start_seconds: float
    decode_only: float | None
    copy_bytes_per_second: float
    cpu_share: float
    gpu_share: float | None
    turn: Turn
    output_bytes: float


def run(
    chosen: dict[str, Contender], compared: Compared, job: Job, settings: Settings, scratch: Path
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Let contenders take turns.

    Returns:
        Figures by contender; why those that failed on the way have none; and what tells that the
        machine did other work meanwhile.
    """
    counts = {name: _count(job, compared.turns[name], settings) for name in chosen}
    files = job.sources
    if settings.cold and counts:  # links would share the pages of a few files
        files = linked(job.sources, scratch / "copies", max(counts.values()), copies=True)
    jobs = {
        name: replace(job, files=linked(files, scratch / f"files-{i}", count))
        for i, (name, count) in enumerate(counts.items())
    }
    samples: dict[str, list[Sample]] = defaultdict(list)
    failed: dict[str, str] = {}
    names = list(chosen)
    for number in range(settings.rounds):
        shift = number * len(names) // settings.rounds
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            limit = number in (0, settings.rounds - 1)
            try:
                sample = _sample(chosen[name], jobs[name], compared.turns[name], settings, limit)
            except Exception as error:  # whatever a peer raises costs that peer
                failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                _say(f"  round {number + 1}: {name} failed: {failed[name]}")
                continue
            samples[name].append(sample)
            _say(f"  round {number + 1}: {name:<28} {sample.whole:7.2f} images/s")
    left = {name: samples[name] for name in names if name not in failed}
    base = next((name for name in (YARDSTICK, STAND_IN) if name in left), None)
    found = {}
    for name, own in left.items():
        figures = _figures(chosen[name], jobs[name], own, left[base] if base else None)
        found[name] = {**figures, "ratio_to": base, "compared": compared.facts[name]}
    computing = [
        name
        for name, each in chosen.items()
        if not (each.gpu or each.way.start_included or settings.cold)
    ]
    possible = min(1.0, job.workers / settings.cores)
    return found, failed, disturbed(found, computing, base, possible)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _count(job: Job, first: Turn, settings: Settings) -> int:
    """Return how many files fill a turn, by the fastest file of the first turn.

    Each source is there equally often, and there are equally many for each process: with 7 files
    two processes would take as long as with 8, and another mix of sources is other work.
    """
    each = min(stages["total"] for stages in first.stages)
    step = math.lcm(job.workers, len(job.sources))
    fewest = -(-3 * job.workers // step)
    return max(fewest, round(settings.seconds / each * job.workers / step)) * step


def _sample(contender: Contender, job: Job, first: Turn, settings: Settings, limit: bool) -> Sample:
    """Take one turn, and its limits right beside it.

    Other work on the machine slows a contender of many processes, or of much memory, more than
    another, and changes within seconds: so the turn's own files are decoded, half of them before
    it and half after it, with nothing between.
    """
    way = contender.way
    half = len(job.files) // (2 * job.workers) * job.workers
    parts = [replace(job, files=job.files[:half]), replace(job, files=job.files[half:])]
    alone = [_alone(contender, parts[0], first, settings)] if limit else []
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir()
    if not way.start_included:
        job.peers.everywhere(time.perf_counter)  # they are there, and warm
    if settings.cold:
        drop_from_cache(job.files)
    used = cpu_seconds()
    with GpuMeter() as gpu:
        start = time.perf_counter()
        turn = way.turn(job)
        taken = time.perf_counter() - start
    share = (cpu_seconds() - used) / (taken * settings.cores)
    count = len(job.files)
    running = turn.running_per_second or count / taken
    if limit:
        alone.append(_alone(contender, parts[1], turn, settings))
    decoded = [each for each in alone if each is not None]
    copied = sum(job.own.everywhere(copy_rate, min(0.3, settings.seconds / 8)))
    sizes = [(job.out / f"{path.stem}.png").stat().st_size for path in job.files]
    return Sample(
        whole=count / taken,
        running=running,
        start_seconds=taken - count / running if way.start_included else job.peers.start_seconds,
        decode_only=(
            sum(frames for frames, _ in decoded) / sum(seconds for _, seconds in decoded)
            if decoded
            else None
        ),
        copy_bytes_per_second=copied,
        cpu_share=share,
        gpu_share=gpu.share,
        turn=turn,
        output_bytes=statistics.fmean(sizes),
    )


def _alone(
    contender: Contender, job: Job, turn: Turn, settings: Settings
) -> tuple[int, float] | None:
    return contender.way.decode_only(job, turn, settings.seconds / 2) if job.files else None


def _figures(
    contender: Contender, job: Job, own: list[Sample], base: list[Sample] | None
) -> dict[str, Any]:
    """Return a contender's figures: medians and quartiles over its rounds."""
    turn = own[-1].turn
    moved = {
        "file": statistics.fmean(path.stat().st_size for path in job.sources),
        "decoded": turn.decoded_bytes,
        "output": own[-1].output_bytes,
    }
    alone = [each.decode_only for each in own if each.decode_only is not None]
    shares = [each.running / each.decode_only for each in own if each.decode_only]
    bound = [each.copy_bytes_per_second / sum(moved.values()) for each in own]
    running = statistics.median(each.running for each in own)
    start = max(0.0, statistics.median(each.start_seconds for each in own))
    gpu = [each.gpu_share for each in own if each.gpu_share is not None]
    ratios = [a.whole / b.whole for a, b in zip(own, base, strict=True)] if base else []
    return {
        "files": len(job.files),
        "start_included": contender.way.start_included,
        "images_per_second": quartiles([each.whole for each in own]),
        "rates": [round(each.whole, 3) for each in own],
        "running_per_second": quartiles([each.running for each in own]),
        "start_seconds": round(start, 2),
        "with_start_per_second": round(len(job.files) / (start + len(job.files) / running), 2),
        "ratio": quartiles(ratios) if ratios else None,
        "decoder": turn.decoder,
        "decode_only_per_second": quartiles(alone) if alone else None,
        "share_of_decode_only": quartiles(shares) if shares else None,
        "bytes_an_image": {name: round(value) for name, value in moved.items()},
        "copy_bound_per_second": quartiles(bound),
        "cpu_share": quartiles([each.cpu_share for each in own]),
        "gpu_share": quartiles(gpu) if gpu else None,
        "rsna_hours": {
            "by_images": round((start + RSNA_IMAGES / running) / 3600, 2),
            "by_bytes": round((start + RSNA_BYTES / moved["file"] / running) / 3600, 2),
        },
        "stage_ms": turn.stage_ms(),
    }


def ranking(figures: dict[str, Any]) -> list[list[str]]:
    """Return the contenders from the fastest on; those together whose quartiles overlap.

    A group holds those whose upper quartile reaches the lower one of its fastest.
    """
    order = sorted(figures, key=lambda name: -figures[name]["images_per_second"]["median"])
    groups: list[list[str]] = []
    for name in order:
        rates = figures[name]["images_per_second"]
        if groups and rates["upper"] >= figures[groups[-1][0]]["images_per_second"]["lower"]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
