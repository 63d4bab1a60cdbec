"""How near do the CUDA kernels come to the copy bandwidth of the device?

    python bench/gpu_kernels.py [--images 64] [--rounds 20] [--output FILE] [--save]

Each case is a batch of noisy images, prepared once and launched again and again; several batches
take turns, so that none finds its pixels in the L2 cache. Bandwidth counts every source sample of
the kept part read once and every output byte written once; the copy of the same run, from device to
device, counts bytes read and written. Times are CUDA events' medians. Each case is compared with
the CPU on its first image before it is timed. The JSON goes to stdout, FILE or bench/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import machine, save

from fastmammo.errors import BackendUnavailableError
from fastmammo.kernels import batch, cpu, gpu
from fastmammo.kernels.batch import BatchImage
from fastmammo.preprocess.resize import taps

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = 4
"""Batches that take turns."""

# name: output (rows, columns), source samples an output pixel along an axis, wavelet level, dtype
RESAMPLINGS: dict[str, tuple[tuple[int, int], float, int, str]] = {
    "level, factor 1.0, uint16": ((1024, 512), 1.0, 2, "uint16"),
    "level, factor 1.5, uint16": ((1024, 512), 1.5, 1, "uint16"),
    "level, factor 1.5, uint8": ((1024, 512), 1.5, 1, "uint8"),
    "level, factor 1.5, float16": ((1024, 512), 1.5, 1, "float16"),
    "level, factor 1.5, bfloat16": ((1024, 512), 1.5, 1, "bfloat16"),
    "level, factor 1.5, float32": ((1024, 512), 1.5, 1, "float32"),
    "level, factor 2.0, uint16": ((1024, 512), 2.0, 1, "uint16"),
    "level, factor 1.5, odd width": ((1024, 512), 1.501, 1, "uint16"),
    "full, factor 2.0, uint16": ((1024, 512), 2.0, 0, "uint16"),
    "full, factor 3.0, uint16": ((1024, 512), 3.0, 0, "uint16"),
    "full, factor 4.0, uint16": ((1024, 512), 4.0, 0, "uint16"),
    "level, factor 1.5, 2048 x 1024": ((2048, 1024), 1.5, 1, "uint16"),
}


def source(samples: tuple[int, int], seed: int) -> np.ndarray:
    """Return uint16 of 12 bits: a slope with noise of 20 values, as neighbours in a breast are."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(600, 2600, samples[1]) + np.linspace(0, 400, samples[0])[:, None]
    return np.clip(slope + rng.normal(0, 20, samples), 0, 4095).astype(np.uint16)


def window() -> np.ndarray:
    """Return a LINEAR window's table over 12 bits."""
    return np.clip((np.arange(4096) - 400) / 2800 * 65535, 0, 65535).astype(np.uint16)


