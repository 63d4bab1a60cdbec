"""How many images a second does the whole way give, against what most people run today?

    python bench/throughput.py [--rows 3328] [--columns 2560] [--files 32] [--rounds 3] [--save]
    python bench/throughput.py --root FOLDER

The contenders take turns in every round on the same files, with the same number of processes, and
write PNG files. `ordinary` is the usual pipeline: pydicom with pylibjpeg, VOI LUT, MONOCHROME1
inverted, min-max to 8 bits, OpenCV's Otsu, the largest contour's box, INTER_AREA to the height,
PNG; its processes stay warm between rounds. fastmammo is `convert` as a user runs it, the start of
its workers included. Without --root, four phantoms (noise=1: 7 bits a breast pixel in J2K) are
made once and linked. The file cache is warm: every file is read once before anything is timed.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import machine, save

import fastmammo
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable

SYNTAXES = {
    "JPEG 2000 Lossless": "1.2.840.10008.1.2.4.90",
    "JPEG Lossless SV1": "1.2.840.10008.1.2.4.70",
    "Explicit VR Little Endian": "1.2.840.10008.1.2.1",
    "HTJ2K Lossless": "1.2.840.10008.1.2.4.201",
}


def ordinary_image(path: str, out: str, height: int) -> bool:
    """Convert one file as most people who prepare the RSNA mammograms do."""
    import cv2
    import numpy as np
    import pydicom
    from pydicom.pixels import apply_voi_lut

    warnings.filterwarnings("ignore")
    cv2.setNumThreads(1)
    ds = pydicom.dcmread(path)
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.pixel_array_options(decoding_plugin="pylibjpeg")
    image = apply_voi_lut(ds.pixel_array, ds)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    image = image - image.min()
    grey = (image / image.max() * 255).astype(np.uint8)
    _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    size = (max(1, round(w * height / h)), height)
    crop = cv2.resize(grey[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    return bool(cv2.imwrite(out, crop))


def contenders(
    files: list[Path], root: Path, out: Path, workers: int, size: tuple[int, int]
) -> dict[str, Callable[[], None]]:
    """Return the ways to convert `files`, which lie below `root`."""
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=workers)
    ordinary = out / "ordinary"
    ordinary.mkdir(parents=True)

    def run_ordinary() -> None:
        jobs = (
            delayed(ordinary_image)(str(path), str(ordinary / f"{i}.png"), size[0])
            for i, path in enumerate(files)
        )
        if not all(pool(jobs)):
            raise SystemExit("the ordinary pipeline failed on a file")

    def run_fastmammo(scale: str, rows: int, columns: int) -> None:
        target = out / f"{scale}-{rows}"
        shutil.rmtree(target, ignore_errors=True)
        config = fastmammo.Config(size=(rows, columns), scale=scale)
        options = fastmammo.ConvertOptions(workers=workers)
        summary = fastmammo.convert(root, target, config=config, options=options)
        if summary.failed or not summary.ok:
            raise SystemExit(summary.text())

    half = size[0] // 2, size[1] // 2
    return {
        "ordinary": run_ordinary,
        f"fastmammo auto {size[0]}x{size[1]}": partial(run_fastmammo, "auto", *size),
        f"fastmammo full {size[0]}x{size[1]}": partial(run_fastmammo, "full", *size),
        f"fastmammo auto {half[0]}x{half[1]}": partial(run_fastmammo, "auto", *half),
    }


def measure(
    files: list[Path], root: Path, workers: int, size: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Time every contender once a round, after a warm-up round, and take stage times along."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        runs = contenders(files, root, out, workers, size)
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:
                    seconds[name].append(time.perf_counter() - start)
        stages = {path.parent.name: _stages(path) for path in sorted(out.glob("*/timings.csv"))}
    base = statistics.median(seconds["ordinary"])
    return {
        "contenders": {
            name: {
                "images_per_second": round(len(files) / statistics.median(values), 2),
                "slowest": round(len(files) / max(values), 2),
                "fastest": round(len(files) / min(values), 2),
                "ratio_to_ordinary": round(base / statistics.median(values), 2),
                "rsna_54706_images_hours": round(
                    54706 / len(files) * statistics.median(values) / 3600, 2
                ),
            }
            for name, values in seconds.items()
        },
        "stage_ms": stages,
    }


def _stages(path: Path) -> dict[str, float]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        name: round(statistics.median(float(row[name]) for row in rows) * 1e3, 2)
        for name in rows[0]
        if name != "path"
    }


def phantoms(folder: Path, uid: str, rows: int, columns: int, count: int) -> list[Path]:
    """Write four phantoms in one syntax and link them to `count` files."""
    folder.mkdir(parents=True)
    paths = []
    for i in range(count):
        path = folder / f"{i:04d}.dcm"
        if i < 4:
            view = ("CC", "MLO")[i % 2]
            made = phantom(rows, columns, seed=i, view_position=view, laterality="LR"[i // 2])
            write_dicom(
                made.pixels,
                path=path,
                transfer_syntax_uid=uid,
                window_center=made.window_center,
                window_width=made.window_width,
                laterality=made.laterality,
                view_position=made.view_position,
                seed=i,
            )
        else:
            os.link(paths[i % 4], path)
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3328)
    parser.add_argument("--columns", type=int, default=2560)
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=1024, help="of the output; its width is half")
    parser.add_argument("--root", type=Path, help="real files, instead of phantoms")
    parser.add_argument("--save", action="store_true", help="write bench/results/throughput-*.json")
    options = parser.parse_args(arguments)
    size = options.height, options.height // 2
    result: dict[str, Any] = {
        "machine": machine(),
        "workers": options.workers,
        "rounds": options.rounds,
        "output": list(size),
        "file_cache": "warm",
        "sets": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        sets = {}
        if options.root:
            sets[str(options.root)] = sorted(options.root.rglob("*.dcm")), options.root
        else:
            for name, uid in SYNTAXES.items():
                root = Path(folder) / uid
                sets[name] = phantoms(root, uid, options.rows, options.columns, options.files), root
        for name, (files, root) in sets.items():
            megabytes = sum(len(path.read_bytes()) for path in files) / 1e6 / len(files)
            found = measure(files, root, options.workers, size, options.rounds)
            result["sets"][name] = {
                "files": len(files),
                "megabytes_a_file": round(megabytes, 2),
                **found,
            }
            print(f"{name}: {len(files)} files of {megabytes:.2f} MB")
            for contender, figures in found["contenders"].items():
                print(
                    f"  {contender:<26} {figures['images_per_second']:7.2f} images/s "
                    f"({figures['ratio_to_ordinary']:.2f} x ordinary)"
                )
            for contender, stages in found["stage_ms"].items():
                print(f"    {contender}: " + ", ".join(f"{k} {v}" for k, v in stages.items()))
    if options.save:
        result["phantom_size"] = [options.rows, options.columns]
        print(save(f"throughput-{options.rows}x{options.columns}", result))


if __name__ == "__main__":
    main()
