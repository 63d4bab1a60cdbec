"""The GPU's way on a pretended device: what it holds, waits for, gives back, and who may use it."""

from __future__ import annotations

import gc
import importlib
import io
import os
import pickle
import sys
import threading
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pretended_cuda
import pytest
from cuda_on_cpu import build, compiler

import fastmammo.dali
from fastmammo import Preprocessor
from fastmammo.decoding import cuda_runtime
from fastmammo.errors import ConfigError, DeviceError, NoPixelSpacingError, forget_frames
from fastmammo.kernels import to_host
from fastmammo.kernels.floats import to_float
from fastmammo.preprocess import device, device_memory
from fastmammo.preprocess.device_memory import LevelBudget
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

    from pretended_cuda import PretendedCuda

J = "1.2.840.10008.1.2.4"
SHAPES = ((1300, 410), (301, 233), (650, 900))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    return build(tmp_path_factory.mktemp("pretended"), "none")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, library: Path) -> PretendedCuda:
    return pretended_cuda.install(monkeypatch, library)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [
        write_dicom(phantom(*shape, seed=n).pixels, transfer_syntax_uid=f"{J}.90", seed=n)
        for n, shape in enumerate(SHAPES)
    ]


def prepare(kind: str = "cuda", **fields: Any) -> Preprocessor:
    return Preprocessor(**{"size": (128, 96), "workers": 2, **fields}, device=kind)


def in_threads(function: Any, items: Any) -> list[Any]:
    found: list[Any] = [None] * len(items)

    def run(index: int, item: Any) -> None:
        found[index] = function(item)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_failure_that_is_kept_holds_no_pixels(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes], kind: str
) -> None:
    from fastmammo.preprocess import planning

    seen: list[Any] = []
    well = planning.find_breast

    def fails(small: Any, **facts: Any) -> Any:
        seen.append(weakref.ref(small))
        if len(seen) > 1:
            raise NoPixelSpacingError("the tables are out")
        return well(small, **facts)

    monkeypatch.setattr(planning, "find_breast", fails)
    made: list[Any] = []
    asarray = cuda._made
    monkeypatch.setattr(
        cuda, "_made", lambda a: (made.append(weakref.ref(kept := asarray(a))), kept)[1]
    )
    batch = prepare(kind, on_error="collect")(files)
    assert len(batch.failures) == 2
    gc.collect()
    assert not any(ref() is not None for ref in seen[1:])
    alive = [ref().shape for ref in made if ref() is not None]
    assert alive == ([] if kind == "cpu" else [(3, 1, 128, 96)])


def test_a_defect_keeps_its_lines() -> None:
    def inner() -> None:
        held = np.zeros(3)
        refs.append(weakref.ref(held))
        raise ZeroDivisionError("a defect")

    refs: list[Any] = []
    try:
        inner()
    except ZeroDivisionError as error:
        kept = error
        forget_frames(error)
    assert refs[0]() is None
    trace = kept.__traceback__
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "inner"


