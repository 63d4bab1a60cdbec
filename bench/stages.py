"""How far is each stage on the CPU from the speed at which memory can be copied?

    python bench/stages.py [--size 3328x2560] [--output 1024x512] [--rounds 7] [--save]

Each stage of one image alone, its input made beforehand: milliseconds, the bytes that it must read
and write at least (its input and output, each once), GB/s, and the share of what copying a block
reaches, as bytes read and written, in the same process and run. A stage whose arrays fit the
processor's cache may exceed 100 %. First one process works while the others wait, then all
--processes (two) do the same stage at once: they share the memory's speed, as workers of `convert`
do. glibc keeps freed memory in these processes, as in a worker. Stages take turns in every round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from common import machine, quartiles, save

import fastmammo
from fastmammo.conversion.writers import encode_png, write_atomic
from fastmammo.decoding import FrameDecoder
from fastmammo.kernels import cpu
from fastmammo.preprocess.resize import fit, taps
from fastmammo.preprocess.roi import find_breast, roi_level
from fastmammo.preprocess.voi import resampling_table, voi_table
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.dicom import Mammogram

FILES = {"uncompressed": "1.2.840.10008.1.2.1", "JPEG 2000": "1.2.840.10008.1.2.4.90"}
COPY = "copy"
LEVELS = (1, 2, 3)
RESAMPLED = (0, 1, 2)
_LAP_SECONDS = 0.02
"""Short stages are repeated to fill it: two processes then truly work at once."""
_LOST_SECONDS = 600.0
_barrier: Any = None
"""Of this process and the others."""
_ENVIRONMENT = {  # as `conversion.worker` asks glibc for; one thread each
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
    **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
}


@dataclass(frozen=True)
class Stage:
    """What is timed; bytes: of its input and output, each once."""

    run: Callable[[], object]
    read: int
    written: int


def stages(folder: Path, size: tuple[int, int], copy_bytes: int) -> dict[str, Stage]:
    """Return the stages of one image by name, the copy first."""
    block, copied = np.ones(copy_bytes, np.uint8), np.zeros(copy_bytes, np.uint8)
    found = {COPY: Stage(lambda: np.copyto(copied, block), block.nbytes, block.nbytes)}
    m = fastmammo.read(folder / "uncompressed.dcm")
    decoder = FrameDecoder(m)
    levels = {0: decoder.at(0)}
    found |= _levels(levels, decoder.first, decoder.last)
    small = roi_level(m.rows, m.columns)
    sought = decoder.at(small)
    facts: dict[str, Any] = {
        "level": small,
        "rows": m.rows,
        "columns": m.columns,
        "first": decoder.first,
        "last": decoder.last,
        "inverted": False,
        "padding": m.padding_range,
        "margin_pixels": round(0.01 * max(m.rows, m.columns)),
    }
    box = find_breast(sought, **facts).box
    found["find_breast"] = Stage(lambda: find_breast(sought, **facts), sought.nbytes, sought.size)
    for bits in (8, 16):
        found |= _outputs(m, levels, decoder.first, decoder.last, box, size, bits, folder)
    for name in FILES:
        path = folder / f"{name}.dcm"
        found[f"read, {name}"] = Stage(
            lambda path=path: fastmammo.read(path), path.stat().st_size, path.stat().st_size
        )
    return found


def _levels(levels: dict[int, np.ndarray], first: int, last: int) -> dict[str, Stage]:
    """Return the stages of the integer wavelet, and fill in the levels above 0."""
    found = {}
    values, kind = levels[0], np.dtype(np.uint16)
    for level in LEVELS:
        low = cpu.low_pass(values)
        levels[level], _ = cpu.clip_to(low, first, last, 0, kind)
        found[f"low_pass, level {level}"] = Stage(
            lambda values=values: cpu.low_pass(values), values.nbytes, low.nbytes
        )
        found[f"clip_to, level {level}"] = Stage(
            lambda low=low: cpu.clip_to(low, first, last, 0, kind), low.nbytes, levels[level].nbytes
        )
        values = low
    return found


def _outputs(
    m: Mammogram,
    levels: dict[int, np.ndarray],
    first: int,
    last: int,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    bits: int,
    folder: Path,
) -> dict[str, Stage]:
    """Return the stages from the tables to the file, for one depth of output."""
    wanted: dict[str, Any] = {"first": first, "last": last, "bits": bits}
    table, shades = resampling_table(m, **wanted), voi_table(m, **wanted).values
    found = {
        f"voi_table, {bits} bits": Stage(lambda: voi_table(m, **wanted), 0, shades.nbytes),
        f"resampling_table, {bits} bits": Stage(
            lambda: resampling_table(m, **wanted), 0, table.nbytes
        ),
    }
    image = np.zeros(size, f"uint{bits}")
    height, width = fit((box[2] - box[0], box[3] - box[1]), size)
    for level in RESAMPLED:
        made = _resampling(levels[level], first, table, box, level, image[:height, :width])
        found[f"resample, level {level}, {bits} bits"] = made
        made.run()
    png = b"".join(map(bytes, encode_png(image)))
    out, partial = (str(folder / f"{os.getpid()}-{bits}{end}") for end in (".png", ".partial"))
    found[f"encode PNG, {bits} bits"] = Stage(lambda: encode_png(image), image.nbytes, len(png))
    found[f"write PNG, {bits} bits"] = Stage(
        lambda: write_atomic(out, [png], partial), len(png), len(png)
    )
    return found


def _resampling(
    pixels: np.ndarray,
    first: int,
    table: np.ndarray,
    box: tuple[int, int, int, int],
    level: int,
    out: np.ndarray,
) -> Stage:
    """Return the resampling of a breast's box from one level."""
    row_taps = taps(pixels.shape[0], box[0], box[2], out.shape[0], level)
    column_taps = taps(pixels.shape[1], box[1], box[3], out.shape[1], level)
    covered = [int((t.starts + t.counts).max() - t.starts.min()) for t in (row_taps, column_taps)]
    return Stage(
        lambda: cpu.resample(pixels, first, table, row_taps, column_taps, out),
        covered[0] * covered[1] * pixels.itemsize + table.nbytes,
        out.nbytes,
    )


