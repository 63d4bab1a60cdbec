"""Decoded samples → stored values: byte order, High Bit and sign, as the header says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream, Mammogram


def stored_values(pixels: Any, m: Mammogram, c: Codestream) -> Any:
    """Return decoded samples, NumPy's or CuPy's, as stored values: order, shift, sign, type."""
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if c.format in ("raw", "rle"):
        return _native_values(pixels, m)
    if m.signed and not c.signed:
        # JPEG, JPEG-LS and some J2K writers code two's complement patterns as unsigned
        # numbers, with or without copies of the sign above Bits Stored.
        shift = 8 * pixels.dtype.itemsize - sign_bits(m, c)
        signed = pixels.astype(f"uint{8 * pixels.dtype.itemsize}", copy=False)
        return (signed << shift).view(f"int{8 * pixels.dtype.itemsize}") >> shift
    return pixels


def sign_bits(m: Mammogram, c: Codestream) -> int:
    """Return how many low bits of an unsigned codestream's samples are the signed value."""
    return min(c.precision, m.bits_stored)


def _native_values(pixels: NDArray[Any], m: Mammogram) -> NDArray[Any]:
    """Return uncompressed or RLE samples with High Bit and sign applied (PS3.5 8.1.1)."""
    width = 8 * pixels.dtype.itemsize
    below = max(m.high_bit + 1 - m.bits_stored, 0)
    above = width - m.bits_stored - below
    if (m.signed and above > 0) or (m.overlay_bits and above > 0):
        # Bits above High Bit are the sign, copies of it, or an old overlay: never the value.
        kind = f"uint{width}"
        moved = pixels.view(kind) << above
        pixels = (moved.view(f"int{width}") if m.signed else moved) >> (above + below)
    elif below:
        pixels = pixels >> below
    return pixels
