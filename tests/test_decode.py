"""Decoding: every syntax gives the stored values, every level the same integers."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import re
import sys

import numpy as np
import pydicom
import pytest
from dicom_files import patched

from fastmammo.decoding import BACKENDS, FrameDecoder, choose, decode
from fastmammo.dicom import Codestream, Frame, read
from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptCodestreamError,
    DecodeError,
    FastMammoError,
    MismatchError,
    SizeBombError,
    UnsupportedImageError,
    UnsupportedSyntaxError,
)
from fastmammo.testing import write_dicom

J = "1.2.840.10008.1.2.4"
LOSSLESS = [
    ("1.2.840.10008.1.2", {}),
    ("1.2.840.10008.1.2.1", {}),
    ("1.2.840.10008.1.2.1.99", {}),
    ("1.2.840.10008.1.2.2", {}),
    ("1.2.840.10008.1.2.5", {}),
    *((f"{J}.57", {"predictor": predictor}) for predictor in range(1, 8)),
    (f"{J}.57", {"predictor": 5, "restart_rows": 7}),
    (f"{J}.70", {}),
    (f"{J}.70", {"precision": 16}),
    (f"{J}.70", {"restart_rows": 1}),
    (f"{J}.80", {}),
    (f"{J}.90", {}),
    (f"{J}.90", {"precision": 16}),
    (f"{J}.90", {"jp2": True}),
    (f"{J}.90", {"tile": (128, 96)}),
    (f"{J}.90", {"levels": 0}),
    (f"{J}.90", {"levels": 2}),
    (f"{J}.90", {"mode": 1}),
    (f"{J}.90", {"layers": 3}),
    (f"{J}.201", {}),
    (f"{J}.201", {"precision": 16}),
    (f"{J}.202", {}),
]


def ids(case: object) -> str:
    return re.sub(r"[^\w.]+", " ", str(case)).strip()


def low_pass(x: np.ndarray) -> np.ndarray:
    """5/3 low-pass of both axes, straight from ISO/IEC 15444-1 F.4.8.1, by index reflection."""

    def axis(x: np.ndarray) -> np.ndarray:
        n = len(x)
        if n == 1:
            return x

        def at(i: int) -> np.ndarray:
            i = abs(i)
            return x[2 * (n - 1) - i] if i > n - 1 else x[i]

        def high(k: int) -> np.ndarray:
            return at(2 * k + 1) - ((at(2 * k) + at(2 * k + 2)) >> 1)

        return np.stack([at(2 * k) + ((high(k - 1) + high(k) + 2) >> 2) for k in range(-(-n // 2))])

    return axis(axis(x.astype(np.int64)).T).T


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("case", LOSSLESS, ids=ids)
def test_lossless_syntaxes_give_the_same_integers(
    pixels: np.ndarray, case: tuple[str, dict[str, object]], signed: bool
) -> None:
    uid, options = case
    values = (pixels.astype(np.int16) - 2048) if signed else pixels
    m = read(write_dicom(values, transfer_syntax_uid=uid, **options))  # type: ignore[arg-type]
    stored = decode(m)
    assert stored.dtype == values.dtype
    assert np.array_equal(stored, values)
    band = values
    first, last = (-2048, 2047) if signed else (0, 4095)
    for level in (1, 2, 3, 4):
        band = low_pass(band)
        found = decode(m, level=level)
        assert np.array_equal(found, np.clip(band, first, last)), f"level {level}"


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (64, 65), (17, 130)])
@pytest.mark.parametrize("uid", [f"{J}.90", f"{J}.201", "1.2.840.10008.1.2.1", f"{J}.70"])
def test_small_and_odd_sizes(shape: tuple[int, int], uid: str) -> None:
    values = np.random.default_rng(1).integers(0, 4096, shape).astype(np.uint16)
    if min(shape) == 1 and uid == f"{J}.201":
        pytest.skip("the HTJ2K encoder refuses one row or column")
    m = read(write_dicom(values, transfer_syntax_uid=uid))
    assert np.array_equal(decode(m), values)
    expected = np.clip(low_pass(low_pass(values)), 0, 4095)
    assert np.array_equal(decode(m, level=2), expected)


@pytest.mark.parametrize("bits", [8, 10, 14, 16])
@pytest.mark.parametrize(
    "uid", [f"{J}.90", f"{J}.201", f"{J}.70", f"{J}.80", "1.2.840.10008.1.2.5"]
)
def test_bit_depths(bits: int, uid: str) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (40, 37))
    values = values.astype(np.uint8 if bits == 8 else np.uint16)
    m = read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits))
    assert np.array_equal(decode(m), values)
    assert np.array_equal(decode(m, level=1), np.clip(low_pass(values), 0, (1 << bits) - 1))


@pytest.mark.parametrize(
    ("syntax", "bits", "tolerance"), [("50", 8, 1), ("51", 12, 2), ("81", 12, 0), ("91", 12, 1)]
)
def test_lossy_syntaxes_agree_with_another_decoder(
    pixels: np.ndarray, syntax: str, bits: int, tolerance: int
) -> None:
    values = (pixels >> 4).astype(np.uint8) if bits == 8 else pixels
    uid = f"{J}.{syntax}"
    m = read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits))
    found = decode(m)
    if syntax == "91":
        other = decode(m, backend="pylibjpeg")
    else:
        pytest.importorskip("libjpeg")
        other = decode(m, backend="pylibjpeg")
    assert np.abs(found.astype(int) - other.astype(int)).max() <= tolerance
    assert np.abs(found.astype(int) - values).max() < 64


def test_lossy_values_are_clamped_not_wrapped() -> None:
    values = np.zeros((64, 64), np.uint16)
    values[20:40, 20:40] = 4095
    for syntax in ("91", "203", "51"):
        m = read(write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}"))
        found = decode(m).astype(int)
        assert found.min() >= 0
        assert found.max() <= 4095
        assert np.abs(found - values).max() < 1024, syntax


def test_the_manifest_of_real_files(data) -> None:
    """Every greyscale file on which two decoders agree decodes to those values."""
    agreed, wrong = 0, []
    with open(data / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        wanted, second = row["dec_pylibjpeg"], row["dec_gdcm"]
        found, frames = _decoded(data / row["file"])
        grey = row["SamplesPerPixel"] == "1" and row["PhotometricInterpretation"].startswith("M")
        if not frames:
            if len(found) < 20 or (grey and wanted.startswith("OK") and wanted == second):
                wrong.append((row["file"], found, wanted))
        elif wanted.startswith("OK") and wanted == second:
            agreed += found == wanted
            if found != wanted:
                wrong.append((row["file"], found, wanted))
        elif not wanted and (expected := _pydicom_pixels(data / row["file"])) is not None:
            same = np.array_equal(np.stack(frames).reshape(expected.shape), expected)
            agreed += same
            if not same:
                wrong.append((row["file"], found, "pydicom's pixel_array"))
    assert not wrong
    assert agreed >= 40


def _decoded(path) -> tuple[str, list[np.ndarray]]:
    """Return the manifest's summary of all frames and the frames, or the error's message."""
    try:
        m = read(path)
        frames = [decode(m, frame=i) for i in range(len(m.frames))]
    except FastMammoError as error:
        return str(error), []
    values = np.ascontiguousarray(np.stack(frames) if len(frames) > 1 else frames[0])
    digest = hashlib.sha1(values.tobytes()).hexdigest()[:12]
    low, high = values.min(), values.max()
    return f"OK {values.shape} {values.dtype} min{low} max{high} sha1:{digest}", frames


def _pydicom_pixels(path) -> np.ndarray | None:
    try:
        return pydicom.dcmread(path).pixel_array
    except Exception:  # a file that pydicom cannot decode says nothing about ours
        return None


def test_backends_agree(pixels: np.ndarray) -> None:
    m = read(write_dicom(pixels))
    for backend in ("numba", "openjpeg", "imagecodecs", "pylibjpeg"):
        assert np.array_equal(decode(m, backend=backend), pixels)
        assert np.array_equal(decode(m, backend=backend, level=2), decode(m, level=2))


def test_a_point_transform_is_undone(pixels: np.ndarray) -> None:
    """JPEG lossless may drop low bits (T.81 H.1.2.1): values keep their scale."""
    m = read(write_dicom(pixels, transfer_syntax_uid=f"{J}.57", point_transform=2))
    assert np.array_equal(decode(m), pixels >> 2 << 2)
    with pytest.raises(UnsupportedSyntaxError, match=r"leaves out the point transform|GPL"):
        decode(m, backend="pylibjpeg")


def test_values_beyond_bits_stored_are_kept_and_told() -> None:
    values = np.full((64, 64), 100, np.uint16)
    values[10:50, 10:50] = 12000
    m = read(write_dicom(values, bits_stored=16))
    m = read(patched(write_dicom(values, bits_stored=16), BitsStored=12, HighBit=11))
    decoder = FrameDecoder(m)
    assert decoder.at(0).max() == 12000
    assert decoder.beyond_range
    coarse = FrameDecoder(m)
    assert coarse.at(2).max() == 4095
    assert coarse.beyond_range


def test_sign_mismatches(pixels: np.ndarray) -> None:
    signed = pixels.astype(np.int16) - 2048
    # A signed codestream under an unsigned header: the codestream's sign counts.
    m = read(patched(write_dicom(signed), PixelRepresentation=0))
    decoder = FrameDecoder(m)
    assert np.array_equal(decoder.at(0), signed)
    assert decoder.codec_levels == 0
    assert "the codestream is signed" in decoder.notes[0]
    # An unsigned codestream under a signed header: two's complement patterns.
    m = read(patched(write_dicom((signed & 0xFFF).astype(np.uint16)), PixelRepresentation=1))
    decoder = FrameDecoder(m)
    assert np.array_equal(decoder.at(0), signed)
    assert "two's complement of 12 bits" in decoder.notes[0]


def test_native_high_bit_and_overlay_bits() -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    uid = "1.2.840.10008.1.2.1"
    left = write_dicom(values << 4, transfer_syntax_uid=uid, bits_stored=16)
    m = read(patched(left, BitsStored=12, HighBit=15))
    assert np.array_equal(decode(m), values)
    overlaid = write_dicom(values | 0x8000, transfer_syntax_uid=uid, bits_stored=16)
    dataset = pydicom.dcmread(io.BytesIO(overlaid))
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.add_new(0x60000102, "US", 15)
    out = io.BytesIO()
    dataset.save_as(out)
    assert np.array_equal(decode(read(out.getvalue())), values)


def test_refusals(pixels: np.ndarray) -> None:
    plain = write_dicom(pixels)
    with pytest.raises(MismatchError, match=r"codestream is 301 x 233 .* say 301 x 200"):
        decode(read(patched(plain, Columns=200)))
    with pytest.raises(SizeBombError, match=r"the DICOM header claims 60000 x 60000 = 3600000000"):
        decode(read(patched(plain, Rows=60000, Columns=60000)))
    with pytest.raises(SizeBombError, match=r"the limit is 100 \(max_pixels\)"):
        decode(read(plain), max_pixels=100)
    deep = patched(plain, BitsAllocated=8, BitsStored=8, HighBit=7)
    with pytest.raises(MismatchError, match=r"12 bits a sample, Bits Allocated .* is 8"):
        decode(read(deep))
    with pytest.raises(UnsupportedImageError, match="is RGB with 1 sample"):
        decode(read(patched(plain, PhotometricInterpretation="RGB")))
    with pytest.raises(UnsupportedImageError, match=r"Bits Allocated \(0028,0100\) is 32"):
        decode(read(patched(plain, BitsAllocated=32)))
    with pytest.raises(ConfigError, match="level 13: allowed are whole numbers 0 to 12"):
        decode(read(plain), level=13)
    with pytest.raises(ConfigError, match=r"level 1\.5: allowed"):
        decode(read(plain), level=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device: got 'tpu', allowed are cpu, cuda, auto"):
        decode(read(plain), device="tpu")
    with pytest.raises(ConfigError, match="backend 'kakadu': allowed are auto, numpy"):
        decode(read(plain), backend="kakadu")
    with pytest.raises(UnsupportedSyntaxError, match="numpy: does not decode jpeg2000"):
        decode(read(plain), backend="numpy")


def test_gigabytes_claimed_in_kilobytes(pixels: np.ndarray) -> None:
    """Codestream and header agree on 11,000 x 11,000 pixels, the bytes cannot hold them."""
    for syntax in ("70", "50"):
        values = (pixels >> 4).astype(np.uint8)
        data = write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}", bits_stored=8)
        sof = data.index(b"\xff\xc3" if syntax == "70" else b"\xff\xc0")
        size = (11000).to_bytes(2, "big") * 2
        bomb = patched(data[: sof + 5] + size + data[sof + 9 :], Rows=11000, Columns=11000)
        with pytest.raises(SizeBombError, match=r"claims 11000 x 11000 pixels in \d+ bytes"):
            decode(read(bomb))


@pytest.mark.parametrize("uid", [f"{J}.{s}" for s in ("50", "51", "57", "70", "80", "90", "201")])
def test_damaged_codestreams_are_errors(pixels: np.ndarray, uid: str) -> None:
    bits = 8 if uid.endswith(".50") else 12
    values = (pixels >> 4).astype(np.uint8) if bits == 8 else pixels
    m = read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits))
    whole = bytes(m.frame(0).data).rstrip(b"\0")
    for length in (len(whole) // 2, len(whole) * 9 // 10, len(whole) - 20, len(whole) - 2):
        if uid.endswith((".90", ".201")) and length == len(whole) - 2:
            continue  # only EOC is gone: every tile-part is whole
        with pytest.raises(DecodeError):
            decode(dataclasses.replace(m, frames=(Frame(whole[:length]),)))


def test_htj2k_that_breaks_half_way_is_an_error(pixels: np.ndarray) -> None:
    """The binding of OpenJPH swallows this error and returns rows that were never written."""
    m = read(write_dicom(pixels, transfer_syntax_uid=f"{J}.201"))
    whole = bytes(m.frame(0).data)
    hook, refused = sys.unraisablehook, 0
    for start in range(len(whole) // 4, len(whole) - 100, 997):
        damaged = whole[:start] + b"\xff" * 40 + whole[start + 40 :]
        try:
            decode(dataclasses.replace(m, frames=(Frame(damaged),)))
        except CorruptCodestreamError as error:
            refused += "half-way: ojph error" in str(error)
    assert refused >= 5
    assert sys.unraisablehook is hook


def test_rle_damage(pixels: np.ndarray) -> None:
    m = read(write_dicom(pixels, transfer_syntax_uid="1.2.840.10008.1.2.5"))
    data = bytes(m.frame(0).data)
    for damaged, message in (
        (data[:-400], "refused the codestream|is truncated"),
        (b"\x03" + data[1:], "with 3 segments, wanted 2"),
        (data[:4] + b"\xff\xff\xff\x7f" + data[8:], "damaged header"),
    ):
        with pytest.raises(CorruptCodestreamError, match=message):
            decode(dataclasses.replace(m, frames=(Frame(damaged),)))


def test_choose_lists_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    c = Codestream("jpeg2000", 10, 10, 12, False)
    assert choose(c).NAME == "openjpeg"  # numba wants a wavelet of 5/3
    assert choose(dataclasses.replace(c, wavelet="5/3", components=1, tiles=1)).NAME == "numba"
    for name in ("openjpeg", "imagecodecs", "pylibjpeg"):
        monkeypatch.setattr(BACKENDS[name], "missing", lambda name=name: f"pip install {name}")
    with pytest.raises(BackendUnavailableError, match=r"(?s)openjpeg: not installed: pip install"):
        choose(c)
    with pytest.raises(UnsupportedSyntaxError, match="20 bits a sample, 16 at most"):
        choose(Codestream("jpeg2000", 10, 10, 20, False))
    with pytest.raises(UnsupportedSyntaxError, match="no backend of this package does"):
        choose(dataclasses.replace(c, format="rle", precision=8), device="cuda")
