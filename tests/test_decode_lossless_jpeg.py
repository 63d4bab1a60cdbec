"""The package's own lossless JPEG decoder against libjpeg-turbo, and against damaged streams."""

from __future__ import annotations

import dataclasses

import imagecodecs
import numpy as np
import pytest

from fastmammo.decoding import numba
from fastmammo.decoding.backends import choose
from fastmammo.decoding.lossless_jpeg.header import INDEX_BITS, read_scan
from fastmammo.dicom.jpeg import read_jpeg
from fastmammo.errors import CorruptCodestreamError
from fastmammo.testing import phantom
from fastmammo.testing.jpeg_lossless import encode_jpeg_lossless


def decoded(data: bytes) -> np.ndarray:
    codestream = read_jpeg(memoryview(data))
    assert choose(codestream) is numba
    return numba.decode(data, codestream)


def turbo(pixels: np.ndarray, precision: int, predictor: int = 1) -> bytes:
    kind = np.uint8 if precision <= 8 else np.uint16
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels.astype(kind), lossless=True, predictor=predictor, bitspersample=precision
        )
    )


def frames(seed: int, precision: int) -> list[np.ndarray]:
    """Noise, air with noise in it, and steps of one: categories from 0 to 16."""
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(1, 60, 2))
    noise = rng.integers(0, 1 << precision, (rows, columns))
    air = np.where(rng.random((rows, columns)) < 0.8, 0, noise)
    steps = np.cumsum(rng.integers(-1, 2, (rows, columns)), 1) + (1 << (precision - 1))
    return [noise, air, steps % (1 << precision), np.full((rows, columns), noise[0, 0])]


@pytest.mark.parametrize("precision", range(2, 17))
def test_every_precision_and_predictor_equals_libjpeg_turbo(precision: int) -> None:
    for predictor in range(1, 8):
        for pixels in frames(predictor, precision):
            found = decoded(turbo(pixels, precision, predictor))
            assert found.dtype == (np.uint8 if precision <= 8 else np.uint16)
            np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("restart_rows", [0, 1, 3])
@pytest.mark.parametrize("point_transform", [0, 2])
def test_restart_intervals_and_point_transforms(restart_rows: int, point_transform: int) -> None:
    for predictor in range(1, 8):
        for pixels in frames(10 + predictor, 12):
            data = encode_jpeg_lossless(
                pixels.astype(np.uint16),
                precision=12,
                predictor=predictor,
                restart_rows=restart_rows,
                point_transform=point_transform,
            )
            wanted = pixels >> point_transform << point_transform
            np.testing.assert_array_equal(decoded(data), wanted)


def test_a_phantom() -> None:
    pixels = phantom(832, 640, seed=3).pixels
    np.testing.assert_array_equal(decoded(turbo(pixels, 12)), pixels)


def test_codes_longer_than_the_look_up_and_category_16() -> None:
    steps = np.concatenate([np.full(1 << (16 - n), 1 << n) for n in range(15, 0, -1)])
    signs = np.where(np.arange(steps.size) % 2, 1, -1)
    pixels = (np.cumsum(steps * signs) % (1 << 16)).astype(np.uint16)[: 250 * 256].reshape(256, 250)
    pixels[7, :2] = 0, 32768
    data = turbo(pixels, 16)
    huffman = read_scan(memoryview(data)).huffman
    longest = max(n for n in range(17) if huffman.last[n] >= huffman.first[n] and n)
    assert longest > INDEX_BITS
    assert 16 in huffman.categories
    np.testing.assert_array_equal(decoded(data), pixels)


def test_stuffed_bytes_and_fill_bytes_before_a_restart_marker() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    data = encode_jpeg_lossless(pixels, precision=16, restart_rows=2)
    assert data.count(b"\xff\x00") > 5
    filled = data.replace(b"\xff\xd3", b"\xff\xff\xff\xd3")
    assert len(filled) > len(data)
    np.testing.assert_array_equal(decoded(filled), pixels)


def noisy(restart_rows: int = 0) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 4096, (30, 40)).astype(np.uint16)
    return encode_jpeg_lossless(pixels, precision=12, restart_rows=restart_rows)


def refusal(data: bytes) -> str:
    with pytest.raises(CorruptCodestreamError) as caught:
        numba.decode(data, read_jpeg(memoryview(data)))
    return str(caught.value)