class Pipe(io.RawIOBase):
    """A file object that cannot be set back."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data, self.rest = self.rest, b""
        return data


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_file_objects_are_read_again_after_a_split(
    cuda: PretendedCuda, files: list[bytes], kind: Any
) -> None:
    many = files * 2
    wanted = prepare("cpu", scale="full")(many)
    seen: list[Any] = []

    def full(shape: tuple[int, ...], _: Any) -> bool:
        seen.append(shape)
        return shape == SHAPES[2] and seen.count(shape) > 1 and not cuda.released

    cuda.full = full
    batch = prepare(scale="full", on_error="collect")([kind(data) for data in many])
    assert batch.indices == tuple(range(6))
    assert to_host(batch.images).tobytes() == wanted.images.tobytes()


def test_what_is_finished_survives_a_split(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> None:
    planned: Counter[int] = Counter()
    well = device.plan_image

    def plan(source: Any, *arguments: Any, **options: Any) -> Any:
        planned[len(source)] += 1
        made = well(source, *arguments, **options)
        later.set() if len(source) == len(files[2]) else later.wait(10)
        return made

    later = threading.Event()
    monkeypatch.setattr(device, "plan_image", plan)
    cuda.full = lambda shape, _: shape == SHAPES[0] and not cuda.released
    batch = prepare(scale="full", workers=3)(files)
    assert batch.indices == (0, 1, 2)
    assert planned[len(files[2])] == 1
    assert planned[len(files[0])] == 2


def test_one_image_is_tried_again_where_memory_was_short(
    cuda: PretendedCuda, files: list[bytes]
) -> None:
    wanted = prepare("cpu").prepare(files[0]).image
    cuda.full = lambda shape, _: shape == (1, 1, 128, 96) and not cuda.released
    assert np.array_equal(prepare().prepare(files[0]).image, wanted)
    assert cuda.released == 1
    assert any(stream.synchronized for stream in cuda.streams)


def test_images_of_several_threads_share_decoder_and_launches(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> None:
    many = files * 4
    wanted = [prepare("cpu").prepare(data).image for data in many]
    preprocessor = prepare(workers=4)
    counts: list[int] = []
    joint = device.Joint._made

    def made(self: Any, gathered: list[Any]) -> Any:
        counts.append(len(gathered))
        if len(counts) == 1:  # others gather while the first is at work
            end = threading.Event()
            for _ in range(400):
                if len(self._waiting) >= 3:
                    break
                end.wait(0.05)
        return joint(self, gathered)

    monkeypatch.setattr(device.Joint, "_made", made)
    found = in_threads(lambda data: preprocessor.prepare(data).image, many)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert sum(counts) == 12
    assert max(counts) >= 3
    assert len(pretended_cuda.Flight.made) == 1  # one decoder, whoever comes first
    assert pretended_cuda.Flight.made[0].decoded >= 12


def test_an_image_that_cannot_be_made_costs_those_beside_it_nothing(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> None:
    well = device.gpu.resample_batch

    def fails(images: list[Any], *arguments: Any, **options: Any) -> None:
        if any(image.pixels.shape[0] == SHAPES[1][0] for image in images):
            raise ConfigError("image 1: wrong")
        well(images, *arguments, **options)

    monkeypatch.setattr(device.gpu, "resample_batch", fails)
    preprocessor = prepare(workers=4, scale="full")

    def one(data: bytes) -> str:
        try:
            return type(preprocessor.prepare(data).image).__name__
        except ConfigError as error:
            return str(error)

    assert in_threads(one, files) == ["ndarray", "image 1: wrong", "ndarray"]


@pytest.mark.parametrize("uid", [f"{J}.90", "1.2.840.10008.1.2.1"])
def test_the_host_waits_once_an_image(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, uid: str
) -> None:
    """Also where the values beyond the range are counted on the device, with its own levels."""
    files = [
        write_dicom(phantom(*SHAPES[n], seed=n).pixels, transfer_syntax_uid=uid) for n in (0, 2)
    ]
    waits: list[Any] = []
    cupy = sys.modules["cupy"]
    copy = cupy.asnumpy
    monkeypatch.setattr(cupy, "asnumpy", lambda array: (waits.append(array.nbytes), copy(array))[1])
    wanted = prepare("cpu")(files)
    waits.clear()
    batch = prepare()(files)
    assert [r["flags"] for r in batch.records] == [r["flags"] for r in wanted.records]
    assert len(waits) == len(files)


def test_a_budget_is_one_for_all_threads() -> None:
    budget = LevelBudget(100)
    first = budget.enter()
    assert first is not None
    first.known(60)
    assert budget.enter(wait=False) is None
    late: list[Any] = []
    thread = threading.Thread(target=lambda: late.append(budget.enter()))
    thread.start()
    thread.join(0.1)
    assert not late
    first.leave()
    first.leave()
    thread.join(10)
    assert len(late) == 1
    assert budget.enter(wait=False) is None  # one whose size is unknown counts as the largest
    late[0].known(10)
    assert budget.enter(wait=False) is not None
    alone = LevelBudget(1)
    for _ in range(2):
        turn = alone.enter()
        assert turn is not None
        turn.known(1000)
        turn.leave()


def test_batches_of_two_threads_keep_within_one_budget(
    cuda: PretendedCuda, files: list[bytes]
) -> None:
    many = files * 3
    wanted = prepare("cpu", scale="full")(many).images
    preprocessor = prepare(scale="full", memory_budget_mb=3, tensors="cupy")
    for images in in_threads(lambda batch: to_host(preprocessor(batch).images), [many, many]):
        assert images.tobytes() == wanted.tobytes()
    assert len(pretended_cuda.Flight.made) == 1


def test_a_forked_process_is_told_to_be_spawned(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> None:
    preprocessor = prepare()
    preprocessor(files[:1])
    batches = preprocessor._device
    assert batches is not None
    copied = pickle.dumps(preprocessor)
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    told = "forked from it: CUDA cannot be used here.*multiprocessing_context='spawn'"
    for use in (
        lambda: preprocessor(files),
        lambda: preprocessor.prepare(files[0]),
        lambda: batches.one(files[0]),
        lambda: batches(files, stop=True),
        lambda: cuda_runtime.runtime_of(0),
    ):
        with pytest.raises(DeviceError, match=told):
            use()
    cuda_runtime._runtime.cache_clear()  # as in a process that was spawned
    assert len(pickle.loads(copied)(files[:1]).images) == 1


def test_dalis_batches_stay_on_their_gpu(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> None:
    cuda.devices = 2
    seen: Counter[int] = Counter()
    runtime_of = device.runtime_of

    def counted(number: int) -> Any:
        seen[number] += 1
        return runtime_of(number)

    monkeypatch.setattr(device, "runtime_of", counted)
    for chosen, settings in ((1, {"device_id": 1}), (1, {}), (0, {"device_id": 0})):
        seen.clear()
        if not settings:
            cuda.cuda.Device(1).use()  # as torch.cuda.set_device does, in this thread
        preprocessor = prepare(memory_budget_mb=64)
        batches = fastmammo.dali.Batches(preprocessor, files, batch_size=2, **settings)
        made = len(pretended_cuda.Flight.made)
        for _ in range(3):
            assert sum(len(images) for images, _ in batches) == 3
        assert set(seen) == {chosen}
        (flight,) = pretended_cuda.Flight.made[made:]  # one decoder for all epochs
        assert flight.settings[0] == chosen
        cuda.cuda.Device(0).use()


@pytest.mark.parametrize("normal", [(1e-40, 0.0), (1.0, 1e-40), (-1e-38, 0.0)])
def test_what_a_gpu_takes_for_zero_is_refused(normal: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"(scale|offset): got -?1e-\d+, allowed are 0 and sizes"):
        prepare("cpu", dtype="float32", normalisation=normal)
    assert to_float(np.array([3], np.uint8), "float32", scale=1e-20)[0] > 0


def test_streams_are_made_once(cuda: PretendedCuda, files: list[bytes]) -> None:
    preprocessor = prepare()
    for _ in range(3):
        preprocessor.prepare(files[1])
    assert len(cuda.streams) == 3  # the caller's, the image's, the launch's
    assert len(device_memory._streams[0]) == 2


def test_where_memory_is_short_idle_states_go_and_a_frame_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastmammo.decoding import nvjpeg2000
    from fastmammo.errors import DeviceMemoryError

    log: list[str] = []

    class State:
        done = None

        def close(self) -> None:
            log.append("closed")

    class Runtime:
        def release_cached(self) -> None:
            log.append("released")

    def short(*_: Any) -> str:
        log.append("tried")
        if log.count("tried") < tries:
            raise DeviceMemoryError("no memory")
        return "pixels"

    monkeypatch.setattr(nvjpeg2000, "_decode", short)
    lender: Any = nvjpeg2000._Lender(None)  # type: ignore[arg-type]
    lender._idle, lender._made = [State()], 1
    tries = 2
    assert nvjpeg2000._with_room(lender, Runtime(), b"", None, 0) == "pixels"  # type: ignore[arg-type]
    assert log == ["tried", "closed", "released", "tried"]
    assert (lender._idle, lender._made) == ([], 0)
    log.clear()
    tries = 9
    with pytest.raises(DeviceMemoryError, match="no memory"):
        nvjpeg2000._with_room(lender, Runtime(), b"", None, 0)  # type: ignore[arg-type]
    assert log.count("tried") == 2


def test_the_bench_leaves_small_devices_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("gpu_kernels")
    asked: list[int] = []

    def array(size: int, _: Any) -> int:
        asked.append(size)
        return size

    cupy = SimpleNamespace(
        zeros=array,
        ones=array,
        cuda=SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (4 << 30, 8 << 30))),
    )
    monkeypatch.setattr(bench, "median_ms", lambda *_: {"median_ms": 1.0})
    found = bench.copied(cupy, 2 << 30, 3)
    assert sum(asked) == 1 << 30
    assert found["bytes"] == (1 << 30) // bench.SETS
    assert found["GB_per_s"] == pytest.approx(found["bytes"] / 1e6)
