"""The integer kernels on a CUDA device, twins of `cpu` with the same names and the same bits.

Arrays are CuPy's; tables and weights stay on the host and travel with the launch. Everything runs
on CuPy's current stream and returns before it is done: nothing here waits for the device. Pixels
that another stream makes must be waited for by an event, and kept until the launch is done.
CuPy compiles the .cu files beside this one on first use and keeps the result on disk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmammo.errors import BackendUnavailableError, ConfigError
from fastmammo.kernels import INSTALL, has_device, launches, no_device
from fastmammo.kernels.batch import BatchImage, check_images, check_output, meant_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastmammo.kernels.batch import Taps


class DeviceTensor(NamedTuple):
    """Contiguous device memory of another library: a torch tensor's, whose bfloat16 CuPy lacks.

    `DeviceTensor(t.data_ptr(), "bfloat16", tuple(t.shape))`
    """

    pointer: int
    dtype: str
    """One of `batch.OUTPUTS`."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PreparedBatch:
    """One launch of `resample_batch`, as often as it is called, on the stream that is current."""

    launch: launches.Launch
    kept: tuple[Any, ...]
    """The arrays that it reads."""

    def __call__(self) -> None:
        _run(self.launch)


def source(name: str) -> str:
    """Return the text of a .cu file of `launches.SOURCES`."""
    return Path(__file__).with_name(f"{name}.cu").read_text(encoding="utf-8")


