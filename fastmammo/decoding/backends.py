"""The one table of decoders and the one place that chooses: before decoding, by the codestream.

A backend is a module with NAME, DEVICE, FORMATS, LEVELS, CLAMPS, missing(), refuses(codestream),
version(), decode(data, codestream, level, threads) and pyramid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from fastmammo.decoding import (
    cuda_runtime,
    dali,
    imagecodecs,
    native,
    numba,
    nvimgcodec,
    nvjpeg2000,
    openjpeg,
    pylibjpeg,
)
from fastmammo.errors import BackendUnavailableError, ConfigError, UnsupportedSyntaxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream


class Pyramid(Protocol):
    """One codestream whose levels are decoded one after another, from what is there already."""

    def decode(self, level: int, /) -> NDArray[np.generic]: ...


class Backend(Protocol):
    """What a decoder module offers."""

    NAME: str
    DEVICE: str
    FORMATS: frozenset[str]
    LEVELS: bool
    CLAMPS: bool
    """Whether no value that it gives lies beyond the codestream's precision."""
    pyramid: Callable[[bytes | memoryview, Codestream], Pyramid] | None
    """Opens a codestream to decode several of its levels, where that saves work."""

    def missing(self) -> str | None: ...
    def refuses(self, codestream: Codestream, /) -> str | None: ...
    def version(self) -> str: ...
    def decode(
        self, data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1, /
    ) -> Any:
        """Return a NumPy array; a CuPy array, where DEVICE is "cuda"."""


BACKENDS: Mapping[str, Backend] = {
    module.NAME: cast("Backend", module)
    for module in (
        *(native, numba, openjpeg, imagecodecs, pylibjpeg),
        *(nvjpeg2000, nvimgcodec, dali),
    )
}

PREFERENCE: Mapping[tuple[str, str], tuple[str, ...]] = {
    # (format, device) → backends, the fastest first; figures in bench/results/decode.json.
    ("raw", "cpu"): ("numpy",),
    ("rle", "cpu"): ("imagecodecs",),
    ("jpeg", "cpu"): ("imagecodecs", "pylibjpeg"),
    ("jpeg-lossless", "cpu"): ("numba", "imagecodecs", "pylibjpeg"),
    ("jpeg-ls", "cpu"): ("imagecodecs", "pylibjpeg"),
    ("jpeg2000", "cpu"): ("numba", "openjpeg", "imagecodecs", "pylibjpeg"),
    # OpenJPH is three times as fast as OpenJPEG for the whole frame, but only OpenJPEG's
    # levels are right: it comes first where a level is wanted.
    ("htj2k", "cpu"): ("imagecodecs", "openjpeg", "pylibjpeg"),
    # no figures yet: levels first, then the library that DALI decodes through, then DALI
    ("jpeg", "cuda"): ("nvimgcodec", "dali"),
    ("jpeg-lossless", "cuda"): ("nvimgcodec", "dali"),
    ("jpeg2000", "cuda"): ("nvjpeg2000", "nvimgcodec", "dali"),
    ("htj2k", "cuda"): ("nvjpeg2000", "nvimgcodec", "dali"),
}


DEVICES = ("cpu", "cuda", "auto")


def check_device(device: str) -> None:
    """Refuse what is no device.

    Raises:
        ConfigError: the message says how to choose among several GPUs.
    """
    if device in DEVICES:
        return
    hint = ""
    if isinstance(device, str) and device.startswith("cuda:"):
        hint = f"; to take that GPU set CUDA_VISIBLE_DEVICES={device[5:]} and device to cuda"
    raise ConfigError(f"device: got {device!r}, allowed are {', '.join(DEVICES)}{hint}")


def resolve_device(device: str, backend: str = "auto") -> tuple[str, str]:
    """Return the device that "auto" stands for here, and why it is the CPU where it is, else "".

    Args:
        device: "auto"; others are returned as they are.
        backend: one of the GPU's wants the GPU, whatever the others lack.

    Raises:
        BackendUnavailableError: the backend is one of the GPU's and cannot be used; the message
            says what is missing.
        ConfigError: no such device.
    """
    check_device(device)
    if device != "auto":
        return device, ""
    if backend in BACKENDS and BACKENDS[backend].DEVICE == "cuda":
        if (need := BACKENDS[backend].missing()) is not None:
            raise BackendUnavailableError(
                f"backend {backend!r} decodes on a GPU, and device 'auto' finds none that it can "
                f"use: missing {need}"
            )
        return "cuda", ""
    need = nvjpeg2000.missing()
    if need is None:
        return "cuda", ""
    # a device is told first: who has none looks for no library
    return "cpu", f"auto: missing {cuda_runtime.missing() or need}"


def choose(
    codestream: Codestream, *, device: str = "cpu", backend: str = "auto", levels: bool = False
) -> Backend:
    """Return the backend that decodes this codestream on this device.

    Args:
        device: "cpu" or "cuda". A CPU backend may be asked for by name on both.
        levels: prefer a backend that decodes at 1/2^level, where there is one.

    Raises:
        ConfigError: no backend has that name, or it needs another device.
        UnsupportedSyntaxError: none can decode it; the message has a line for each.
        BackendUnavailableError: one could, but is not installed; the message says how to get it.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r}: allowed are auto, {', '.join(BACKENDS)}")
    if backend != "auto" and device == "cpu" and BACKENDS[backend].DEVICE != "cpu":
        raise ConfigError(f"backend {backend!r} decodes on a GPU, device is 'cpu': wanted 'cuda'")
    names = PREFERENCE.get((codestream.format, device), ())
    if levels:
        names = tuple(sorted(names, key=lambda name: not BACKENDS[name].LEVELS))
    if backend != "auto":
        names = (backend,)
    lines, installable = [], False
    for name in names:
        candidate = BACKENDS[name]
        if codestream.format not in candidate.FORMATS:
            reason: str | None = f"does not decode {codestream.format}"
        else:
            reason = candidate.refuses(codestream)
            if reason is None and (need := candidate.missing()):
                reason, installable = f"not installed: {need}", True
        if reason is None:
            return candidate
        lines.append(f"\n  {name}: {reason}")
    kind = BackendUnavailableError if installable else UnsupportedSyntaxError
    raise kind(
        f"cannot decode {codestream.format} ({codestream.precision} bits) on {device}:"
        + ("".join(lines) or " no backend of this package does; use device 'cpu'")
    )
