"""Does the memory that `fastmammo convert` takes depend on the number of files?

    python bench/memory.py [--counts 100 2000] [--rows 1664] [--columns 1280] [--workers 2]
                           [--formats png packed] [--mixed 12] [--save]

`distinct` phantoms in lossless JPEG 2000 are linked COUNT times and converted by the command as a
user runs it, in each format. Peaks in MiB: of the parent, of the largest worker, and of all
processes that lived at once, each at its own peak (VmHWM of proc(5), read every 20 ms: it never
falls, so no peak between two readings is missed but those of the last 20 ms of a process; what
processes share counts in each). Wanted: the three differ by less than 10 % between the smallest
and the largest count. Last, a run over frames of the vendors' sizes: its peak is the largest
frame's. A run before these, not counted, compiles the kernels where no cache has them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, save

from fastmammo.testing import VENDOR_SIZES, phantom, write_dicom

JPEG2000 = "1.2.840.10008.1.2.4.90"
FORMATS = ("png", "packed")
PEAKS = ("parent_mib", "worker_mib", "all_mib")
MOST = 0.10


def write_phantoms(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write one phantom of each (rows, columns), all of a view, and return the paths."""
    folder.mkdir(parents=True)
    paths = []
    for seed, (rows, columns) in enumerate(sizes):
        made = phantom(rows, columns, seed=seed, view_position="MLO" if seed % 2 else "CC")
        paths.append(folder / f"{seed}.dcm")
        write_dicom(made.pixels, path=paths[-1], transfer_syntax_uid=JPEG2000, seed=seed)
    return paths


def link(paths: list[Path], folder: Path, count: int) -> None:
    """Fill a folder with `count` links to the files, in turn."""
    for index in range(count):
        path = folder / f"{index // 4:06d}" / f"{index:06d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(paths[index % len(paths)], path)


def peak_mib(process_id: int) -> float | None:
    """Return the most memory a process has had resident so far; None for one that is gone."""
    try:
        text = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None  # a zombie has no memory


def children(process_id: int) -> list[int]:
    """Return the process ids of the children of all threads of a process."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process_id}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    except OSError:
        return found
    return found


def measure(src: Path, dst: Path, kind: str, workers: int) -> dict[str, Any]:
    """Convert SRC with the command and return the peaks and the seconds."""
    command = [sys.executable, "-m", "fastmammo", "convert", str(src), str(dst)]
    command += ["--format", kind, "--workers", str(workers), "--quiet"]
    start = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    parent = worker = together = 0.0
    while run.poll() is None:
        parent = max(parent, peak_mib(run.pid) or 0.0)
        each = [peak for child in children(run.pid) if (peak := peak_mib(child)) is not None]
        worker = max([worker, *each])
        together = max(together, parent + sum(each))
        time.sleep(0.02)
    said = run.communicate()[0].decode(errors="replace")
    if run.returncode:
        raise SystemExit(f"convert ended with {run.returncode}:\n{said}")
    peaks = dict(zip(PEAKS, (parent, worker, together), strict=True))
    return {
        **{name: round(value, 1) for name, value in peaks.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }


def show(name: str, run: dict[str, Any]) -> None:
    """Print one run."""
    peaks = "".join(f"{run[peak]:>10.1f}" for peak in PEAKS)
    print(f"{name:<28}{peaks}{run['seconds']:>10.1f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 2000], help="files")
    parser.add_argument("--rows", type=int, default=1664)
    parser.add_argument("--columns", type=int, default=1280)
    parser.add_argument("--distinct", type=int, default=4, help="phantoms that are truly made")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--mixed", type=int, default=12, help="files of vendors' sizes; 0: none")
    parser.add_argument("--save", action="store_true", help="write bench/results/memory.json")
    options = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    mixed: dict[str, Any] | None = None
    print(f"{'peaks in MiB':<28}{'parent':>10}{'worker':>10}{'all':>10}{'seconds':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_phantoms(
            folder / "same", [(options.rows, options.columns)] * options.distinct
        )
        link(paths, folder / "first", len(paths))
        # a first run on a machine compiles the kernels, which takes 50 MiB more than any file
        measure(folder / "first", folder / "first-out", "png", options.workers)
        for kind in options.formats:
            for count in sorted(options.counts):
                src = folder / f"{kind}-{count}"
                link(paths, src, count)
                run = measure(src, folder / f"{kind}-{count}-out", kind, options.workers)
                runs.append({"format": kind, "files": count, **run})
                show(f"{count} files, {kind}", run)
        if options.mixed:
            sizes = [(size.rows, size.columns) for size in VENDOR_SIZES.values()]
            link(write_phantoms(folder / "sizes", sizes), folder / "mixed", options.mixed)
            run = measure(folder / "mixed", folder / "mixed-out", "png", options.workers)
            mixed = {"files": options.mixed, "largest": list(max(sizes)), **run}
            show(f"{options.mixed} files of vendors' sizes", run)
    change = largest_change(runs)
    verdict = "holds" if change < MOST else "DOES NOT HOLD"
    print(f"largest change with the number of files {change:.1%}, wanted < {MOST:.0%}: {verdict}")
    if options.save:
        result = {
            "machine": machine(),
            "phantom_size": [options.rows, options.columns],
            "distinct": options.distinct,
            "workers": options.workers,
            "runs": runs,
            "largest_change": round(change, 4),
            "mixed": mixed,
        }
        print(save("memory", result))


def largest_change(runs: list[dict[str, Any]]) -> float:
    """Return the largest change of a peak from the fewest to the most files of one format."""
    changes = [0.0]
    for kind in FORMATS:
        mine = sorted((run for run in runs if run["format"] == kind), key=lambda run: run["files"])
        if mine:
            few, many = mine[0], mine[-1]
            changes += [abs(many[peak] / few[peak] - 1) for peak in PEAKS]
    return max(changes)


if __name__ == "__main__":
    main()
