"""nvImageCodec: its parameters on its CPU device, what it must not decode, what it must not say."""

from __future__ import annotations

import importlib.util
import re
import struct
import sys
import threading
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import numpy_as_cupy
import pytest

from fastmammo.decoding import (
    nvidia_checks,
    nvidia_libraries,
    nvimgcodec,
    openjpeg,
)
from fastmammo.decoding.backends import choose
from fastmammo.dicom import Codestream
from fastmammo.dicom.codestream import inspect_codestream
from fastmammo.errors import (
    BackendUnavailableError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    MismatchError,
    UnsupportedSyntaxError,
)
from fastmammo.report.references import tolerance
from fastmammo.testing import encode

J = "1.2.840.10008.1.2.4"

JPEG2000 = [
    (f"{J}.90", 8, {}),
    (f"{J}.90", 9, {}),
    (f"{J}.90", 12, {}),
    (f"{J}.90", 16, {}),
    (f"{J}.90", 12, {"jp2": True}),
    (f"{J}.90", 12, {"tile": (64, 96)}),
    (f"{J}.90", 10, {"precision": 16}),
    (f"{J}.90", 12, {"levels": 0, "layers": 3, "progression": "RPCL"}),
    (f"{J}.201", 8, {}),
    (f"{J}.201", 14, {}),
]


def frame(
    uid: str, bits: int, shape: tuple[int, int] = (131, 97), seed: int = 0, **options: object
) -> tuple[tuple[bytes, Codestream], np.ndarray]:
    """Return (bytes, header facts) of a frame of noise, and its values."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape)
    values = values.astype(np.uint8 if bits <= 8 else np.uint16)
    data = encode(values, uid, bits_stored=bits, **options)  # type: ignore[arg-type]
    return (data, inspect_codestream(data, "the test's")), values


@pytest.fixture
def wheel() -> None:
    if importlib.util.find_spec("nvidia") is None or not _has("nvidia.nvimgcodec"):
        pytest.skip("nvImageCodec is not installed: pip install nvidia-nvimgcodec-cu12[all]")


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


# --- the real library, on its CPU device ---------------------------------------------------------


@pytest.mark.parametrize(("uid", "bits", "options"), JPEG2000)
def test_its_cpu_device_gives_openjpegs_values(
    wheel: None, uid: str, bits: int, options: dict[str, object]
) -> None:
    """The parameters keep native depths and one grey plane; only the device differs on a GPU."""
    (data, codestream), values = frame(uid, bits, **options)
    (found,) = nvimgcodec.Decoder(None).decode([(memoryview(data), codestream)])
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)
    assert np.array_equal(found, openjpeg.decode(data, codestream))


def test_a_frame_that_fails_costs_itself(wheel: None) -> None:
    frames, values = zip(*(frame(f"{J}.90", 12, (60 + i, 50), i) for i in range(5)), strict=True)
    broken = [
        frames[0],
        (frames[1][0][:200], frames[1][1]),  # its tile-part is longer than what is there
        frames[2],
        (b"no codestream at all", frames[3][1]),
        frames[4],
    ]
    found = nvimgcodec.Decoder(None, threads=2).decode(broken)
    for index in (0, 2, 4):
        assert np.array_equal(found[index], values[index])
    for index in (1, 3):
        with pytest.raises(DecodeError, match=r"nvImageCodec (gave no image|refused)"):
            raise found[index]


def test_what_its_cpu_device_lacks_is_an_error(wheel: None) -> None:
    """Also that GPU decoders are really left out: CPU_ONLY knows no lossless JPEG of 12 bits."""
    lossless, _ = frame(f"{J}.70", 12)
    signed = encode(np.full((40, 40), -5, np.int16), f"{J}.90", bits_stored=12)
    found = nvimgcodec.Decoder(None).decode([lossless, (signed, inspect_codestream(signed, ""))])
    for error in found:
        with pytest.raises(DecodeError, match=r"gave no image for a (jpeg|jpeg2000)"):
            raise error


def test_zeros_are_believed_where_another_decoder_agrees(wheel: None) -> None:
    data = encode(np.zeros((40, 30), np.uint16), f"{J}.90", bits_stored=12)
    (found,) = nvimgcodec.Decoder(None).decode([(data, inspect_codestream(data, ""))])
    assert found.shape == (40, 30)
    assert not found.any()


def test_the_libraries_that_the_wheels_bring(wheel: None) -> None:
    assert nvidia_libraries.companion("nvjpeg2k") is not None
    version = nvidia_libraries.nvjpeg_version()
    assert version is not None
    assert version >= (12, 0, 0)
    assert nvimgcodec.version().startswith("nvImageCodec 0.9.")
    assert f"nvJPEG {version[0]}.{version[1]}" in nvimgcodec.version()
    assert nvidia_libraries._load("nvjpeg", 99, __file__) is None


# --- what is refused before anything is decoded --------------------------------------------------


def facts(kind: str, precision: int = 12, **others: object) -> Codestream:
    process = {"jpeg": "baseline", "jpeg-lossless": "lossless"}.get(kind, "")
    defaults = {"process": process, "codeblock": (64, 64), "wavelet": "5/3"}
    return Codestream(
        **{  # type: ignore[arg-type]
            "format": kind,
            "rows": 100,
            "columns": 100,
            "precision": precision,
            "signed": False,
            **defaults,
            **others,
        }
    )


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The versions of NVIDIA's libraries, as the test wants them to be."""
    state: dict[str, object] = {"nvjpeg": (13, 3, 2), "nvjpeg2k": object()}
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: state["nvjpeg"])
    monkeypatch.setattr(nvidia_libraries, "companion", lambda name: state[name])
    return state


