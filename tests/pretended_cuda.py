"""A CUDA device that is not there: CuPy over host memory, kernels by g++, the CPU's decoders."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cuda_on_cpu import HostArray, HostCupy

from fastmammo.decoding import (
    BACKENDS,
    choose,
    cuda_runtime,
    dali,
    nvidia_libraries,
    nvimgcodec,
    nvjpeg2000,
    nvjpeg2000_state,
)
from fastmammo.kernels import gpu
from fastmammo.preprocess import device, device_memory

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Array(HostArray):
    """An array that says it is a device's."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.__array_interface__, "version": 3}


class OutOfMemoryError(MemoryError): ...


class RuntimeFailure(RuntimeError): ...


class DriverFailure(RuntimeError): ...


class Event:
    def __init__(self, **_: Any) -> None:
        self.done = True

    def synchronize(self) -> None: ...


class Stream:
    """A stream whose work is done at once; it notes what was asked of it."""

    def __init__(self, cuda: PretendedCuda, *, non_blocking: bool = True) -> None:
        self.cuda = cuda
        self.ptr = len(cuda.streams) + 1
        cuda.streams.append(self)
        self.waits: list[Event] = []
        self.records: list[Event] = []
        self.synchronized = 0

    def record(self, event: Event) -> Event:
        self.records.append(event)
        return event

    def wait_event(self, event: Event) -> None:
        self.waits.append(event)

    def synchronize(self) -> None:
        self.synchronized += 1
        if self.cuda.lost:
            raise RuntimeFailure("cudaErrorIllegalAddress: an illegal memory access")

    def __enter__(self) -> Stream:
        self.cuda.stack().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.cuda.stack().pop() is self


class Device:
    """A device by its number: which one is current is each thread's own affair, as in CUDA."""

    attributes: ClassVar = {"MultiProcessorCount": 2}

    def __init__(self, cuda: PretendedCuda, number: int = 0) -> None:
        self.cuda, self.id = cuda, number

    def use(self) -> None:
        self.cuda.local.device = self.id

    def __enter__(self) -> Device:
        self.before = self.cuda.cuda.runtime.getDevice()
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        self.cuda.local.device = self.before


class PretendedCuda(HostCupy):
    """As much of CuPy as the package uses."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.streams: list[Stream] = []
        self.local = threading.local()
        self.one_at_a_time = threading.Lock()
        self.caller = Stream(self)
        self.lost = False
        self.full: Any = lambda shape, kind: False
        self.launched: list[str] = []
        self.released = 0
        self.limits: list[int] = []
        self.devices = 1
        self.ndarray = Array
        properties = {"name": b"Pretended GPU", "totalGlobalMem": 1 << 34}
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDevice=lambda: self.local.__dict__.setdefault("device", 0),
                getDeviceCount=lambda: self.devices,
                getDeviceProperties=lambda index: properties,
                driverGetVersion=lambda: 13000,
                memGetInfo=lambda: (1 << 33, 1 << 34),
                CUDARuntimeError=RuntimeFailure,
            ),
            driver=SimpleNamespace(CUDADriverError=DriverFailure, get_build_version=lambda: 13000),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=functools.partial(Device, self),
            Stream=functools.partial(Stream, self),
            Event=Event,
            get_current_stream=lambda: self.stack()[-1],
        )

    def stack(self) -> list[Stream]:
        return self.local.__dict__.setdefault("streams", [self.caller])

    def _made(self, array: Any) -> Array:
        array = np.array(array)
        if self.full(array.shape, array.dtype):
            raise OutOfMemoryError(f"out of memory allocating {array.nbytes} bytes")
        return array.view(Array)

    def empty(self, shape: Any, kind: Any) -> Any:
        return self._made(np.full(shape, 77, kind))

    def zeros(self, shape: Any, kind: Any) -> Any:
        return self._made(np.zeros(shape, kind))

    def asarray(self, array: Any) -> Any:
        return self._made(array)

    def ascontiguousarray(self, array: Any) -> Any:
        return self._made(np.ascontiguousarray(array))

    def stack_(self, arrays: Any) -> Any:
        return self._made(np.stack([np.asarray(a) for a in arrays]))

    def asnumpy(self, array: Any) -> np.ndarray:
        return np.array(array, subok=False)

    def get_default_memory_pool(self) -> Any:
        def free() -> None:
            self.released += 1

        limit = self.limits.append
        return SimpleNamespace(free_all_blocks=free, set_limit=lambda *, size: limit(size))

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        with self.one_at_a_time:  # the kernels' program keeps the block at hand in globals
            self.launched.append(name)
            super()._call(name, *arguments, **options)


class Flight:
    """In the place of frames_in_flight.Decoder: frames decoded in threads, in any order."""

    made: list[Flight]

    def __init__(self, *, device: int, states: int, budget_bytes: int | None) -> None:
        self.settings = device, states, budget_bytes
        self.pool = ThreadPoolExecutor(states)
        self.dead = False
        self.decoded = 0
        Flight.made.append(self)

    def submit(self, request: Any, *, stream: Any = None) -> Future[Any]:
        self.decoded += 1
        return self.pool.submit(nvjpeg2000.decode, request.data, request.codestream, request.level)


def install(monkeypatch: pytest.MonkeyPatch, library: Path) -> PretendedCuda:
    """Make one CUDA device with every GPU backend, until the test ends."""
    made = PretendedCuda(library)
    cupy = ModuleType("cupy")
    cupy.__spec__ = SimpleNamespace(name="cupy")  # type: ignore[assignment]
    names = ("is_available", "empty", "zeros", "asarray", "ascontiguousarray", "asnumpy")
    cupy.__dict__.update({name: getattr(made, name) for name in names})
    cupy.__dict__.update(
        ndarray=Array,
        stack=made.stack_,
        RawModule=made.RawModule,
        cuda=made.cuda,
        get_default_memory_pool=made.get_default_memory_pool,
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpu, "_cupy", lambda: cupy)
    for name in ("_kernel", "_module", "_multiprocessors"):
        monkeypatch.setattr(gpu, name, functools.cache(getattr(gpu, name).__wrapped__))
    monkeypatch.setattr(cuda_runtime, "_runtime", functools.cache(cuda_runtime.CupyRuntime))
    monkeypatch.setattr(device_memory, "_streams", {})
    Flight.made = []
    monkeypatch.setattr(device, "Decoder", Flight)

    def decode(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Array:
        backend = choose(codestream, levels=level > 0)
        return made._made(backend.decode(data, codestream, level, threads))

    def refuses_levels(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Array:
        assert level == 0
        return decode(data, codestream)

    def levels(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Array:
        assert nvjpeg2000_state.shape_of(codestream, level)
        return decode(data, codestream, level)

    for module in (nvjpeg2000, nvimgcodec, dali):
        assert BACKENDS[module.NAME] is module
        monkeypatch.setattr(module, "missing", lambda: None)
        monkeypatch.setattr(module, "version", lambda: "pretended")
    monkeypatch.setattr(nvjpeg2000, "decode", levels)
    monkeypatch.setattr(nvimgcodec, "decode", refuses_levels)
    monkeypatch.setattr(dali, "decode", refuses_levels)
    # the libraries of CUDA 13, whatever is installed
    monkeypatch.setattr(nvidia_libraries, "companion", lambda name: object())
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: (13, 0, 2))
    return made
