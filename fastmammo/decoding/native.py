"""Uncompressed pixels: the frame's bytes are the samples (PS3.5 8.1, Annex D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream

NAME = "numpy"
DEVICE = "cpu"
FORMATS = frozenset({"raw"})
LEVELS = False
CLAMPS = True
pyramid = None


def missing() -> str | None:
    """Return None: NumPy is always there."""
    return None


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.precision not in (8, 16):
        return f"Bits Allocated is {codestream.precision}, 8 or 16 are decoded"
    return None


def version() -> str:
    return f"NumPy {np.__version__}"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> NDArray[np.generic]:
    """Return a view of the samples (rows, columns), in the byte order of the file."""
    kind = f"{'i' if codestream.signed else 'u'}{codestream.precision // 8}"
    order = ">" if codestream.big_endian else "<"
    pixels = np.frombuffer(data, order + kind, codestream.pixels)
    return pixels.reshape(codestream.rows, codestream.columns)