def write_files(folder: Path, rows: int, columns: int) -> None:
    """Write one phantom in each syntax that is read."""
    made = phantom(rows, columns, seed=1)
    for name, uid in FILES.items():
        write_dicom(made.pixels, path=folder / f"{name}.dcm", transfer_syntax_uid=uid)


def take_part(
    rank: int, folder: Path, size: tuple[int, int], rounds: int, copy_bytes: int
) -> dict[str, Any]:
    """Run every stage, alone (rank 0) and together with the others; return milliseconds."""
    try:
        return _samples(rank, stages(folder, size, copy_bytes), rounds)
    except BaseException:
        _barrier.abort()  # nobody waits for this one
        raise


def _samples(rank: int, chosen: dict[str, Stage], rounds: int) -> dict[str, Any]:
    repeats, found = {}, {}
    for name, stage in chosen.items():
        stage.run()  # compiles, and loads what is loaded late
        start = time.perf_counter()
        stage.run()
        taken = time.perf_counter() - start
        repeats[name] = max(1, min(100, round(_LAP_SECONDS / max(taken, 1e-6))))
        found[name] = {"read": stage.read, "written": stage.written, "alone": [], "together": []}
    for _ in range(rounds):
        for name, stage in chosen.items():
            for kind in ("alone", "together"):
                _barrier.wait(_LOST_SECONDS)
                if kind == "alone" and rank:
                    continue
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    stage.run()
                found[name][kind].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return found