def low_pass(pixels: Any) -> Any:
    """Return the low-pass band of one level of the integer 5/3 wavelet: see `cpu.low_pass`.

    Args:
        pixels: (rows, columns) uint8, int8, uint16, int16 or int32; |value| < 2^29. Rows may lie
            apart (a pitch), columns may not: such an array is copied.

    Returns:
        int32 (ceil(rows / 2), ceil(columns / 2)), contiguous.
    """
    cupy = _cupy()
    surface, _keep = _surface(pixels, "pixels", launches.KINDS)
    out = cupy.empty((-(-surface.rows // 2), -(-surface.columns // 2)), np.int32)
    _run(launches.low_pass(surface, out.data.ptr))
    return out


def clip_to(
    values: Any, first: int, last: int, slack: int, dtype: np.dtype[np.generic]
) -> tuple[Any, Any]:
    """Clip values to first..last: see `cpu.clip_to`.

    Args:
        values: uint8, int8, uint16, int16 or int32, any shape.
        first, last: a range that `dtype`, one of these types, holds.
        slack: how far beyond a value may lie without being counted.
        dtype: of the result.

    Returns:
        The values as `dtype`, contiguous, and how many lay beyond by more than `slack`: int64 (),
        on the device, so that nothing waits for it until int() is asked.
    """
    cupy = _cupy()
    surface, _keep = _flat(values, "values")
    kind = np.dtype(dtype).name
    if kind not in launches.KINDS:
        raise ConfigError(f"dtype: got {kind}, allowed are {', '.join(launches.KINDS)}")
    out = cupy.empty(values.shape, kind)
    far = cupy.zeros((), np.int64)
    _run(launches.clip(surface, first, last, slack, out.data.ptr, kind, far.data.ptr))
    return out, far


def extremes(values: Any) -> Any:
    """Return the lowest and the highest value: int32 (2,), on the device.

    Args:
        values: uint8, int8, uint16, int16 or int32, any shape, not empty.
    """
    cupy = _cupy()
    surface, _keep = _flat(values, "values")
    found = cupy.asarray(np.array([2**31 - 1, -(2**31)], np.int32))
    _run(launches.extremes(surface, found.data.ptr))
    return found


def resample(
    pixels: Any,
    first: int,
    table: NDArray[np.uint16],
    row_taps: Taps,
    column_taps: Taps,
    out: Any,
    *,
    mirror: bool = False,
) -> None:
    """Look stored values up in a table and resample them into `out`: see `cpu.resample`.

    Args:
        pixels: uint8, int8, uint16 or int16 (rows, columns) on the device; rows may lie apart.
        first, table, row_taps, column_taps, mirror: as on the CPU, on the host.
        out: uint8 or uint16 (len(row_taps), len(column_taps)) on the device, written in place;
            its rows may lie apart.

    Raises:
        ConfigError: an argument is not allowed.
    """
    image = BatchImage(pixels, first, table, row_taps, column_taps, mirror=mirror)
    bits = check_output(out.dtype.name, 8 * out.dtype.itemsize, 1.0, 0.0)
    if out.shape != image.size:
        raise ConfigError(f"out: got the shape {out.shape}, wanted {image.size}")
    check_images([image], (1, 1, *out.shape), bits)
    page, kept = _surface(out, "out", launches.OUTPUTS)
    if kept is not out:
        raise ConfigError(f"out: got the strides {out.strides}, wanted columns side by side")
    _prepared([image], page, 0, bits, 1.0, 0.0)()


def resample_batch(
    images: Sequence[BatchImage],
    out: Any,
    *,
    dtype: str | None = None,
    bits: int | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> None:
    """Make a batch of images in one launch: see `batch.resample_batch`.

    Args:
        images: N images whose pixels are on the device, tables and taps on the host.
        out: a contiguous CuPy array (N, 1, H, W) or a `DeviceTensor`, written in place.
        dtype, bits, scale, offset: as there.

    Raises:
        ConfigError: an argument is not allowed, or an image does not fit.
    """
    prepared_batch(images, out, dtype=dtype, bits=bits, scale=scale, offset=offset)()


def prepared_batch(
    images: Sequence[BatchImage],
    out: Any,
    *,
    dtype: str | None = None,
    bits: int | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> PreparedBatch:
    """Return `resample_batch` ready to launch, its tables on the device."""
    if isinstance(out, DeviceTensor):
        pointer, own, shape = out
    else:
        if not out.flags.c_contiguous:
            raise ConfigError(f"out: got the strides {out.strides}, wanted a contiguous array")
        pointer, own, shape = out.data.ptr, out.dtype.name, out.shape
    dtype = meant_dtype(own, dtype)
    bits = check_output(dtype, bits, scale, offset)
    check_images(images, shape, bits)
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    page = launches.Surface(pointer, shape[3] * itemsize, shape[2], shape[3], dtype)
    return _prepared(images, page, shape[2] * shape[3], bits, scale, offset)


def _prepared(
    images: Sequence[BatchImage],
    page: launches.Surface,
    image_stride: int,
    bits: int,
    scale: float,
    offset: float,
) -> PreparedBatch:
    cupy = _cupy()
    surfaces, kept = [], []
    for image in images:
        surface, array = _surface(image.pixels, "pixels", launches.KINDS)
        surfaces.append(surface)
        kept.append(array)
    made = launches.plan(images, surfaces, page.rows, page.columns)
    host, jobs = made.blob()
    # By way of CuPy's pinned memory, which it keeps until the copy is done: no wait.
    tables = cupy.asarray(host)
    launch = launches.resample_batch(
        made,
        tables.data.ptr,
        tables.data.ptr + jobs,
        page,
        image_stride,
        bits=bits,
        scale=scale,
        offset=offset,
        multiprocessors=_multiprocessors(cupy.cuda.runtime.getDevice()),
    )
    return PreparedBatch(launch, (tables, *kept))


def _surface(array: Any, name: str, allowed: dict[str, int]) -> tuple[launches.Surface, Any]:
    """Return a 2-D array as rows of adjacent columns, and the array that holds them."""
    if array.ndim != 2 or array.dtype.name not in allowed or array.size == 0:
        raise ConfigError(
            f"{name}: got {array.dtype} {array.shape}, wanted 2 axes of {', '.join(allowed)}"
        )
    rows, columns = array.shape
    itemsize = array.dtype.itemsize
    pitch, step = array.strides
    if (columns > 1 and step != itemsize) or (rows > 1 and pitch < columns * itemsize):
        array = _cupy().ascontiguousarray(array)
    pitch = array.strides[0] if rows > 1 else columns * itemsize
    return launches.Surface(array.data.ptr, pitch, rows, columns, array.dtype.name), array


def _flat(array: Any, name: str) -> tuple[launches.Surface, Any]:
    """Return an array as rows of adjacent values: a single row where it is contiguous."""
    if array.flags.c_contiguous:
        array = array.reshape(1, -1)
    elif array.ndim != 2:
        array = _cupy().ascontiguousarray(array).reshape(1, -1)
    return _surface(array, name, launches.KINDS)


def _run(launch: launches.Launch) -> None:
    _kernel(launch.source, launch.kernel)(
        launch.grid, launch.block, launch.arguments, shared_mem=launch.shared
    )


@functools.cache
def _kernel(name: str, kernel: str) -> Any:
    """Return a kernel, compiled and loaded on the current device.

    Raises:
        BackendUnavailableError: CuPy cannot compile it, or not load what it compiled.
    """
    cuda = _cupy().cuda
    known = (
        cuda.memory.OutOfMemoryError,
        cuda.runtime.CUDARuntimeError,
        cuda.driver.CUDADriverError,
    )
    try:
        return _module(name).get_function(kernel)
    except known:
        raise  # the device's failure, not the compiler's
    except Exception as error:  # NVRTC's, the loader's and CuPy's own have no type in common
        words = " ".join(str(error).split())[:500]
        raise BackendUnavailableError(
            f"CuPy cannot compile the CUDA kernel {kernel} ({type(error).__name__}: {words}): "
            f"{INSTALL} brings the compiler and the headers that belong to it"
        ) from error


@functools.cache
def _module(name: str) -> Any:
    return _cupy().RawModule(code=source(name), options=launches.OPTIONS)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(_cupy().cuda.Device(device).attributes["MultiProcessorCount"])


@functools.cache
def _cupy() -> Any:
    """Import CuPy where there is a device for it.

    Raises:
        BackendUnavailableError: CuPy is not installed, or sees no device.
    """
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailableError(f"the CUDA kernels need CuPy ({error}): {INSTALL}") from error
    if not has_device(cupy):
        raise BackendUnavailableError(f"the CUDA kernels need {no_device(cupy)}")
    return cupy
