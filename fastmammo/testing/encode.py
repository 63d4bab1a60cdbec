"""Takes one frame and a transfer syntax, gives the frame's codestream.

Every lossless coding here decodes to the values that went in; where a codec's own encoder could
not write what a scanner writes, the function that makes up for it says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.dicom.syntax import SYNTAXES
from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Coding:
    """The settings of `encode`, by the same names."""

    bits_stored: int
    precision: int | None = None
    quality: float | None = None
    reversible: bool | None = None
    jp2: bool = False
    tile: tuple[int, int] | None = None
    levels: int | None = None
    layers: int = 1
    progression: str = "LRCP"
    codeblock: tuple[int, int] = (64, 64)
    mode: int = 0
    predictor: int = 1
    restart_rows: int = 0
    point_transform: int = 0


def encode(
    pixels: NDArray[Any],
    transfer_syntax_uid: str,
    *,
    bits_stored: int,
    precision: int | None = None,
    quality: float | None = None,
    reversible: bool | None = None,
    jp2: bool = False,
    tile: tuple[int, int] | None = None,
    levels: int | None = None,
    layers: int = 1,
    progression: str = "LRCP",
    codeblock: tuple[int, int] = (64, 64),
    mode: int = 0,
    predictor: int = 1,
    restart_rows: int = 0,
    point_transform: int = 0,
) -> bytes:
    """One frame's bytes in a transfer syntax: a codestream, RLE segments, or plain samples.

    Args:
        pixels: stored values (rows, columns), uint8, uint16, int8 or int16.
        transfer_syntax_uid: any of `fastmammo.dicom.syntax.SYNTAXES`. Deflated gives plain little
            endian samples: the deflating is of the file, not of the frame.
        bits_stored: BitsStored, 2 to 16.
        precision: bits a sample that the codestream's own header says. By default `bits_stored`;
            signed samples in the JPEG and JPEG-LS families get the whole container, as those
            formats know no sign and a reader takes the two's complement pattern back as it is.
            JPEG is 8 or 12; JPEG-LS is 8 or 16 here, all that its encoder (CharLS as imagecodecs
            binds it) writes.
        quality: how much a lossy syntax keeps. JPEG .50 .51: 1 to 100, default 95. JPEG-LS .81:
            the largest error, default 2. JPEG 2000 .91: PSNR in dB of 2^precision, default 60.
            HTJ2K .203: the quantization step in units of a stored value, default 2.
        reversible: for .91 and .203, which may hold a lossless codestream too: True for the 5/3
            wavelet with all passes. Default False.
        jp2: JPEG 2000 .90 .91: wrap the codestream in JP2 boxes, as some writers do against
            PS3.5 A.4.4.
        tile: JPEG 2000 and HTJ2K: (rows, columns) of a tile, None for one tile.
        levels: JPEG 2000 and HTJ2K: wavelet decomposition levels; None for 5, or for as
            many as the tile has halvings where that is fewer. HTJ2K writes no 0.
        layers: JPEG 2000: quality layers.
        progression: JPEG 2000: LRCP, RLCP, RPCL, PCRL or CPRL (HTJ2K is always RPCL here).
        codeblock: JPEG 2000: (rows, columns).
        mode: JPEG 2000: code-block style bits of COD.
        predictor: JPEG lossless .57: 1 to 7. Syntax .70 is by definition 1.
        restart_rows: JPEG lossless: rows between restart markers, 0 for none.
        point_transform: JPEG lossless .57: low bits dropped; above 0 it is not lossless.

    Raises:
        ConfigError: a setting that the syntax does not allow, or pixels beyond the precision.
    """
    coding = _Coding(
        bits_stored,
        precision,
        quality,
        reversible,
        jp2,
        tile,
        levels,
        layers,
        progression,
        codeblock,
        mode,
        predictor,
        restart_rows,
        point_transform,
    )
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        raise ConfigError(
            f"encode: pixels of shape {pixels.shape}, {pixels.dtype}; "
            "wanted (rows, columns) of uint8, uint16, int8 or int16; encode frame by frame"
        )
    encoder = _ENCODERS.get(transfer_syntax_uid)
    if encoder is None:
        raise ConfigError(
            f"encode: transfer_syntax_uid {transfer_syntax_uid}; wanted one of {list(_ENCODERS)}"
        )
    if not 2 <= bits_stored <= 16:
        raise ConfigError(f"encode: bits_stored {bits_stored}; wanted 2 to 16")
    if precision is not None and not 2 <= precision <= 16:
        raise ConfigError(f"encode: precision {precision}; wanted 2 to 16")
    return encoder(np.ascontiguousarray(pixels), transfer_syntax_uid, coding)


def _native(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """Plain samples in the syntax's byte order (PS3.5 8.1.1)."""
    big = SYNTAXES[uid].big_endian
    order = pixels.dtype.newbyteorder(">") if big else pixels.dtype.newbyteorder("<")
    return pixels.astype(order, copy=False).tobytes()


