"""Files that lie, break off or are mislabelled: each case was once read wrongly or without end."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from dicom_files import patched
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fastmammo.decoding import FrameDecoder, decode
from fastmammo.dicom import Frame, Mammogram, read
from fastmammo.errors import (
    CorruptCodestreamError,
    FastMammoError,
    NotDicomError,
    ReadError,
    SizeBombError,
)
from fastmammo.preprocess import Config, Preprocessor, apply_voi
from fastmammo.report.facts import facts
from fastmammo.testing import encode, phantom, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

J = "1.2.840.10008.1.2.4"
EXPLICIT = "1.2.840.10008.1.2.1"


def with_frame(m: Mammogram, data: bytes) -> Mammogram:
    return dataclasses.replace(m, frames=(Frame(data),))


def j2k(pixels: np.ndarray, **options: object) -> bytes:
    return encode(pixels, f"{J}.90", bits_stored=12, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- codestreams


def test_precincts_without_number_are_refused_before_the_decoder(pixels: np.ndarray) -> None:
    """A 1.6 kB file with 2 x 2 precincts once took OpenJPEG 8.9 GB and 33 s."""
    data = j2k(pixels)
    cod = data.index(b"\xff\x52")
    length = struct.unpack_from(">H", data, cod + 2)[0]
    levels = data[cod + 9]
    header = bytearray(data[cod : cod + 2 + length])
    header[4] |= 1
    header[2:4] = struct.pack(">H", length + levels + 1)
    bomb = data[:cod] + bytes(header) + b"\x11" * (levels + 1) + data[cod + 2 + length :]
    bomb = bomb[: len(bomb) // 20] + b"\xff\xd9"
    start = bomb.index(b"\xff\x90")
    bomb = bomb[: start + 6] + struct.pack(">I", 0) + bomb[start + 10 :]
    with pytest.raises(SizeBombError, match=r"claims \d+ packets and \d+ code-blocks in \d+ bytes"):
        decode(with_frame(read(write_dicom(pixels)), bomb))


def test_code_blocks_without_number_are_refused(pixels: np.ndarray) -> None:
    data = bytearray(j2k(pixels))
    cod = data.index(b"\xff\x52")
    data[cod + 10 : cod + 12] = b"\0\0"  # blocks of 4 x 4
    size = struct.pack(">II", 9000, 9000)
    data[8:16] = size
    data[24:32] = size
    m = read(patched(write_dicom(pixels), Rows=9000, Columns=9000))
    with pytest.raises(SizeBombError, match="5062500 code-blocks"):
        decode(with_frame(m, bytes(data)))


@pytest.mark.parametrize("lost", [1, 3, 6])
def test_missing_tiles_are_not_decoded_as_grey(pixels: np.ndarray, lost: int) -> None:
    data = j2k(pixels, tile=(128, 96))
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"\xff\x90\x00\x0a"]
    assert len(starts) == 9
    cut = data[: starts[-lost]] + b"\xff\xd9"
    m = read(write_dicom(pixels))
    assert np.array_equal(decode(with_frame(m, data)), pixels)
    with pytest.raises(CorruptCodestreamError, match="ends too early"):
        decode(with_frame(m, cut))


def test_coding_parameters_in_a_tile_part_header(pixels: np.ndarray) -> None:
    """Levels may be changed there; the codec's levels then serve nothing."""
    data = j2k(pixels)
    cod = data.index(b"\xff\x52")
    length = struct.unpack_from(">H", data, cod + 2)[0]
    segment = data[cod : cod + 2 + length]
    start = data.index(b"\xff\x90")
    psot = struct.unpack_from(">I", data, start + 6)[0]
    moved = (
        data[: start + 6]
        + struct.pack(">I", psot + len(segment) if psot else 0)
        + data[start + 10 : start + 12]
        + segment
        + data[start + 12 :]
    )
    decoder = FrameDecoder(with_frame(read(write_dicom(pixels)), moved))
    assert decoder.codestream.tile_overrides
    assert decoder.codec_levels == 0
    assert np.array_equal(decoder.at(2), decode(read(write_dicom(pixels)), level=2))


