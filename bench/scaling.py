"""How does the speed grow with workers, threads, batch and files, and what does a start cost?

    python bench/scaling.py [--size 3328x2560] [--output 1024x512] [--rounds 2] [--save]

Lossless JPEG 2000, hard links to four phantoms, in a warm file cache. Images/s of `convert` by
worker processes (1, 2, 4, ..., cores, twice the cores), start included; of `Preprocessor` by batch
size and by threads; and seconds of `convert` by number of files, to which start + files x time is
fitted, each weighted by its own seconds. `convert` is called in a process that has imported it;
what that import costs a command is told beside. Last, a second run over many finished files: the
seconds until it says that nothing is to do. All cases take turns in every round; under three
minutes on two quiet cores. Ctrl-C ends it with what was measured, and saves nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from arguments import Help, pair, whole
from common import end_early, machine, save, say, script, span

import fastmammo
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JPEG2000 = "1.2.840.10008.1.2.4.90"
BATCHES = (1, 4, 16, 48)
THREADS_BATCH = 16
"""Of the runs by threads."""
COUNTS = (8, 32, 128)
RESUMED = 2000
_TINY = (104, 80)
"""Rows and columns of the files of the second run: none is opened."""


def phantoms(folder: Path, rows: int, columns: int, count: int = 4) -> list[Path]:
    """Write phantoms of both views and sides."""
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.dcm" for i in range(count)]
    for i, path in enumerate(paths):
        view, side = ("CC", "MLO")[i % 2], "LR"[i // 2 % 2]
        made = phantom(rows, columns, seed=i, view_position=view, laterality=side)
        facts: dict[str, Any] = {"laterality": side, "view_position": view, "seed": i}
        write_dicom(made.pixels, path=path, transfer_syntax_uid=JPEG2000, **facts)
    return paths


def linked(sources: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Return `count` links to the files, in turn, in a folder of their own."""
    folder.mkdir(parents=True)
    paths = [folder / f"{i:05d}.dcm" for i in range(count)]
    for i, path in enumerate(paths):
        os.link(sources[i % len(sources)], path)
    return paths


def steps(cores: int) -> list[int]:
    """Return 1, 2, 4, ... below the cores, the cores, and twice them."""
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i < cores]
    return [*powers, cores, 2 * cores]


def convert(src: Path, out: Path, config: fastmammo.Config, workers: int, kept: int = 0) -> float:
    """Convert a folder, or find it converted, and return the seconds."""
    if not kept:
        shutil.rmtree(out, ignore_errors=True)
    options = fastmammo.ConvertOptions(workers=workers)
    start = time.perf_counter()
    summary = fastmammo.convert(src, out, config=config, options=options)
    taken = time.perf_counter() - start
    if summary.signal:  # `convert` took it for its own: it was meant for all of us
        raise KeyboardInterrupt
    if summary.ok != summary.files or summary.kept != kept:
        raise SystemExit(summary.text())
    return taken


def prepare(files: list[Path], config: fastmammo.Config, batch: int, threads: int) -> float:
    """Make all files into batches of one size and return the seconds."""
    preprocessor = fastmammo.Preprocessor(config, workers=threads)
    start = time.perf_counter()
    for first in range(0, len(files), batch):
        preprocessor(files[first : first + batch])
    return time.perf_counter() - start


def import_seconds() -> float:
    """Return what importing `convert` adds to a fresh interpreter's start."""
    taken = []
    for code in ("pass", "import fastmammo; fastmammo.convert"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.perf_counter() - start)
    return taken[1] - taken[0]


