"""Takes one frame of stored values, gives an HTJ2K codestream (ISO/IEC 15444-15), by OpenJPH."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import BackendUnavailableError, ConfigError, EncodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BASE = 64
"""Of HTJ2K Lossless RPCL: the most rows or columns of the lowest resolution (PS3.5 10.18)."""

_SSIZ = 42
"""Where SIZ says precision and sign of a single component: SOC, SIZ, then 38 bytes (A.5.1)."""


def missing() -> str | None:
    """Return None if there is an encoder, else what is lacking and how to get it."""
    import imagecodecs

    if hasattr(imagecodecs, "htj2k_encode"):
        return None
    return (
        f"this version of imagecodecs ({imagecodecs.__version__}) writes no HTJ2K: newer ones do, "
        "under Python 3.11 or later; make an environment with such a Python and "
        "pip install -U imagecodecs there"
    )


def require_encoder() -> None:
    """Refuse to go on without an encoder.

    Raises:
        BackendUnavailableError: what is lacking, and how to get it.
    """
    if (need := missing()) is not None:
        raise BackendUnavailableError(f"cannot encode HTJ2K: {need}")


def levels_for(rows: int, columns: int) -> int:
    """Return the fewest wavelet levels whose lowest resolution has at most 64 rows and columns.

    At least one: the encoder writes no 0.
    """
    levels = 1
    while -(-max(rows, columns) // (1 << levels)) > BASE:
        levels += 1
    return levels


def encode_htj2k(
    pixels: NDArray[Any],
    *,
    precision: int,
    levels: int,
    step: float | None = None,
    tile: tuple[int, int] | None = None,
    tlm: bool = True,
    tile_parts: bool = False,
) -> bytes:
    """Return one frame's codestream, in RPCL order, 64 x 64 code-blocks.

    imagecodecs binds OpenJPH with the precision of the dtype alone. So unsigned samples go in as
    signed ones, less the level shift of the precision that is asked for (ISO/IEC 15444-1 G.1), and
    Ssiz in the SIZ marker is set to that precision afterwards: a decoder adds the shift again.

    The rest of the headers stays true. Without quantization an exponent of QCD only says how many
    magnitude bits a sub-band may have at most (Mb = G + exponent - 1, A.6.4 and E.1), and so does
    the bound of CAP (MAGB, 15444-15 A.3): both were written for 8 or 16 bits, which a lower
    precision does not exceed. To lower them would be to write every packet header anew.

    Args:
        pixels: (rows, columns), uint8, uint16, int8 or int16, all within `precision`.
        precision: bits a sample, 1 to 16, as SIZ is to say.
        levels: wavelet decomposition levels, 1 or more.
        step: None for the reversible 5/3 wavelet; else that of the quantization after the 9/7, in
            units of a stored value.
        tile: (rows, columns), None for one tile.
        tlm: whether TLM marker segments tell the lengths of the tile-parts.
        tile_parts: whether each resolution is a tile-part, so that TLM tells where it ends.

    Raises:
        BackendUnavailableError: no encoder.
        ConfigError: a setting that the encoder does not take, or pixels beyond the precision.
        EncodeError: the encoder refused, in its own words.
    """
    require_encoder()
    import imagecodecs

    if levels < 1:
        raise ConfigError(
            f"encode: HTJ2K with levels {levels}; wanted 1 or more, all that its encoder writes"
        )
    signed = pixels.dtype.kind == "i"
    half = 1 << (precision - 1)
    low, high = int(pixels.min()), int(pixels.max())
    least, most = (-half, half - 1) if signed else (0, 2 * half - 1)
    if not 1 <= precision <= 16 or low < least or high > most:
        raise ConfigError(
            f"encode: pixels from {low} to {high} at precision {precision}; "
            f"wanted {least} to {most}; give a higher precision, 16 at most"
        )
    samples = pixels.astype(np.int32) - (0 if signed else half)
    if step is not None:
        # steps count in units of 2^precision (E.1.1): Ssiz as changed scales the samples back
        samples <<= 16 - precision
    kind = np.int8 if step is None and precision <= 8 else np.int16
    try:
        encoded = imagecodecs.htj2k_encode(
            samples.astype(kind),
            None if step is None else step / 2**precision,
            reversible=step is None,
            # imagecodecs takes (columns, rows) here, unlike everywhere else
            tile=None if tile is None else tile[::-1],
            resolutions=levels,
            tlm=tlm,
            tilepart=1 if tile_parts else None,  # 1: at resolutions
        )
    except Exception as error:  # its own class, a RuntimeError
        raise EncodeError(
            f"OpenJPH refused {pixels.shape[0]} x {pixels.shape[1]} pixels, precision {precision}, "
            f"{levels} levels: {error}"
        ) from error
    codestream = bytearray(encoded)
    if codestream[2:4] != b"\xff\x51" or codestream[_SSIZ] != (0x80 | (kind().itemsize * 8 - 1)):
        raise BackendUnavailableError(
            "cannot encode HTJ2K: imagecodecs' encoder begins its codestreams otherwise than those "
            f"that were tested ({codestream[:48].hex(' ')}): pip install imagecodecs==2026.3.6"
        )
    codestream[_SSIZ] = (precision - 1) | (0x80 if signed else 0)
    return bytes(codestream)