@pytest.mark.parametrize("syntax", ["70", "201"])
def test_values_that_the_precision_cannot_hold_are_damage(pixels: np.ndarray, syntax: str) -> None:
    """These codecs have no checksum and do not clamp: an impossible value is the sign there is."""
    m = read(write_dicom(pixels, transfer_syntax_uid=f"{J}.{syntax}"))
    whole = bytes(m.frame(0).data)
    outcomes = []
    for start in range(len(whole) // 3, len(whole) - 500, 701):
        damaged = whole[:start] + bytes(b ^ 0x55 for b in whole[start : start + 300])
        damaged += whole[start + 300 :]
        try:
            found = decode(with_frame(m, damaged))
        except CorruptCodestreamError as error:
            outcomes.append(str(error))
        else:
            assert found.max() <= 4095
    assert any("it is damaged" in outcome for outcome in outcomes)


# ---------------------------------------------------------------- pixels and headers


@pytest.mark.parametrize("high_bit", [15, 255])
def test_an_impossible_high_bit_does_not_make_the_image_black(high_bit: int) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    data = write_dicom(values, transfer_syntax_uid=EXPLICIT, bits_stored=8)
    m = read(patched(data, HighBit=high_bit))
    assert np.array_equal(decode(m), values)
    assert any("High Bit (0028,0102) is" in note for note in m.notes)


@pytest.mark.parametrize("masked", [False, True], ids=["sign extended", "masked"])
@pytest.mark.parametrize(
    ("uid", "options"),
    [
        (EXPLICIT, {}),
        ("1.2.840.10008.1.2.5", {}),
        (f"{J}.70", {"precision": 16}),
        (f"{J}.80", {}),
        (f"{J}.90", {"precision": 16}),
    ],
)
def test_signed_patterns_mean_the_same_in_every_syntax(
    uid: str, options: dict[str, int], masked: bool
) -> None:
    """Signed 12-bit values as 16-bit patterns, with copies of the sign above bit 11 or zeros."""
    values = np.random.default_rng(2).integers(-2048, 2048, (40, 30)).astype(np.int16)
    patterns = values.astype(np.uint16) & (0x0FFF if masked else 0xFFFF)
    data = write_dicom(patterns, transfer_syntax_uid=uid, bits_stored=16, **options)
    m = read(patched(data, BitsStored=12, HighBit=11, PixelRepresentation=1))
    assert np.array_equal(decode(m), values)


def test_explicit_vr_under_the_implicit_label() -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    data = write_dicom(values, transfer_syntax_uid=EXPLICIT)
    element = b"\x02\x00\x10\x00UI"
    at = data.index(element)
    length = struct.unpack_from("<H", data, at + 6)[0]
    uid = b"1.2.840.10008.1.2\0"
    wrong = data[:at] + element + struct.pack("<H", len(uid)) + uid + data[at + 8 + length :]
    total = struct.unpack_from("<I", wrong, 140)[0] + len(uid) - length
    wrong = wrong[:140] + struct.pack("<I", total) + wrong[144:]
    assert np.array_equal(decode(read(wrong)), values)


def test_bytes_in_big_endian_words() -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = write_dicom(values, transfer_syntax_uid="1.2.840.10008.1.2.2", bits_stored=8)
    at = data.index(b"\x7f\xe0\x00\x10OB")
    swapped = values.reshape(-1, 2)[:, ::-1].tobytes()
    words = data[:at] + b"\x7f\xe0\x00\x10OW" + data[at + 6 : at + 12] + swapped
    m = read(words)
    assert np.array_equal(decode(m), values)


def test_each_frame_has_its_own_window(tmp_path: Path) -> None:
    frames = np.stack([phantom(64, 48, seed=i).pixels for i in range(2)])

    def group(center: float, width: float) -> Dataset:
        voi, item = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, width
        item.FrameVOILUTSequence = Sequence([voi])
        return item

    dataset = pydicom.dcmread(io.BytesIO(write_dicom(frames)))
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group(500, 200), group(2000, 3000)])
    out = io.BytesIO()
    dataset.save_as(out)
    data = out.getvalue()
    assert read(data).window_center == (500.0,)
    assert read(data, frame=1).window_center == (2000.0,)
    image = Preprocessor(size=(64, 48), crop="none", frame=1, workers=1).prepare(data).image
    wanted = apply_voi(frames[1], read(data, frame=1), bits=8)
    assert np.array_equal(image, wanted)
    path = tmp_path / "two.dcm"
    path.write_bytes(data)
    assert facts(str(path), Config(frame=1))["header"]["window_center"] == (2000.0,)


