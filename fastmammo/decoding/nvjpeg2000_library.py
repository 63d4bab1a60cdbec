"""nvJPEG2000's C API through ctypes: takes the shared library, gives typed calls and named errors.

The structures, signatures and codes are those of nvjpeg2k.h 0.11 (the wheels nvidia-nvjpeg2k-cu12
and -cu13 carry the same header); a test compares them with the header by a C compiler. Calls let go
of the GIL. The library itself needs no GPU to be loaded or to parse; only a decode state does.
"""

from __future__ import annotations

import ctypes as C
import importlib.util
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmammo.decoding.once import once
from fastmammo.errors import (
    BackendUnavailableError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    UnsupportedSyntaxError,
)
from fastmammo.kernels import INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST = (0, 11)
"""The version whose header this is, and whose refusals were tested."""


class Status(IntEnum):
    """nvjpeg2kStatus_t."""

    SUCCESS = 0
    NOT_INITIALIZED = 1
    INVALID_PARAMETER = 2
    BAD_JPEG = 3
    JPEG_NOT_SUPPORTED = 4
    ALLOCATOR_FAILURE = 5
    EXECUTION_FAILED = 6
    ARCH_MISMATCH = 7
    INTERNAL_ERROR = 8
    IMPLEMENTATION_NOT_SUPPORTED = 9


class PixelType(IntEnum):
    """nvjpeg2kImageType_t. The floating types are for codestreams with an NLT marker alone."""

    UINT8 = 0
    UINT16 = 1
    INT16 = 2
    FP16 = 3
    FP32 = 4


class ImageInfo(C.Structure):
    """nvjpeg2kImageInfo_t."""

    _fields_ = tuple(
        (name, C.c_uint32)
        for name in (
            "image_width",
            "image_height",
            "tile_width",
            "tile_height",
            "num_tiles_x",
            "num_tiles_y",
            "num_components",
        )
    )


class ComponentInfo(C.Structure):
    """nvjpeg2kImageComponentInfo_t."""

    _fields_ = (
        ("component_width", C.c_uint32),
        ("component_height", C.c_uint32),
        ("precision", C.c_uint8),
        ("sgn", C.c_uint8),
    )


class Image(C.Structure):
    """nvjpeg2kImage_t: for each component a device pointer and a pitch, both arrays on the host."""

    _fields_ = (
        ("pixel_data", C.POINTER(C.c_void_p)),
        ("pitch_in_bytes", C.POINTER(C.c_size_t)),
        ("pixel_type", C.c_int),
        ("num_components", C.c_uint32),
    )


STRUCTURES: dict[str, type[C.Structure]] = {
    "nvjpeg2kImageInfo_t": ImageInfo,
    "nvjpeg2kImageComponentInfo_t": ComponentInfo,
    "nvjpeg2kImage_t": Image,
}

_HANDLE, _OUT, _U32, _SIZE = C.c_void_p, C.POINTER(C.c_void_p), C.c_uint32, C.c_size_t
_U32_OUT, _SIZE_OUT, _INT_OUT = C.POINTER(_U32), C.POINTER(_SIZE), C.POINTER(C.c_int)

FUNCTIONS: dict[str, list[Any]] = {
    "nvjpeg2kGetProperty": [C.c_int, _INT_OUT],
    "nvjpeg2kGetCudartProperty": [C.c_int, _INT_OUT],
    "nvjpeg2kCreateSimple": [_OUT],
    "nvjpeg2kDestroy": [_HANDLE],
    "nvjpeg2kSetDeviceMemoryPadding": [_SIZE, _HANDLE],
    "nvjpeg2kGetDeviceMemoryPadding": [_SIZE_OUT, _HANDLE],
    "nvjpeg2kSetPinnedMemoryPadding": [_SIZE, _HANDLE],
    "nvjpeg2kGetPinnedMemoryPadding": [_SIZE_OUT, _HANDLE],
    "nvjpeg2kDecodeStateCreate": [_HANDLE, _OUT],
    "nvjpeg2kDecodeStateDestroy": [_HANDLE],
    "nvjpeg2kStreamCreate": [_OUT],
    "nvjpeg2kStreamDestroy": [_HANDLE],
    # handle, data, length, two reserved numbers (0), stream
    "nvjpeg2kStreamParse": [_HANDLE, C.c_void_p, _SIZE, C.c_int, C.c_int, _HANDLE],
    "nvjpeg2kStreamGetImageInfo": [_HANDLE, C.POINTER(ImageInfo)],
    "nvjpeg2kStreamGetImageComponentInfo": [_HANDLE, C.POINTER(ComponentInfo), _U32],
    "nvjpeg2kStreamGetResolutionsInTile": [_HANDLE, _U32, _U32_OUT],
    # stream, component, tile, resolution (0 the smallest), width, height
    "nvjpeg2kStreamGetResolutionComponentDim": [_HANDLE, _U32, _U32, _U32, _U32_OUT, _U32_OUT],
    "nvjpeg2kDecodeParamsCreate": [_OUT],
    "nvjpeg2kDecodeParamsDestroy": [_HANDLE],
    # params, start x, end x, start y, end y
    "nvjpeg2kDecodeParamsSetDecodeArea": [_HANDLE, _U32, _U32, _U32, _U32],
    # handle, state, stream, params or None, image, CUDA stream
    "nvjpeg2kDecodeImage": [_HANDLE, _HANDLE, _HANDLE, _HANDLE, C.POINTER(Image), _HANDLE],
    # handle, state, stream, params or None, tile, resolutions (0 all), image, CUDA stream
    "nvjpeg2kDecodeTile": [
        *(_HANDLE, _HANDLE, _HANDLE, _HANDLE, _U32, _U32, C.POINTER(Image), _HANDLE)
    ],
}
"""Every function that this package calls, all returning nvjpeg2kStatus_t."""

