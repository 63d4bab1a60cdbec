"""What routes are compared with: the 5/3 transform in NumPy, and how far codecs may differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream


def tolerance(codestream: Codestream, device: str = "cpu") -> int:
    """Return by how much a correct decoder may differ from the CPU's, in stored values.

    0 for what is coded in integers, near-lossless JPEG-LS (T.87) and 5/3 wavelets included. The
    inverse DCT (T.81 A.3.3) and the 9/7 wavelet (ISO/IEC 15444-1 Annex F) are defined in real
    numbers, which codecs round differently: 1, and 4 for JPEG of 12 bits, where at sharp edges
    the libjpeg of pylibjpeg is up to 4 away from libjpeg-turbo (against an inverse DCT in float64
    it is libjpeg that is off: 3.3; the other 1.1). JPEG of 8 bits on a GPU: 2, as either decoder
    may be 1 from the true value (T.83), on opposite sides; the CPU's are all libjpeg.

    Args:
        device: where the other decoder is.
    """
    if codestream.format == "jpeg":
        if codestream.precision > 8:
            return 4
        return 2 if device == "cuda" else 1
    return 1 if codestream.wavelet == "9/7" else 0


def low_pass(pixels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the low-pass band of one level of the 5/3 transform, in plain NumPy.

    A second form of `kernels.low_pass` that shares no line with it (ISO/IEC 15444-1 F.4.8.1).

    Args:
        pixels: int32 (rows, columns).

    Returns:
        int32 (ceil(rows / 2), ceil(columns / 2)).
    """
    for axis in (0, 1):  # vertical first: with rounding in between, the order counts
        x = np.moveaxis(pixels, axis, 0)
        if len(x) > 1:
            even, odd = x[0::2], x[1::2]
            following = np.concatenate((even[1:], even[-1:]))[: len(odd)]
            high = odd - ((even[: len(odd)] + following) >> 1)
            before = np.concatenate((high[:1], high))[: len(even)]
            after = np.concatenate((high, high[-1:]))[: len(even)]
            x = even + ((before + after + 2) >> 2)
        pixels = np.moveaxis(x, 0, axis)
    return pixels