def _rle(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """DICOM RLE (PS3.5 Annex G)."""
    from fastmammo.testing.rle import encode_rle

    return encode_rle(pixels)


def _jpeg(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """JPEG baseline (8 bits) or extended sequential (8 or 12 bits), by libjpeg-turbo 3."""
    import imagecodecs

    precision = coding.precision or (8 if coding.bits_stored <= 8 else 12)
    allowed = (8,) if uid.endswith(".50") else (8, 12)
    if precision not in allowed:
        raise ConfigError(
            f"encode: JPEG {uid} with precision {precision}; wanted one of {allowed}; "
            "use JPEG lossless or JPEG 2000 for more bits"
        )
    _refuse_signed(pixels, "JPEG")
    samples = _unsigned(pixels, precision).astype(np.uint8 if precision == 8 else np.uint16)
    level = 95 if coding.quality is None else round(coding.quality)
    return bytes(imagecodecs.jpeg8_encode(samples, level, bitspersample=precision))


def _jpeg_lossless(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """JPEG lossless by libjpeg-turbo 3, or by the package's own encoder for what that lacks."""
    import imagecodecs

    from fastmammo.testing.jpeg_lossless import encode_jpeg_lossless

    if uid.endswith(".70") and (coding.predictor != 1 or coding.point_transform != 0):
        raise ConfigError(
            f"encode: {uid} with predictor {coding.predictor}, point_transform "
            f"{coding.point_transform}; wanted 1 and 0 (PS3.5 8.2.1); use 1.2.840.10008.1.2.4.57"
        )
    precision = coding.precision or _container(pixels, coding)
    samples = _unsigned(pixels, precision)
    if coding.restart_rows or coding.point_transform or not 1 <= coding.predictor <= 7:
        return encode_jpeg_lossless(
            samples,
            precision=precision,
            predictor=coding.predictor,
            restart_rows=coding.restart_rows,
            point_transform=coding.point_transform,
        )
    samples = samples.astype(np.uint8 if precision <= 8 else np.uint16)
    return bytes(
        imagecodecs.jpeg8_encode(
            samples, lossless=True, predictor=coding.predictor, bitspersample=precision
        )
    )


def _jpeg_ls(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """JPEG-LS by CharLS."""
    import imagecodecs

    precision = 8 * pixels.dtype.itemsize
    if coding.precision not in (None, precision):
        raise ConfigError(
            f"encode: JPEG-LS with precision {coding.precision}; wanted {precision}, all that the "
            f"encoder writes for {pixels.dtype}; leave precision out"
        )
    if not SYNTAXES[uid].lossless:
        _refuse_signed(pixels, "near-lossless JPEG-LS")
    near = 2 if coding.quality is None else round(coding.quality)
    samples = _unsigned(pixels, precision)
    return bytes(imagecodecs.jpegls_encode(samples, 0 if SYNTAXES[uid].lossless else near))


def _jpeg2000(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """JPEG 2000 by OpenJPEG."""
    from fastmammo.testing.openjpeg import encode_jpeg2000

    reversible = SYNTAXES[uid].lossless or bool(coding.reversible)
    precision = coding.precision or coding.bits_stored
    _check_range(pixels, precision)
    psnr = 60.0 if coding.quality is None else coding.quality
    return encode_jpeg2000(
        pixels,
        precision=precision,
        boxed=coding.jp2,
        tile=coding.tile,
        levels=_levels(pixels, coding),
        reversible=reversible,
        psnr=0.0 if reversible else psnr,
        layers=coding.layers,
        progression=coding.progression,
        codeblock=coding.codeblock,
        mode=coding.mode,
    )


def can_encode(transfer_syntax_uid: str) -> bool:
    """Whether `encode` can write this syntax here: HTJ2K needs an imagecodecs that has it."""
    from fastmammo.encoding import missing

    return SYNTAXES[transfer_syntax_uid].family != "htj2k" or missing() is None


def _htj2k(pixels: NDArray[Any], uid: str, coding: _Coding) -> bytes:
    """HTJ2K by OpenJPH, in RPCL order; .202 with the TLM marker that its definition asks for."""
    from fastmammo.encoding import encode_htj2k

    reversible = SYNTAXES[uid].lossless or bool(coding.reversible)
    step = 2.0 if coding.quality is None else coding.quality
    return encode_htj2k(
        pixels,
        precision=coding.precision or coding.bits_stored,
        levels=5 if coding.levels is None else coding.levels,
        step=None if reversible else step,
        tile=coding.tile,
        tlm=uid.endswith(".202"),
    )


def _levels(pixels: NDArray[Any], coding: _Coding) -> int:
    """The levels that were asked, or as many of 5 as OpenJPEG takes for the tile."""
    if coding.levels is not None:
        return coding.levels
    shortest: int = min(*pixels.shape, *(coding.tile or pixels.shape))
    return min(5, shortest.bit_length() - 1)


def _container(pixels: NDArray[Any], coding: _Coding) -> int:
    """Bits a sample for a format without a sign: BitsStored, or the container for signed values."""
    return 8 * pixels.dtype.itemsize if pixels.dtype.kind == "i" else coding.bits_stored


def _refuse_signed(pixels: NDArray[Any], format_name: str) -> None:
    """A lossy format without a sign: a small error where the pattern wraps becomes a huge one."""
    if pixels.dtype.kind == "i":
        raise ConfigError(
            f"encode: {format_name} with {pixels.dtype} pixels; wanted uint8 or uint16, as the "
            "format knows no sign; use JPEG 2000 or a lossless syntax"
        )


def _check_range(pixels: NDArray[Any], precision: int) -> None:
    """Refuses values that the codestream would cut off in silence."""
    low, high = int(pixels.min()), int(pixels.max())
    least, most = (
        (-(1 << (precision - 1)), (1 << (precision - 1)) - 1)
        if pixels.dtype.kind == "i"
        else (0, (1 << precision) - 1)
    )
    if low < least or high > most:
        raise ConfigError(
            f"encode: pixels from {low} to {high} at precision {precision}; "
            f"wanted {least} to {most}; give a higher precision"
        )


def _unsigned(pixels: NDArray[Any], precision: int) -> NDArray[Any]:
    """The two's complement pattern of signed values, cut to `precision` bits, as unsigned ones."""
    _check_range(pixels, precision)
    mask = (1 << min(precision, 8 * pixels.dtype.itemsize)) - 1
    unsigned: NDArray[Any] = pixels.view(np.dtype(f"u{pixels.dtype.itemsize}"))
    pattern: NDArray[Any] = unsigned & unsigned.dtype.type(mask)
    return pattern


_BY_FAMILY: dict[str, Callable[[NDArray[Any], str, _Coding], bytes]] = {
    "native": _native,
    "rle": _rle,
    "jpeg": _jpeg,
    "jpeg-lossless": _jpeg_lossless,
    "jpeg-ls": _jpeg_ls,
    "jpeg2000": _jpeg2000,
    "htj2k": _htj2k,
}

_ENCODERS = {uid: _BY_FAMILY[syntax.family] for uid, syntax in SYNTAXES.items()}