_ERRORS: dict[Status, tuple[type[DecodeError], str]] = {
    Status.NOT_INITIALIZED: (DecodeError, "a handle was not made, or is destroyed already"),
    Status.INVALID_PARAMETER: (DecodeError, "a parameter it does not allow"),
    Status.BAD_JPEG: (CorruptCodestreamError, "it cannot read the codestream, which is damaged"),
    Status.JPEG_NOT_SUPPORTED: (
        UnsupportedSyntaxError,
        "it does not decode this kind of codestream; use a CPU backend",
    ),
    Status.ALLOCATOR_FAILURE: (
        DeviceMemoryError,
        "device or pinned memory could not be had; use fewer states, or leave it more memory",
    ),
    Status.EXECUTION_FAILED: (DeviceError, "the GPU did not carry out its work"),
    Status.ARCH_MISMATCH: (
        BackendUnavailableError,
        "this GPU is too old for it; use device 'cpu'",
    ),
    Status.INTERNAL_ERROR: (DecodeError, "an error inside the library"),
    Status.IMPLEMENTATION_NOT_SUPPORTED: (
        UnsupportedSyntaxError,
        "this version of the library lacks the call; install a newer nvidia-nvjpeg2k",
    ),
}


def error_of(status: int, call: str) -> DecodeError:
    """Return the error that a status other than SUCCESS means, its name in the message."""
    try:
        known = Status(status)
    except ValueError:
        return DecodeError(f"nvJPEG2000: {call} gave status {status}, which 0.11 does not have")
    kind, meaning = _ERRORS[known]
    return kind(f"nvJPEG2000: {call} gave {known.name} ({status}): {meaning}")


class Library:
    """The loaded library: `library("StreamParse", ...)` calls nvjpeg2kStreamParse.

    A status other than SUCCESS is raised as the error that `error_of` gives for it.
    """

    def __init__(self, path: str | Path) -> None:
        """Load the library and type its functions.

        Raises:
            OSError: it cannot be loaded.
            AttributeError: it lacks a function: too old.
        """
        self.path = Path(path)
        loaded = C.CDLL(str(path))
        self._functions: dict[str, Any] = {}
        for name, arguments in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = C.c_int, arguments
            self._functions[name.removeprefix("nvjpeg2k")] = function

    def __call__(self, call: str, *arguments: Any) -> None:
        status = self._functions[call](*arguments)
        if status:
            raise error_of(status, f"nvjpeg2k{call}")

    def quietly(self, call: str, *arguments: Any) -> int:
        """Call and return the status: where something is given up and nothing can be done."""
        status: int = self._functions[call](*arguments)
        return status

    def new(self, call: str, *arguments: Any) -> C.c_void_p:
        """Return the object that a ...Create call makes."""
        made = C.c_void_p()
        self(call, *arguments, C.byref(made))
        return made

    def number(self, call: str, *arguments: Any) -> int:
        """Return the one uint32 that a query gives."""
        found = C.c_uint32()
        self(call, *arguments, C.byref(found))
        return found.value

    def release(self, call: str = "GetProperty") -> tuple[int, ...]:
        """Return (major, minor, patch) of the library, or of its CUDA (GetCudartProperty)."""
        parts = []
        for which in range(3):  # libraryPropertyType: MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
            value = C.c_int()
            self(call, which, C.byref(value))
            parts.append(value.value)
        return tuple(parts)

    def version(self) -> str:
        """Return "0.11.0 for CUDA 12.9.0": the library's version and what it was built with."""
        own, cuda = self.release(), self.release("GetCudartProperty")
        return f"{'.'.join(map(str, own))} for CUDA {'.'.join(map(str, cuda))}"


@once
def find_library() -> Library:
    """Return the library of the installed wheel, else the one on the loader's path.

    Raises:
        BackendUnavailableError: none, or none that is new enough.
    """
    tried = []
    for path in _candidates():
        try:
            library = Library(path)
        except (OSError, AttributeError) as error:
            tried.append(f"{path}: {error}")
            continue
        # 0.10 still takes what 0.11 refuses (wide code-blocks): `refuses` was tested with 0.11.
        if library.release() >= OLDEST:
            return library
        tried.append(f"{path}: version {'.'.join(map(str, library.release()))}")
    raise BackendUnavailableError(
        f"nvJPEG2000: no usable library (0.11 or newer): {INSTALL}; tried {'; '.join(tried)}"
    )


def _candidates() -> Iterator[Path | str]:
    """Yield where the shared library may lie: the wheel's folder, then the loader's path."""
    try:
        spec = importlib.util.find_spec("nvidia.nvjpeg2k")
    except ImportError:  # no package `nvidia` at all
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted((Path(folder) / "lib").glob("libnvjpeg2k.so*"), reverse=True)
    yield from ("libnvjpeg2k.so.0", "libnvjpeg2k.so")