def cases(
    work: Path, options: argparse.Namespace, cores: int
) -> dict[tuple[str, int], tuple[int, Callable[[], float]]]:
    """Return {(kind, number): (files, what takes and returns seconds)}."""
    config = fastmammo.Config(size=options.output)
    say("phantoms are written, and a folder is converted for the second run")
    sources = phantoms(work / "phantoms", *options.size)
    folders = {
        count: linked(sources, work / f"{count}-files", count)
        for count in {*options.counts, options.files}
    }
    files, out = folders[options.files], work / "out"
    found: dict[tuple[str, int], tuple[int, Callable[[], float]]] = {}
    for workers in options.steps or steps(cores):
        run = partial(convert, files[0].parent, out, config, workers)
        found["workers", workers] = len(files), run
    for batch in options.batches:
        found["batch", batch] = len(files), partial(prepare, files, config, batch, cores)
    for threads in options.steps or steps(cores):
        run = partial(prepare, files, config, THREADS_BATCH, threads)
        found["threads", threads] = len(files), run
    for count in options.counts:
        run = partial(convert, folders[count][0].parent, out, config, cores)
        found["files", count] = count, run
    small = linked(phantoms(work / "tiny", *_TINY), work / "resumed", options.resumed)[0].parent
    first = fastmammo.Config(size=(64, 32))
    convert(small, work / "finished", first, cores)
    run = partial(convert, small, work / "finished", first, cores, kept=options.resumed)
    found["resumed", options.resumed] = options.resumed, run
    found["import", 0] = 0, import_seconds
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let all cases take turns and return their figures."""
    cores = len(os.sched_getaffinity(0))
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        chosen = cases(Path(name), options, cores)
        for kind in ("batch", "import"):  # compiles, and reads every file once
            next(run for key, (_, run) in chosen.items() if key[0] == kind)()
        key, (count, run) = next(each for each in chosen.items() if each[0][0] == "batch")
        say(f"about {span(options.rounds * expected(chosen, run() / count, cores))} to go")
        ended = False
        try:
            for number in range(options.rounds):
                for key, (count, run) in chosen.items():
                    seconds[key].append(run())
                    say(told(number, key, count, seconds[key][-1]))
        except KeyboardInterrupt:
            if not any(seconds.values()):
                raise
            ended = True
    found: dict[str, Any] = {
        "machine": machine(),
        "rounds": options.rounds,
        "shape": list(options.size),
        "output": list(options.output),
        "cores": cores,
        "file_cache": "warm",
    }
    if ended:
        found["ended"] = True
    for (kind, number), values in seconds.items():
        if values:
            found.setdefault(kind, {})[str(number)] = figures(chosen[kind, number][0], values)
    if "import" in found:
        found["import"] = found["import"]["0"]
    found["fit"] = fitted({key: values for key, values in seconds.items() if key[0] == "files"})
    return found


def expected(
    chosen: dict[tuple[str, int], tuple[int, Callable[[], float]]], each: float, cores: int
) -> float:
    """Return about how long a round takes, of the seconds a file that all cores take.

    A start of `convert` is some two seconds, as are the import and the second run.
    """
    total = 0.0
    for (kind, number), (files, _) in chosen.items():
        busy = min(number, cores) if kind in ("workers", "threads") else cores
        working = kind in ("workers", "threads", "batch", "files")
        total += files * each * cores / busy if working else 0.0
        total += 0.0 if kind in ("batch", "threads") else 2.0
    return total


def told(number: int, key: tuple[str, int], files: int, seconds: float) -> str:
    """Return a line of progress."""
    rate = f", {files / seconds:.1f} images/s" if files and key[0] != "resumed" else ""
    return f"round {number + 1}: {key[0]} {key[1] or ''}: {seconds:.2f} s{rate}".replace(" :", ":")


def figures(files: int, seconds: list[float]) -> dict[str, Any]:
    """Return seconds, and where there are files images/s: the median and both ends."""
    found: dict[str, Any] = {
        "files": files,
        "seconds": round(statistics.median(seconds), 4),
        "fastest_seconds": round(min(seconds), 4),
        "slowest_seconds": round(max(seconds), 4),
    }
    if files:
        found["images_per_second"] = round(files / statistics.median(seconds), 3)
        found["slowest"] = round(files / max(seconds), 3)
        found["fastest"] = round(files / min(seconds), 3)
    return found


def fitted(seconds: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    """Return the start and the time a file of `convert`, by least squares of relative errors."""
    points = [(count, value) for (_, count), values in seconds.items() for value in values]
    if not points:
        return {}
    counts, taken = np.array(points, np.float64).T
    if len(set(counts)) < 2:
        return {}
    slope, start = np.polyfit(counts, taken, 1, w=1 / taken)
    error = np.abs((start + slope * counts) / taken - 1).max()
    return {
        "start_seconds": round(float(start), 4),
        "milliseconds_a_file": round(float(slope) * 1e3, 4),
        "largest_relative_error": round(float(error), 4),
    }


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return name, images/s with both ends, and their ratio to the first of the same kind."""
    cores = result["cores"]
    names = {
        "workers": "`convert`, workers",
        "batch": f"`Preprocessor`, {cores} threads, batch",
        "threads": f"`Preprocessor`, batches of {THREADS_BATCH}, threads",
        "files": f"`convert`, {cores} workers, files",
    }
    rows = []
    for kind, name in names.items():
        if kind not in result:
            continue  # it was ended before
        first = next(iter(result[kind].values()))["images_per_second"]
        for number, own in result[kind].items():
            rate = own["images_per_second"]
            ends = f"{rate:.1f} ({own['slowest']:.1f} to {own['fastest']:.1f})"
            rows.append([f"{name}: {number}", ends, f"{rate / first:.2f}"])
    return rows