@pytest.mark.parametrize(
    ("codestream", "reason"),
    [
        (facts("jpeg2000"), None),
        (facts("jpeg2000", signed=True), None),
        (facts("htj2k", styles=("high throughput",)), None),
        (facts("jpeg", 8), None),
        (facts("jpeg-lossless", 12), None),
        (facts("jpeg-lossless", 16, predictor=6), None),
        # what `nvjpeg2000.refuses` says, which has its own tests, and what is the same for all
        (facts("jpeg-ls"), "does not decode jpeg-ls"),
        (facts("jpeg2000", 17), "17 bits a sample, wanted 2 to 16"),
        (facts("jpeg2000", 1), "1 bits a sample"),
        (facts("jpeg2000", origin=(0, 8)), "an image offset"),
        (facts("jpeg2000", subsampling=(2, 2)), "subsampled components"),
        (facts("jpeg2000", 8, signed=True), "signed samples of 8 bits"),
        (facts("jpeg2000", codeblock=(4, 256)), "256"),
        (facts("jpeg2000", layers=33), "33 .*layers"),
        (facts("jpeg2000", styles=("bypass",)), "bypass"),
        (facts("jpeg2000", markers=("RGN",), region_of_interest=True), "RGN|region"),
        (facts("jpeg2000", complete=False), "too early|truncated"),
        (facts("jpeg", 12, process="extended sequential"), "DCT JPEG of 12 bits"),
        (facts("jpeg", 8, process="progressive, arithmetic"), "arithmetic JPEG"),
        (facts("jpeg-lossless", process="lossless, arithmetic"), "lossless, arithmetic JPEG"),
        (facts("jpeg-lossless", point_transform=2), "a point transform"),
        (facts("jpeg-lossless", 8), "lossless JPEG of 8 bits, nvJPEG decodes 9 to 16"),
    ],
)
def test_refusals(libraries: dict[str, object], codestream: Codestream, reason: str | None) -> None:
    found = nvimgcodec.refuses(codestream)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found), found


def test_an_old_nvjpeg_is_given_no_lossless_jpeg_of_9_to_15_bits(
    libraries: dict[str, object],
) -> None:
    for version in ((12, 4, 0), (13, 0, 1)):
        libraries["nvjpeg"] = version
        for precision in range(9, 16):
            found = nvimgcodec.refuses(facts("jpeg-lossless", precision))
            assert found is not None
            assert f"nvJPEG {version[0]}.{version[1]}" in found
            assert "to zeros; wanted 13.0.2 or newer" in found
        assert nvimgcodec.refuses(facts("jpeg-lossless", 16)) is None
    libraries["nvjpeg"] = (13, 0, 2)
    assert nvimgcodec.refuses(facts("jpeg-lossless", 12)) is None


