"""Runs every kernel on a few cases: compute-sanitizer --tool memcheck python gpu_sanitized.py.

Each array is an allocation of its own, not a part of CuPy's pool, so that a stray access shows.
"""

from __future__ import annotations

import dataclasses

import cupy
import kernel_cases as cases
import numpy as np

from fastmammo.kernels import cpu, gpu


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(9)
    for images, expected, (dtype, bits, scale, offset) in cases.batches():
        device = [dataclasses.replace(i, pixels=cupy.asarray(i.pixels)) for i in images]
        out = cupy.zeros(expected.shape, expected.dtype)
        gpu.resample_batch(device, out, dtype=dtype, bits=bits, scale=scale, offset=offset)
        if out.get().tobytes() != expected.tobytes():
            raise SystemExit(f"{dtype} {expected.shape}: the GPU's batch differs from the CPU's")
    for shape in cases.SHAPES:
        for kind in cases.KINDS:
            values = cases.noise(rng, shape, kind)
            if not np.array_equal(gpu.low_pass(cupy.asarray(values)).get(), cpu.low_pass(values)):
                raise SystemExit(f"low_pass {kind} {shape}: the GPU's differs from the CPU's")
            gpu.clip_to(cupy.asarray(values), 0, 100, 3, np.dtype(np.uint8))
            gpu.extremes(cupy.asarray(values))
    cupy.cuda.Device().synchronize()
    print("finished")


if __name__ == "__main__":
    main()