def remarks(result: dict[str, Any]) -> str:
    """Return the start, the time a file, the import and the second run in words."""
    parts = []
    if fit := result["fit"]:
        parts.append(
            f"`convert` takes {fit['start_seconds']:.2f} s and {fit['milliseconds_a_file']:.1f} ms "
            f"a file (at most {fit['largest_relative_error']:.0%} off)"
        )
    if "import" in result:
        parts.append(f"its import {result['import']['seconds']:.2f} s")
    for number, own in result.get("resumed", {}).items():
        parts.append(
            f"a run that finds {int(number):,} files finished takes {own['seconds']:.2f} s"
        )
    return ", ".join(parts)


def show(result: dict[str, Any]) -> None:
    """Print every case."""
    for name, rate, ratio in rows_of(result):
        print(f"{name:<44}{rate:>28} images/s{ratio:>8}")
    print(remarks(result))


def table(result: dict[str, Any]) -> str:
    """Return images/s by workers, batch, threads and files in Markdown."""
    from table import machine as described
    from table import table as markdown

    height, width = result["shape"]
    to = "x".join(map(str, result["output"]))
    return "\n".join(
        [
            *markdown(["", "images/s (slowest to fastest)", "times the first"], rows_of(result)),
            "",
            f"JPEG 2000, {height}x{width} to {to}, {result['rounds']} rounds; {remarks(result)}; "
            f"{described(result)}; `python bench/scaling.py --save`.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=Help)
    parser.add_argument("--size", type=pair, default=(3328, 2560), help="of the phantoms")
    parser.add_argument("--output", type=pair, default=(1024, 512), help="rows x columns")
    parser.add_argument("--files", type=whole, default=48, help="by workers, batch and threads")
    parser.add_argument(
        "--steps",
        type=whole,
        nargs="+",
        help="workers and threads (default: 1, 2, 4, ..., cores, twice the cores)",
    )
    parser.add_argument("--batches", type=whole, nargs="+", default=BATCHES, help="their sizes")
    parser.add_argument("--counts", type=whole, nargs="+", default=COUNTS, help="files of convert")
    parser.add_argument("--resumed", type=whole, default=RESUMED, help="finished files")
    parser.add_argument("--rounds", type=whole, default=2, help="of all cases")
    parser.add_argument("--save", action="store_true", help="write bench/results/scaling.json")
    options = parser.parse_args(arguments)
    result = measure(options)
    show(result)
    if result.pop("ended", False):
        end_early(measured=True)
    if options.save:
        print(save("scaling", result))


if __name__ == "__main__":
    script(main)
