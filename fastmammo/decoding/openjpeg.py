"""OpenJPEG through its C API: JPEG 2000 and HTJ2K at any level, from memory, without the GIL.

The library is the one that imagecodecs or Pillow already carry in their wheels, or the system's:
no compiler is needed. Their own Python functions give no levels; the C API does.
"""

from __future__ import annotations

import ctypes as C
import ctypes.util
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import BackendUnavailableError, CorruptCodestreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream

NAME = "openjpeg"
DEVICE = "cpu"
FORMATS = frozenset({"jpeg2000", "htj2k"})
LEVELS = True
CLAMPS = True
pyramid = None


class _Component(C.Structure):
    _fields_ = (
        *((name, C.c_uint32) for name in ("dx", "dy", "w", "h", "x0", "y0", "prec", "bpp")),
        *((name, C.c_uint32) for name in ("sgnd", "resno_decoded", "factor")),
        ("data", C.POINTER(C.c_int32)),
        ("alpha", C.c_uint16),
    )


class _Image(C.Structure):
    _fields_ = (
        *((name, C.c_uint32) for name in ("x0", "y0", "x1", "y1", "numcomps")),
        ("color_space", C.c_int32),
        ("comps", C.POINTER(_Component)),
        ("icc_profile_buf", C.c_void_p),
        ("icc_profile_len", C.c_uint32),
    )


_READ = C.CFUNCTYPE(C.c_size_t, C.c_void_p, C.c_size_t, C.c_void_p)
_SKIP = C.CFUNCTYPE(C.c_int64, C.c_int64, C.c_void_p)
_SEEK = C.CFUNCTYPE(C.c_int32, C.c_int64, C.c_void_p)
_MESSAGE = C.CFUNCTYPE(None, C.c_char_p, C.c_void_p)

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "opj_version": (C.c_char_p, []),
    "opj_create_decompress": (C.c_void_p, [C.c_int]),
    "opj_set_default_decoder_parameters": (None, [C.c_void_p]),
    "opj_setup_decoder": (C.c_int32, [C.c_void_p, C.c_void_p]),
    "opj_decoder_set_strict_mode": (C.c_int32, [C.c_void_p, C.c_int32]),
    "opj_codec_set_threads": (C.c_int32, [C.c_void_p, C.c_int]),
    "opj_set_error_handler": (C.c_int32, [C.c_void_p, _MESSAGE, C.c_void_p]),
    "opj_stream_create": (C.c_void_p, [C.c_size_t, C.c_int32]),
    "opj_stream_set_user_data": (None, [C.c_void_p, C.c_void_p, C.c_void_p]),
    "opj_stream_set_user_data_length": (None, [C.c_void_p, C.c_uint64]),
    "opj_stream_set_read_function": (None, [C.c_void_p, _READ]),
    "opj_stream_set_skip_function": (None, [C.c_void_p, _SKIP]),
    "opj_stream_set_seek_function": (None, [C.c_void_p, _SEEK]),
    "opj_read_header": (C.c_int32, [C.c_void_p, C.c_void_p, C.POINTER(C.POINTER(_Image))]),
    "opj_set_decoded_resolution_factor": (C.c_int32, [C.c_void_p, C.c_uint32]),
    "opj_decode": (C.c_int32, [C.c_void_p, C.c_void_p, C.POINTER(_Image)]),
    "opj_end_decompress": (C.c_int32, [C.c_void_p, C.c_void_p]),
    "opj_stream_destroy": (None, [C.c_void_p]),
    "opj_destroy_codec": (None, [C.c_void_p]),
    "opj_image_destroy": (None, [C.POINTER(_Image)]),
}

_PARAMETERS_SIZE = 1 << 16
"""More than opj_dparameters_t has in any version (8,308 bytes in 2.5): it need not be declared."""


def missing() -> str | None:
    """Return None if the backend is usable, else what it lacks and how to get it."""
    try:
        _library()
    except BackendUnavailableError as error:
        return str(error)
    return None


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.precision > 16:
        return f"{codestream.precision} bits a sample, 16 at most"
    if codestream.subsampling != (1, 1):
        return "subsampled components"
    return None


