"""Takes a frame, gives a JPEG 2000 codestream with the tiles, levels and precision that were asked.

The encoders with a Python face choose for the caller: one writes no tiles and cuts the levels of a
small frame, the other has always five levels. A test needs to choose, so this module speaks to the
C API of libopenjp2 2.x, which the wheels of imagecodecs and Pillow carry.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRESSIONS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")

_INT, _FLOAT, _VOID = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_POC_BYTES = 148
_J2K, _JP2, _GREY = 0, 2, 2


class _Parameters(ctypes.Structure):
    """The head of `opj_cparameters_t` (openjpeg.h, 2.x); `reserved` stands for the rest of it."""

    _fields_ = (
        ("tile_size_on", _INT),
        ("cp_tx0", _INT),
        ("cp_ty0", _INT),
        ("cp_tdx", _INT),
        ("cp_tdy", _INT),
        ("cp_disto_alloc", _INT),
        ("cp_fixed_alloc", _INT),
        ("cp_fixed_quality", _INT),
        ("cp_matrice", _VOID),
        ("cp_comment", _VOID),
        ("csty", _INT),
        ("prog_order", _INT),
        ("poc", (ctypes.c_char * _POC_BYTES) * 32),
        ("numpocs", ctypes.c_uint),
        ("tcp_numlayers", _INT),
        ("tcp_rates", _FLOAT * 100),
        ("tcp_distoratio", _FLOAT * 100),
        ("numresolution", _INT),
        ("cblockw_init", _INT),
        ("cblockh_init", _INT),
        ("mode", _INT),
        ("irreversible", _INT),
        ("reserved", ctypes.c_char * 32768),
    )


class _ComponentParameters(ctypes.Structure):
    """`opj_image_cmptparm_t`."""

    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("dx", "dy", "w", "h", "x0", "y0", "prec", "bpp", "sgnd")
    )


class _Component(ctypes.Structure):
    """`opj_image_comp_t`."""

    _fields_ = (
        *_ComponentParameters._fields_,
        ("resno_decoded", ctypes.c_uint32),
        ("factor", ctypes.c_uint32),
        ("data", ctypes.POINTER(ctypes.c_int32)),
        ("alpha", ctypes.c_uint16),
    )


class _Image(ctypes.Structure):
    """`opj_image_t`."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("x0", "y0", "x1", "y1", "numcomps")),
        ("color_space", _INT),
        ("comps", ctypes.POINTER(_Component)),
        ("icc_profile_buf", _VOID),
        ("icc_profile_len", ctypes.c_uint32),
    )


_WRITE = ctypes.CFUNCTYPE(ctypes.c_size_t, _VOID, ctypes.c_size_t, _VOID)
_SKIP = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, _VOID)
_SEEK = ctypes.CFUNCTYPE(_INT, ctypes.c_int64, _VOID)
_MESSAGE = ctypes.CFUNCTYPE(None, ctypes.c_char_p, _VOID)


def encode_jpeg2000(
    pixels: NDArray[Any],
    *,
    precision: int,
    boxed: bool = False,
    tile: tuple[int, int] | None = None,
    levels: int = 5,
    reversible: bool = True,
    psnr: float = 0.0,
    layers: int = 1,
    progression: str = "LRCP",
    codeblock: tuple[int, int] = (64, 64),
    mode: int = 0,
) -> bytes:
    """One frame as a JPEG 2000 codestream (ISO/IEC 15444-1), or as a JP2 file.

    Args:
        pixels: (rows, columns), any integer dtype; a signed dtype gives signed samples.
        precision: bits a sample in SIZ, 1 to 16.
        boxed: whether to wrap the codestream in JP2 boxes.
        tile: (rows, columns) of a tile; None for one tile.
        levels: wavelet decomposition levels, 0 to 32; also more than the frame has halvings.
        reversible: the 5/3 wavelet with all passes, or the 9/7.
        psnr: of the last quality layer in dB of the full range, 0 for all passes.
        layers: quality layers, 1 to 100. More than one needs rates, so each but the last is
            given half the bytes of the next.
        progression: one of LRCP, RLCP, RPCL, PCRL, CPRL.
        codeblock: (rows, columns), powers of two from 4, at most 4096 samples.
        mode: code-block style bits of COD (1 bypass, 2 reset, 4 restart, 8 vertically causal,
            16 predictable termination, 32 segmentation symbols).

    Raises:
        BackendUnavailableError: libopenjp2 was not found.
        ConfigError: OpenJPEG refused the settings; carries its words.
    """
    library = _library()
    parameters = _parameters(library)
    parameters.numresolution = levels + 1
    parameters.cblockh_init, parameters.cblockw_init = codeblock
    parameters.irreversible = 0 if reversible else 1
    parameters.mode = mode
    parameters.prog_order = PROGRESSIONS.index(progression)
    parameters.tcp_numlayers = layers
    if psnr > 0:
        parameters.cp_fixed_quality = 1
        for layer in range(layers):
            parameters.tcp_distoratio[layer] = psnr - 3.0 * (layers - 1 - layer)
    else:
        parameters.cp_disto_alloc = 1
        for layer in range(layers):
            last = layer == layers - 1
            parameters.tcp_rates[layer] = 0.0 if last else 2.0 ** (layers - layer)
    if tile is not None:
        parameters.tile_size_on = 1
        parameters.cp_tdy, parameters.cp_tdx = tile
    image = _image(library, pixels, precision)
    try:
        return _compress(library, parameters, image, _JP2 if boxed else _J2K)
    finally:
        library.opj_image_destroy(image)


