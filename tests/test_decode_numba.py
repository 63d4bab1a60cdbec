"""The JPEG 2000 decoder in numba against OpenJPEG: every sample of every level, and hostile bytes.

What it refuses is compared too: a codestream that it takes must come out as OpenJPEG's, and one
that it cannot decode must be known before decoding.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastmammo import read
from fastmammo.decoding import BACKENDS, numba, openjpeg
from fastmammo.decoding.ebcot.header import read_header
from fastmammo.decoding.ebcot.tables import CONTEXTS, STATES
from fastmammo.dicom.jpeg2000 import read_jpeg2000
from fastmammo.errors import CorruptCodestreamError
from fastmammo.testing import openjpeg as encoder

if TYPE_CHECKING:
    from pathlib import Path

    from fastmammo.dicom import Codestream


def noise(rows: int, columns: int, bits: int, *, signed: bool = False, seed: int = 1) -> Any:
    """A ramp with an eighth of the range in noise: every bit plane and pass has work."""
    rng = np.random.default_rng(seed)
    span = 1 << bits
    y, x = np.mgrid[:rows, :columns]
    values = span * (0.3 + 0.4 * (x + y) / (rows + columns)) + rng.normal(0, span / 8, y.shape)
    values = np.clip(values, 0, span - 1) - (span // 2 if signed else 0)
    return values.astype(("int" if signed else "uint") + ("8" if bits <= 8 else "16"))


def encoded(pixels: Any, bits: int, **settings: Any) -> tuple[bytes, Codestream]:
    data = encoder.encode_jpeg2000(pixels, precision=bits, **{"levels": 3, **settings})
    return data, read_jpeg2000(memoryview(data))


def assert_as_openjpeg(data: bytes, c: Codestream) -> None:
    assert numba.refuses(c) is None
    pyramid = numba.Pyramid(data, c)
    for level in range(c.levels, -1, -1):
        wanted = openjpeg.decode(data, c, level)
        for got in (numba.decode(data, c, level), pyramid.decode(level)):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("bits", "signed"), [(1, False), (8, False), (8, True), (10, True)])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (2, 3), (131, 67)])
def test_samples_of_every_size(size: tuple[int, int], bits: int, signed: bool) -> None:
    pixels = noise(*size, bits, signed=signed)
    levels = min(3, (min(size)).bit_length() - 1)
    data, c = encoded(pixels, bits, levels=levels)
    assert_as_openjpeg(data, c)
    np.testing.assert_array_equal(numba.decode(data, c), pixels)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("codeblock", [(64, 64), (16, 32), (4, 1024), (1024, 4), (8, 8), (4, 4)])
def test_code_blocks_of_every_shape(codeblock: tuple[int, int], bits: int) -> None:
    data, c = encoded(noise(203, 190, bits), bits, codeblock=codeblock)
    assert_as_openjpeg(data, c)


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("progression", encoder.PROGRESSIONS)
def test_progressions_precincts_and_packet_markers(
    progression: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precincts of 64 x 128 above, 32 x 32 below, with SOP and EPH markers around each packet."""
    plain = encoder._parameters

    def with_precincts(library: ctypes.CDLL) -> Any:
        parameters = plain(library)
        parameters.csty |= 1 | 2 | 4
        # roi_compno, roi_shift, res_spec, prcw_init[33], prch_init[33] (openjpeg.h)
        numbers = np.zeros(69, np.int32)
        numbers[[0, 2, 3, 4, 36, 37]] = -1, 2, 128, 32, 64, 32
        start = ctypes.addressof(parameters) + encoder._Parameters.reserved.offset
        ctypes.memmove(start, numbers.tobytes(), numbers.nbytes)
        return parameters

    monkeypatch.setattr(encoder, "_parameters", with_precincts)
    data, c = encoded(noise(300, 260, 12), 12, progression=progression, layers=layers)
    assert c.packets > 20
    assert data.count(b"\xff\x91\0\4") >= c.packets
    assert_as_openjpeg(data, c)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("psnr", [25.0, 40.0, 55.0])
def test_bit_planes_left_out(psnr: float, layers: int) -> None:
    """Values lie in the middle of what the missing passes could say, as OpenJPEG puts them."""
    pixels = noise(150, 140, 12)
    data, c = encoded(pixels, 12, psnr=psnr, layers=layers)
    assert_as_openjpeg(data, c)
    assert (numba.decode(data, c) != pixels).any()


def test_flat_and_sparse_frames() -> None:
    """Bands without any code-block; single points, which the run-length mode finds."""
    pixels = np.zeros((200, 300), np.uint16)
    assert_as_openjpeg(*encoded(pixels, 12))
    pixels[np.random.default_rng(2).random(pixels.shape) < 0.003] = 4095
    assert_as_openjpeg(*encoded(pixels, 12))