def _join(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def measure(
    rows: int, columns: int, size: tuple[int, int], rounds: int, processes: int, copy_mb: int
) -> dict[str, Any]:
    """Time the stages in processes of their own and return the figures."""
    context = multiprocessing.get_context("spawn")  # glibc reads its variables at the start
    with (
        tempfile.TemporaryDirectory() as name,
        patch.dict(os.environ, _ENVIRONMENT),
        ProcessPoolExecutor(
            processes, context, initializer=_join, initargs=(context.Barrier(processes),)
        ) as pool,
    ):
        write_files(Path(name), rows, columns)
        given = (Path(name), size, rounds, copy_mb << 20)
        # who takes the first waits for the others: each process has one
        parts = [pool.submit(take_part, rank, *given) for rank in range(processes)]
        wait(parts)
        parts.sort(key=lambda part: isinstance(part.exception(), threading.BrokenBarrierError))
        samples = [part.result() for part in parts]  # its own error before those of who waited
    return {
        "machine": machine(),
        "rounds": rounds,
        "processes": processes,
        "shape": [rows, columns],
        "output": list(size),
        "copy_megabytes": copy_mb,
        "stages": figures(samples),
    }


def figures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return bytes, milliseconds, GB/s and share of copying, by stage, alone and together."""
    found: dict[str, Any] = {}
    for name, own in samples[0].items():
        moved = own["read"] + own["written"]
        found[name] = {"bytes_read": own["read"], "bytes_written": own["written"]}
        for kind in ("alone", "together"):
            values = [value for each in samples for value in each[name][kind]]
            times = {f"{key}_ms": value for key, value in quartiles(values).items()}
            rate = moved / 1e6 / max(times["median_ms"], 1e-3)
            copy = found[COPY].get(kind, {}).get("gigabytes_per_second", rate)
            found[name][kind] = {
                **times,
                "gigabytes_per_second": round(rate, 3),
                "share_of_copy": round(rate / copy, 4) if copy else 0.0,
            }
    return found


def show(result: dict[str, Any]) -> None:
    """Print every stage."""
    print(f"{'':<28}{'MB':>8}{'ms':>9}{'GB/s':>8}{'copy':>7}   {result['processes']} at once:")
    for name, stage in result["stages"].items():
        moved = (stage["bytes_read"] + stage["bytes_written"]) / 1e6
        cells = "  ".join(
            f"{own['median_ms']:9.3f}{own['gigabytes_per_second']:8.2f}{own['share_of_copy']:7.0%}"
            for own in (stage["alone"], stage["together"])
        )
        print(f"{name:<28}{moved:8.2f}{cells}")


def table(result: dict[str, Any]) -> str:
    """Return milliseconds, GB/s and share of copying by stage in Markdown."""
    from table import machine as described
    from table import table as markdown

    count = result["processes"]
    rows = []
    for name, stage in result["stages"].items():
        moved = (stage["bytes_read"] + stage["bytes_written"]) / 1e6
        alone, together = stage["alone"], stage["together"]
        rows.append(
            [
                f"copy of {result['copy_megabytes']} MiB" if name == COPY else name,
                f"{moved:.2f}",
                f"{alone['median_ms']:.2f} ({alone['lower_ms']:.2f} to {alone['upper_ms']:.2f})",
                f"{alone['gigabytes_per_second']:.2f}",
                f"{alone['share_of_copy']:.0%}",
                f"{together['median_ms']:.2f}",
                f"{together['share_of_copy']:.0%}",
            ]
        )
    heads = ["stage", "MB read and written", "ms (quartiles)", "GB/s", "of copying"]
    heads += [f"ms, {count} processes at once", "of copying, at once"]
    height, width = result["shape"]
    to = "x".join(map(str, result["output"]))
    return "\n".join(
        [
            *markdown(heads, rows),
            "",
            f"{height}x{width} to {to}, one core each; {described(result)}; "
            "`python bench/stages.py --save`.",
        ]
    )


def pair(text: str) -> tuple[int, int]:
    """Return (rows, columns) of "3328x2560"."""
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=pair, default=(3328, 2560), help="of the phantom")
    parser.add_argument("--output", type=pair, default=(1024, 512))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2, help="that work at once")
    parser.add_argument("--copy-mb", type=int, default=64, help="MiB of the block that is copied")
    parser.add_argument("--save", action="store_true", help="write bench/results/stages.json")
    options = parser.parse_args(arguments)
    result = measure(
        *options.size, options.output, options.rounds, options.processes, options.copy_mb
    )
    show(result)
    if options.save:
        print(save("stages", result))


if __name__ == "__main__":
    main()
