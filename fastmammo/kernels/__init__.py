"""Integer kernels: `cpu` (numba), `gpu` (CUDA), and the one place that picks between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


INSTALL = "pip install 'fastmammo[cuda13]' (CUDA 12: fastmammo[cuda12])"
"""The command that brings CuPy, its compiler and NVIDIA's decoders."""


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