def median_ms(cupy: Any, runs: list[Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return milliseconds a run, each timed by events, after one warm-up of each."""
    for run in runs:
        run()
    times = []
    for number in range(rounds):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        runs[number % len(runs)]()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end))
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "median_ms": statistics.median(times),
        "lower_ms": quartiles[0],
        "upper_ms": quartiles[2],
    }


def copied(cupy: Any, size: int, rounds: int) -> dict[str, float]:
    """Time device-to-device copies that move `size` bytes, half read and half written.

    Fewer bytes where the device is small: the pairs take a quarter of its free memory at most.
    """
    size = min(size, cupy.cuda.runtime.memGetInfo()[0] // 4 // SETS)
    pairs = [(cupy.zeros(size // 2, np.uint8), cupy.ones(size // 2, np.uint8)) for _ in range(SETS)]

    def run(to: Any, frm: Any) -> Callable[[], object]:
        return lambda: to.data.copy_from_device_async(frm.data, to.nbytes)

    found = median_ms(cupy, [run(to, frm) for to, frm in pairs], rounds)
    return {**found, "bytes": size, "GB_per_s": size / found["median_ms"] / 1e6}


def resampled(
    cupy: Any, images: int, rounds: int, case: tuple[tuple[int, int], float, int, str]
) -> dict[str, Any]:
    """Compare and time one case of `resample_batch`."""
    place, factor, level, dtype = case
    samples = round(place[0] * factor), round(place[1] * factor)
    rows = taps(samples[0], 0, samples[0] << level, place[0], level)
    columns = taps(samples[1], 0, samples[1] << level, place[1], level)
    options = {} if dtype.startswith("uint") else {"scale": 1 / 65535, "offset": -0.5}
    kind = "uint16" if dtype == "bfloat16" else dtype
    made = BatchImage(source(samples, 1), 0, window(), rows, columns)
    wanted = np.empty((1, 1, *place), kind)
    batch.resample_batch([made], wanted, dtype=dtype, **options)
    runs, outs = [], []
    began = time.perf_counter()
    for number in range(SETS):
        pixels = cupy.stack([cupy.asarray(made.pixels) + np.uint16(k) for k in range(images)])
        of_set = [dataclasses.replace(made, pixels=pixels[k]) for k in range(images)]
        outs.append(cupy.empty((images, 1, *place), kind))
        began = time.perf_counter() if number == SETS - 1 else began
        runs.append(gpu.prepared_batch(of_set, outs[-1], dtype=dtype, **options))
    prepared = time.perf_counter() - began
    found = median_ms(cupy, runs, rounds)
    if outs[0][:1].get().tobytes() != wanted.tobytes():
        raise SystemExit(f"{case}: the GPU's image differs from the CPU's")
    moved = images * (samples[0] * samples[1] * 2 + wanted.nbytes)
    return {
        **found,
        "bytes": moved,
        "GB_per_s": moved / found["median_ms"] / 1e6,
        "images_per_s": images / found["median_ms"] * 1e3,
        "host_ms": prepared * 1e3,  # of the last set: checks, tables and their transfer
    }


def others(cupy: Any, images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Compare and time the kernels that make levels, on one frame of 3328 x 2560 at a time."""
    frame = source((3328, 2560), 2)
    frames = [cupy.asarray(frame) + np.uint16(k) for k in range(min(images, 16))]
    low = cpu.low_pass(frame)
    if not np.array_equal(gpu.low_pass(frames[0]).get(), low):
        raise SystemExit("low_pass: the GPU's band differs from the CPU's")
    lows = [gpu.low_pass(f) for f in frames]
    to = np.dtype(np.uint16)
    cases: dict[str, tuple[Callable[[Any], object], list[Any], int]] = {
        "low_pass": (gpu.low_pass, frames, frame.nbytes + low.nbytes),
        "clip_to": (lambda a: gpu.clip_to(a, 0, 4095, 511, to), lows, low.nbytes + low.size * 2),
        "extremes": (gpu.extremes, frames, frame.nbytes),
    }
    found = {}
    for name, (run, arrays, moved) in cases.items():
        runs = [lambda a=a, run=run: run(a) for a in arrays]
        timed = median_ms(cupy, runs, max(rounds, len(runs)))
        found[name] = {**timed, "bytes": moved, "GB_per_s": moved / timed["median_ms"] / 1e6}
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args(arguments)
    try:
        cupy = gpu._cupy()
    except BackendUnavailableError as error:
        raise SystemExit(f"gpu_kernels: {error}") from error
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    with cupy.cuda.Stream(non_blocking=True):
        copy = copied(cupy, 2 << 30, given.rounds)
        result: dict[str, Any] = {
            "machine": {
                **machine(),
                "gpu": properties["name"].decode(),
                "driver": cupy.cuda.runtime.driverGetVersion(),
                "cupy": cupy.__version__,
            },
            "images": given.images,
            "copy": copy,
            "resample_batch": {},
        }
        for name, case in RESAMPLINGS.items():
            cupy.get_default_memory_pool().free_all_blocks()
            found = resampled(cupy, given.images, given.rounds, case)
            # a copy of as many bytes: short launches never reach the rate of a long one
            like = copied(cupy, found["bytes"], given.rounds)
            found["of_copy"] = found["GB_per_s"] / like["GB_per_s"]
            result["resample_batch"][name] = found
        result["frames"] = others(cupy, given.images, given.rounds)
        for found in result["frames"].values():
            like = copied(cupy, found["bytes"], given.rounds)
            found["of_copy"] = found["GB_per_s"] / like["GB_per_s"]
    text = json.dumps(result, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    if given.save:
        save("gpu_kernels", result)


if __name__ == "__main__":
    main()
