"""What the decoders need of CUDA: streams, events, memory; in one small interface, given by CuPy.

The interface is as small as it is so that a test can put another in its place: what happens to
frames in flight is then tested without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
)
from fastmammo.kernels import INSTALL, has_device, no_device, on_device, to_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

DeviceArray: TypeAlias = Any
"""A cupy.ndarray, or whatever offers __cuda_array_interface__ (a torch tensor on a GPU does)."""


class Event(Protocol):
    """A point in a stream: cupy.cuda.Event."""

    @property
    def done(self) -> bool: ...
    def synchronize(self) -> None: ...


class Stream(Protocol):
    """A queue of GPU work: cupy.cuda.Stream."""

    @property
    def ptr(self) -> int: ...
    def record(self, event: Any) -> Any: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...


class Runtime(Protocol):
    """One device."""

    failures: tuple[type[Exception], ...]
    """What its calls, and those of streams and events, raise where CUDA fails."""

    def bind(self) -> None:
        """Make the device current in the calling thread."""

    def new_stream(self) -> Stream:
        """Return a stream of its own that does not wait for the default stream."""

    def new_event(self) -> Event:
        """Return an event that lets the thread sleep which waits for it."""

    def stream_of(self, stream: Any) -> Stream:
        """Return the caller's stream: a CuPy or torch stream, its address, or None: the current.

        Address 2 is another stream in each thread: record events on it in the caller's thread.
        """

    def empty(self, shape: tuple[int, int], dtype: DTypeLike, stream: Stream) -> DeviceArray:
        """Return memory that may be used in the order of `stream`, or raise DeviceMemoryError."""

    def upload(self, values: NDArray[Any], stream: Stream) -> DeviceArray:
        """Return a copy on the device, made in the order of `stream`."""

    def download(self, array: DeviceArray, stream: Stream) -> NDArray[Any]:
        """Return the values, after what `stream` holds; waits for it."""

    def release_cached(self) -> None:
        """Give memory that nobody uses back to the device."""

    def free_bytes(self) -> int:
        """Return how much of the device's memory is free."""


class Target(NamedTuple):
    """Where the samples go: device memory of the caller."""

    pointer: int
    pitch: int
    """Bytes from one row to the next."""


def target_of(array: DeviceArray, shape: tuple[int, int], dtype: DTypeLike) -> Target:
    """Return where an array's samples lie, by its __cuda_array_interface__.

    Raises:
        ConfigError: it is no device array, or not of this shape and type, or its rows have gaps
            within.
    """
    facts = getattr(array, "__cuda_array_interface__", None)
    wanted = np.dtype(dtype)
    if facts is None:
        raise ConfigError(f"out: got {type(array).__name__}, wanted an array on the device")
    found = tuple(facts["shape"]), np.dtype(facts["typestr"])
    strides = facts.get("strides") or (shape[1] * wanted.itemsize, wanted.itemsize)
    if found != (shape, wanted):
        raise ConfigError(f"out: got {found[1]} {found[0]}, wanted {wanted} {shape}")
    if strides[1] != wanted.itemsize or strides[0] < shape[1] * wanted.itemsize:
        raise ConfigError(f"out: strides {strides}, wanted rows whose samples follow each other")
    return Target(facts["data"][0], strides[0])


class _Address:
    """A stream known by its address alone, in the form that CuPy takes (CUDA stream protocol)."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


class CupyRuntime:
    """CUDA by CuPy on one device."""

    def __init__(self, device: int = 0) -> None:
        """Load CuPy.

        Raises:
            BackendUnavailableError: CuPy or the device is not there.
        """
        if (reason := missing()) is not None:
            raise BackendUnavailableError(f"CUDA: {reason}")
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
        if not 0 <= device < count:
            raise BackendUnavailableError(
                f"CUDA device {device}: there are {count}, counted from 0; "
                "CUDA_VISIBLE_DEVICES names those that this process may use"
            )
        self._cupy = cupy
        self.device = device
        self.process = os.getpid()
        self.failures: tuple[type[Exception], ...] = (cupy.cuda.runtime.CUDARuntimeError,)

    def bind(self) -> None:
        self._cupy.cuda.Device(self.device).use()

    def new_stream(self) -> Stream:
        stream: Stream = self._cupy.cuda.Stream(non_blocking=True)
        return stream

    def new_event(self) -> Event:
        event: Event = self._cupy.cuda.Event(block=True, disable_timing=True)
        return event

    def stream_of(self, stream: Any) -> Stream:
        cuda = self._cupy.cuda
        if stream is None:
            found = cuda.get_current_stream()
        elif hasattr(stream, "ptr"):
            found = stream
        elif hasattr(stream, "__cuda_stream__"):
            found = cuda.Stream.from_external(stream)
        else:  # an older torch stream, or an address
            found = cuda.Stream.from_external(_Address(int(getattr(stream, "cuda_stream", stream))))
        kept: Stream = found
        return kept

    def empty(self, shape: tuple[int, int], dtype: DTypeLike, stream: Stream) -> DeviceArray:
        try:
            with stream:  # type: ignore[attr-defined]  # CuPy's pool keeps memory by stream
                return self._cupy.empty(shape, dtype)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"device {self.device} has no memory for {shape[0]} x {shape[1]} samples of "
                f"{np.dtype(dtype)}: {error}"
            ) from error

    def upload(self, values: NDArray[Any], stream: Stream) -> DeviceArray:
        with stream:  # type: ignore[attr-defined]
            return self._cupy.asarray(values)

    def download(self, array: DeviceArray, stream: Stream) -> NDArray[Any]:
        with stream:  # type: ignore[attr-defined]
            copied: NDArray[Any] = self._cupy.asnumpy(array)
        return copied

    def release_cached(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._cupy.get_default_memory_pool().free_all_blocks()

    def limit_pool(self, size: int) -> None:
        """Let CuPy's arrays in this process take so many bytes at most."""
        with self._cupy.cuda.Device(self.device):
            self._cupy.get_default_memory_pool().set_limit(size=size)

    def free_bytes(self) -> int:
        return int(self._cupy.cuda.runtime.memGetInfo()[0])


