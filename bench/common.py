"""What every benchmark shares: the machine's description, interleaved timing, the JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return CPU, cores, versions, commit and date."""
    model = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(
            line.split(":")[1].strip() for line in text.splitlines() if "model name" in line
        )
    except (OSError, StopIteration):
        pass
    packages = (
        *("fastmammo", "numpy", "numba", "pydicom", "imagecodecs", "pillow"),
        *("pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "opencv-python-headless"),
        *("python-gdcm", "dicomsdl", "SimpleITK", "torch"),
        *("cupy-cuda12x", "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg2k-cu12", "nvidia-dali-cuda120"),
        *("cupy-cuda13x", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg2k-cu13", "nvidia-dali-cuda130"),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def say(line: str) -> None:
    """Print a line of progress, at once, beside the results."""
    print(line, file=sys.stderr, flush=True)


def taken(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, dict[str, float]], bool]:
    """Time each contender once a round, in turn, after one warm-up round, and tell each round.

    Returns:
        Milliseconds by contender: median, and lower and upper quartile; and whether Ctrl-C ended
        it: then of those alone that have been timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    ended = False
    try:
        # the first round warms caches and compiles
        first = sum(taken(run) for run in contenders.values())
        say(f"warm-up: {first:.1f} s; {rounds} rounds: about {span(first * rounds)}, or less")
        for number in range(rounds):
            start = time.perf_counter()
            for name, run in contenders.items():
                samples[name].append(taken(run) * 1e3)
            say(f"round {number + 1} of {rounds}: {time.perf_counter() - start:.1f} s")
    except KeyboardInterrupt:
        ended = True
    return {
        name: {f"{key}_ms": value for key, value in quartiles(values).items()}
        for name, values in samples.items()
        if values
    }, ended


def span(seconds: float) -> str:
    """Return a length of time in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def end_early(measured: bool) -> NoReturn:
    """Say that Ctrl-C has ended the benchmark, which saves nothing."""
    what = "what was measured until then is above; nothing is saved"
    say(f"ended by Ctrl-C: {what if measured else 'nothing was measured'}")
    raise SystemExit(128 + signal.SIGINT)


def script(main: Callable[[], None]) -> None:
    """Run a benchmark's `main`; a Ctrl-C before it has measured anything ends it likewise."""
    try:
        main()
    except KeyboardInterrupt:
        end_early(measured=False)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, lower and upper quartile; those of few values lie within their range."""
    parts = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values
    named = {"median": statistics.median(values), "lower": parts[0], "upper": parts[-1]}
    return {name: round(float(value), 3) for name, value in named.items()}


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result under bench/results and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
