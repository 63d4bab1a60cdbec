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


def install(monkeypatch: pytest.MonkeyPatch, *, available: bool = True) -> None:
    """Make `import cupy` give this stand-in. The real one is a different type from ndarray too."""

    def device(values: object) -> np.ndarray:
        return np.asarray(values).view(Array)

    stream = SimpleNamespace(ptr=STREAM, synchronize=lambda: None)
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
            Device=lambda: SimpleNamespace(id=0), get_current_stream=lambda: stream
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
