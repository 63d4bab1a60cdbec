"""How many images a second does the whole way give, against what most people run today?

    python bench/throughput.py [--sets all] [--seconds 15] [--rounds 3] [--save]
    python bench/throughput.py --root FOLDER      # of real files: at most 64, taken evenly

The contenders take turns in every round with the same number of processes, and write PNG files.
`ordinary` is the usual pipeline: pydicom with pylibjpeg, VOI LUT, MONOCHROME1 inverted, min-max to
8 bits, OpenCV's Otsu, the largest contour's box, INTER_AREA to the height, PNG; its processes are
warm. fastmammo is `convert` as a user runs it, the start of its workers included. Each contender
gets so many files that a turn takes about --seconds; a ratio is that of images a second within one
round. Without --root, four phantoms a set (6.5 to 10 bits a breast pixel in J2K) are made once and
linked. The file cache is warm: every contender has read every file before it is timed.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import machine, save

import fastmammo
from fastmammo.dicom import SYNTAXES
from fastmammo.testing import phantom, write_dicom

J2K, JPEG_LOSSLESS, RAW, HTJ2K = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.201",
)
SETS = (
    (J2K, 3328, 2560),
    (J2K, 4096, 3328),
    (J2K, 2294, 1914),
    (JPEG_LOSSLESS, 3328, 2560),
    (RAW, 3328, 2560),
    (HTJ2K, 3328, 2560),
)

Contender = Callable[[list[Path], Path], dict[str, float]]
"""(files, an empty folder for the outputs) → median milliseconds of each stage."""


def ordinary_image(path: str, out: str, height: int) -> dict[str, float]:
    """Convert one file as most people who prepare the RSNA mammograms do; return stage seconds."""
    import cv2
    import numpy as np
    import pydicom
    from pydicom.pixels import apply_voi_lut

    warnings.filterwarnings("ignore")
    cv2.setNumThreads(1)
    seconds = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    ds = pydicom.dcmread(path)
    lap("read")
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.pixel_array_options(decoding_plugin="pylibjpeg")
    pixels = ds.pixel_array
    lap("decode")
    image = apply_voi_lut(pixels, ds)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    image = image - image.min()
    grey = (image / image.max() * 255).astype(np.uint8)
    lap("voi")
    _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    lap("roi")
    size = (max(1, round(w * height / h)), height)
    crop = cv2.resize(grey[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    lap("resample")
    if not cv2.imwrite(out, crop):
        raise OSError(f"cannot write {out}")
    lap("encode")
    return {**seconds, "total": sum(seconds.values())}


def contenders(workers: int, height: int, full: bool) -> dict[str, Contender]:
    """Return the ways to convert files; `full` decodes all pixels, of JPEG 2000 only another."""
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=workers)

    def ordinary(files: list[Path], out: Path) -> dict[str, float]:
        done = pool(
            delayed(ordinary_image)(str(path), str(out / f"{i}.png"), height)
            for i, path in enumerate(files)
        )
        return _medians(done)

    def ours(scale: str, rows: int, files: list[Path], out: Path) -> dict[str, float]:
        config = fastmammo.Config(size=(rows, rows // 2), scale=scale)
        options = fastmammo.ConvertOptions(workers=workers)
        summary = fastmammo.convert(files[0].parent, out, config=config, options=options)
        if summary.failed or summary.ok != len(files):
            raise SystemExit(summary.text())
        with open(out / "timings.csv", newline="", encoding="utf-8") as file:
            return _medians(_rows(file))

    def named(scale: str, rows: int) -> tuple[str, Contender]:
        return f"fastmammo {scale} {rows}x{rows // 2}", partial(ours, scale, rows)

    ways = [named("auto", height), named("auto", height // 2)]
    if full:
        ways.insert(1, named("full", height))
    return {"ordinary": ordinary, **dict(ways)}


def _rows(file: Any) -> list[dict[str, float]]:
    return [
        {name: float(value) for name, value in row.items() if name != "path"}
        for row in csv.DictReader(file)
    ]


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {k: round(statistics.median(row[k] for row in rows) * 1e3, 2) for k in rows[0]}


def measure(
    sources: list[Path],
    ways: dict[str, Contender],
    scratch: Path,
    workers: int,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    """Let the contenders take turns; return their rates, ratios and stages."""
    files = {}
    for name, way in ways.items():
        few = linked(sources, scratch / "few", max(8, len(sources)))
        _timed(way, few, scratch / "out")  # reads, compiles, starts processes
        _, warm = _timed(way, few, scratch / "out")
        count = round(seconds * 1e3 / warm["total"] * workers)
        files[name] = linked(sources, scratch / name.replace(" ", "-"), count)
    rates: dict[str, list[float]] = defaultdict(list)
    stages = {}
    for _ in range(rounds):
        for name, way in ways.items():
            taken, stages[name] = _timed(way, files[name], scratch / "out")
            rates[name].append(len(files[name]) / taken)
    found = {}
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["ordinary"], strict=True)]
        rate = statistics.median(values)
        found[name] = {
            "files": len(files[name]),
            "images_per_second": round(rate, 2),
            "slowest": round(min(values), 2),
            "fastest": round(max(values), 2),
            "ratio_to_ordinary": round(statistics.median(ratios), 2),
            "lowest_ratio": round(min(ratios), 2),
            "highest_ratio": round(max(ratios), 2),
            "rsna_54706_images_hours": round(54706 / rate / 3600, 2),
            "stage_ms": stages[name],
        }
    return found


def _timed(way: Contender, files: list[Path], out: Path) -> tuple[float, dict[str, float]]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = time.perf_counter()
    stages = way(files, out)
    return time.perf_counter() - start, stages


def linked(sources: list[Path], folder: Path, count: int) -> list[Path]:
    """Return `count` (at least two a source) hard links to the sources, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = []
    for i in range(max(count, 2 * len(sources))):
        made.append(folder / f"{i:05d}.dcm")
        try:
            os.link(sources[i % len(sources)], made[-1])
        except OSError:  # another file system
            shutil.copyfile(sources[i % len(sources)], made[-1])
    return made


