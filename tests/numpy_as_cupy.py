"""NumPy under CuPy's name, so that the device's branches run where there is no device."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pytest

STREAM = 4711
"""The pointer of the current stream."""


class Array(np.ndarray):
    """An array that counts as a device's: what lies on the host is plainly an ndarray."""


class Device:
    def __init__(self, number: int = 0) -> None:
        self.id = number

    def use(self) -> None: ...

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...


class OutOfMemoryError(MemoryError): ...


class RuntimeFailure(RuntimeError): ...


class DriverFailure(RuntimeError): ...


def install(monkeypatch: pytest.MonkeyPatch, *, available: bool = True) -> SimpleNamespace:
    """Make `import cupy` give this stand-in. The real one is a different type from ndarray too.

    Returns:
        What can be told it: `lost`, whether the device is.
    """
    told = SimpleNamespace(lost=False, synchronized=0)

    def synchronize() -> None:
        told.synchronized += 1
        if told.lost:
            raise RuntimeFailure("cudaErrorIllegalAddress: an illegal memory access")

    def device(values: object) -> np.ndarray:
        return np.asarray(values).view(Array)

    stream = SimpleNamespace(ptr=STREAM, synchronize=synchronize)
    cupy = ModuleType("cupy")
    cupy.__spec__ = SimpleNamespace(name="cupy")  # type: ignore[assignment]
    cupy.__dict__.update(
        is_available=lambda: available,
        ndarray=Array,
        asarray=device,
        array=lambda values, order="C": np.array(values, order=order).view(Array),
        asnumpy=lambda values: np.array(values),
        stack=lambda arrays: np.stack([np.asarray(a) for a in arrays]).view(Array),
        cuda=SimpleNamespace(
            Device=Device,
            get_current_stream=lambda: stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=RuntimeFailure,
                driverGetVersion=lambda: 13000,
                runtimeGetVersion=lambda: 13000,
                getDeviceCount=lambda: int(available),
                getDevice=lambda: 0,
            ),
            driver=SimpleNamespace(CUDADriverError=DriverFailure, get_build_version=lambda: 13000),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return told