def test_a_truncated_scan() -> None:
    data = noisy()
    message = refusal(data[:-400] + b"\xff\xd9")
    assert "data ends in row" in message
    assert "of 30" in message
    start = read_scan(memoryview(data)).start
    assert "data ends in row 0" in refusal(data[:start] + b"\xff\xd9")


def test_the_last_bits_count() -> None:
    data = noisy()
    assert "data ends in row 29" in refusal(data[:-4] + b"\xff\xd9")


def test_a_code_that_the_table_lacks() -> None:
    data = noisy()
    start = read_scan(memoryview(data)).start
    # the encoder's table leaves 11111 over
    assert "Huffman code that its table lacks" in refusal(
        data[:start] + b"\xff\x00" * 600 + b"\xff\xd9"
    )


@pytest.mark.parametrize("wrong", [b"\xff\xd5", b"\x00\x00"])
def test_a_restart_marker_that_is_wrong_or_missing(wrong: bytes) -> None:
    data = noisy(restart_rows=5)
    at = data.index(b"\xff\xd1")
    message = refusal(data[:at] + wrong + data[at + 2 :])
    assert "no restart marker before row 10" in message or "data ends" in message


@pytest.mark.parametrize("predictor", [1, 4])
def test_values_beyond_the_precision(predictor: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 4096, (30, 40)).astype(np.uint16)
    data = bytearray(encode_jpeg_lossless(pixels, precision=12, predictor=predictor))
    data[data.index(b"\xff\xc3") + 4] = 11  # SOF: precision
    assert "values beyond 11 bits in row 0" in refusal(bytes(data))
    steep = np.zeros((4, 40), np.uint16)
    steep[2:] = 3000
    data = bytearray(encode_jpeg_lossless(steep, precision=12, predictor=predictor))
    data[data.index(b"\xff\xc3") + 4] = 11
    # 11 bits start from 1024, not 2048: every value lies 1024 lower
    assert "values beyond 11 bits in row 0" in refusal(bytes(data))


def test_headers_that_contradict_themselves() -> None:
    data = noisy()
    table = data.index(b"\xff\xc4")
    scan = data.index(b"\xff\xda")
    other = bytearray(data)
    other[scan + 6] = 0x30  # the scan's table: 3
    assert "Huffman table 3, which is not there" in refusal(bytes(other))
    other = bytearray(data)
    other[scan + 5] = 9  # the scan's component
    assert "components from 9 on" in refusal(bytes(other))
    other = bytearray(data)
    other[table + 5 : table + 21] = bytes([3, 14, *[0] * 14])  # three codes of one bit
    assert "more codes of up to 1 bits than there can be" in refusal(bytes(other))
    other = bytearray(data)
    other[table + 21] = 17  # a category
    assert "wanted some of 0 to 16" in refusal(bytes(other))
    with pytest.raises(CorruptCodestreamError, match="breaks off"):
        read_scan(memoryview(data[: scan + 4]))
    with pytest.raises(CorruptCodestreamError, match=r"\(DHT\) breaks off"):
        read_scan(memoryview(data[: table + 2] + b"\x00\x08" + data[table + 4 :]))


def test_what_it_leaves_to_others() -> None:
    pixels = np.zeros((20, 30), np.uint16)
    codestream = read_jpeg(memoryview(turbo(pixels, 12)))
    assert numba.refuses(codestream) is None
    for change, reason in (
        ({"restart_interval": 45}, "no whole rows"),
        ({"predictor": 0}, "predictor 0"),
        ({"point_transform": 12}, "point transform 12"),
        ({"process": "lossless, arithmetic"}, "Huffman codes only"),
        ({"components": 3}, "3 components"),
        ({"columns": 0}, "no columns"),
    ):
        other = dataclasses.replace(codestream, **change)
        assert reason in str(numba.refuses(other))
    whole = dataclasses.replace(codestream, restart_interval=45)
    assert choose(whole).NAME == "imagecodecs"


def test_damage_is_refused_or_decoded_never_more() -> None:
    rng = np.random.default_rng(5)
    data = noisy(restart_rows=3)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(2, len(damaged)))] = int(rng.integers(256))
        try:
            codestream = read_jpeg(memoryview(bytes(damaged)))
            if codestream.pixels > 1 << 20 or numba.refuses(codestream) is not None:
                continue
            found = numba.decode(bytes(damaged), codestream)
        except CorruptCodestreamError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        assert found.shape == (codestream.rows, codestream.columns)
        assert int(found.max(initial=0)) < 1 << codestream.precision
    assert outcomes == {"refused", "decoded"}
