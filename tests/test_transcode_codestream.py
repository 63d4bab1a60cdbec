"""The encoder: what its codestreams say of themselves, and that every decoder takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_nvjpeg2000 import Parser

from fastmammo.decoding import imagecodecs, nvjpeg2000, openjpeg, pylibjpeg
from fastmammo.decoding.nvjpeg2000_library import Status, find_library
from fastmammo.dicom.codestream import inspect_codestream
from fastmammo.encoding import encode_htj2k, levels_for, missing
from fastmammo.encoding import htj2k as encoder
from fastmammo.errors import BackendUnavailableError, ConfigError, EncodeError

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SHAPES = [(1, 1), (3, 5), (65, 64), (130, 301), (1, 700)]


def frame(shape: tuple[int, int], precision: int, signed: bool, kind: str) -> np.ndarray:
    low, high = (-(1 << (precision - 1)), 1 << (precision - 1)) if signed else (0, 1 << precision)
    if kind == "noise":
        values = np.random.default_rng(precision).integers(low, high, shape)
    else:  # the largest coefficients that there can be
        values = np.where(np.add.outer(*map(np.arange, shape)) % 2, low, high - 1)
    return values.astype(f"{'i' if signed else 'u'}{1 if precision <= 8 else 2}")


def cases() -> list[tuple[tuple[int, int], int, bool, str]]:
    return [
        (shape, precision, signed, kind)
        for shape in SHAPES
        for precision in (1, 2, 7, 8, 9, 12, 14, 15, 16)
        for signed in (False, True)
        for kind in ("noise", "checkers")
    ]


def made(shape: tuple[int, int], pixels: np.ndarray, precision: int, parts: bool) -> bytes:
    levels = levels_for(*shape)
    return encode_htj2k(pixels, precision=precision, levels=levels, tile_parts=parts)


@pytest.mark.parametrize("parts", [False, True], ids=["one part", "tile-parts"])
def test_three_decoders_give_the_pixels_back(parts: bool) -> None:
    for shape, precision, signed, kind in cases():
        pixels = frame(shape, precision, signed, kind)
        data = made(shape, pixels, precision, parts)
        c = inspect_codestream(data, "htj2k")
        assert (c.precision, c.signed, c.complete, c.defects) == (precision, signed, True, ())
        for backend in (openjpeg, imagecodecs, pylibjpeg):
            where = f"{backend.NAME} {shape} {precision} {signed} {kind}"
            np.testing.assert_array_equal(backend.decode(data, c), pixels, err_msg=where)


def test_nvjpeg2000_s_own_parser_takes_them() -> None:
    try:
        parser = Parser(find_library())
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    try:
        for shape, precision, signed, kind in cases():
            data = made(shape, frame(shape, precision, signed, kind), precision, True)
            c = inspect_codestream(data, "htj2k")
            assert parser.status(data) is Status.SUCCESS, (shape, precision, signed)
            found = parser.facts(c.levels)
            assert (found["size"], found["precision"]) == (shape, (precision, signed))
            # signed bytes it has no type for: the CPU decodes them
            assert nvjpeg2000.refuses(c) is None or (signed and precision <= 8)
    finally:
        parser.close()


@pytest.mark.parametrize("precision", [8, 12, 16])
@pytest.mark.parametrize("levels", [1, 2, 5, 7])
def test_the_bounds_of_the_headers_agree(precision: int, levels: int) -> None:
    """QCD's exponents and CAP's MAGB bound the magnitude bits, whatever SIZ was changed to."""
    pixels = frame((300, 200), precision, False, "checkers")
    data = encode_htj2k(pixels, precision=precision, levels=levels)
    qcd = data[data.index(b"\xff\x5c") + 4 :][: 2 + 3 * levels]
    guard = qcd[0] >> 5
    assert qcd[0] & 31 == 0  # no quantization
    bits = [guard + (each >> 3) - 1 for each in qcd[1:]]
    # 15444-1 E.1: the sample's bits, and the sub-band's gain: 0 for LL, 1 for HL and LH, 2 for HH
    gains = [0] + [1, 1, 2] * levels
    assert all(have >= precision + gain - 1 for have, gain in zip(bits, gains, strict=False))
    # 15444-15 A.3: B = 8 for P = 0, P + 8 below 20
    magb = data[data.index(b"\xff\x50") + 9] & 31
    assert max(bits) == magb + 8


def test_levels() -> None:
    for rows, columns, levels in (
        *((1, 1, 1), (64, 64, 1), (128, 128, 1), (129, 1, 2), (3328, 2560, 6), (5355, 4915, 7)),
        (65535, 10, 10),
    ):
        assert levels_for(rows, columns) == levels
        assert levels_for(columns, rows) == levels


def test_the_longest_image_that_dicom_can_hold() -> None:
    pixels = frame((65535, 3), 12, False, "noise")
    data = made((65535, 3), pixels, 12, True)
    c = inspect_codestream(data, "htj2k")
    assert c.levels == 10
    np.testing.assert_array_equal(openjpeg.decode(data, c), pixels)


def test_what_the_encoder_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = frame((9, 9), 12, False, "noise")
    with pytest.raises(ConfigError, match="pixels from 4095 to 4095 at precision 8; wanted"):
        encode_htj2k(pixels | 4095, precision=8, levels=1)
    with pytest.raises(ConfigError, match="levels 0; wanted 1 or more"):
        encode_htj2k(pixels, precision=12, levels=0)
    import imagecodecs

    def refusing(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("no block of that size")

    with monkeypatch.context() as patched:
        patched.setattr(imagecodecs, "htj2k_encode", refusing)
        with pytest.raises(EncodeError, match=r"OpenJPH refused 9 x 9 pixels.*no block of that"):
            encode_htj2k(pixels, precision=12, levels=1)
        patched.setattr(imagecodecs, "htj2k_encode", lambda *_, **__: bytes(100))
        with pytest.raises(BackendUnavailableError, match="otherwise than those that were tested"):
            encode_htj2k(pixels, precision=12, levels=1)
    assert encoder.missing() is None
