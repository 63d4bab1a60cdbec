"""NVIDIA's libraries and the CUDA device: which are there, of which version, how to get them.

Nothing here needs a GPU: nvImageCodec, nvJPEG and nvJPEG2000 load, and tell their versions, without
one.
"""

from __future__ import annotations

import ctypes as C
import functools
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmammo.decoding.once import once
from fastmammo.errors import BackendUnavailableError
from fastmammo.kernels import INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterator

NVIMGCODEC = (0, 9)
"""The (major, minor) version of nvImageCodec whose interface this package uses."""

_PROPERTIES = 3  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of library_types.h


@once
def nvimgcodec() -> Any:
    """Return the module nvidia.nvimgcodec.

    Raises:
        BackendUnavailableError: it is not installed, does not load, or is of another version.
    """
    try:
        module = importlib.import_module("nvidia.nvimgcodec")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"nvImageCodec ({error}): {INSTALL}") from error
    found = str(module.__version__)
    if not found.startswith(f"{dotted(NVIMGCODEC)}."):
        raise BackendUnavailableError(
            f"nvImageCodec {found} is installed, wanted {dotted(NVIMGCODEC)}: {INSTALL}"
        )
    return module


def nvjpeg_version() -> tuple[int, ...] | None:
    """Return the version of the nvJPEG that nvImageCodec takes, or None where there is none.

    Raises:
        BackendUnavailableError: there is no usable nvImageCodec.
    """
    library = companion("nvjpeg")
    return None if library is None else _version(library, "nvjpeg")


def companion(name: str) -> C.CDLL | None:
    """Return the "nvjpeg" or "nvjpeg2k" that nvImageCodec takes, or None where there is none.

    Raises:
        BackendUnavailableError: there is no usable nvImageCodec.
    """
    module = nvimgcodec()
    return _load(name, int(module.__cuda_version__) // 1000, str(module.__file__))


def dotted(version: tuple[int, ...]) -> str:
    """Return a version as it is written: 13.0.2."""
    return ".".join(map(str, version))


@functools.cache
def _load(name: str, cuda: int, beside: str) -> C.CDLL | None:
    file = f"lib{name}.so.{cuda if name == 'nvjpeg' else 0}"
    for candidate, mode in _candidates(name, file, cuda, Path(beside).parent.parent):
        try:
            return C.CDLL(str(candidate), mode=mode)
        except OSError:
            continue
    return None


def _candidates(name: str, file: str, cuda: int, root: Path) -> Iterator[tuple[Path | str, int]]:
    """Yield where dlopen looks, in its order: loaded, LD_LIBRARY_PATH, the wheels, the system."""
    yield file, os.RTLD_NOLOAD | os.RTLD_NOW
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder) / file, C.DEFAULT_MODE
    for folder in (name, f"cu{cuda}"):
        yield root / folder / "lib" / file, C.DEFAULT_MODE
    yield Path("/usr/local/cuda/lib64") / file, C.DEFAULT_MODE
    yield file, C.DEFAULT_MODE


def _version(library: C.CDLL, name: str) -> tuple[int, ...]:
    found = []
    for which in range(_PROPERTIES):
        value = C.c_int(0)
        status = getattr(library, f"{name}GetProperty")(which, C.byref(value))
        found.append(value.value if status == 0 else 0)
    return tuple(found)