@functools.cache
def _library() -> ctypes.CDLL:
    """libopenjp2, from a wheel that carries it, or from the system."""
    for package in ("imagecodecs", "PIL"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        site = Path(spec.origin).parents[1]
        for folder in ("imagecodecs.libs", "pillow.libs"):
            for file in sorted((site / folder).glob("libopenjp2*")):
                return _typed(ctypes.CDLL(str(file)))
    name = ctypes.util.find_library("openjp2")
    if name is None:
        raise BackendUnavailableError(
            "JPEG 2000 encoding: no libopenjp2 in imagecodecs.libs, pillow.libs or the system; "
            "wanted OpenJPEG 2.x; install imagecodecs or Pillow from a wheel"
        )
    return _typed(ctypes.CDLL(name))


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the signatures whose defaults would cut pointers to 32 bits."""
    for name in ("opj_create_compress", "opj_stream_create", "opj_image_create"):
        getattr(library, name).restype = _VOID
    library.opj_create_compress.argtypes = [_INT]
    library.opj_stream_create.argtypes = [ctypes.c_size_t, _INT]
    library.opj_image_create.argtypes = [ctypes.c_uint32, _VOID, _INT]
    library.opj_image_destroy.argtypes = [_VOID]
    library.opj_setup_encoder.argtypes = [_VOID, _VOID, _VOID]
    library.opj_set_error_handler.argtypes = [_VOID, _MESSAGE, _VOID]
    library.opj_stream_set_write_function.argtypes = [_VOID, _WRITE]
    library.opj_stream_set_skip_function.argtypes = [_VOID, _SKIP]
    library.opj_stream_set_seek_function.argtypes = [_VOID, _SEEK]
    library.opj_start_compress.argtypes = [_VOID, _VOID, _VOID]
    library.opj_encode.argtypes = [_VOID, _VOID]
    library.opj_end_compress.argtypes = [_VOID, _VOID]
    library.opj_stream_destroy.argtypes = [_VOID]
    library.opj_destroy_codec.argtypes = [_VOID]
    return library


def _parameters(library: ctypes.CDLL) -> _Parameters:
    """Default parameters; their known values prove that the structure lies as declared here."""
    parameters = _Parameters()
    library.opj_set_default_encoder_parameters(ctypes.byref(parameters))
    found = (parameters.numresolution, parameters.cblockw_init, parameters.cblockh_init)
    if found != (6, 64, 64):
        raise BackendUnavailableError(
            f"JPEG 2000 encoding: opj_cparameters_t of this libopenjp2 gave {found} where 2.x has "
            "(6, 64, 64); wanted OpenJPEG 2.x; install another imagecodecs"
        )
    return parameters


def _image(library: ctypes.CDLL, pixels: NDArray[Any], precision: int) -> Any:
    """An `opj_image_t` that owns a copy of the pixels."""
    rows, columns = pixels.shape
    signed = int(np.issubdtype(pixels.dtype, np.signedinteger))
    component = _ComponentParameters(1, 1, columns, rows, 0, 0, precision, precision, signed)
    address = library.opj_image_create(1, ctypes.byref(component), _GREY)
    image = ctypes.cast(address, ctypes.POINTER(_Image))
    image.contents.x1, image.contents.y1 = columns, rows
    data = image.contents.comps[0].data
    np.ctypeslib.as_array(data, shape=(rows, columns))[...] = pixels
    return image


def _compress(library: ctypes.CDLL, parameters: _Parameters, image: Any, form: int) -> bytes:
    """Runs the encoder into memory. JP2 seeks back to patch box lengths, hence the position."""
    written = bytearray()
    position = 0
    messages: list[str] = []

    def write(buffer: int, length: int, _: Any) -> int:
        nonlocal position
        written[position : position + length] = ctypes.string_at(buffer, length)
        position += length
        return length

    def skip(length: int, _: Any) -> int:
        nonlocal position
        position += length
        written.extend(bytes(max(0, position - len(written))))
        return length

    def seek(offset: int, _: Any) -> int:
        nonlocal position
        position = offset
        return 1

    def report(message: bytes, _: Any) -> None:
        messages.append(message.decode(errors="replace").strip())

    # the names keep the callbacks alive: ctypes frees one that only the library holds
    on_message, on_write = _MESSAGE(report), _WRITE(write)
    on_skip, on_seek = _SKIP(skip), _SEEK(seek)
    codec = library.opj_create_compress(form)
    stream = library.opj_stream_create(1 << 20, 0)
    try:
        library.opj_set_error_handler(codec, on_message, None)
        library.opj_stream_set_write_function(stream, on_write)
        library.opj_stream_set_skip_function(stream, on_skip)
        library.opj_stream_set_seek_function(stream, on_seek)
        done = (
            library.opj_setup_encoder(codec, ctypes.byref(parameters), image)
            and library.opj_start_compress(codec, image, stream)
            and library.opj_encode(codec, stream)
            and library.opj_end_compress(codec, stream)
        )
    finally:
        library.opj_stream_destroy(stream)
        library.opj_destroy_codec(codec)
    if not done:
        raise ConfigError(
            f"JPEG 2000 encoding: OpenJPEG refused the settings: {'; '.join(messages) or 'no word'}"
        )
    return bytes(written)
