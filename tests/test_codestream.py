"""Codestream headers: what is read is what the encoder was asked for; nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fastmammo.dicom import inspect_codestream
from fastmammo.errors import CorruptCodestreamError, UnsupportedImageError
from fastmammo.testing import encode

J = "1.2.840.10008.1.2.4"


def coded(pixels: np.ndarray, syntax: str, **options: object) -> bytes:
    return encode(pixels, f"{J}.{syntax}", bits_stored=12, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("precision", [12, 16])
@pytest.mark.parametrize("jp2", [False, True])
def test_jpeg2000(pixels: np.ndarray, signed: bool, precision: int, jp2: bool) -> None:
    values = pixels.astype(np.int16) - 2048 if signed else pixels
    data = coded(values, "90", precision=precision, jp2=jp2, levels=3)
    c = inspect_codestream(data, "jpeg2000")
    assert (c.format, c.rows, c.columns) == ("jpeg2000", 301, 233)
    assert (c.precision, c.signed, c.components) == (precision, signed, 1)
    assert (c.levels, c.wavelet, c.tiles, c.boxed, c.origin) == (3, "5/3", 1, jp2, (0, 0))
    assert c.reversible
    assert data[c.offset : c.offset + 4] == b"\xff\x4f\xff\x51"


def test_tiles_styles_and_wavelets(pixels: np.ndarray) -> None:
    assert inspect_codestream(coded(pixels, "90", tile=(128, 100)), "jpeg2000").tiles == 9
    assert inspect_codestream(coded(pixels, "90", mode=1), "jpeg2000").styles == ("bypass",)
    c = inspect_codestream(coded(pixels, "91"), "jpeg2000")
    assert (c.wavelet, c.reversible) == ("9/7", False)
    c = inspect_codestream(coded(pixels, "202"), "htj2k")
    assert (c.format, c.wavelet, c.progression) == ("htj2k", "5/3", "RPCL")


def test_jpeg_family(pixels: np.ndarray) -> None:
    c = inspect_codestream(coded(pixels, "57", predictor=6, restart_rows=2), "jpeg-lossless")
    assert (c.format, c.process, c.predictor) == ("jpeg-lossless", "lossless", 6)
    assert (c.rows, c.columns, c.precision) == (301, 233, 12)
    assert c.restart_interval == 2 * 233
    assert c.reversible
    c = inspect_codestream(coded(pixels, "57", point_transform=1), "jpeg-lossless")
    assert (c.point_transform, c.reversible) == (1, False)
    c = inspect_codestream(coded(pixels, "80"), "jpeg-ls")
    assert (c.format, c.near, c.precision, c.reversible) == ("jpeg-ls", 0, 16, True)
    c = inspect_codestream(coded(pixels, "81"), "jpeg-ls")
    assert c.near > 0
    assert not c.reversible
    c = inspect_codestream(coded(pixels, "51"), "jpeg")
    assert (c.format, c.precision, c.reversible) == ("jpeg", 12, False)


@pytest.mark.parametrize("syntax", ["90", "57", "80", "51", "202"])
def test_a_header_that_breaks_off(pixels: np.ndarray, syntax: str) -> None:
    data = coded(pixels, syntax)
    for length in range(0, 60, 3):
        with pytest.raises(CorruptCodestreamError):
            inspect_codestream(data[:length], "jpeg2000")


def siz(data: bytes, field: int, value: int, width: int = 4) -> bytes:
    """Overwrite a field of the SIZ marker, counted from the codestream's first byte."""
    return data[:field] + value.to_bytes(width, "big") + data[field + width :]


def test_impossible_headers(pixels: np.ndarray) -> None:
    data = coded(pixels, "90")
    with pytest.raises(CorruptCodestreamError, match=r"no jpeg2000 codestream: .* begin with"):
        inspect_codestream(b"\0" * 40, "jpeg2000")
    with pytest.raises(CorruptCodestreamError, match="image 0 x 233"):
        inspect_codestream(siz(data, 12, 0), "jpeg2000")
    with pytest.raises(CorruptCodestreamError, match="70133 tiles, allowed are 1 to 65535"):
        inspect_codestream(siz(siz(data, 24, 1), 28, 1), "jpeg2000")
    with pytest.raises(UnsupportedImageError, match="has 3 components"):
        inspect_codestream(siz(data, 40, 3, 2), "jpeg2000")
    cod = data.index(b"\xff\x52")
    with pytest.raises(CorruptCodestreamError, match="40 decomposition levels"):
        inspect_codestream(siz(data, cod + 9, 40, 1), "jpeg2000")
    with pytest.raises(CorruptCodestreamError, match="no COD marker"):
        inspect_codestream(siz(data, cod + 1, 0x5D, 1), "jpeg2000")
    with pytest.raises(CorruptCodestreamError, match="no marker at byte"):
        inspect_codestream(siz(data, cod, 0x1234, 2), "jpeg2000")
    jpeg = coded(pixels, "57")
    with pytest.raises(CorruptCodestreamError, match=r"the JPEG ends \(EOI\)"):
        inspect_codestream(b"\xff\xd8\xff\xd9" + jpeg, "jpeg")
    with pytest.raises(CorruptCodestreamError, match=r"a scan \(SOS\) but no frame header"):
        inspect_codestream(jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :], "jpeg")
    with pytest.raises(CorruptCodestreamError, match="no marker at byte 2"):
        inspect_codestream(b"\xff\xd8abc" + jpeg, "jpeg")
    with pytest.raises(CorruptCodestreamError, match="with length 0"):
        inspect_codestream(b"\xff\xd8\xff\xe0\0\0" + jpeg, "jpeg")


def test_jp2_boxes(pixels: np.ndarray) -> None:
    data = coded(pixels, "90", jp2=True)
    palette = b"\0\0\0\x0dpclr" + b"\0\x01\x01\x07\0"
    at = data.index(b"jp2h") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    boxed = (
        data[:at] + (length + 13).to_bytes(4, "big") + data[at + 4 : at + length] + palette
    ) + data[at + length :]
    with pytest.raises(UnsupportedImageError, match=r"palette box \(pclr\)"):
        inspect_codestream(boxed, "jpeg2000")
    with pytest.raises(CorruptCodestreamError, match=r"without a codestream box \(jp2c\)"):
        inspect_codestream(data.replace(b"jp2c", b"free"), "jpeg2000")


def test_a_tile_part_without_a_byte_of_data() -> None:
    """SOD may be the last thing in a tile-part: that is no defect."""
    data = encode(np.full((1, 1), 16, np.uint8), "1.2.840.10008.1.2.4.90", bits_stored=5)
    c = inspect_codestream(data, "jpeg2000")
    assert c.defects == ()
    sod = data.index(b"\xff\x93")
    short = data[: sod + 2] + b"\xff\xd9"
    start = data.index(b"\xff\x90")
    short = short[: start + 6] + (sod + 2 - start).to_bytes(4, "big") + short[start + 10 :]
    assert inspect_codestream(short, "jpeg2000").defects == ()
