"""What `fastmammo doctor` says of each part of the way on the GPU: whether it is there and loads.

None of them needs a device for that, nor another of them, but where CuPy loads it is the one that
tells of NVRTC.
"""

from __future__ import annotations

import ctypes as C
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmammo.decoding import nvidia_libraries, nvimgcodec, nvjpeg2000
from fastmammo.decoding.nvidia_checks import NVJPEG_FIXED
from fastmammo.decoding.nvidia_libraries import dotted
from fastmammo.errors import BackendUnavailableError
from fastmammo.kernels import INSTALL, dotted_cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

UNTRIED = "the GPU path has not been run on a GPU yet"
"""The one caveat, wherever the GPU is offered."""

NAMES = {
    "driver": "NVIDIA's driver",
    "cupy": "CuPy",
    "nvrtc": "NVRTC",
    "nvjpeg2000": "nvJPEG2000",
    "nvimgcodec": "nvImageCodec",
    "dali": "DALI",
}

Part = dict[str, str | None]


def gpu_parts() -> dict[str, Part]:
    """Return for each of `NAMES` its "version", or what is "missing" and how to get it."""
    found: dict[str, Part] = {}
    for name, tell in (
        ("driver", _driver),
        ("cupy", _cupy),
        ("nvrtc", _nvrtc),
        ("nvjpeg2000", nvjpeg2000.version),
        ("nvimgcodec", _nvimgcodec),
        ("dali", _dali),
    ):
        try:
            # the part's name stands beside it anyway
            told = tell().removeprefix(f"{NAMES[name]} ")
            found[name] = {"version": told, "missing": None}
        except BackendUnavailableError as error:
            need = str(error).removeprefix(f"{NAMES[name]}: ")
            found[name] = {"version": None, "missing": need}
        except Exception as error:  # a library's own failure is what is asked for here
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            found[name] = {"version": None, "missing": f"cannot be loaded ({words})"}
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """Return a line for each part, the device, and how to get what is missing.

    Args:
        found: "cuda" of `doctor.diagnose`.
    """
    told = [f"GPU ({UNTRIED}):"]
    hint = False
    for name, part in found["parts"].items():
        if part["missing"] is None:
            told.append(f"  {NAMES[name]}: {part['version']}")
            continue
        hint |= INSTALL in part["missing"]
        need = part["missing"].replace(f": {INSTALL}", "").replace(INSTALL, "not installed")
        told.append(f"  {NAMES[name]}: missing: {need}")
    if found["devices"]:
        told += [f"  device {index}: {name}" for index, name in enumerate(found["devices"])]
    else:
        lacking = found["missing"].get("device", "").replace(f": {INSTALL}", "")
        told.append(f"  device: none that can be used: cuda lacks {lacking}")
    visible = found["cuda_visible_devices"]
    told += [f"  CUDA_VISIBLE_DEVICES: {visible!r}"] if visible is not None else []
    told += [f"  remark: {remark}" for remark in found["remarks"]]
    told += [f"  what is missing is installed by: {INSTALL}"] if hint else []
    return told


def _installed(module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # not even the package `nvidia`
        found = None
    if found is None and module not in sys.modules:
        raise BackendUnavailableError(INSTALL)


def _driver() -> str:
    try:
        library = C.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendUnavailableError(
            f"no driver on this machine ({error}); it comes with no pip package"
        ) from error
    version, count, name = C.c_int(), C.c_int(), C.c_char_p()
    library.cuDriverGetVersion(C.byref(version))
    told = f"for CUDA {dotted_cuda(version.value)}"
    status = library.cuInit(0)
    if status == 0:
        library.cuDeviceGetCount(C.byref(count))
        return f"{told}, devices: {count.value}"
    library.cuGetErrorName(status, C.byref(name))
    return f"{told}, which gives no device: {(name.value or b'error').decode()} ({status})"


def _cupy() -> str:
    _installed("cupy")
    cupy = importlib.import_module("cupy")
    return str(getattr(cupy, "__version__", "of no version"))


def _nvrtc() -> str:
    if importlib.util.find_spec("cupy") is not None:
        try:
            nvrtc = importlib.import_module("cupy").cuda.nvrtc
        except (ImportError, OSError):
            pass  # CuPy does not load: that is said of CuPy
        else:
            return dotted(tuple(nvrtc.getVersion()))
    tried = []
    for path in _nvrtc_paths():
        try:
            library = C.CDLL(str(path))
        except OSError as error:
            tried.append(str(error))
            continue
        major, minor = C.c_int(), C.c_int()
        library.nvrtcVersion(C.byref(major), C.byref(minor))
        return f"{major.value}.{minor.value}"
    raise BackendUnavailableError(f"{'; '.join(tried[-2:])}: {INSTALL}")


def _nvrtc_paths() -> Iterator[Path | str]:
    """Yield where NVRTC may lie: the wheels of CUDA 13 and 12, then the loader's path."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        for part, cuda in (("cu13", 13), ("cuda_nvrtc", 12)):
            path = Path(folder) / part / "lib" / f"libnvrtc.so.{cuda}"
            if path.exists():
                yield path
    yield from ("libnvrtc.so.13", "libnvrtc.so.12")


def _nvimgcodec() -> str:
    _installed("nvidia.nvimgcodec")
    told = nvimgcodec.version()
    nvjpeg = nvidia_libraries.nvjpeg_version()
    if nvjpeg is not None and nvjpeg < NVJPEG_FIXED:
        told += (
            f"; lossless JPEG of 9 to 15 bits goes to the CPU: nvJPEG before "
            f"{dotted(NVJPEG_FIXED)}, as all of CUDA 12, decodes it to zeros"
        )
    return told


def _dali() -> str:
    _installed("nvidia.dali")
    return str(importlib.import_module("nvidia.dali").__version__)


def visible_devices() -> str | None:
    """Return what CUDA_VISIBLE_DEVICES is, or None where it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
