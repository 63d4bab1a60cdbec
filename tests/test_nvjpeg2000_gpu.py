"""nvJPEG2000 on a GPU: the same integers as the CPU route; a thousand frames in flight; memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import DATA
from gpu import require_gpu

from fastmammo.decoding import FrameDecoder, nvjpeg2000, openjpeg
from fastmammo.decoding.frames_in_flight import Decoder, Request
from fastmammo.decoding.nvjpeg2000_state import dtype_of, shape_of
from fastmammo.dicom import read
from fastmammo.errors import CorruptCodestreamError, FastMammoError, UnsupportedSyntaxError
from fastmammo.testing import can_encode, phantom, write_dicom

if TYPE_CHECKING:
    from fastmammo.dicom import Mammogram

pytestmark = pytest.mark.gpu

J = "1.2.840.10008.1.2.4"


@pytest.fixture(scope="module", autouse=True)
def cupy() -> Any:
    require_gpu()
    import cupy

    if (reason := nvjpeg2000.missing()) is not None:
        pytest.fail(f"there is a GPU, but {reason}")
    return cupy


def drawn(shape: tuple[int, int], bits: int, *, signed: bool = False, seed: int = 0) -> np.ndarray:
    """Smooth shapes, noise and saturated stripes: a low-pass overshoots there."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    full = (1 << bits) - 1
    values = full * (0.5 + 0.4 * np.sin(x / 23) * np.cos(y / 31)) + random.normal(
        0, full / 60, shape
    )
    values[:, (x[0] // 9) % 11 == 3] = full
    values[(y[:, 0] // 7) % 13 == 5] = 0
    stored = np.clip(np.rint(values), 0, full).astype(np.int32)
    if signed:
        return (stored - (1 << (bits - 1))).astype(np.int16)
    return stored.astype(np.uint8 if bits <= 8 else np.uint16)


def request_of(m: Mammogram, level: int, **others: Any) -> Request:
    return Request(m.frame(0).data, m.codestream(0), level, **others)


def assert_equals_cpu(cupy: Any, m: Mammogram, levels: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """The backend's samples equal OpenJPEG's, and after the one clipping the CPU route's."""
    c, data = m.codestream(0), m.frame(0).data
    assert nvjpeg2000.refuses(c) is None
    reference = FrameDecoder(m)
    for level in levels:
        found = cupy.asnumpy(nvjpeg2000.decode(data, c, level))
        assert found.shape == shape_of(c, level)
        assert found.dtype == dtype_of(c)
        route = reference.at(level)
        if level:
            found = np.clip(found, reference.first, reference.last).astype(route.dtype)
        assert np.array_equal(found, route), f"level {level}"


LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("90", {}),
    ("90", {"precision": 16}),
    ("90", {"jp2": True}),
    ("90", {"levels": 3}),
    ("90", {"levels": 7}),
    ("90", {"layers": 3}),
    ("90", {"layers": 32}),
    ("90", {"mode": 16}),
    *(("90", {"progression": order}) for order in ("RLCP", "RPCL", "PCRL", "CPRL")),
    *(("90", {"codeblock": size}) for size in ((4, 4), (32, 32), (32, 128), (1024, 4))),
    ("91", {"reversible": True}),
    ("201", {}),
    ("201", {"precision": 16}),
    ("202", {"levels": 3}),
]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("syntax", "options"), LOSSLESS, ids=str)
def test_levels_equal_the_cpu(
    cupy: Any, syntax: str, options: dict[str, Any], signed: bool
) -> None:
    values = drawn((301, 233), 12, signed=signed)
    m = read(write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}", **options))
    assert_equals_cpu(cupy, m)


# signed samples of 8 bits are refused
DEPTHS = [
    (bits, signed)
    for bits in range(8, 17)
    for signed in (False, True)
    if (bits, signed) != (8, True)
]


@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize("syntax", ["90", "201"])
def test_bit_depths(cupy: Any, bits: int, syntax: str, signed: bool) -> None:
    values = drawn((130, 97), bits, signed=signed)
    uid = f"{J}.{syntax}"
    assert_equals_cpu(cupy, read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits)))


LINES = [(1, 1), (1, 9), (9, 1)]
SIZES = [(2, 2), (3, 5), (64, 65), (17, 130), (1023, 511), (2049, 1537)]


@pytest.mark.parametrize(
    ("syntax", "shape"),
    [
        *(("90", shape) for shape in (*LINES, *SIZES)),
        *(("201", shape) for shape in SIZES),  # its encoder refuses one row or column
    ],
)
def test_odd_sizes(cupy: Any, shape: tuple[int, int], syntax: str) -> None:
    m = read(write_dicom(drawn(shape, 12), transfer_syntax_uid=f"{J}.{syntax}"))
    levels = m.codestream(0).levels
    assert_equals_cpu(cupy, m, tuple(range(min(levels, 3) + 1)))


@pytest.mark.parametrize("syntax", ["90", "201"])
def test_several_tiles(cupy: Any, syntax: str) -> None:
    values = drawn((301, 233), 12)
    m = read(write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}", tile=(128, 96)))
    assert_equals_cpu(cupy, m, (0,))
    with pytest.raises(UnsupportedSyntaxError, match="decode level 0 and reduce it"):
        nvjpeg2000.decode(m.frame(0).data, m.codestream(0), 1)


@pytest.mark.parametrize("syntax", ["91", "203"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_9_7_wavelet_is_within_one(cupy: Any, syntax: str, bits: int) -> None:
    m = read(
        write_dicom(drawn((301, 233), bits), transfer_syntax_uid=f"{J}.{syntax}", bits_stored=bits)
    )
    c, data = m.codestream(0), m.frame(0).data
    assert c.wavelet == "9/7"
    found = cupy.asnumpy(nvjpeg2000.decode(data, c)).astype(np.int32)
    assert np.abs(found - openjpeg.decode(data, c).astype(np.int32)).max() <= 1


def test_a_level_stays_within_the_codestream_s_precision(cupy: Any) -> None:
    """FrameDecoder takes values beyond it for damage; OpenJPEG clamps there."""
    values = drawn((301, 233), 10)
    m = read(write_dicom(values, bits_stored=10))
    c, data = m.codestream(0), m.frame(0).data
    for level in (1, 2, 3):
        found = cupy.asnumpy(nvjpeg2000.decode(data, c, level))
        assert np.array_equal(found, openjpeg.decode(data, c, level)), level


def vendors_files() -> list[bytes]:
    """Phantoms of vendors' sizes and depths, for where no real files are."""
    made = []
    for index, (rows, columns, bits) in enumerate(
        [(3328, 2560, 12), (2294, 1914, 14), (4096, 3328, 12), (1664, 1280, 10), (5355, 4915, 16)]
    ):
        values = phantom(rows, columns, seed=index, bits_stored=bits).pixels
        for syntax in ("90", "91"):
            options = {"transfer_syntax_uid": f"{J}.{syntax}", "bits_stored": bits}
            made.append(write_dicom(values, **options))  # type: ignore[arg-type]
    return made


def test_real_files(cupy: Any) -> None:
    seen = 0
    real = (DATA / "MANIFEST.csv").is_file()
    for path in sorted(DATA.rglob("*")) if real else vendors_files():
        try:
            m = read(path)
            c = m.codestream(0)
            reference = FrameDecoder(m)
        except (FastMammoError, OSError):
            continue
        if c.format not in ("jpeg2000", "htj2k"):
            continue
        seen += 1
        levels = tuple(range(min(3, reference.codec_levels) + 1)) if c.wavelet == "5/3" else (0,)
        for level in levels:
            found = cupy.asnumpy(nvjpeg2000.decode(m.frame(0).data, c, level)).astype(np.int32)
            wanted = openjpeg.decode(m.frame(0).data, c, level).astype(np.int32)
            assert np.abs(found - wanted).max() <= (0 if c.wavelet == "5/3" else 1), (m.path, level)
    assert seen >= 10


def mixed(count: int) -> list[Mammogram]:
    """Different sizes, depths, signs, wavelet levels and codings."""
    random = np.random.default_rng(11)
    made = []
    for index in range(count):
        syntax = ("90", "201", "90", "202")[index % 4]
        if not can_encode(f"{J}.{syntax}"):
            syntax = "90"
        bits = int(random.choice([8, 10, 12, 14, 16]))
        signed = bits > 8 and bool(random.integers(2))
        shape = (int(random.integers(20, 900)), int(random.integers(20, 900)))
        values = drawn(shape, bits, signed=signed, seed=index)
        made.append(
            read(write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}", bits_stored=bits))
        )
    return made


def test_a_thousand_mixed_frames_in_flight(cupy: Any) -> None:
    mammograms = mixed(25)
    wanted = {
        (index, level): openjpeg.decode(m.frame(0).data, m.codestream(0), level)
        for index, m in enumerate(mammograms)
        for level in range(min(3, m.codestream(0).levels) + 1)
    }
    random = np.random.default_rng(2)
    order = [list(wanted)[k] for k in random.integers(0, len(wanted), 1000)]
    broken = set(range(77, 1000, 100))

    def requests() -> Any:
        for number, (index, level) in enumerate(order):
            m = mammograms[index]
            taken = request_of(m, level, path=f"{number}.dcm")
            if number in broken:  # its header is whole, the library is given half of it
                half = taken.data[: len(taken.data) // 2]
                taken = Request(half, taken.codestream, level, path=f"{number}.dcm")
            yield taken

    with Decoder(states=8) as decoder:
        for number, found in enumerate(decoder.map(requests())):
            if number in broken:
                assert isinstance(found, CorruptCodestreamError), found
                assert found.path == f"{number}.dcm"
            else:
                assert np.array_equal(cupy.asnumpy(found), wanted[order[number]]), number
    assert number == 999


def test_the_caller_s_memory_and_stream(cupy: Any) -> None:
    values = drawn((301, 233), 12)
    m = read(write_dicom(values))
    stream = cupy.cuda.Stream(non_blocking=True)
    with Decoder(states=2) as decoder:
        with stream:
            wide = cupy.full((301, 512), 9, cupy.uint16)
        out = wide[:, 128 : 128 + 233]
        future = decoder.submit(request_of(m, 0, out=out), stream=stream)
        assert future.result(timeout=60) is out
        found = cupy.asnumpy(wide)
        assert np.array_equal(found[:, 128:361], values)
        assert (found[:, :128] == 9).all()
        assert (found[:, 361:] == 9).all()
        by_address = decoder.submit(request_of(m, 1), stream=stream.ptr).result(timeout=60)
        assert np.array_equal(cupy.asnumpy(by_address), openjpeg_level(m, 1))


def test_the_first_look_finds_the_levels_right(cupy: Any) -> None:
    assert nvjpeg2000.missing() is None
    assert nvjpeg2000.levels_fault() is None
    assert nvjpeg2000.LEVELS


def test_the_default_stream_of_a_thread(cupy: Any) -> None:
    """Its address is another stream in the decoder's threads."""
    values = drawn((301, 233), 12)
    m, stream = read(write_dicom(values)), cupy.cuda.Stream.ptds
    with Decoder(states=2) as decoder, stream:
        for _ in range(50):
            busy = cupy.ones((4096, 4096), cupy.float32)
            for _ in range(20):
                busy = cupy.sqrt(busy)  # memory is freed while the stream is still at work
            del busy
            found = decoder.submit(request_of(m, 0), stream=stream).result(timeout=60)
            assert np.array_equal(cupy.asnumpy(found), values)


def openjpeg_level(m: Mammogram, level: int) -> np.ndarray:
    return np.asarray(openjpeg.decode(m.frame(0).data, m.codestream(0), level))


def test_torch_owns_the_memory(cupy: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    values = drawn((301, 233), 12)
    m = read(write_dicom(values))
    out = torch.empty((301, 233), dtype=torch.uint16, device="cuda")
    with Decoder(states=1) as decoder:
        stream = torch.cuda.current_stream()
        assert decoder.submit(request_of(m, 0, out=out), stream=stream).result(timeout=60) is out
    assert np.array_equal(out.cpu().numpy(), values)


def test_memory_is_freed_and_new_memory_is_not_written_too_early(cupy: Any) -> None:
    """Arrays are dropped while kernels that read them are still queued on the caller's stream."""
    values = drawn((1024, 768), 12)
    m = read(write_dicom(values))
    wanted = int(values.astype(np.int64).sum())
    sums = []
    with Decoder(states=4) as decoder:
        for found in decoder.map((request_of(m, 0) for _ in range(200)), ahead=6):
            sums.append(found.astype(cupy.int64).sum())
            del found
    assert {int(s) for s in sums} == {wanted}


@pytest.mark.slow
def test_memory_after_a_thousand_batches_equals_that_after_ten(cupy: Any) -> None:
    mammograms = mixed(8)

    def free() -> int:
        cupy.cuda.Device().synchronize()
        cupy.get_default_memory_pool().free_all_blocks()
        return int(cupy.cuda.runtime.memGetInfo()[0])

    before = free()
    with Decoder(states=4) as decoder:
        for batch in range(1000):
            for found in decoder.map(request_of(m, batch % 2) for m in mammograms[:4]):
                assert not isinstance(found, Exception), found
            if batch == 9:
                # every state has seen every frame size, or will: frames go to any state
                for _ in range(8):
                    list(decoder.map(request_of(m, 0) for m in mammograms[:4] * 4))
                found = None
                early = free()
        found = None
        assert abs(free() - early) <= 64 << 20
    assert free() >= before - (256 << 20)  # CUDA's own context and modules stay


def test_a_lost_or_absent_device_is_named(cupy: Any) -> None:
    from fastmammo.errors import BackendUnavailableError

    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(BackendUnavailableError, match=f"CUDA device {count}: there are {count}"):
        Decoder(device=count)