def version() -> str:
    library, path = _library()
    text: bytes = library.opj_version()
    return f"OpenJPEG {text.decode()} ({path.name})"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> NDArray[np.generic]:
    """Return the samples at 1/2^level as the codestream's own type.

    Returns:
        (ceil(rows / 2^level), ceil(columns / 2^level)) uint8, int8, uint16 or int16, clamped to the
        codestream's precision by the codec.

    Raises:
        CorruptCodestreamError: the library refused the bytes; its own words are in the message.
    """
    library, _ = _library()
    start = codestream.offset
    view = memoryview(data)[start : start + codestream.length]
    source = np.frombuffer(view, np.uint8)
    size, base, position = len(view), source.ctypes.data, 0

    def read(buffer: int, wanted: int, _: int | None) -> int:
        nonlocal position
        count = min(wanted, size - position)
        if count <= 0:
            return C.c_size_t(-1).value
        C.memmove(buffer, base + position, count)
        position += count
        return count

    def skip(count: int, _: int | None) -> int:
        nonlocal position
        if count < 0 or position + count > size:
            return -1
        position += count
        return count

    def seek(target: int, _: int | None) -> int:
        nonlocal position
        if not 0 <= target <= size:
            return 0
        position = target
        return 1

    words: list[str] = []
    callbacks = _READ(read), _SKIP(skip), _SEEK(seek)
    on_error = _MESSAGE(lambda text, _: words.append(text.decode(errors="replace").strip()))
    codec = library.opj_create_decompress(0)  # OPJ_CODEC_J2K: boxes have been taken off
    stream = library.opj_stream_create(max(size, 1), 1)
    image = C.POINTER(_Image)()
    try:
        library.opj_set_error_handler(codec, on_error, None)
        parameters = C.create_string_buffer(_PARAMETERS_SIZE)
        library.opj_set_default_decoder_parameters(parameters)
        library.opj_stream_set_user_data(stream, None, None)
        library.opj_stream_set_user_data_length(stream, size)
        library.opj_stream_set_read_function(stream, callbacks[0])
        library.opj_stream_set_skip_function(stream, callbacks[1])
        library.opj_stream_set_seek_function(stream, callbacks[2])
        done = (
            library.opj_setup_decoder(codec, parameters)
            # Not strict would fill what a truncated stream lacks with grey, and call it decoded.
            and library.opj_decoder_set_strict_mode(codec, 1)
            and (threads <= 1 or library.opj_codec_set_threads(codec, threads))
            and library.opj_read_header(stream, codec, C.byref(image))
            and library.opj_set_decoded_resolution_factor(codec, level)
            and library.opj_decode(codec, stream, image)
        )
        if not done:
            raise CorruptCodestreamError(
                f"OpenJPEG refused the codestream ({size} bytes, level {level}): "
                f"{'; '.join(words) or 'no reason given'}"
            )
        return _samples(image, codestream, level)
    finally:
        if image:
            library.opj_image_destroy(image)
        library.opj_stream_destroy(stream)
        library.opj_destroy_codec(codec)


def _samples(image: Any, codestream: Codestream, level: int) -> NDArray[np.generic]:
    component = image[0].comps[0]
    scale = 1 << level
    wanted = -(-codestream.rows // scale), -(-codestream.columns // scale)
    if not component.data or (component.h, component.w) != wanted:
        raise CorruptCodestreamError(
            f"OpenJPEG gave {component.h} x {component.w} samples at level {level}, "
            f"wanted {wanted[0]} x {wanted[1]}"
        )
    values = np.ctypeslib.as_array(component.data, wanted)
    kind = ("int" if codestream.signed else "uint") + ("8" if codestream.precision <= 8 else "16")
    return values.astype(kind)


@functools.cache
def _library() -> tuple[C.CDLL, Path]:
    tried = []
    for path in _candidates():
        try:
            library = C.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            tried.append(f"{path}: {error}")
            continue
        return library, Path(path)
    raise BackendUnavailableError(
        "no usable libopenjp2 (2.5 or newer): install imagecodecs or Pillow from their wheels "
        f"(pip install imagecodecs), or the system's libopenjp2; tried {tried or 'nothing'}"
    )


def _candidates() -> Iterator[Path | str]:
    """Yield where the shared library may lie, the newest kept first."""
    for package, folders in (
        ("imagecodecs", ("imagecodecs.libs", "imagecodecs/.dylibs")),
        ("PIL", ("pillow.libs", "PIL/.dylibs")),
    ):
        for root in map(Path, sys.path):
            if (root / package).is_dir():
                for folder in folders:
                    yield from sorted((root / folder).glob("libopenjp2*"), reverse=True)
    if found := ctypes.util.find_library("openjp2"):
        yield found
