"""The codecs of imagecodecs: JPEG (libjpeg-turbo 3), JPEG-LS (CharLS), HTJ2K (OpenJPH), RLE.

libjpeg-turbo 3 decodes lossless JPEG four times as fast as the usual decoder (libjpeg of
pylibjpeg), at every predictor and 2 to 16 bits; all of these let go of the GIL.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import CorruptCodestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream

NAME = "imagecodecs"
DEVICE = "cpu"
FORMATS = frozenset({"jpeg", "jpeg-lossless", "jpeg-ls", "jpeg2000", "htj2k", "rle"})
LEVELS = False  # its HTJ2K reader can skip levels, but wraps undershoot around to 65,000
CLAMPS = False
pyramid = None


_FUNCTIONS = {
    "jpeg": "jpeg8_decode",
    "jpeg-lossless": "jpeg8_decode",
    "jpeg-ls": "jpegls_decode",
    "jpeg2000": "jpeg2k_decode",
    "htj2k": "htj2k_decode",
}


def missing() -> str | None:
    """Return None: imagecodecs is a base dependency, and a broken install should say so loudly."""
    try:
        import imagecodecs  # noqa: F401
    except ImportError as error:
        return f"{error}; pip install imagecodecs"
    return None


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.precision > 16:
        return f"{codestream.precision} bits a sample, 16 at most"
    if codestream.subsampling != (1, 1) or codestream.origin != (0, 0):
        return "subsampled components or an image offset"
    if codestream.format == "htj2k" and not _has_htj2k():
        return "this version of imagecodecs has no HTJ2K (its wheels for Python 3.10 end before)"
    if codestream.format == "htj2k" and not codestream.reversible:
        return "9/7 HTJ2K: its reader does not clamp, values wrap around at the ends"
    if "arithmetic" in codestream.process and codestream.format == "jpeg-lossless":
        return "arithmetic-coded lossless JPEG"
    return None


def _has_htj2k() -> bool:
    import imagecodecs

    return hasattr(imagecodecs, "htj2k_decode")


def version() -> str:
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> NDArray[np.generic]:
    """Return the samples (rows, columns) as the codestream's own type; level must be 0.

    Raises:
        CorruptCodestreamError: the codec refused the bytes; its own words are in the message.
    """
    import imagecodecs

    view = memoryview(data)[codestream.offset : codestream.offset + codestream.length]
    try:
        if codestream.format == "rle":
            return _rle(view, codestream)
        with _SwallowedErrors() as swallowed:
            pixels = getattr(imagecodecs, _FUNCTIONS[codestream.format])(view)
        if swallowed:
            raise CorruptCodestreamError(
                f"imagecodecs ({codestream.format}) refused the codestream ({len(view)} bytes) "
                f"half-way: {'; '.join(swallowed)}"
            )
    except CorruptCodestreamError:
        raise
    except Exception as error:  # each codec has an error class of its own, all RuntimeError or so
        raise CorruptCodestreamError(
            f"imagecodecs ({codestream.format}) refused the codestream ({len(view)} bytes): {error}"
        ) from error
    return np.asarray(pixels)


class _SwallowedErrors:
    """Notices errors that imagecodecs prints as "ignored" and then returns as if all were well.

    Its HTJ2K reader does so half-way through a damaged codestream: the rest of the image stays 0.
    Python hands such errors to sys.unraisablehook, in the thread that called; ours stands there
    only while a decode is under way, and passes on what is not imagecodecs'.
    """

    _lock = threading.Lock()
    _local = threading.local()
    _depth = 0
    _previous: Any = None

    def __enter__(self) -> list[str]:
        with self._lock:
            if _SwallowedErrors._depth == 0:
                _SwallowedErrors._previous = sys.unraisablehook
                sys.unraisablehook = self._notice
            _SwallowedErrors._depth += 1
        self._local.words = []
        words: list[str] = self._local.words
        return words

    def __exit__(self, *exception: object) -> None:
        self._local.words = None
        with self._lock:
            _SwallowedErrors._depth -= 1
            if _SwallowedErrors._depth == 0:
                sys.unraisablehook = _SwallowedErrors._previous

    @classmethod
    def _notice(cls, unraisable: Any) -> None:
        words = getattr(cls._local, "words", None)
        if words is not None and str(unraisable.object).startswith("imagecodecs"):
            words.append(str(unraisable.exc_value))
        else:
            cls._previous(unraisable)


def _rle(view: memoryview, codestream: Codestream) -> NDArray[np.generic]:
    """Decode DICOM RLE (PS3.5 Annex G): one PackBits segment a byte plane, high byte first."""
    import imagecodecs

    planes = codestream.precision // 8
    if len(view) < 64:
        raise CorruptCodestreamError(f"RLE frame of {len(view)} bytes, its header alone takes 64")
    header = np.frombuffer(view, "<u4", 16)
    count = int(header[0])
    if count != planes:
        raise CorruptCodestreamError(
            f"RLE frame with {count} segments, wanted {planes} for {codestream.precision} bits "
            "allocated and one sample a pixel"
        )
    offsets = [*(int(v) for v in header[1 : count + 1]), len(view)]
    size = codestream.pixels
    out = np.empty((planes, size), np.uint8)
    for i in range(planes):
        start, stop = offsets[i], offsets[i + 1]
        if not 64 <= start <= stop <= len(view):
            raise CorruptCodestreamError(
                f"RLE segment {i + 1} at bytes {start} to {stop} of {len(view)}: damaged header"
            )
        plane = imagecodecs.packbits_decode(bytes(view[start:stop]), out=size)
        if len(plane) < size:
            raise CorruptCodestreamError(
                f"RLE segment {i + 1} holds {len(plane)} bytes, wanted {size}: it is truncated"
            )
        out[i] = np.frombuffer(plane, np.uint8, size)
    if planes == 1:
        pixels: NDArray[np.generic] = out[0]
    else:
        words = np.empty((size, 2), np.uint8)
        words[:, 0], words[:, 1] = out[1], out[0]
        pixels = words.view("<u2").reshape(size)
    kind = f"int{8 * planes}" if codestream.signed else f"uint{8 * planes}"
    return pixels.view(kind).reshape(codestream.rows, codestream.columns)