def phantoms(folder: Path, uid: str, rows: int, columns: int) -> list[Path]:
    """Write four phantoms in one syntax: both views, both sides."""
    folder.mkdir(parents=True)
    paths = []
    for i in range(4):
        view = ("CC", "MLO")[i % 2]
        made = phantom(rows, columns, seed=i, view_position=view, laterality="LR"[i // 2])
        paths.append(folder / f"{i}.dcm")
        write_dicom(
            made.pixels,
            path=paths[-1],
            transfer_syntax_uid=uid,
            window_center=made.window_center,
            window_width=made.window_width,
            laterality=made.laterality,
            view_position=made.view_position,
            seed=i,
        )
    return paths


def print_set(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: files of {found['megabytes_a_file']:.2f} MB")
    for contender, figures in found["contenders"].items():
        print(
            f"  {contender:<26} {figures['images_per_second']:7.2f} images/s, "
            f"{figures['ratio_to_ordinary']:.2f} ({figures['lowest_ratio']:.2f} to "
            f"{figures['highest_ratio']:.2f}) x ordinary, {figures['files']} files"
        )
        print("      ms: " + ", ".join(f"{k} {v}" for k, v in figures["stage_ms"].items()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="all", help="numbers of SETS, from 0: 0,3 for example")
    parser.add_argument("--size", help="other rows x columns, for every set: 832x640")
    parser.add_argument("--seconds", type=float, default=15, help="that a turn takes, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=1024, help="of the output; its width is half")
    parser.add_argument("--root", type=Path, help="real files, instead of phantoms")
    parser.add_argument("--save", action="store_true", help="write bench/results/throughput.json")
    options = parser.parse_args(arguments)
    absent = [name for name in ("cv2", "joblib", "pylibjpeg") if find_spec(name) is None]
    if absent:
        parser.error(f"`ordinary` needs {', '.join(absent)}: pip install -e '.[dev]'")
    result: dict[str, Any] = {
        "machine": machine(),
        "workers": options.workers,
        "rounds": options.rounds,
        "output": [options.height, options.height // 2],
        "file_cache": "warm",
        "sets": {},
    }
    chosen = range(len(SETS)) if options.sets == "all" else map(int, options.sets.split(","))
    with tempfile.TemporaryDirectory() as folder:
        for number in [0] if options.root else chosen:
            uid, rows, columns = SETS[number]
            if options.size:
                rows, columns = map(int, options.size.split("x"))
            name = f"{SYNTAXES[uid].name}, {rows}x{columns}"
            scratch = Path(folder) / str(number)
            if options.root:
                every = sorted(options.root.rglob("*.dcm"))
                name, sources = str(options.root), every[:: max(1, len(every) // 64)][:64]
            else:
                sources = phantoms(scratch / "phantoms", uid, rows, columns)
            ways = contenders(options.workers, options.height, full=uid == J2K)
            megabytes = sum(path.stat().st_size for path in sources) / 1e6 / len(sources)
            found = measure(
                sources, ways, scratch, options.workers, options.seconds, options.rounds
            )
            shutil.rmtree(scratch, ignore_errors=True)
            result["sets"][name] = {"megabytes_a_file": round(megabytes, 2), "contenders": found}
            print_set(name, result["sets"][name])
    if options.save:
        print(save("throughput", result))


if __name__ == "__main__":
    main()