def test_libraries_that_are_absent(
    libraries: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.update(nvjpeg=None, nvjpeg2k=None)
    assert "nvJPEG is not installed" in str(nvimgcodec.refuses(facts("jpeg", 8)))
    assert "nvJPEG is not installed" in str(nvimgcodec.refuses(facts("jpeg-lossless")))
    assert "nvJPEG2000 is not installed" in str(nvimgcodec.refuses(facts("jpeg2000")))

    def absent(*_: object) -> None:
        raise BackendUnavailableError("there is no nvImageCodec")

    # Then `missing` says what to install, and the codestream is not to blame.
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", absent)
    monkeypatch.setattr(nvidia_libraries, "companion", absent)
    assert nvimgcodec.refuses(facts("jpeg-lossless")) is None
    assert nvimgcodec.refuses(facts("jpeg2000")) is None


def tables_first(data: bytes, marker: int = 0xC4) -> bytes:
    """Return a JPEG with a segment (its Huffman tables) moved, or put, before its frame header."""
    head, position = data[:2], 2
    segments = []
    while data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append(data[position : position + length])
        position += length
    if marker != 0xC4:
        segments.insert(0, struct.pack(">BBH4s", 0xFF, marker, 6, b"test"))
    segments.sort(key=lambda segment: segment[1] != marker)
    return head + b"".join(segments) + data[position:]


def test_an_old_nvjpeg_is_given_no_lossless_jpeg_with_its_tables_first(
    libraries: dict[str, object],
) -> None:
    (plain, _), values = frame(f"{J}.57", 16, predictor=5, restart_rows=3)
    for marker, seen in ((0xC4, 0xC4), (0xFE, 0xFE), (0xE0, None), (0xE1, None)):
        data = tables_first(plain, marker)
        codestream = inspect_codestream(data, "")
        assert np.array_equal(choose(codestream).decode(data, codestream), values)
        assert nvidia_checks.marker_before_frame(memoryview(data)) == seen
        libraries["nvjpeg"] = (13, 0, 2)
        nvidia_checks.refuse_order(memoryview(data), codestream)
        libraries["nvjpeg"] = (12, 4, 0)
        if seen is None:
            nvidia_checks.refuse_order(memoryview(data), codestream)
            continue
        with pytest.raises(UnsupportedSyntaxError, match=f"a segment FF{seen:02X} before its"):
            nvidia_checks.refuse_order(memoryview(data), codestream)
    assert nvidia_checks.marker_before_frame(memoryview(b"\xff\xd8\xff\xff\xe0\0\x02")) is None


# --- the device's branches, with a stand-in for the library --------------------------------------

Kind = namedtuple("Kind", "name")
GPU, CPU = Kind("STRIDED_DEVICE"), Kind("STRIDED_HOST")


class StandIn:
    """nvidia.nvimgcodec as this package uses it; `give` decides what becomes of a codestream."""

    __version__ = "0.9.0"
    __cuda_version__ = 13000
    __file__ = __file__
    NVIMGCODEC_DEVICE_CPU_ONLY = -99999
    BackendKind = SimpleNamespace(CPU_ONLY="cpu", GPU_ONLY="gpu", HYBRID_CPU_GPU="hybrid")
    ColorSpec = SimpleNamespace(GRAY="gray")
    SampleFormat = SimpleNamespace(P_Y="p_y")
    ImageBufferKind = SimpleNamespace(STRIDED_HOST=CPU, STRIDED_DEVICE=GPU)
    DecodeParams = staticmethod(lambda **settings: settings)
    Backend = staticmethod(lambda kind: kind)

    def __init__(self, give) -> None:  # type: ignore[no-untyped-def]
        self.give = give
        self.made: list[dict[str, object]] = []
        self.calls: list[dict[str, object]] = []

    def CodeStream(self, data: bytes) -> bytes:
        if not data.startswith(b"\xff"):
            raise RuntimeError("Failed to get image info")
        return data

    def Decoder(self, **settings: object) -> StandIn:
        self.made.append({**settings, "thread": threading.get_ident()})
        return self

    def decode(self, streams: list[bytes], **settings: object) -> list[object]:
        self.calls.append({"count": len(streams), **settings})
        return [self.give(stream) for stream in streams]


class Image(np.ndarray):
    """What its Decoder gives."""

    buffer_kind = GPU


def image_of(data: bytes) -> Image:
    codestream = inspect_codestream(data, "")
    return choose(codestream).decode(data, codestream)[None].view(Image)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Install the stand-ins of CuPy and nvImageCodec; called with what the latter is to give."""
    numpy_as_cupy.install(monkeypatch)
    monkeypatch.setattr(nvimgcodec, "_thread", threading.local())

    def installed(give=image_of, nvjpeg: tuple[int, ...] = (13, 3, 2)) -> StandIn:  # type: ignore[no-untyped-def]
        library = StandIn(give)
        monkeypatch.setattr(nvidia_libraries, "nvimgcodec", lambda: library)
        monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: nvjpeg)
        return library

    return installed


def test_only_gpu_decoders_are_allowed_and_samples_stay_as_they_are(device) -> None:  # type: ignore[no-untyped-def]
    library = device()
    (data, codestream), values = frame(f"{J}.90", 12)
    found = nvimgcodec.decode(data, codestream)
    assert isinstance(found, numpy_as_cupy.Array)
    assert np.array_equal(found, values)
    assert found.flags.c_contiguous
    (made,) = library.made
    assert made["backends"] == ["gpu", "hybrid"]
    assert made["device_id"] == 0
    (call,) = library.calls
    assert call["cuda_stream"] == numpy_as_cupy.STREAM
    assert call["params"] == {
        "apply_exif_orientation": False,
        "color_spec": "gray",
        "allow_any_depth": True,
        "sample_format": "p_y",
    }


def test_a_batch_is_one_call_and_a_thread_has_its_own_decoder(device) -> None:  # type: ignore[no-untyped-def]
    library = device()
    frames, values = zip(*(frame(f"{J}.70", 12, (50 + i, 40), i) for i in range(6)), strict=True)

    def work() -> None:
        for _ in range(2):
            found = nvimgcodec.decode_batch(frames, threads=3)
            assert all(np.array_equal(a, b) for a, b in zip(found, values, strict=True))

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [call["count"] for call in library.calls] == [6] * 4
    assert len(library.made) == 2
    assert len({made["thread"] for made in library.made}) == 2
    assert library.made[0]["max_num_cpu_threads"] == 3


def test_answers_that_are_no_image_are_errors(device) -> None:  # type: ignore[no-untyped-def]
    (data, codestream), _ = frame(f"{J}.90", 12)
    device(lambda stream: None)
    with pytest.raises(DecodeError, match=r"gave no image for a jpeg2000 .* 131 x 97") as caught:
        nvimgcodec.decode(data, codestream)
    assert type(caught.value) is DecodeError  # it says no reason: the bytes may be well
    device()
    assert nvimgcodec.decode_batch([]) == []
    with pytest.raises(CorruptCodestreamError, match=r"refused the codestream \(7 bytes\): Failed"):
        nvimgcodec.decode(b"garbage", facts("jpeg2000", length=7))


def test_an_image_of_another_kind_is_an_error(device) -> None:  # type: ignore[no-untyped-def]
    (data, codestream), _ = frame(f"{J}.90", 12)
    for give, words in (
        (lambda stream: image_of(stream).astype(np.uint8), r"gave uint8 \(1, 131, 97\)"),
        (lambda stream: image_of(stream)[:, :-1], r"gave uint16 \(1, 130, 97\)"),
        (on_the_host, "in STRIDED_HOST, .* wanted in STRIDED_DEVICE"),
    ):
        library = device()
        library.give = give
        nvimgcodec._thread.__dict__.clear()
        with pytest.raises(MismatchError, match=words):
            nvimgcodec.decode(data, codestream)


def on_the_host(stream: bytes) -> Image:
    image = image_of(stream)
    image.buffer_kind = CPU
    return image


def test_zeros_that_another_decoder_contradicts_are_an_error(device) -> None:  # type: ignore[no-untyped-def]
    """What nvJPEG before 13.0.2 does to lossless JPEG of 9 to 15 bits, and reports as success."""
    good, values = frame(f"{J}.90", 12)
    bad, _ = frame(f"{J}.70", 12, seed=1)
    dark = encode(np.zeros((20, 30), np.uint16), f"{J}.70", bits_stored=12)

    def give(stream: bytes) -> Image:
        image = image_of(stream)
        return image * 0 if stream == bad[0] else image

    device(give)
    found = nvimgcodec.decode_batch([good, bad, (dark, inspect_codestream(dark, ""))])
    assert np.array_equal(found[0], values)
    with pytest.raises(
        UnsupportedSyntaxError, match=r"to zeros alone, numba to values 0 to 4095: nvJPEG"
    ):
        raise found[1]
    assert found[2].shape == (20, 30)
    assert not found[2].any()


def test_zeros_that_no_other_decoder_can_check_are_an_error(device) -> None:  # type: ignore[no-untyped-def]
    (data, codestream), values = frame(f"{J}.90", 12)
    cut = data[: len(data) // 2]
    device(lambda stream: np.zeros((1, *values.shape), np.uint16).view(Image))
    with pytest.raises(CorruptCodestreamError, match="tile-part of tile 0 at byte"):
        nvimgcodec.decode(cut, codestream)


def test_tables_before_the_frame_header_reach_no_old_nvjpeg(device) -> None:  # type: ignore[no-untyped-def]
    library = device(nvjpeg=(12, 4, 0))
    (data, codestream), values = frame(f"{J}.70", 16)
    moved = tables_first(data)
    found = nvimgcodec.decode_batch([(moved, codestream), (data, codestream)])
    with pytest.raises(UnsupportedSyntaxError, match=r"a segment FFC4 before .* install 13\.0\.2"):
        raise found[0]
    assert np.array_equal(found[1], values)
    assert library.calls[0]["count"] == 1


def test_a_failure_of_the_device_is_every_frames(device) -> None:  # type: ignore[no-untyped-def]
    library = device()
    one, _ = frame(f"{J}.90", 12)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("cudaErrorMemoryAllocation")

    library.decode = fail  # type: ignore[method-assign, assignment]
    for error in nvimgcodec.decode_batch([one, one]):
        with pytest.raises(DeviceMemoryError, match="on 2 frames: cudaErrorMemoryAllocation"):
            raise error

    def misused(*_: object, **__: object) -> None:
        raise ValueError("no such format")

    library.decode = misused  # type: ignore[method-assign, assignment]
    for error in nvimgcodec.decode_batch([one]):
        assert (type(error), "no such format" in str(error)) == (DecodeError, True)


def test_a_lost_device_is_no_frames_fault(device, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    library = device(lambda stream: None)
    told = numpy_as_cupy.install(monkeypatch)
    one, _ = frame(f"{J}.90", 12)
    assert isinstance(nvimgcodec.decode_batch([one])[0], DecodeError)
    assert told.synchronized == 1
    told.lost = True
    with pytest.raises(DeviceError, match="gave no image: CUDA failed: cudaErrorIllegalAddress"):
        nvimgcodec.decode_batch([one])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("internal error")

    library.decode = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(DeviceError, match="internal error: CUDA failed: cudaErrorIllegalAddress"):
        nvimgcodec.decode_batch([one])


# --- what is installed ---------------------------------------------------------------------------


def test_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_libraries.nvimgcodec.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
        assert "pip install 'fastmammo[cuda13]'" in str(nvimgcodec.missing())
        with pytest.raises(BackendUnavailableError, match=r"nvImageCodec .*: pip install"):
            nvidia_libraries.nvimgcodec()
        for version in ("0.10.0", "0.8.1", "1.0.0"):
            other = StandIn(image_of)
            other.__version__ = version
            nvidia_libraries.nvimgcodec.cache_clear()
            monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(__path__=[]))
            monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", other)
            found = str(nvimgcodec.missing())
            assert f"nvImageCodec {version} is installed, wanted 0.9: pip install" in found
            with pytest.raises(BackendUnavailableError, match="wanted 0"):
                nvidia_libraries.nvimgcodec()
        nvidia_libraries.nvimgcodec.cache_clear()
        monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", StandIn(image_of))
        numpy_as_cupy.install(monkeypatch)
        assert nvimgcodec.missing() is None
        numpy_as_cupy.install(monkeypatch, available=False)
        assert "a CUDA device: CuPy sees none" in str(nvimgcodec.missing())
        monkeypatch.setattr(nvidia_libraries.importlib.util, "find_spec", lambda name: None)
        assert "pip install 'fastmammo[cuda13]'" in str(nvimgcodec.missing())
    finally:
        nvidia_libraries.nvimgcodec.cache_clear()


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> None:
    from gpu import require_gpu

    require_gpu()
    assert nvimgcodec.missing() is None, nvimgcodec.missing()


LOSSLESS_JPEG = [
    *((f"{J}.57", bits, {"predictor": 1 + bits % 7}) for bits in range(9, 17)),
    *((f"{J}.57", 12, {"predictor": predictor}) for predictor in range(1, 8)),
    (f"{J}.57", 12, {"predictor": 4, "restart_rows": 5}),
    (f"{J}.70", 12, {}),
    (f"{J}.70", 10, {"precision": 16}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("uid", "bits", "options"), [*JPEG2000, *LOSSLESS_JPEG])
def test_on_a_gpu_the_values_are_the_cpus(
    gpu: None, uid: str, bits: int, options: dict[str, object]
) -> None:
    import cupy

    for shape in ((131, 97), (1024, 832), (1, 65), (33, 1)):
        if min(shape) == 1 and (options.get("tile") or uid.endswith(".201")):
            continue  # the encoder writes no such frame
        if options.get("restart_rows") and shape[1] > 500:
            continue  # nor this one: an interval counts in 16 bits
        (data, codestream), values = frame(uid, bits, shape, **options)
        if reason := nvimgcodec.refuses(codestream):
            assert uid.endswith((".57", ".70")), reason
            assert "decodes lossless JPEG of 9 to 15 bits to zeros" in reason
            continue
        found = nvimgcodec.decode(data, codestream)
        assert found.dtype == values.dtype
        assert np.array_equal(cupy.asnumpy(found), values), shape


@pytest.mark.gpu
def test_on_a_gpu_tables_before_the_frame_header(gpu: None) -> None:
    import cupy

    (data, codestream), values = frame(f"{J}.70", 16)
    moved = tables_first(data)
    version = nvidia_libraries.nvjpeg_version()
    if version is not None and version < nvidia_checks.NVJPEG_FIXED:
        with pytest.raises(UnsupportedSyntaxError, match="before its frame header"):
            nvimgcodec.decode(moved, codestream)
    else:
        found = nvimgcodec.decode(moved, codestream)
        assert np.array_equal(cupy.asnumpy(found), values)


@pytest.mark.gpu
def test_on_a_gpu_signed_samples(gpu: None) -> None:
    import cupy

    values = np.random.default_rng(0).integers(-2048, 2048, (131, 97)).astype(np.int16)
    for uid in (f"{J}.90", f"{J}.201"):
        data = encode(values, uid, bits_stored=12)
        found = nvimgcodec.decode(data, inspect_codestream(data, ""))
        assert found.dtype == np.int16
        assert np.array_equal(cupy.asnumpy(found), values)


@pytest.mark.gpu
@pytest.mark.parametrize(("uid", "bits"), [(f"{J}.50", 8), (f"{J}.91", 12), (f"{J}.203", 12)])
def test_on_a_gpu_lossy_values_are_near_the_cpus(
    gpu: None, uid: str, bits: int, pixels: np.ndarray
) -> None:
    import cupy

    values = (pixels >> 4).astype(np.uint8) if bits == 8 else pixels
    data = encode(values, uid, bits_stored=bits)
    codestream = inspect_codestream(data, "")
    found = cupy.asnumpy(nvimgcodec.decode(data, codestream)).astype(int)
    expected = choose(codestream, levels=uid.endswith(".203")).decode(data, codestream)
    assert np.abs(found - expected).max() <= tolerance(codestream, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_thousand_frames_keep_their_order(gpu: None) -> None:
    import cupy

    made = [frame(f"{J}.90", 8 + i % 9, (40 + i % 50, 30 + i % 70), i) for i in range(100)]
    for start in range(0, 1000, 50):
        batch = [made[(start + i) % 100] for i in range(50)]
        frames = [each for each, _ in batch]
        frames[7] = (frames[7][0][:150], frames[7][1])
        found = nvimgcodec.decode_batch(frames, threads=4)
        assert isinstance(found[7], DecodeError)
        for index, (_, values) in enumerate(batch):
            if index != 7:
                assert np.array_equal(cupy.asnumpy(found[index]), values)


@pytest.mark.gpu
def test_on_a_gpu_memory_does_not_grow(gpu: None) -> None:
    import cupy

    batch = [frame(f"{J}.90", 12, (1024, 832), i)[0] for i in range(4)]
    seen = []
    for turn in range(200):
        nvimgcodec.decode_batch(batch)
        if turn in (9, 199):
            cupy.get_default_memory_pool().free_all_blocks()
            seen.append(cupy.cuda.runtime.memGetInfo()[0])
    assert seen[0] - seen[1] < 64 << 20


@pytest.mark.gpu
def test_on_a_gpu_another_stream(gpu: None) -> None:
    import cupy

    (data, codestream), values = frame(f"{J}.90", 12)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = nvimgcodec.decode(data, codestream)
        doubled = found.astype(np.uint32) * 2
        stream.synchronize()
    assert np.array_equal(cupy.asnumpy(doubled), values.astype(np.uint32) * 2)
