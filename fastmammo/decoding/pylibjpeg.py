"""pylibjpeg's decoders, a second opinion: OpenJPEG, and libjpeg where it is installed.

pylibjpeg-libjpeg is under the GPL and therefore no dependency; where it is installed it serves
`backend="pylibjpeg"` for the JPEG and JPEG-LS syntaxes.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import BackendUnavailableError, CorruptCodestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream

NAME = "pylibjpeg"
DEVICE = "cpu"
FORMATS = frozenset({"jpeg", "jpeg-lossless", "jpeg-ls", "jpeg2000", "htj2k"})
LEVELS = False
CLAMPS = False
pyramid = None

_OPENJPEG = frozenset({"jpeg2000", "htj2k"})


def missing() -> str | None:
    """Return None if pylibjpeg-openjpeg is installed, else how to get it."""
    if importlib.util.find_spec("openjpeg") is None:
        return "pip install pylibjpeg-openjpeg"
    return None


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.precision > 16:
        return f"{codestream.precision} bits a sample, 16 at most"
    if codestream.format not in _OPENJPEG and importlib.util.find_spec("libjpeg") is None:
        return "pylibjpeg-libjpeg (GPL) is not installed"
    if codestream.point_transform:
        return "its decoder leaves out the point transform: values come out too small"
    return None


def version() -> str:
    from importlib.metadata import version

    return f"pylibjpeg-openjpeg {version('pylibjpeg-openjpeg')}"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> NDArray[np.generic]:
    """Return the samples (rows, columns) as the codestream's own type; level must be 0.

    Raises:
        CorruptCodestreamError: the library refused the bytes; its own words are in the message.
        BackendUnavailableError: the part of pylibjpeg for this format is not installed.
    """
    view = memoryview(data)[codestream.offset : codestream.offset + codestream.length]
    try:
        if codestream.format in _OPENJPEG:
            from openjpeg.utils import decode as openjpeg_decode

            return np.asarray(openjpeg_decode(bytes(view)))
        from libjpeg.utils import decode as libjpeg_decode

        pixels = np.asarray(libjpeg_decode(bytes(view)))
        return pixels.reshape(codestream.rows, codestream.columns)
    except ImportError as error:
        raise BackendUnavailableError(
            f"pylibjpeg cannot decode {codestream.format} here ({error}): "
            "pip install pylibjpeg-openjpeg pylibjpeg-libjpeg"
        ) from error
    except Exception as error:  # RuntimeError, ValueError, whatever the extension raises
        raise CorruptCodestreamError(
            f"pylibjpeg refused the codestream ({len(view)} bytes): {error}"
        ) from error