def test_real_files(data: Path) -> None:
    files = [path for path in sorted(data.rglob("*")) if path.suffix in (".dcm", "")]
    found = 0
    for path in files:
        if not path.is_file() or path.stat().st_size > 3_000_000:
            continue
        try:
            m = read(path)
            c = m.codestream(0)
        except Exception:  # what is no image is for other tests
            continue
        if c.format == "jpeg2000" and numba.refuses(c) is None:
            assert_as_openjpeg(bytes(m.frame(0).data), c)
            found += 1
    assert found >= 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"reversible": False, "psnr": 60.0}, "9/7"),
        ({"tile": (64, 64)}, "tiles"),
        ({"mode": 1}, "bypass"),
        ({"mode": 32}, "segmentation symbols"),
    ],
)
def test_what_it_refuses(settings: dict[str, Any], reason: str) -> None:
    _, c = encoded(noise(100, 90, 12), 12, **settings)
    assert reason in str(numba.refuses(c))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"precision": 17}, "17 bits"),
        ({"components": 3}, "3 components"),
        ({"region_of_interest": True}, "region of interest"),
        ({"codeblock": (128, 64)}, "4096 samples"),
        ({"markers": ("PPM", "TLM")}, "marker segments PPM"),
        ({"defects": ("no steps",)}, "no steps"),
    ],
)
def test_what_the_header_rules_out(change: dict[str, Any], reason: str) -> None:
    _, c = encoded(noise(20, 20, 8), 8)
    assert reason in str(numba.refuses(dataclasses.replace(c, **change)))


def test_no_such_level() -> None:
    data, c = encoded(noise(50, 50, 8), 8, levels=2)
    with pytest.raises(CorruptCodestreamError, match="no level 3 in a JPEG 2000 codestream of 2"):
        numba.decode(data, c, 3)


def patched_stream(data: bytes, marker: bytes, at: int, value: bytes) -> memoryview:
    start = data.index(marker) + at
    return memoryview(data[:start] + value + data[start + len(value) :])


@pytest.mark.parametrize(
    ("marker", "at", "value", "message"),
    [
        (b"\xff\x51", 0, b"\xff\x64", "no SIZ marker"),
        (b"\xff\x52", 0, b"\xff\x63", "no COD or no QCD"),
        (b"\xff\x64", 0, b"\xff\x60", "marker FF60 at byte"),
        (b"\xff\x51", 22, b"\x00\x00\x00\x20", "more than one tile or component"),
        (b"\xff\x51", 38, b"\x00\x03", "more than one tile or component"),
        (b"\xff\x51", 40, b"\x50", "81 bits a sample, 16 at most"),
        (b"\xff\x52", 12, b"\x08", "style 8 or wavelet 1"),
        (b"\xff\x52", 13, b"\x00", "style 0 or wavelet 0"),
        (b"\xff\x52", 9, b"\x21", "33 levels"),
        (b"\xff\x52", 6, b"\0\0", "0 layers"),
        (b"\xff\x52", 10, b"\x0a\x0a", "4096 x 4096"),
        (b"\xff\x5c", 4, b"\x21", "QCD marker"),
        (b"\xff\x52", 9, b"\x07", "QCD marker"),
        (b"\xff\x52", 5, b"\x05", "progression order 5"),
        (b"\xff\x52", 6, b"\xff\xff", "packets in"),
        (b"\xff\x90", 4, b"\0\1", "tile-part of tile 1"),
        (b"\xff\x90", 6, b"\x7f", "tile-part of tile 0"),
        (b"\xff\x93", 0, b"\xff\x52", "in a tile-part header"),
        (b"\xff\x5c", 4, b"\xe0\xf8\xf8\xf8\xf8\xf8\xf8\xf8\xf8\xf8\xf8", "coding passes"),
        (b"\xff\x5c", 4, b"\x20\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08", "coding passes"),
    ],
)
def test_headers_that_lie(marker: bytes, at: int, value: bytes, message: str) -> None:
    data, c = encoded(noise(90, 90, 12), 12)
    with pytest.raises(CorruptCodestreamError, match=message):
        numba.decode(patched_stream(data, marker, at, value), c)


