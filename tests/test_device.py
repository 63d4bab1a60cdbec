"""The whole way on a GPU: on a pretended one the CPU's bits and all failures; and on a real one."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import convert_standin
import numpy as np
import pretended_cuda
import pytest
from cuda_on_cpu import build, compiler
from gpu import require_gpu

from fastmammo import Config, ConvertOptions, Preprocessor, convert
from fastmammo.decoding import FrameDecoder, cuda_runtime, decode, nvimgcodec, nvjpeg2000
from fastmammo.dicom import SYNTAXES, read
from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptCodestreamError,
    DeviceError,
    DeviceMemoryError,
    UnsupportedSyntaxError,
)
from fastmammo.kernels import on_device, to_host
from fastmammo.preprocess import device as device_module
from fastmammo.testing import can_encode, phantom, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

    from pretended_cuda import PretendedCuda

J = "1.2.840.10008.1.2.4"
SIZE = (128, 96)
SHAPES = ((1300, 410), (301, 233), (650, 900))
LOSSLESS = [uid for uid, syntax in SYNTAXES.items() if syntax.lossless and can_encode(uid)]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    return build(tmp_path_factory.mktemp("pretended"), "none")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, library: Path) -> PretendedCuda:
    return pretended_cuda.install(monkeypatch, library)


@functools.cache
def pixels_of(index: int) -> np.ndarray:
    return phantom(*SHAPES[index], seed=index).pixels


@functools.cache
def file(index: int, uid: str = f"{J}.90") -> bytes:
    return write_dicom(pixels_of(index), transfer_syntax_uid=uid, seed=index)


@functools.cache
def files(uid: str = f"{J}.90") -> list[bytes]:
    return [file(index, uid) for index in range(len(SHAPES))]


def prepare(device: str = "cuda", **fields: Any) -> Preprocessor:
    return Preprocessor(**{"size": SIZE, "flip": "left", "workers": 2, **fields}, device=device)


def same(found: Any, wanted: Any) -> bool:
    """Whether two batches have the same bits and say the same of them."""
    told = [
        [{k: v for k, v in r.items() if k not in ("decoder", "notes")} for r in batch.records]
        for batch in (found, wanted)
    ]
    images = to_host(found.images)
    return (
        on_device(found.images)
        and images.dtype == wanted.images.dtype
        and images.tobytes() == wanted.images.tobytes()
        and told[0] == told[1]
        and (found.indices, found.geometry) == (wanted.indices, wanted.geometry)
    )


# --- the bits of the CPU's way, on a pretended device --------------------------------------------


@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize("uid", LOSSLESS)
def test_every_lossless_syntax_gives_the_cpus_bits(
    cuda: PretendedCuda, uid: str, scale: str
) -> None:
    wanted = prepare("cpu", scale=scale)(files(uid))
    batch = prepare(scale=scale)(files(uid))
    assert same(batch, wanted)
    assert cuda.launched.count("resample_batch") == 1
    by_gpu = {"jpeg2000": "nvjpeg2000", "htj2k": "nvjpeg2000", "jpeg-lossless": "nvimgcodec"}
    for record in batch.records:
        expected = by_gpu.get(SYNTAXES[uid].family)
        if expected:
            assert (record["decoder"], record["notes"]) == (expected, "")
        elif not SYNTAXES[uid].encapsulated:
            made = "" if record["level"] == record["roi_level"] == 0 else "levels made on the GPU"
            assert (record["decoder"], record["notes"]) == ("numpy", made)
        else:
            assert "decoded on the CPU: cannot decode" in str(record["notes"])


@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize(
    ("fields", "seed"),
    [
        ({"bits_stored": 16}, 3),
        ({"bits_stored": 10, "precision": 16}, 4),
        ({"tile": (256, 256)}, 5),
        ({"levels": 0}, 6),
        ({"jp2": True, "levels": 2}, 7),
    ],
)
def test_other_codestreams(
    cuda: PretendedCuda, scale: str, fields: dict[str, Any], seed: int
) -> None:
    bits = fields.get("bits_stored", 12)
    pixels = phantom(900, 700, seed=seed, bits_stored=bits).pixels
    data = write_dicom(pixels, transfer_syntax_uid=f"{J}.90", **{"bits_stored": 12, **fields})
    found = prepare(scale=scale, bits=16)([data])
    assert same(found, prepare("cpu", scale=scale, bits=16)([data]))
    assert found.records[0]["decoder"] == "nvjpeg2000"


def test_signed_values(cuda: PretendedCuda) -> None:
    pixels = (phantom(900, 700, seed=8).pixels.astype(np.int32) - 2048).astype(np.int16)
    for uid in (f"{J}.90", f"{J}.70", "1.2.840.10008.1.2.1"):
        data = write_dicom(pixels, transfer_syntax_uid=uid, bits_stored=12)
        assert same(prepare()([data]), prepare("cpu")([data])), uid


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_have_the_same_bits(cuda: PretendedCuda, dtype: str, bits: int) -> None:
    top = (1 << bits) - 1
    settings = {"dtype": dtype, "bits": bits, "normalisation": (1 / (top * 0.23), -0.41 / 0.23)}
    wanted = prepare("cpu", **settings, tensors="cupy")(files())
    assert wanted.images.dtype == ("uint16" if dtype == "bfloat16" else dtype)
    assert same(prepare(**settings)(files()), wanted)
    if dtype == "float32":
        plain = prepare("cpu", bits=bits)(files()).images
        scale, offset = map(np.float32, settings["normalisation"])  # type: ignore[call-overload]
        assert np.array_equal(wanted.images, plain.astype(np.float32) * scale + offset)


def test_one_image_comes_to_the_host(cuda: PretendedCuda) -> None:
    for uid in (f"{J}.90", "1.2.840.10008.1.2.1"):
        found = prepare(bits=16).prepare(file(0, uid))
        wanted = prepare("cpu", bits=16).prepare(file(0, uid))
        assert type(found.image) is np.ndarray
        assert np.array_equal(found.image, wanted.image)
        assert set(found.seconds) == set(wanted.seconds)


def test_stored_values_lie_where_they_were_decoded(cuda: PretendedCuda) -> None:
    mammogram = read(file(0))
    for level in range(4):
        found = decode(mammogram, device="cuda", level=level)
        assert on_device(found)
        assert np.array_equal(to_host(found), decode(mammogram, level=level))
    assert not on_device(decode(read(file(0, f"{J}.80")), device="cuda"))
    beyond = FrameDecoder(mammogram, device="cuda")
    assert not beyond.beyond_range(0)
    assert not beyond.beyond_range(2)


# --- the stream, memory, threads -----------------------------------------------------------------


def test_the_callers_stream_waits_and_nothing_waits_for_the_device(cuda: PretendedCuda) -> None:
    preprocessor = prepare()
    preprocessor(files())
    caller, own = cuda.streams[0], cuda.streams[1]
    assert len(cuda.streams) == 2
    assert own.waits == caller.records  # the output's memory may still be in use there
    assert caller.waits == own.records
    assert len(caller.waits) == 1
    assert own.synchronized == caller.synchronized == 0
    preprocessor(files())
    prepare()(files())
    assert len(cuda.streams) == 2  # CuPy keeps memory for each stream: they are used again
    assert len(pretended_cuda.Flight.made) == 2
    assert pretended_cuda.Flight.made[0].decoded >= 6


def test_a_failed_batch_leaves_the_streams_in_order(cuda: PretendedCuda) -> None:
    with pytest.raises(OSError, match="absent"):
        prepare()([file(0), "absent.dcm", file(1)])
    assert cuda.caller.waits == cuda.streams[1].records
    assert len(prepare()([]).images) == 0
    assert len(prepare(on_error="collect")(["absent.dcm"]).images) == 0


def test_a_budget_makes_a_batch_in_parts(cuda: PretendedCuda) -> None:
    many = files() * 4
    wanted = prepare("cpu", scale="full")(many)
    assert same(prepare(scale="full", memory_budget_mb=3)(many), wanted)
    assert cuda.launched.count("resample_batch") > 1
    assert pretended_cuda.Flight.made[0].settings == (0, 2, 3 << 19)


def test_where_memory_is_short_a_batch_is_split(cuda: PretendedCuda) -> None:
    many = files() * 2
    wanted = prepare("cpu", scale="full")(many)
    seen = []

    def full(shape: tuple[int, ...], kind: Any) -> bool:
        """No memory for the third large frame, until something is given back."""
        seen.append(shape)
        return shape == SHAPES[2] and seen.count(shape) > 1 and not cuda.released

    cuda.full = full
    assert same(prepare(scale="full")(many), wanted)
    assert cuda.released == 1
    assert cuda.launched.count("resample_batch") == 2


def test_a_frame_too_large_for_the_device_costs_itself(cuda: PretendedCuda) -> None:
    cuda.full = lambda shape, kind: shape == SHAPES[2]
    batch = prepare(scale="full", on_error="collect")(files())
    assert batch.indices == (0, 1)
    (failure,) = batch.failures
    with pytest.raises(DeviceMemoryError, match="the device has no memory left"):
        raise failure.error
    wanted = prepare("cpu", scale="full")(files()[:2])
    assert to_host(batch.images).tobytes() == wanted.images.tobytes()


def test_no_memory_for_the_launchs_tables_splits_it(cuda: PretendedCuda) -> None:
    wanted = prepare("cpu")(files())
    asked = []

    def full(shape: tuple[int, ...], kind: Any) -> bool:
        tables = kind == np.uint8 and len(shape) == 1
        asked.extend([shape] if tables else [])
        return tables and len(asked) <= 2

    cuda.full = full
    assert same(prepare()(files()), wanted)
    assert cuda.launched.count("resample_batch") == 2
    cuda.full = lambda shape, kind: shape == (3, 1, *SIZE)
    with pytest.raises(DeviceMemoryError, match="the output of a batch: the device has no memory"):
        prepare()(files())


def test_torch_owns_the_output_where_it_is_loaded(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[np.ndarray] = []
    emptied: list[bool] = []
    stream = SimpleNamespace(cuda_stream=99)

    class Tensor:
        def __init__(self, shape: Any, kind: str) -> None:
            self.values = np.zeros(shape, "uint16" if kind == "bfloat16" else kind)
            made.append(self.values)

        def data_ptr(self) -> int:
            return self.values.__array_interface__["data"][0]

        def __getitem__(self, key: Any) -> np.ndarray:
            return self.values[key]

    torch = ModuleType("torch")
    torch.__dict__.update(
        bfloat16="bfloat16",
        uint8="uint8",
        device=lambda kind, index: f"{kind}:{index}",
        empty=lambda shape, *, dtype, device: Tensor(shape, dtype),
        cuda=SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            empty_cache=lambda: emptied.append(True),
            current_stream=lambda device: stream,
            OutOfMemoryError=type("OutOfMemoryError", (RuntimeError,), {}),
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    external = pretended_cuda.Stream(cuda)
    cuda.cuda.Stream.from_external = lambda given: external
    for dtype in (None, "bfloat16"):
        found = prepare(dtype=dtype)(files()).images
        assert found.base is made[-1]
        assert (
            found.tobytes() == prepare("cpu", dtype=dtype, tensors="cupy")(files()).images.tobytes()
        )
        assert external.waits[-1] is not None
    assert len(external.waits) == len(external.records) == 2
    assert on_device(prepare(tensors="cupy")(files()).images)

    well = torch.__dict__["empty"]

    def empty(shape: Any, **kinds: Any) -> Tensor:
        if cuda.released:
            made_after: Tensor = well(shape, **kinds)
            return made_after
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    torch.__dict__["empty"] = empty
    assert len(prepare()(files()).images) == 3  # CuPy's pool held what torch lacked
    assert (cuda.released, emptied) == (1, [True])

    def full(shape: Any, **_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    torch.__dict__["empty"] = full
    with pytest.raises(DeviceMemoryError, match="the output of a batch: CUDA out of memory"):
        prepare()(files())
    torch.cuda.is_available = lambda: False
    assert on_device(prepare()(files()).images)
    with pytest.raises(BackendUnavailableError, match="this torch sees no CUDA device"):
        prepare(tensors="torch")(files())


def test_it_is_pickled_without_its_threads(cuda: PretendedCuda) -> None:
    preprocessor = prepare(dtype="float16")
    wanted = preprocessor(files())
    again = pickle.loads(pickle.dumps(preprocessor))
    assert again(files()).images.tobytes() == wanted.images.tobytes()


# --- what the GPU cannot do ----------------------------------------------------------------------


def test_what_no_gpu_backend_takes_is_noted_or_refused(cuda: PretendedCuda) -> None:
    mammogram = read(file(1, f"{J}.80"))
    decoder = FrameDecoder(mammogram, device="cuda")
    assert decoder.notes == [
        "decoded on the CPU: cannot decode jpeg-ls (16 bits) on cuda: no backend of this package "
        "does; use device 'cpu'"
    ]
    with pytest.raises(UnsupportedSyntaxError, match=r"cannot decode jpeg-ls .* on cuda"):
        FrameDecoder(mammogram, device="cuda", strict=True)
    sources = [file(0), file(1, f"{J}.80"), file(2, "1.2.840.10008.1.2.1")]
    batch = prepare(strict=True, on_error="collect")(sources)
    assert batch.indices == (0, 2)
    assert isinstance(batch.failures[0].error, UnsupportedSyntaxError)


def test_a_backend_that_is_not_installed_is_named(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "pip install it")
    assert FrameDecoder(read(file(1)), device="cuda").backend.NAME == "nvimgcodec"
    assert same(prepare()(files()), prepare("cpu")(files()))
    assert prepare().config.device == "cuda"
    assert prepare("auto").config.device == "cpu"
    for name in ("nvimgcodec", "dali"):
        monkeypatch.setattr(sys.modules[f"fastmammo.decoding.{name}"], "missing", lambda: "it")
    batch = prepare()(files())
    assert same(batch, prepare("cpu")(files()))
    assert "nvjpeg2000: not installed: pip install it" in str(batch.records[0]["notes"])
    with pytest.raises(BackendUnavailableError, match="nvjpeg2000: not installed"):
        prepare(strict=True)(files())


def test_a_frame_on_which_the_gpu_fails_is_decoded_on_the_cpu(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = prepare("cpu")(files())
    well = nvjpeg2000.decode

    def fails(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Any:
        if codestream.rows == SHAPES[1][0]:
            raise CorruptCodestreamError("nvJPEG2000: bad\n  codestream")
        return well(data, codestream, level, threads)

    monkeypatch.setattr(nvjpeg2000, "decode", fails)
    batch = prepare()(files())
    assert same(batch, wanted)
    assert [record["notes"] for record in batch.records] == [
        "",
        "decoded on the CPU: nvJPEG2000: bad codestream|levels made on the GPU",
        "",
    ]
    assert batch.records[1]["decoder"] == "numba"
    batch = prepare(strict=True, on_error="collect")(files())
    assert batch.indices == (0, 2)
    with pytest.raises(CorruptCodestreamError, match="bad\n  codestream"):
        raise batch.failures[0].error
    with pytest.raises(CorruptCodestreamError, match="bad"):  # a name is never replaced
        decode(read(file(1)), device="cuda", backend="nvjpeg2000")


def test_a_lost_device_is_no_files_fault(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = nvjpeg2000.decode

    def fails(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Any:
        if codestream.rows == SHAPES[1][0]:
            raise DeviceError("CUDA failed for this frame alone")
        return well(data, codestream, level, threads)

    monkeypatch.setattr(nvjpeg2000, "decode", fails)
    collecting = prepare(on_error="collect")
    batch = collecting(files())
    assert batch.indices == (0, 2)
    with pytest.raises(DeviceError, match="for this frame alone"):
        raise batch.failures[0].error
    pretended_cuda.Flight.made[0].dead = True
    with pytest.raises(DeviceError, match="for this frame alone"):
        collecting(files())
    cuda.lost = True
    with pytest.raises(DeviceError, match="making a batch: CUDA failed: cudaErrorIllegalAddress"):
        prepare(on_error="collect")(files())
    with pytest.raises(DeviceError, match="for this frame alone"):
        prepare().prepare(file(1))


def test_what_cupy_raises_becomes_an_error_of_the_package(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise pretended_cuda.DriverFailure("CUDA_ERROR_LAUNCH_FAILED")

    monkeypatch.setattr(nvjpeg2000, "decode", fails)
    with pytest.raises(DeviceError, match="decoding: CUDA failed: CUDA_ERROR_LAUNCH_FAILED"):
        decode(read(file(1)), device="cuda")


def test_values_beyond_the_precision(cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG 2000 is clipped, as the CPU's decoders do; lossless JPEG is refused, as there."""
    well = nvjpeg2000.decode

    def wild(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Any:
        pixels = well(data, codestream, level, threads)
        pixels[0, :2] = 20000, 65533  # the second is -3, if the library does not clamp
        return pixels

    monkeypatch.setattr(nvjpeg2000, "decode", wild)
    monkeypatch.setattr(nvimgcodec, "decode", wild)
    found = to_host(decode(read(file(1)), device="cuda"))
    assert found[0, :2].tolist() == [4095, 0]
    assert np.array_equal(found.flat[2:], pixels_of(1).flat[2:])
    level = to_host(decode(read(file(0)), device="cuda", level=2))
    assert level[0, :2].tolist() == [4095, 0]
    assert level.dtype == np.uint16
    decoder = FrameDecoder(read(file(1, f"{J}.70")), device="cuda")
    assert not on_device(decoder.at(0))
    assert "nvimgcodec decoded values 0 to 65533" in decoder.notes[0]


def test_a_library_that_does_not_start_is_no_batchs_end(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise BackendUnavailableError("nvJPEG2000: the driver is too old")

    monkeypatch.setattr(device_module, "Decoder", fails)
    assert prepare()(files()).records[0]["decoder"] == "nvjpeg2000"
    monkeypatch.setattr(nvjpeg2000, "decode", fails)
    batch = prepare()(files())
    assert same(batch, prepare("cpu")(files()))
    assert batch.records[0]["notes"] == "decoded on the CPU: nvJPEG2000: the driver is too old"


def test_inspect_tells_what_the_gpu_did(
    cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmammo.report.facts import facts

    path = tmp_path / "view.dcm"
    path.write_bytes(file(0))
    config = Config(size=SIZE, device="auto")
    found = facts(str(path), config, picture=str(tmp_path / "view.png"))
    assert found["plan"]["decoder"] == "nvjpeg2000", found
    assert found["notes"] == []

    def fails(*_: Any, **__: Any) -> Any:
        raise CorruptCodestreamError("nvJPEG2000: bad codestream")

    monkeypatch.setattr(nvjpeg2000, "decode", fails)
    found = facts(str(path), config)
    assert found["plan"]["decoder"] == "numba"
    assert found["notes"] == ["decoded on the CPU: nvJPEG2000: bad codestream"]


# --- settings ------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    mammogram = read(file(1))
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda name: None)
    message = r"device 'cuda' is missing CuPy: pip install 'fastmammo\[cuda13\]'"
    with pytest.raises(BackendUnavailableError, match=message):
        prepare()
    with pytest.raises(BackendUnavailableError, match=message):
        decode(mammogram, device="cuda")
    with pytest.raises(BackendUnavailableError, match=message):
        convert("src", "dst", config=Config(device="cuda"))
    assert not os.path.exists("dst")


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "nothing is there")
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "nothing is there")
    assert prepare("auto").config.to_dict()["device"] == "cpu"
    assert Config(device="auto").resolved() == Config()
    assert Config(device="auto").digest() == Config(strict=True).digest() == Config().digest()
    assert Config(device="auto").resolved_why() == (Config(), "auto: missing nothing is there")
    message = "backend 'nvjpeg2000' decodes on a GPU, .* can use: missing nothing is there"
    for fails in (
        lambda: Config(device="auto", backend="nvjpeg2000").resolved(),
        lambda: prepare("auto", backend="nvjpeg2000"),
        lambda: decode(read(file(1)), device="auto", backend="nvjpeg2000"),
    ):
        with pytest.raises(BackendUnavailableError, match=message):
            fails()
    with pytest.raises(ConfigError, match="which needs a GPU; set device to cuda too"):
        Config(backend="nvjpeg2000")
    mammogram = read(file(1))
    assert np.array_equal(decode(mammogram, device="auto", level=1), decode(mammogram, level=1))
    with pytest.raises(ConfigError, match="decodes on a GPU, device is 'cpu': wanted 'cuda'"):
        decode(read(file(1)), backend="dali")


