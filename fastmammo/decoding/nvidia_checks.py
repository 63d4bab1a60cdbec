"""What NVIDIA's decoders cannot decode, known before; and checks of what they gave.

nvImageCodec and DALI (which decodes through it) have the same limits: those of nvJPEG2000, which
`nvjpeg2000.refuses` knows, and of nvJPEG, read in their sources and not yet seen on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import nvidia_libraries, nvjpeg2000
from fastmammo.decoding.nvidia_libraries import dotted
from fastmammo.errors import BackendUnavailableError, DecodeError, UnsupportedSyntaxError
from fastmammo.kernels import INSTALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastmammo.dicom import Codestream

    Frame = tuple[bytes | memoryview, Codestream]
    """One frame's bytes and what their header says."""

FORMATS = frozenset({"jpeg", "jpeg-lossless", "jpeg2000", "htj2k"})

NVJPEG_FIXED = (13, 0, 2)
"""Before this version nvJPEG decodes lossless JPEG of 9 to 15 bits, or with other segments than
APP0 and APP1 before SOF3, to zeros and reports success."""

_PROCESSES = frozenset({"baseline", "extended sequential", "progressive"})


def refuses(codestream: Codestream) -> str | None:
    """Return why NVIDIA's decoders, as installed here, cannot decode the codestream, or None."""
    c = codestream
    if c.format not in FORMATS:
        return f"does not decode {c.format}"
    if not 2 <= c.precision <= 16:
        return f"{c.precision} bits a sample, wanted 2 to 16"
    if c.origin != (0, 0) or c.subsampling != (1, 1):
        return "subsampled components or an image offset"
    if c.format == "jpeg-lossless":
        reason = _lossless(c)
    else:
        reason = _dct(c) if c.format == "jpeg" else nvjpeg2000.refuses(c)
    return reason or _lacks(c)


def _dct(c: Codestream) -> str | None:
    if c.process not in _PROCESSES:
        return f"{c.process} JPEG"
    return None if c.precision == 8 else f"DCT JPEG of {c.precision} bits, nvJPEG decodes 8"


def _lossless(c: Codestream) -> str | None:
    if c.process != "lossless":
        return f"{c.process} JPEG"
    if c.point_transform:
        return "a point transform: whether nvJPEG undoes it is not known"
    if c.precision <= 8:
        return f"lossless JPEG of {c.precision} bits, nvJPEG decodes 9 to 16"
    return None


def _lacks(c: Codestream) -> str | None:
    """Return what the installed libraries lack for the codestream."""
    try:
        if c.format in ("jpeg2000", "htj2k"):
            found = nvidia_libraries.companion("nvjpeg2k") is not None
            return None if found else f"nvJPEG2000 is not installed: {INSTALL}"
        nvjpeg = nvidia_libraries.nvjpeg_version()
    except BackendUnavailableError:
        return None  # `missing` says so, and how to get it
    if nvjpeg is None:
        return f"nvJPEG is not installed: {INSTALL}"
    if c.format == "jpeg-lossless" and c.precision < 16 and nvjpeg < NVJPEG_FIXED:
        return (
            f"nvJPEG {dotted(nvjpeg)} decodes lossless JPEG of 9 to 15 bits to zeros; wanted "
            f"{dotted(NVJPEG_FIXED)} or newer, which the CUDA 13 wheels alone bring"
        )
    return None


def refuse_order(view: memoryview, codestream: Codestream) -> None:
    """Refuse a lossless JPEG whose order of segments the installed nvJPEG decodes to zeros.

    Args:
        view: the codestream, from SOI on.

    Raises:
        UnsupportedSyntaxError: nvJPEG is older than 13.0.2, and a segment other than APP0 or APP1
            (Huffman tables, mostly) comes before the frame header.
    """
    if codestream.format != "jpeg-lossless":
        return
    nvjpeg = nvidia_libraries.nvjpeg_version()
    if nvjpeg is None or nvjpeg >= NVJPEG_FIXED:
        return
    marker = marker_before_frame(view)
    if marker is not None:
        raise UnsupportedSyntaxError(
            f"nvJPEG {dotted(nvjpeg)} decodes a lossless JPEG with a segment FF{marker:02X} before "
            f"its frame header to zeros: decode it on the CPU, or install {dotted(NVJPEG_FIXED)}"
        )


def out_of_memory(error: Exception) -> bool:
    """Whether a library's error, which has no type for it, says that memory ran out."""
    text = str(error).lower().replace("_", " ")
    return any(
        words in text
        for words in ("out of memory", "memory allocation", "memoryallocation", "bad alloc")
    )


def samples_dtype(codestream: Codestream) -> np.dtype[Any]:
    """Return the type that holds the codestream's samples."""
    sign = "int" if codestream.signed else "uint"
    return np.dtype(f"{sign}{8 if codestream.precision <= 8 else 16}")


def confirm_zeros(frames: Sequence[Frame], found: list[Any]) -> list[Any]:
    """Return the results, with an error for each image of zeros that a CPU decoder contradicts.

    Args:
        frames: what was decoded.
        found: for each frame its samples (NumPy or CuPy, and all of one kind) or an error.

    The device is waited for once.
    """
    indices = [i for i, result in enumerate(found) if not isinstance(result, Exception)]
    if not indices:
        return found
    if isinstance(found[indices[0]], np.ndarray):
        seen = np.array([found[i].any() for i in indices])
    else:
        import cupy

        seen = cupy.asnumpy(cupy.stack([found[i].any() for i in indices]))
    checked = list(found)
    for index, nonzero in zip(indices, seen, strict=True):
        if not nonzero and (error := _contradiction(*frames[index])) is not None:
            checked[index] = error
    return checked


def _contradiction(data: bytes | memoryview, codestream: Codestream) -> DecodeError | None:
    from fastmammo.decoding.backends import choose  # it imports the backends, this one too

    try:
        cpu = choose(codestream, device="cpu")
        pixels = cpu.decode(data, codestream, 0, 1)
    except DecodeError as error:
        return error
    if not pixels.any():
        return None
    return UnsupportedSyntaxError(
        f"the GPU decoded a {codestream.format} codestream to zeros alone, {cpu.NAME} to values "
        f"{int(pixels.min())} to {int(pixels.max())}: nvJPEG before {dotted(NVJPEG_FIXED)} does "
        "this to some lossless JPEGs; decode it on the CPU"
    )


def marker_before_frame(view: memoryview) -> int | None:
    """Return the first marker, other than APP0 and APP1, of a segment before the frame header.

    Args:
        view: a JPEG codestream whose header was read before (`read_jpeg`).
    """
    position, end = 2, len(view)
    while position + 4 <= end:
        marker = view[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        if marker not in (0xE0, 0xE1):
            return marker
        position += 2 + (view[position + 2] << 8 | view[position + 3])
    return None
