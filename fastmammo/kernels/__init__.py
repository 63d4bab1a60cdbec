"""Integer kernels: `cpu` (numba), `gpu` (CUDA), and the one place that picks between them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


INSTALL = "pip install 'fastmammo[cuda13]' (in a clone '.[cuda13]'; CUDA 12: cuda12)"
"""The command that brings CuPy, its compiler and NVIDIA's decoders."""


def has_device(cupy: Any) -> bool:
    """Whether CuPy sees a CUDA device; it starts the driver in this process."""
    try:
        return bool(cupy.is_available())
    except Exception:  # some versions raise what CUDA says: `no_device` passes it on
        return False


def no_device(cupy: Any) -> str:
    """Say, in CUDA's own words, that there is no device."""
    words = []
    try:
        words.append(f"CUDA counts {cupy.cuda.runtime.getDeviceCount()}")
    except Exception as error:  # of the runtime, or of CuPy's loader
        words.append(" ".join(str(error).split())[:300])
    try:
        driver = int(cupy.cuda.runtime.driverGetVersion())
        built = int(cupy.cuda.runtime.runtimeGetVersion())
        has = f"the driver is for CUDA {dotted_cuda(driver)}" if driver else "no driver is there"
        words.append(f"{has}, CuPy for CUDA {dotted_cuda(built)}")
    except Exception as error:  # no word of it is better than another error in the place of this
        words.append(f"its versions cannot be had ({type(error).__name__})")
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        words.append(f"CUDA_VISIBLE_DEVICES is {visible!r}")
    return f"a CUDA device: CuPy sees none ({'; '.join(words)})"


def dotted_cuda(version: int) -> str:
    """Return CUDA's version as it is written: 12090 is 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


def on_device(array: Any) -> bool:
    """Whether an array lies in the memory of a CUDA device."""
    return hasattr(array, "__cuda_array_interface__")


def kernels_of(array: Any) -> Any:
    """Return the module of kernels, `cpu` or `gpu`, for an array: by where it lies."""
    if on_device(array):
        from fastmammo.kernels import gpu

        return gpu
    from fastmammo.kernels import cpu

    return cpu


def to_host(array: Any) -> NDArray[Any]:
    """Return an array's values as NumPy's: itself where they are; else a copy, waited for."""
    if not on_device(array):
        host: NDArray[Any] = array
        return host
    import cupy

    copied: NDArray[Any] = cupy.asnumpy(array)
    return copied


def to_host_with(array: Any, count: Any) -> tuple[NDArray[Any], int]:
    """Return an array's values as NumPy's, and a count that came with it, waited for once."""
    if not (on_device(array) and on_device(count)):
        return to_host(array), int(to_host(count))
    import cupy

    both = cupy.empty((8 + array.nbytes,), "uint8")
    both[:8] = count.reshape(1).view("uint8")  # int64
    both[8:] = array.reshape(-1).view("uint8")
    host = to_host(both)
    return host[8:].view(array.dtype).reshape(array.shape), int(host[:8].view("int64")[0])


def to_device(array: NDArray[np.generic] | Any) -> Any:
    """Return an array as CuPy's on the current device, a copy in the current stream's order."""
    if on_device(array):
        return array
    import cupy

    return cupy.asarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def ends(array: Any) -> tuple[int, int]:
    """Return the lowest and the highest value; waits for the device where the array is there."""
    if not on_device(array):
        return int(array.min()), int(array.max())
    lowest, highest = to_host(kernels_of(array).extremes(array))
    return int(lowest), int(highest)