def test_auto_with_a_gpu_is_cuda(cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config(device="auto").resolved_why() == (Config(device="cuda"), "")
    assert on_device(decode(read(file(0)), device="auto"))
    # a backend that is asked for by name needs no other
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "no usable nvJPEG2000 library")
    assert Config(device="auto", backend="dali").resolved().device == "cuda"
    why = "auto: missing no usable nvJPEG2000 library"
    assert Config(device="auto").resolved_why() == (Config(), why)


def test_one_gpu_of_several_is_chosen_by_the_environment() -> None:
    message = (
        r"device: got 'cuda:1', allowed are cpu, cuda, auto; to take that GPU set "
        r"CUDA_VISIBLE_DEVICES=1 and device to cuda"
    )
    with pytest.raises(ConfigError, match=message):
        Config(device="cuda:1")
    with pytest.raises(ConfigError, match=message):
        decode(read(file(1)), device="cuda:1")


def test_bfloat16_on_a_cpu_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has no such type: its bits came as uint16, with no word."""
    bits = prepare("cpu", dtype="bfloat16", tensors="cupy")(files()).images
    assert bits.dtype == np.uint16
    torch = pytest.importorskip("torch")
    for tensors in ("auto", "torch"):
        images = prepare("cpu", dtype="bfloat16", tensors=tensors)(files()).images
        assert images.dtype == torch.bfloat16
        assert images.shape == bits.shape
        assert np.array_equal(images.view(torch.int16).numpy().view(np.uint16), bits)
    assert type(prepare("cpu", dtype="float32")(files()).images) is np.ndarray
    plain = prepare("cpu", tensors="torch")(files()).images
    assert plain.dtype == torch.uint8
    assert np.array_equal(plain.numpy(), prepare("cpu")(files()).images)
    wide = prepare("cpu", tensors="torch", bits=16)(files()).images
    assert wide.dtype == torch.uint16
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="dtype: got 'bfloat16', which on a CPU needs torch"):
        prepare("cpu", dtype="bfloat16")
    with pytest.raises(ConfigError, match="tensors: got 'torch', which on a CPU needs torch"):
        prepare("cpu", tensors="torch")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"dtype": "uint16"}, "bits 8, .*uint16 holds 16-bit values"),
        ({"normalisation": (0.1, 0.0)}, "to normalise them ask for a float type"),
        ({"normalisation": 3}, r"normalisation: got 3, wanted two numbers"),
        ({"dtype": "float16", "normalisation": (1e9, 0.0)}, "become infinite in float16"),
        ({"tensors": "jax"}, "tensors: got 'jax', allowed are auto, torch, cupy"),
        ({"memory_budget_mb": 0}, "memory_budget_mb: got 0"),
    ],
)
def test_settings_of_the_output(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare("cpu", **fields)


# --- convert, doctor, verify ---------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "require", lambda: None)
    monkeypatch.setattr(cuda_runtime, "visible_devices", lambda: ["3", "GPU-5"])


def on_gpus(src: Path, dst: Path, workers: int) -> Any:
    return convert(
        src,
        dst,
        config=Config(size=convert_standin.SIZE, device="cuda"),
        options=ConvertOptions(workers=workers),
        preprocessor=convert_standin.PREPROCESSOR,
    )


def test_workers_are_spread_over_the_gpus(tmp_path: Path, two_gpus: None) -> None:
    src, seen = tmp_path / "src", tmp_path / "seen"
    for folder in (src, seen):
        folder.mkdir()
    for name in "abcdefgh":
        (src / f"{name}.dcm").write_text(f"DICM gpu:0,{seen} pair:{seen} huge {name}")
    assert on_gpus(src, tmp_path / "dst", 2).ok == 8  # "huge": there is no limit on addresses
    gpus = {path.name.split("-", 2)[2].rsplit("-", 1)[0] for path in seen.iterdir()}
    assert gpus == {"3", "GPU-5"}
    assert len({path.name.split("-")[1] for path in seen.iterdir()}) == 2


def test_a_lost_gpu_ends_its_worker_and_the_file_is_tried_once_more(
    tmp_path: Path, two_gpus: None
) -> None:
    src, seen = tmp_path / "src", tmp_path / "seen"
    for folder in (src, seen):
        folder.mkdir()
    for name, times in (("a", 0), ("b", 1), ("c", 9), ("d", 0)):
        (src / f"{name}.dcm").write_text(f"DICM gpu:{times},{seen} {name}")
    summary = on_gpus(src, tmp_path / "dst", 1)
    assert (summary.ok, summary.failed) == (3, 1)
    assert summary.reasons == {"failed: device": 1}
    found = [path.name.split("-")[1:] for path in seen.iterdir() if path.name.startswith("seen")]
    tries = Counter(name for *_, name in found)
    # who is in hand beside one that loses the GPU has one more try too, and maybe had none before
    assert set(tries.values()) <= {1, 2}
    assert len(list(seen.glob("lost-c.dcm-*"))) in (1, 2)
    assert len({process for process, *_ in found}) >= 3
    assert {gpu for _, gpu, _ in found} == {"3"}  # its place's GPU, whichever process it is


def test_the_devices_that_a_process_may_use(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.devices = 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_runtime.visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1, 7")
    assert cuda_runtime.visible_devices() == ["GPU-1", "7"]


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Any:
    require_gpu()
    assert nvjpeg2000.missing() is None, nvjpeg2000.missing()
    import cupy

    return cupy


@pytest.mark.gpu
@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize("uid", LOSSLESS)
def test_on_a_gpu_every_lossless_syntax_gives_the_cpus_bits(
    real: Any, uid: str, scale: str
) -> None:
    many = files(uid) * 5
    wanted = prepare("cpu", scale=scale)(many)
    for tensors in ("auto", "cupy"):
        found = prepare(scale=scale, tensors=tensors, workers=4)(many)
        assert same(found, wanted), [record["notes"] for record in found.records[:3]]
    assert np.array_equal(prepare(scale=scale).prepare(many[0]).image, wanted.images[0, 0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_on_a_gpu_floats_have_the_same_bits(real: Any, dtype: str) -> None:
    settings = {"dtype": dtype, "normalisation": (1 / 58.0, -1.7), "tensors": "cupy"}
    assert same(prepare(**settings)(files()), prepare("cpu", **settings)(files()))


@pytest.mark.gpu
def test_on_a_gpu_memory_does_not_grow(real: Any) -> None:
    """Not in 1,000 batches, each with a file that fails and one that the CPU decodes."""
    preprocessor, seen = prepare(tensors="cupy", workers=4, on_error="collect"), []
    pixels = phantom(160, 120, seed=1).pixels
    tiny = [write_dicom(pixels, transfer_syntax_uid=f"{J}.{n}") for n in (90, 80)]
    cut = tiny[0][: len(tiny[0]) * 3 // 4]
    kept = []
    for count in (10, 990):
        for _ in range(count):
            batch = preprocessor([tiny[0], cut, tiny[1]])
            assert batch.indices == (0, 2)
        kept = batch.failures  # a failure that is kept holds nothing
        del batch
        real.cuda.runtime.deviceSynchronize()
        real.get_default_memory_pool().free_all_blocks()
        seen.append(real.cuda.runtime.memGetInfo()[0])
    assert len(kept) == 1
    assert seen[0] - seen[1] < 8 << 20


@pytest.mark.gpu
def test_on_a_gpu_another_stream_reads_the_batch_at_once(real: Any) -> None:
    wanted = prepare("cpu")(files()).images
    preprocessor = prepare(tensors="cupy")
    for _ in range(20):
        with real.cuda.Stream(non_blocking=True):
            assert np.array_equal(real.asnumpy(preprocessor(files()).images), wanted)


@pytest.mark.gpu
def test_on_a_gpu_convert_gives_the_cpus_files(real: Any, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for index in range(3):
        (src / f"{index}.dcm").write_bytes(file(index))
    for name in ("cpu", "cuda"):
        config = Config(size=SIZE, device=name, strict=True)
        options = ConvertOptions(workers=2)
        assert convert(src, tmp_path / name, config=config, options=options).ok == 3
    for index in range(3):
        found, wanted = (tmp_path / name / f"{index}.png" for name in ("cuda", "cpu"))
        assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 12, 14, 15, 16])
def test_on_a_gpu_levels_that_overshoot_are_clipped_as_on_the_cpu(real: Any, bits: int) -> None:
    """Open for 8, 15 and 16 bits: whether nvJPEG2000 clamps a level's sums, or wraps them."""
    pattern = np.random.default_rng(bits).integers(0, 2, (64, 48))
    pixels = np.kron(pattern, np.ones((5, 5), int)) * ((1 << bits) - 1)
    kind = np.uint8 if bits == 8 else np.uint16
    data = write_dicom(pixels.astype(kind), transfer_syntax_uid=f"{J}.90", bits_stored=bits)
    for level in range(4):
        found = to_host(decode(read(data), device="cuda", level=level, backend="nvjpeg2000"))
        assert np.array_equal(found, decode(read(data), level=level)), level


@pytest.mark.gpu
def test_on_a_gpu_torch_owns_the_output(real: Any) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (None, "bfloat16"):
        images = prepare(dtype=dtype, tensors="torch")(files()).images
        assert isinstance(images, torch.Tensor)
        found = images.cpu()
        found = found.view(torch.int16) if dtype else found
        wanted = prepare("cpu", dtype=dtype, tensors="cupy")(files()).images
        assert found.numpy().tobytes() == wanted.tobytes()


def test_the_device_module_is_light() -> None:
    assert device_module.STATES >= 1
    assert "cupy" not in vars(device_module)
