"""What does `fastmammo transcode` cost, and after how many passes over the archive has it paid?

    python bench/transcode.py [--files 48] [--rounds 3] [--save]

Four phantoms in lossless JPEG 2000 are linked --files times. In every round the turns are taken one
after another: transcode them, then `convert` of the originals and of the transcoded files, `auto`
and `full`, all as a user runs them, the start of the workers included. A pass that converts gains
what the same pass of its own round takes less on the transcoded files. The images of both folders
are compared, byte for byte. The file cache is warm.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from arguments import Help, whole
from common import machine, save

import fastmammo
from fastmammo.testing import phantom, write_dicom

JPEG2000 = "1.2.840.10008.1.2.4.90"
SCALES = ("auto", "full")


def sources(folder: Path, rows: int, columns: int, files: int) -> Path:
    """Write four phantoms, both views, both sides, and links to them; return the links' folder."""
    linked = folder / "src"
    linked.mkdir()
    for i in range(4):
        made = phantom(
            rows, columns, seed=i, view_position=("CC", "MLO")[i % 2], laterality="LR"[i // 2]
        )
        path = folder / f"{i}.dcm"
        write_dicom(
            made.pixels,
            path=path,
            transfer_syntax_uid=JPEG2000,
            window_center=made.window_center,
            window_width=made.window_width,
            laterality=made.laterality,
            view_position=made.view_position,
            seed=i,
        )
        for index in range(i, files, 4):
            os.link(path, linked / f"{index:05d}.dcm")
    return linked


def transcoded(src: Path, dst: Path, workers: int) -> fastmammo.TranscodeSummary:
    """Transcode all of a folder anew."""
    shutil.rmtree(dst, ignore_errors=True)
    options = fastmammo.TranscodeOptions(workers=workers)
    summary = fastmammo.transcode(src, dst, options=options)
    if summary.ok != summary.files:
        raise SystemExit(summary.text())
    return summary


def converted(src: Path, out: Path, scale: str, workers: int, rows: int) -> float:
    """Convert all of a folder anew and return images a second."""
    shutil.rmtree(out, ignore_errors=True)
    config = fastmammo.Config(size=(rows, rows // 2), scale=scale)
    summary = fastmammo.convert(
        src, out, config=config, options=fastmammo.ConvertOptions(workers=workers)
    )
    if summary.failed or not summary.ok:
        raise SystemExit(summary.text())
    return summary.ok / summary.seconds


def require_equal_images(first: Path, second: Path) -> None:
    """Stop unless two folders hold the same PNG files."""
    names = [sorted(path.name for path in folder.glob("*.png")) for folder in (first, second)]
    if names[0] != names[1] or not names[0]:
        raise SystemExit(f"{first} and {second} do not hold the same images")
    for name in names[0]:
        if (first / name).read_bytes() != (second / name).read_bytes():
            raise SystemExit(f"{name} differs between {first} and {second}")


def passes(cost: float, before: float, after: float) -> int | None:
    """Return how many passes pay for the transcoding, None if none do.

    Args:
        cost: images a second of transcoding.
        before, after: images a second of a pass over the originals and the transcoded files.
    """
    gain = 1 / before - 1 / after
    return math.ceil(1 / cost / gain) if gain > 0 else None


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Take all turns and return the figures."""
    src = sources(folder, options.rows, options.columns, options.files)
    dst = folder / "dst"
    rates: dict[str, list[float]] = {"transcode": []}
    paid: dict[str, list[int | None]] = {scale: [] for scale in SCALES}
    transcoded(src, dst, options.workers)  # reads, compiles: not counted
    for _ in range(options.rounds):
        summary = transcoded(src, dst, options.workers)
        rates["transcode"].append(summary.ok / summary.seconds)
        for scale in SCALES:
            one = {}
            for name, place in (("before", src), ("after", dst)):
                out = folder / f"{scale}-{name}"
                one[name] = converted(place, out, scale, options.workers, options.height)
                rates.setdefault(f"{scale} {name}", []).append(one[name])
            require_equal_images(folder / f"{scale}-before", folder / f"{scale}-after")
            paid[scale].append(passes(rates["transcode"][-1], one["before"], one["after"]))
    return {
        "images_per_second": {
            name: {
                "median": round(statistics.median(values), 2),
                "slowest": round(min(values), 2),
                "fastest": round(max(values), 2),
            }
            for name, values in rates.items()
        },
        "bytes_before": summary.bytes_before // summary.files,
        "bytes_after": summary.bytes_after // summary.files,
        "passes_until_paid": paid,
    }


def table(result: dict[str, Any]) -> str:
    """Return the README's table of a result, in Markdown."""
    rate = {name: each["median"] for name, each in result["images_per_second"].items()}
    before, after = result["bytes_before"], result["bytes_after"]
    lines = [
        "| images/s | JPEG 2000 | transcoded to HTJ2K | passes until it has paid |",
        "| --- | --- | --- | --- |",
    ]
    for scale in SCALES:
        old, new = rate[f"{scale} before"], rate[f"{scale} after"]
        times = span(result["passes_until_paid"][scale])
        lines.append(f"| `convert`, {scale} | {old:.1f} | {new:.1f} ({new / old:.2f}) | {times} |")
    lines.append(f"| megabytes a file | {before / 1e6:.2f} | {after / 1e6:.2f} | |")
    found, (rows, columns) = result["machine"], result["size"]
    lines += [
        "",
        f"`transcode` itself, verification included: {rate['transcode']:.1f} images/s. Lossless "
        f"JPEG 2000 of {rows}x{columns} to {result['output'][0]} rows, {result['workers']} "
        f"processes, start included; {found['cpu']}, {found['cores']} cores, {found['date']}; "
        "`python bench/transcode.py --save`.",
    ]
    return "\n".join(lines)


def span(counts: list[int | None]) -> str:
    """Return the fewest and most passes over the rounds, in words."""
    known = sorted(count for count in counts if count is not None)
    if not known:
        return "it does not"
    few, most = known[0], known[-1]
    text = str(few) if few == most else f"{few} to {most}"
    return text if len(known) == len(counts) else f"{few} at least"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=Help)
    parser.add_argument("--rows", type=whole, default=3328, help="of the phantoms")
    parser.add_argument("--columns", type=whole, default=2560, help="of the phantoms")
    parser.add_argument("--files", type=whole, default=48, help="files a turn, of four phantoms")
    parser.add_argument("--rounds", type=whole, default=3, help="of all turns")
    parser.add_argument(
        "--workers", type=whole, default=len(os.sched_getaffinity(0)), help="processes"
    )
    parser.add_argument(
        "--height", type=whole, default=1024, help="of the output; its width is half"
    )
    parser.add_argument("--save", action="store_true", help="write bench/results/transcode.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    result = {
        "machine": machine(),
        "size": [options.rows, options.columns],
        "output": [options.height, options.height // 2],
        "files": options.files,
        "rounds": options.rounds,
        "workers": options.workers,
        "file_cache": "warm",
        **found,
    }
    print(table(result))
    if options.save:
        print(save("transcode", result))


if __name__ == "__main__":
    main()