def test_headers_and_packets_that_break_off() -> None:
    data, c = encoded(noise(90, 90, 12), 12)
    with pytest.raises(CorruptCodestreamError, match="the headers break off in 60 bytes"):
        read_header(memoryview(data)[:60])
    for kept in (40, len(data) // 2, len(data) - 30):
        short = data[: len(data) - kept] if kept == 40 else data[:kept]
        body = len(short) - short.index(b"\xff\x90")
        short = bytes(patched_stream(short, b"\xff\x90", 6, body.to_bytes(4, "big")))
        with pytest.raises(CorruptCodestreamError, match=r"break off|packets in"):
            numba.decode(short, dataclasses.replace(c, length=len(short)))


@pytest.mark.parametrize("precincts", [b"\x00\x00\x00\x00", b"\x77\x07\x77\x77"])
def test_precincts_without_room(precincts: bytes) -> None:
    data, c = encoded(noise(90, 90, 12), 12)
    start = data.index(b"\xff\x52")
    cod = bytearray(data[start : start + 14])
    cod[4] |= 1
    cod[3] += 4
    longer = data[:start] + bytes(cod) + precincts + data[start + 14 :]
    with pytest.raises(CorruptCodestreamError, match="a precinct of one sample"):
        numba.decode(longer, dataclasses.replace(c, length=len(longer)))


def test_any_damage_ends_in_an_error_or_an_image() -> None:
    """600 damaged streams: no crash, no run-away, no other error. (Run it once with
    NUMBA_BOUNDSCHECK=1 after a change: then an index outside its array is an error too.)"""
    rng = np.random.default_rng(3)
    streams = [
        encoded(noise(100, 130, 12), 12),
        encoded(noise(120, 64, 12), 12, layers=4, progression="RPCL"),
        encoded(noise(64, 130, 12), 12, codeblock=(4, 1024), levels=2),
        encoded(noise(90, 91, 12), 12, codeblock=(16, 16), progression="PCRL"),
    ]
    outcomes = {True: 0, False: 0}
    for turn in range(600):
        data, c = streams[turn % len(streams)]
        damaged = bytearray(data)
        packets = data.index(b"\xff\x93") + 2
        first, last = ((packets, len(data)), (packets, packets + 60), (40, packets))[turn % 3]
        for position in rng.integers(first, last, int(rng.choice([1, 2, 5, 40]))):
            damaged[position] = int(rng.integers(256))
        c = dataclasses.replace(c, length=len(damaged))
        try:
            numba.decode(bytes(damaged), c, turn % 2)
        except CorruptCodestreamError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 50


def test_tables_against_the_standard() -> None:
    """Spot checks of Tables C.2, D.1 and D.3, beside the decoding above."""
    assert len(np.unique(STATES[:94] & np.uint64(0xFF))) == 94
    assert int(STATES[2 * 46]) >> 48 == 0x5601
    horizontal, vertical = 1 << 1 | 1 << 13, 1 << 6 | 1 << 8
    assert [int(table[horizontal]) for table in CONTEXTS] == [8, 4, 8, 2]
    assert [int(table[vertical]) for table in CONTEXTS] == [4, 8, 4, 2]
    left_negative = 1 << 15 | 1 << 1 | 1 << 2
    assert int(CONTEXTS[0, left_negative]) == 12 | 128


def test_it_is_a_backend() -> None:
    assert BACKENDS["numba"] is numba
    assert numba.missing() is None
    assert numba.version().startswith("numba ")


def test_a_stream_that_breaks_off_is_damaged_at_every_level() -> None:
    """Also where the levels that are wanted lie before the break."""
    data, c = encoded(noise(90, 90, 12), 12)
    short = data[: len(data) - 52] + b"\xff\xd9"
    body = len(short) - 2 - short.index(b"\xff\x90")
    short = bytes(patched_stream(short, b"\xff\x90", 6, body.to_bytes(4, "big")))
    for level in range(4):
        with pytest.raises(CorruptCodestreamError, match="its packets break off"):
            numba.decode(short, dataclasses.replace(c, length=len(short)), level)


def test_a_failure_leaves_no_half_of_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmammo.decoding.ebcot import wavelet

    data, c = encoded(noise(90, 90, 12), 12)
    pyramid, real = numba.Pyramid(data, c), wavelet.finer

    def fails(*_: Any) -> None:
        raise MemoryError

    pyramid.decode(3)
    monkeypatch.setattr(wavelet, "finer", fails)
    for _ in range(2):
        with pytest.raises(MemoryError):
            pyramid.decode(1)
    monkeypatch.setattr(wavelet, "finer", real)
    np.testing.assert_array_equal(pyramid.decode(1), openjpeg.decode(data, c, 1))


def test_packets_beyond_number_are_refused() -> None:
    _, c = encoded(noise(90, 90, 12), 12)
    assert numba.refuses(c) is None
    reason = numba.refuses(dataclasses.replace(c, packets=1 << 20))
    assert reason == "1048576 packets, 131072 at most"