def test_a_negative_slope_is_seen_by_the_breast_finder() -> None:
    made = phantom(500, 400, seed=4)
    window = {"window_center": 2047.5, "window_width": 4096, "voi_lut_function": "LINEAR_EXACT"}
    plain = write_dicom(made.pixels, **window)
    turned = write_dicom(
        4095 - made.pixels, attributes={"RescaleSlope": -1, "RescaleIntercept": 4095}, **window
    )
    prepare = Preprocessor(size=(128, 96), workers=1, scale="full")
    one, other = prepare.prepare(plain), prepare.prepare(turned)
    assert one.geometry.box == other.geometry.box
    assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1


def test_values_beyond_bits_stored_are_flagged_in_every_syntax() -> None:
    made = phantom(1303, 1001, seed=2).pixels.astype(np.uint32)
    values = np.minimum(made * 3, 6142).astype(np.uint16)
    for uid, options in ((EXPLICIT, {}), (f"{J}.90", {"precision": 16}), (f"{J}.201", {})):
        data = write_dicom(values, transfer_syntax_uid=uid, bits_stored=16, **options)
        data = patched(data, BitsStored=12, HighBit=11)
        for scale in ("auto", "full"):
            flags = Preprocessor(size=(256, 160), scale=scale, workers=1).prepare(data).flags
            assert "values beyond 12 bits stored" in flags, (uid, scale)
    clean = write_dicom(phantom(1303, 1001, seed=2).pixels)
    assert not Preprocessor(size=(256, 160), workers=1).prepare(clean).flags


def test_a_lut_of_bytes_with_an_odd_count(pixels: np.ndarray) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [255, 0, 8])
    item.add_new("LUTData", "OW", bytes(range(255)) + b"\0")
    m = read(write_dicom(pixels, attributes={"VOILUTSequence": Sequence([item])}))
    assert len(m.voi_luts) == 1
    assert m.voi_luts[0].data.tolist() == list(range(255))


def test_mutated_files_raise_only_our_errors(pixels: np.ndarray) -> None:
    rng = np.random.default_rng(7)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [16, 0, 8])
    item.add_new("LUTData", "OW", bytes(32))
    group = Dataset()
    group.FrameVOILUTSequence = Sequence([Dataset()])
    extra = {
        "VOILUTSequence": Sequence([item]),
        "SharedFunctionalGroupsSequence": Sequence([group]),
        "PatientAge": "045Y",
    }
    for uid in (EXPLICIT, "1.2.840.10008.1.2", f"{J}.90", f"{J}.70"):
        data = write_dicom(pixels[:32, :32], transfer_syntax_uid=uid, attributes=extra)
        for _ in range(150):
            mutated = bytearray(data)
            for at in rng.integers(132, min(len(data), 2600), 4):
                mutated[at] = rng.integers(0, 256)
            try:
                decode(read(bytes(mutated)))
            except FastMammoError as error:
                assert len(str(error)) > 10  # noqa: PT017


def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.zip"
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(1 << 40)
    with pytest.raises(NotDicomError, match="1099511627776 bytes"):
        read(path)
    with open(path, "r+b") as file:
        file.seek(128)
        file.write(b"DICM")
    with pytest.raises(SizeBombError, match="the limit is"):
        read(path)


def test_one_broken_source_does_not_cost_the_batch(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_dicom(pixels)
    prepare = Preprocessor(size=(64, 48), workers=2, on_error="collect")
    batch = prepare([good, 3, good])  # type: ignore[list-item]
    assert batch.indices == (0, 2)
    assert isinstance(batch.failures[0].error, TypeError)
    with pytest.raises(ReadError):
        Preprocessor(size=(64, 48), workers=1)([good[:1000], good])


def test_a_mammogram_can_be_sent_to_another_process(pixels: np.ndarray) -> None:
    import pickle

    m = read(write_dicom(pixels, window_center=1000, window_width=500))
    sent = pickle.loads(pickle.dumps(m))
    assert sent.window_center == (1000.0,)
    assert np.array_equal(decode(sent), pixels)


def test_attributes_of_a_batch_give_the_same_window() -> None:
    """A signed codestream under an unsigned header sets the range, which no frame is needed for."""
    values = phantom(64, 48, seed=1).pixels.astype(np.int16) - 2048
    data = patched(write_dicom(values), PixelRepresentation=0)
    batch = Preprocessor(size=(64, 48))([data])
    full = apply_voi(values, read(data))
    assert np.array_equal(apply_voi(values, batch.attributes[0]), full)


def test_it_starts_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """As in a container under another user: no folder for numba's cache can be written."""
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from fastmammo.cli import main\n"
        "raise SystemExit(main(['convert', '--help']))\n"
    )
    environment = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
