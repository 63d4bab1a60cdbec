"""Contenders and files → their rates: rounds of turns, ratios within a round, the limits beside."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from common import quartiles
from contenders import STAND_IN, YARDSTICK
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
    limit_seconds: that decoders alone are timed for before and after each turn, and copying after.
    cold: whether files are dropped from the system's cache before each turn.
    """

    seconds: float
    rounds: int
    limit_seconds: float
    cores: int
    cold: bool = False


@dataclass(frozen=True)
class Sample:
    """One turn of one contender; rates in images a second."""

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
) -> tuple[dict[str, Any], dict[str, str]]:
    """Let contenders take turns.

    Returns:
        Figures by contender; and why those that failed on the way have none.
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
            try:
                sample = _sample(chosen[name], jobs[name], compared.turns[name], settings)
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
    return found, failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _count(job: Job, first: Turn, settings: Settings) -> int:
    """Return how many files fill a turn, by the fastest file of the first turn."""
    each = min(stages["total"] for stages in first.stages)
    return max(round(settings.seconds / each * job.workers), 3 * job.workers, len(job.sources))


def _sample(contender: Contender, job: Job, first: Turn, settings: Settings) -> Sample:
    """Take one turn, and the limits right before and after it: a busy machine slows all alike."""
    way = contender.way
    alone = [way.decode_only(job, first, settings.limit_seconds)]
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
    alone.append(way.decode_only(job, turn, settings.limit_seconds))
    copied = sum(job.own.everywhere(copy_rate, min(0.3, settings.limit_seconds)))
    sizes = [(job.out / f"{path.stem}.png").stat().st_size for path in job.files]
    return Sample(
        whole=count / taken,
        running=running,
        start_seconds=taken - count / running if way.start_included else job.peers.start_seconds,
        decode_only=statistics.fmean(rates) if (rates := [r for r in alone if r]) else None,
        copy_bytes_per_second=copied,
        cpu_share=share,
        gpu_share=gpu.share,
        turn=turn,
        output_bytes=statistics.fmean(sizes),
    )


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