def runtime_of(device: int) -> CupyRuntime:
    """Return the one CupyRuntime of a device.

    Raises:
        BackendUnavailableError: CuPy or the device is not there.
        DeviceError: this process was forked from the one that began to use CUDA.
    """
    made = _runtime(device)
    require_process(made.process)
    return made


@functools.cache
def _runtime(device: int) -> CupyRuntime:
    return CupyRuntime(device)


def require_process(process: int) -> None:
    """Refuse to use CUDA in a child that was forked from the process that began to.

    Raises:
        DeviceError: this is another process.
    """
    if os.getpid() != process:
        raise DeviceError(
            f"CUDA was begun in process {process}, and this one ({os.getpid()}) was forked from "
            "it: CUDA cannot be used here; start workers anew, in a torch DataLoader by "
            "multiprocessing_context='spawn'"
        )


def missing() -> str | None:
    """Return None if CuPy, its compiler and a CUDA device can be used, else what is lacking.

    What is lacking comes with how to get it. It starts the CUDA driver in this process, which must
    not fork afterwards.
    """
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy: {INSTALL}"
    try:
        import cupy
    except OSError as error:  # it makes its folder of compiled kernels while it is imported
        return f"a folder that CuPy can write to ({error}): name one in CUPY_CACHE_DIR, or set HOME"
    except Exception as error:
        return f"CuPy, which cannot be loaded ({_words(error)}): {INSTALL}"
    if not has_device(cupy):
        return no_device(cupy)
    return _compiler_missing(cupy)


@functools.cache
def _compiler_missing(cupy: Any) -> str | None:
    """Return what is lacking for CuPy to compile kernels, which every launch needs, or None."""
    try:
        compiler = int(cupy.cuda.nvrtc.getVersion()[0])
    except Exception as error:  # from CuPy's loader, of a type of its own
        return f"NVRTC, the compiler of CUDA kernels ({_words(error)}): {INSTALL}"
    driver = int(cupy.cuda.runtime.driverGetVersion()) // 1000
    if compiler > driver:
        return (
            f"NVRTC for CUDA {driver}: CuPy takes that of CUDA {compiler}, whose kernels a driver "
            f"of CUDA {driver} does not load; take it out (pip uninstall nvidia-cuda-nvrtc), or "
            "install a newer driver"
        )
    return None


def compiler_note() -> str | None:
    """Return a remark where CuPy, built for one CUDA, compiles by NVRTC of another; else None.

    With NVRTC of both versions installed CuPy takes the newer one, whatever it was built for.
    """
    try:
        import cupy

        compiler = int(cupy.cuda.nvrtc.getVersion()[0])
        built = int(cupy.cuda.driver.get_build_version()) // 1000
    except Exception:
        return None  # `missing` says what is wrong
    if compiler == built:
        return None
    return f"CuPy is built for CUDA {built} and compiles by NVRTC of CUDA {compiler}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def require() -> None:
    """Refuse to go on where there is no CUDA device that can be used.

    Raises:
        BackendUnavailableError: the message says what is missing, and how to get it.
    """
    if (reason := missing()) is not None:
        raise BackendUnavailableError(
            f"device 'cuda' is missing {reason}; device 'auto' takes the CPU where there is no GPU"
        )


def visible_devices() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES must be for a child process to see one device, for each."""
    import cupy

    count = int(cupy.cuda.runtime.getDeviceCount())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if named is None else named.split(",")
    return [name.strip() for name in names[:count]]


@contextlib.contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Turn what CuPy raises where CUDA fails into this package's errors.

    Raises:
        DeviceMemoryError: the device's memory does not suffice.
        DeviceError: CUDA or the driver failed.
    """
    import cupy

    cuda = cupy.cuda
    try:
        yield
    except cuda.memory.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{doing}: the device has no memory left: {error}") from error
    except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
        raise DeviceError(
            f"{doing}: CUDA failed: {error}; a new process may use the GPU again"
        ) from error


def host_copy(array: Any) -> NDArray[Any]:
    """Return an array's values as NumPy's: see `kernels.to_host`.

    Raises:
        DeviceError: CUDA failed, now or before.
    """
    with errors_of(array, "copying from the device"):
        return to_host(array)


def errors_of(array: Any, doing: str) -> contextlib.AbstractContextManager[None]:
    """Return `device_errors` for what is done with an array of a device; nothing for others."""
    return device_errors(doing) if on_device(array) else contextlib.nullcontext()


def settle(error: DecodeError) -> DecodeError:
    """Return what a decoder's error is, once CuPy's current stream was asked whether CUDA is well.

    A library reports a lost device as whatever frame it was at. Its word is believed only where
    the stream's work still comes to its end; no frame is at fault otherwise.

    Raises:
        DeviceError: CUDA has failed for good.
    """
    import cupy

    with device_errors(str(error)):
        cupy.cuda.get_current_stream().synchronize()
    return error
