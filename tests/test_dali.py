"""DALI: its stretch undone, a bad frame that costs itself, and pipelines of finished images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy_as_cupy
import pytest

import fastmammo
import fastmammo.dali
from fastmammo.decoding import cuda_runtime, dali, nvidia_libraries
from fastmammo.decoding.backends import choose
from fastmammo.dicom.codestream import inspect_codestream
from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    MismatchError,
    NotDicomError,
    UnsupportedSyntaxError,
)
from fastmammo.kernels import INSTALL
from fastmammo.testing import encode, phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastmammo.dicom import Codestream

J = "1.2.840.10008.1.2.4"


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def wheel() -> None:
    if not _has_dali():
        pytest.skip("DALI is not installed: pip install nvidia-dali-cuda120")


def frame(
    bits: int, seed: int = 0, uid: str = f"{J}.90", **options: object
) -> tuple[tuple[bytes, Codestream], np.ndarray]:
    """Return (bytes, header facts) of a frame of noise, and its values."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (41 + seed, 37))
    values = values.astype(np.uint8 if bits <= 8 else np.uint16)
    data = encode(values, uid, bits_stored=bits, **options)  # type: ignore[arg-type]
    return (data, inspect_codestream(data, "the test's")), values


def stretched(values: np.ndarray, precision: int, multiplier: float | None = None) -> np.ndarray:
    """Return what DALI's GPU decoder makes of samples: one multiplication in float32, rounded."""
    full = np.iinfo(values.dtype).max
    if full == (1 << precision) - 1:
        return values
    factor = np.float32(full / ((1 << precision) - 1) if multiplier is None else multiplier)
    return np.rint(values.astype(np.float32) * factor).astype(values.dtype)


# --- the stretch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [*range(2, 8), *range(9, 16)])
def test_every_value_survives_the_stretch(precision: int) -> None:
    full = 255 if precision <= 8 else 65535
    kind = np.uint8 if precision <= 8 else np.uint16
    values = np.arange(1 << precision).astype(kind)
    table = dali.stored_values(precision, full)
    assert table.dtype == kind
    assert np.array_equal(table[stretched(values, precision)], values)
    # also where the factor is the next float32 below or above, as other compilers may have it
    factor = np.float32(full / ((1 << precision) - 1))
    for other in (np.nextafter(factor, np.float32(0)), np.nextafter(factor, np.float32(1e9))):
        assert np.array_equal(table[stretched(values, precision, float(other))], values)
    # and the formula is round(x (2^p - 1) / full)
    x = np.arange(full + 1)
    found = table < full
    assert np.array_equal(table[found], np.rint(x[found] * ((1 << precision) - 1) / full))
    assert found.sum() >= 1 << precision


@pytest.mark.parametrize("precision", range(9, 16))
def test_values_that_were_never_stretched_are_noticed(precision: int) -> None:
    """For instance a later DALI that no longer stretches: an error, not another image."""
    values = np.random.default_rng(precision).integers(0, 1 << precision, 1000)
    assert (dali.stored_values(precision, 65535)[values] == 65535).sum() > 300


# --- the backend, with a stand-in for DALI's pipelines -------------------------------------------


class Pipeline:
    """A DALI pipeline on a GPU: it stretches, and after one bad frame it is no longer valid."""

    def __init__(self, dtype: np.dtype[Any], log: list[str]) -> None:
        self.dtype, self.log, self.fed, self.state = dtype, log, [], "idle"
        log.append("built")

    def feed_input(self, name: str, arrays: list[np.ndarray]) -> None:
        assert self.state == "idle", "fed while at work, or after a failure"
        assert all(array.dtype == np.uint8 and array.ndim == 1 for array in arrays)
        self.fed, self.state = [bytes(array) for array in arrays], "fed"

    def schedule_run(self) -> None:
        assert self.state == "fed"
        self.state = "running"
        self.log.append(f"run {len(self.fed)}")

    def share_outputs(self) -> tuple[list[np.ndarray]]:
        assert self.state == "running"
        try:
            found = [self.decoded(data) for data in self.fed]
        except DecodeError as error:
            self.state = "invalid"
            self.log.append("failed")
            raise RuntimeError(
                "Critical error in pipeline:\nin operator `decoders.image`\n\nencountered:\n\n"
                f"Failed to decode sample: {type(error).__name__}\n"
                "Current pipeline object is no longer valid."
            ) from error
        self.state = "shared"
        return (found,)

    def decoded(self, data: bytes) -> np.ndarray:
        codestream = inspect_codestream(data, "")
        values = choose(codestream).decode(data, codestream)
        return stretched(values, codestream.precision).astype(self.dtype)[..., None]

    def release_outputs(self) -> None:
        assert self.state == "shared"
        self.state = "idle"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dali.Decoder, list[str]]]:
    """Return a maker of decoders on a pretended GPU, and the log of their pipelines."""
    numpy_as_cupy.install(monkeypatch)
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: (13, 3, 2))

    def made(kind: type[Pipeline] = Pipeline, **settings: Any) -> tuple[dali.Decoder, list[str]]:
        log: list[str] = []
        monkeypatch.setattr(dali.Decoder, "_build", lambda self, dtype: kind(dtype, log))
        return dali.Decoder(0, **settings), log

    return made


def test_batches_keep_order_values_and_types(device: Any) -> None:
    bits = [12] * 7 + [8] * 3 + [10, 14, 9, 15, 16] + [6] * 2 + [11]
    made = [frame(b, i, f"{J}.70" if b > 8 and i % 2 else f"{J}.90") for i, b in enumerate(bits)]
    decoder, log = device(batch_size=4)
    found = list(decoder.decode([each for each, _ in made]))
    for pixels, (_, values) in zip(found, made, strict=True):
        assert isinstance(pixels, numpy_as_cupy.Array)
        assert pixels.dtype == values.dtype
        assert np.array_equal(pixels, values)
    assert [line for line in log if line.startswith("run")] == [
        *("run 4", "run 3", "run 3", "run 4", "run 1", "run 2", "run 1"),
    ]
    assert log.count("built") <= 4  # two of each type are enough for two in flight
    assert decoder.rebuilt == 0
    list(decoder.decode([each for each, _ in made]))
    assert log.count("built") <= 4


@pytest.mark.parametrize("bad", [(0,), (5,), (2, 3), (0, 4, 8, 11), tuple(range(12))])
def test_a_frame_that_fails_costs_itself(device: Any, bad: tuple[int, ...]) -> None:
    made = [frame(12, i) for i in range(12)]
    frames = [each for each, _ in made]
    for index in bad:
        frames[index] = (frames[index][0][: 150 + index], frames[index][1])
    decoder, log = device(batch_size=4)
    found = list(decoder.decode(frames))
    assert len(found) == 12
    for index, (_, values) in enumerate(made):
        if index not in bad:
            assert np.array_equal(found[index], values)
            continue
        with pytest.raises(CorruptCodestreamError) as caught:
            raise found[index]
        words = str(caught.value)
        assert words.startswith("DALI refused the codestream (jpeg2000, ")
        assert words.endswith(": Failed to decode sample: CorruptCodestreamError")
    batches = {index // 4 for index in bad}
    assert decoder.rebuilt == log.count("failed") == len(bad) + len(batches)


class Fails(Pipeline):
    """A pipeline that fails with the words that the test gives it."""

    words = ""

    def share_outputs(self) -> tuple[list[np.ndarray]]:
        raise RuntimeError(self.words)


def test_a_lost_device_is_no_frames_fault(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = device(Fails, batch_size=4)
    told = numpy_as_cupy.install(monkeypatch)
    monkeypatch.setattr(Fails, "words", "encountered:\n\nCUDA allocation failed: out of memory")
    (found,) = decoder.decode([frame(12, 0)[0]])
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        raise found
    assert told.synchronized >= 1
    told.lost = True
    monkeypatch.setattr(Fails, "words", "encountered:\n\nFailed to decode sample")
    with pytest.raises(DeviceError, match="Failed to decode sample: CUDA failed: cudaErrorIllegal"):
        list(decoder.decode([frame(12, 0)[0]]))


def test_frames_may_come_one_by_one(device: Any) -> None:
    """Two batches are in flight: the first results come when the third batch begins."""
    decoder, _ = device(batch_size=2)
    taken = []

    def source() -> Any:
        for index in range(10):
            taken.append(index)
            yield frame(12, index)[0]

    found = decoder.decode(source())
    next(found)
    assert len(taken) == 7  # the seventh closes the third batch
    assert len(list(found)) == 9


def test_images_that_are_not_what_the_header_says(device: Any) -> None:
    class Unstretched(Pipeline):
        def decoded(self, data: bytes) -> np.ndarray:
            codestream = inspect_codestream(data, "")
            return choose(codestream).decode(data, codestream)[..., None]

    class Smaller(Pipeline):
        def decoded(self, data: bytes) -> np.ndarray:
            return super().decoded(data)[1:]

    for kind, words in (
        (Unstretched, r"values that no stretch of 12 bits to 0\.\.65535 makes"),
        (Smaller, r"gave uint16 \(40, 37, 1\), the codestream's header says uint16 \(41, 37, 1\)"),
    ):
        decoder, _ = device(kind)
        (found,) = decoder.decode([frame(12)[0]])
        with pytest.raises(MismatchError, match=words):
            raise found


def test_zeros_that_another_decoder_contradicts_are_an_error(device: Any) -> None:
    class Zeros(Pipeline):
        def decoded(self, data: bytes) -> np.ndarray:
            return super().decoded(data) * 0

    decoder, _ = device(Zeros)
    dark = encode(np.zeros((30, 40), np.uint16), f"{J}.90", bits_stored=12)
    bad, black = decoder.decode([frame(12)[0], (dark, inspect_codestream(dark, ""))])
    with pytest.raises(UnsupportedSyntaxError, match="to zeros alone, numba to values"):
        raise bad
    assert not black.any()


def test_tables_before_the_frame_header_reach_no_old_nvjpeg(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_nvimgcodec import tables_first

    decoder, log = device()
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: (12, 4, 0))
    (plain, codestream), values = frame(16, uid=f"{J}.70")
    found = list(decoder.decode([(tables_first(plain), codestream), (plain, codestream)]))
    with pytest.raises(UnsupportedSyntaxError, match="a segment FFC4 before its frame header"):
        raise found[0]
    assert np.array_equal(found[1], values)
    assert log.count("run 1") == 1
    assert decoder.rebuilt == 0


def test_decode_is_one_frame(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device()
    monkeypatch.setattr(dali, "_thread", SimpleNamespace())
    (data, codestream), values = frame(12)
    assert np.array_equal(dali.decode(memoryview(data), codestream), values)
    with pytest.raises(CorruptCodestreamError, match="DALI refused"):
        dali.decode(data[:100], codestream)
    found = list(dali.decode_batch([(data, codestream)] * 3))
    assert all(np.array_equal(pixels, values) for pixels in found)


# --- the backend on DALI's CPU pipeline ----------------------------------------------------------


def test_its_cpu_pipeline_gives_the_values(wheel: None) -> None:
    """There it does not stretch; the rest of the path is the GPU's."""
    made = [frame(12, 0), frame(12, 1), frame(16, 2), frame(9, 3), frame(8, 4), frame(12, 5)]
    made.append(frame(12, 6, f"{J}.201"))
    made.append(frame(12, 7, jp2=True))
    decoder = dali.Decoder(None, batch_size=3)
    found = list(decoder.decode([each for each, _ in made]))
    for pixels, (_, values) in zip(found, made, strict=True):
        assert pixels.dtype == values.dtype
        assert np.array_equal(pixels, values)
    assert decoder.rebuilt == 0


def test_a_bad_frame_in_its_cpu_pipeline_costs_itself(wheel: None) -> None:
    made = [frame(12, i) for i in range(7)]
    frames = [each for each, _ in made]
    frames[1] = (frames[1][0][:200], frames[1][1])
    signed = encode(np.full((40, 40), -5, np.int16), f"{J}.90", bits_stored=12)
    frames.append((signed, inspect_codestream(signed, "")))
    decoder = dali.Decoder(None, batch_size=3)
    found = list(decoder.decode(frames))
    for index, (_, values) in enumerate(made):
        if index != 1:
            assert np.array_equal(found[index], values)
    for index in (1, 7):
        with pytest.raises(CorruptCodestreamError, match=r"DALI refused .*Failed to decode sample"):
            raise found[index]
    assert decoder.rebuilt == 3
    assert np.array_equal(next(decoder.decode(frames)), made[0][1])  # it is still usable


def test_without_a_device_it_says_so(wheel: None) -> None:
    if cuda_runtime.missing() is None:
        pytest.skip("there is a device")
    with pytest.raises(BackendUnavailableError, match="DALI cannot build a pipeline on device 0"):
        list(dali.Decoder(0).decode([frame(12)[0]]))


# --- what is installed, what is refused ----------------------------------------------------------


def test_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dali.importlib.util, "find_spec", lambda name: None)
        assert dali.missing() == f"DALI: {INSTALL}"

        def absent(name: str) -> None:
            raise ModuleNotFoundError("No module named 'nvidia'")

        patch.setattr(dali.importlib.util, "find_spec", absent)
        assert dali.missing() == f"DALI: {INSTALL}"
    monkeypatch.setattr(dali.importlib.util, "find_spec", lambda name: name)
    numpy_as_cupy.install(monkeypatch)

    def none() -> None:
        raise BackendUnavailableError("nvImageCodec: pip install it")

    monkeypatch.setattr(nvidia_libraries, "nvimgcodec", none)
    assert dali.missing() == "DALI decodes through nvImageCodec: nvImageCodec: pip install it"
    monkeypatch.setattr(nvidia_libraries, "nvimgcodec", lambda: SimpleNamespace())
    assert dali.missing() is None
    numpy_as_cupy.install(monkeypatch, available=False)
    assert "CuPy sees none" in str(dali.missing())


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_libraries, "nvjpeg_version", lambda: (12, 4, 0))
    monkeypatch.setattr(nvidia_libraries, "companion", lambda name: object())
    (_, codestream), _ = frame(12)
    assert dali.refuses(codestream) is None
    signed = encode(np.zeros((40, 40), np.int16), f"{J}.90", bits_stored=12)
    assert "signed samples: DALI halves them" in str(dali.refuses(inspect_codestream(signed, "")))
    (_, lossless), _ = frame(12, uid=f"{J}.70")
    assert "to zeros; wanted 13.0.2" in str(dali.refuses(lossless))


def test_the_backend_does_not_import_dali() -> None:
    code = (
        "import sys, fastmammo.dali, fastmammo.decoding.dali, fastmammo.decoding.nvimgcodec\n"
        "print(*[n for n in sys.modules if n.startswith(('nvidia.', 'cupy'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


# --- finished images for DALI's users ------------------------------------------------------------

SIZE = (96, 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven phantoms as DICOM files of several syntaxes and sizes."""
    folder = tmp_path_factory.mktemp("dali")
    paths = []
    for index in range(11):
        made = phantom(300 + 10 * index, 240, seed=index, laterality="LR"[index % 2])
        uid = f"{J}.{(90, 70, 201)[index % 3]}" if index % 4 else "1.2.840.10008.1.2.1"
        path = folder / f"{index}.dcm"
        write_dicom(made.pixels, path=path, transfer_syntax_uid=uid, seed=index)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def images(files: list[Path]) -> np.ndarray:
    return prepare().__call__(files).images


def prepare(**fields: Any) -> fastmammo.Preprocessor:
    return fastmammo.Preprocessor(**{"size": SIZE, "flip": "left", "workers": 2, **fields})


def test_batches_are_the_preprocessors_images(files: list[Path], images: np.ndarray) -> None:
    batches = fastmammo.dali.Batches(prepare(), files, batch_size=4)
    assert len(batches) == 3
    for _ in range(2):
        found = list(batches)
        assert [len(pixels) for pixels, _ in found] == [4, 4, 3]
        pixels = np.concatenate([pixels for pixels, _ in found])
        assert pixels.shape == (11, *SIZE, 1)
        assert np.array_equal(pixels[..., 0], images[:, 0])
        assert np.array_equal(np.concatenate([labels for _, labels in found]), np.arange(11))
    planes = fastmammo.dali.Batches(prepare(), files, batch_size=11, layout="CHW")
    assert np.array_equal(next(iter(planes))[0], images)


def test_shuffle_shards_and_labels(files: list[Path], images: np.ndarray) -> None:
    density = np.arange(22).reshape(11, 2) / 7
    settings = {"batch_size": 2, "shuffle": True, "seed": 3, "shards": 2, "drop_last": True}
    shards = [
        fastmammo.dali.Batches(prepare(), files, density, shard=i, **settings) for i in (0, 1)
    ]
    assert [len(shard) for shard in shards] == [3, 2]
    orders = []
    for _ in range(2):
        seen = []
        for shard in shards:
            found = list(shard)
            assert len(found) == len(shard)
            for pixels, labels in found:
                indices = [int(np.flatnonzero((density == row).all(1))[0]) for row in labels]
                assert np.array_equal(pixels[..., 0], images[indices, 0])
                seen += indices
        assert len(set(seen)) == len(seen) == 10
        orders.append(seen)
    assert orders[0] != orders[1]
    again = fastmammo.dali.Batches(prepare(), files, **{**settings, "shards": 1})
    first = [labels.tolist() for _, labels in again]
    again.epoch = 0
    assert [labels.tolist() for _, labels in again] == first


def test_files_that_fail(files: list[Path], images: np.ndarray, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no DICOM" * 100)
    sources = [files[0], bad, files[1], files[2], tmp_path / "absent.dcm", files[3]]
    kept = [0, 2, 3, 5]
    batches = fastmammo.dali.Batches(prepare(on_error="collect"), sources, batch_size=2)
    found = list(batches)
    assert [labels.tolist() for _, labels in found] == [kept[:2], kept[2:]]
    assert np.array_equal(np.concatenate([p for p, _ in found])[..., 0], images[:4, 0])
    assert [(f.index, type(f.error)) for f in batches.failures] == [
        (1, NotDicomError),
        (4, FileNotFoundError),
    ]
    with pytest.raises(NotDicomError, match="DICOM"):
        list(fastmammo.dali.Batches(prepare(), sources, batch_size=2))


def test_whole_batches_are_asked_of_a_preprocessor_on_a_gpu(
    files: list[Path], images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy_as_cupy.install(monkeypatch)
    monkeypatch.setattr(fastmammo.dali.Batches, "device", "gpu")
    asked = []

    class Counted(fastmammo.Preprocessor):
        def __call__(self, sources: Any) -> Any:
            asked.append(len(sources))
            return super().__call__(sources)

    monkeypatch.setattr(fastmammo.dali, "Preprocessor", Counted)
    sources = [files[0], tmp_path / "absent.dcm", *files[1:]]
    batches = fastmammo.dali.Batches(prepare(on_error="collect"), sources, batch_size=4)
    found = list(batches)
    assert sorted(asked) == [4, 4, 4]
    assert [len(labels) for _, labels in found] == [4, 4, 3]
    labels = np.concatenate([labels for _, labels in found])
    assert labels.tolist() == [0, *range(2, 12)]
    assert all(isinstance(pixels, numpy_as_cupy.Array) for pixels, _ in found)
    assert np.array_equal(np.concatenate([pixels for pixels, _ in found])[..., 0], images[:, 0])
    assert [failure.index for failure in batches.failures] == [1]


def test_an_epoch_that_is_left_early_leaves_no_thread(files: list[Path]) -> None:
    import threading

    before = threading.active_count()
    epoch = iter(fastmammo.dali.Batches(prepare(), files, batch_size=2))
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_settings_of_batches(files: list[Path]) -> None:
    def batches(*arguments: Any, **settings: Any) -> None:
        fastmammo.dali.Batches(prepare(), *arguments, **{"batch_size": 2, **settings})

    with pytest.raises(ConfigError, match="sources: got none"):
        batches([])
    with pytest.raises(ConfigError, match=r"labels: got shape \(3,\) for 11 sources"):
        batches(files, [1, 2, 3])
    with pytest.raises(ConfigError, match=r"labels: got shape \(\) for 11 sources"):
        batches(files, 1)
    with pytest.raises(ConfigError, match=r"labels: got <U1, wanted numbers"):
        batches(files, list("abcdefghijk"))
    with pytest.raises(ConfigError, match="batch_size: got 0, wanted 1 or more"):
        batches(files, batch_size=0)
    with pytest.raises(ConfigError, match="look_ahead: got 0, wanted 1 or more"):
        batches(files, look_ahead=0)
    with pytest.raises(ConfigError, match="shard, shards: got 2 of 2"):
        batches(files, shard=2, shards=2)
    with pytest.raises(ConfigError, match="layout: got 'NCHW', allowed are HWC, CHW"):
        batches(files, layout="NCHW")


def epoch(pipeline: Any) -> list[tuple[np.ndarray, ...]]:
    """Return all batches of a DALI pipeline up to the end of its epoch, and begin the next."""
    found = []
    try:
        while True:
            found.append(tuple(np.array(output.as_array()) for output in pipeline.run()))
    except StopIteration:
        pipeline.reset()
    return found


@pytest.mark.parametrize("bits", [8, 16])
def test_a_pipeline_gives_the_preprocessors_images(
    wheel: None, files: list[Path], bits: int
) -> None:
    expected = prepare(bits=bits)(files).images
    pipeline = fastmammo.dali.pipeline(
        files, preprocessor=prepare(bits=bits), batch_size=4, shuffle=True, seed=1
    )
    orders = []
    for _ in range(3):
        found = epoch(pipeline)
        assert [len(pixels) for pixels, _ in found] == [4, 4, 3]
        labels = np.concatenate([labels for _, labels in found])
        pixels = np.concatenate([pixels for pixels, _ in found])
        assert pixels.dtype == expected.dtype
        assert np.array_equal(pixels[..., 0], expected[labels, 0])
        assert sorted(labels) == list(range(11))
        orders.append(labels.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_mammograms_in_a_pipeline_of_ones_own(
    wheel: None, files: list[Path], images: np.ndarray
) -> None:
    from nvidia.dali import fn, pipeline_def

    cancer = np.arange(11, dtype=np.float32) / 2

    @pipeline_def(batch_size=5, num_threads=2, device_id=None)  # type: ignore[untyped-decorator]
    def training() -> Any:
        pixels, label = fastmammo.dali.mammograms(files, cancer, preprocessor=prepare())
        turned = fn.rotate(pixels, angle=180.0, fill_value=0)
        planes = fn.crop_mirror_normalize(pixels, mean=[0], std=[255], output_layout="CHW")
        return pixels, label, turned, planes

    found = epoch(training())
    assert [len(batch[0]) for batch in found] == [5, 5, 1]
    pixels, labels, turned, planes = (np.concatenate(each) for each in zip(*found, strict=True))
    assert np.array_equal(pixels[..., 0], images[:, 0])
    assert np.array_equal(labels, cancer)
    assert np.array_equal(turned[:, ::-1, ::-1], pixels)
    assert planes.shape == (11, 1, *SIZE)
    assert np.allclose(planes, images / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_dalis_iterator_for_torch(wheel: None, files: list[Path], bits: int) -> None:
    pytest.importorskip("torch")
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    expected = prepare(bits=bits)(files).images

    @pipeline_def(batch_size=4, num_threads=2, device_id=None)  # type: ignore[untyped-decorator]
    def training() -> Any:
        pixels, label = fastmammo.dali.mammograms(
            files, preprocessor=prepare(bits=bits), shuffle=True, layout="CHW"
        )
        return (pixels if bits == 8 else fn.cast(pixels, dtype=types.FLOAT)), label

    iterator = DALIGenericIterator([training()], ["images", "labels"], auto_reset=True)
    for _ in range(3):
        found = [batch for (batch,) in iterator]
        labels = np.concatenate([batch["labels"].numpy() for batch in found])
        pixels = np.concatenate([batch["images"].numpy() for batch in found])
        assert sorted(labels) == list(range(11))
        assert np.array_equal(pixels, expected[labels])


def test_failures_within_a_pipeline(wheel: None, files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no DICOM" * 100)
    sources = [files[0], bad, *files[1:4]]
    batches = fastmammo.dali.Batches(prepare(on_error="collect"), sources, batch_size=2)
    found = epoch(fastmammo.dali.pipeline(batches, batch_size=2))
    assert [labels.tolist() for _, labels in found] == [[0, 2], [3, 4]]
    assert [failure.index for failure in batches.failures] == [1]
    with pytest.raises(NotDicomError):
        epoch(fastmammo.dali.pipeline(sources, preprocessor=prepare(), batch_size=2))


def test_misuse_of_mammograms(wheel: None, files: list[Path]) -> None:
    with pytest.raises(ConfigError, match="was called outside a pipeline"):
        fastmammo.dali.mammograms(files)
    batches = fastmammo.dali.Batches(prepare(), files, batch_size=4)
    with pytest.raises(ConfigError, match="got Batches and other settings"):
        fastmammo.dali.pipeline(batches, batch_size=4, shuffle=True)
    with pytest.raises(ConfigError, match="the Batches give 4, the pipeline takes 3"):
        fastmammo.dali.pipeline(batches, batch_size=3)


def test_without_dali_it_says_what_to_install(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(BackendUnavailableError, match=r"needs DALI .*pip install 'fastmammo"):
        fastmammo.dali.pipeline(files)


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> None:
    from gpu import require_gpu

    require_gpu()
    assert dali.missing() is None, dali.missing()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", range(2, 17))
def test_on_a_gpu_the_stretch_is_undone(gpu: None, bits: int) -> None:
    """Every value there is: a ramp, in each lossless syntax that this DALI decodes."""
    import cupy

    side = 1 << (bits + 1) // 2
    values = np.arange(side * side).reshape(side, side) % (1 << bits)
    values = np.kron(values, np.ones((-(-40 // side), -(-40 // side)), np.int64))
    values = values.astype(np.uint8 if bits <= 8 else np.uint16)
    for uid in (f"{J}.90", f"{J}.201", f"{J}.70"):
        data = encode(values, uid, bits_stored=bits)
        codestream = inspect_codestream(data, "")
        if reason := dali.refuses(codestream):
            assert uid == f"{J}.70", reason
            continue
        found = dali.decode(data, codestream)
        assert found.dtype == values.dtype
        assert np.array_equal(cupy.asnumpy(found), values), uid


@pytest.mark.gpu
def test_on_a_gpu_batches_with_bad_frames(gpu: None) -> None:
    import cupy

    made = [frame((8, 12, 10, 16)[i // 7 % 4], i) for i in range(60)]
    frames = [each for each, _ in made]
    bad = (3, 20, 21, 59)
    for index in bad:
        frames[index] = (frames[index][0][:150], frames[index][1])
    for _ in range(5):
        found = list(dali.decode_batch(frames, threads=2))
        for index, (_, values) in enumerate(made):
            if index in bad:
                assert isinstance(found[index], CorruptCodestreamError)
            else:
                assert np.array_equal(cupy.asnumpy(found[index]), values)


@pytest.mark.gpu
def test_on_a_gpu_memory_does_not_grow(gpu: None) -> None:
    import cupy

    values = np.random.default_rng(0).integers(0, 4096, (1024, 832)).astype(np.uint16)
    data = encode(values, f"{J}.90", bits_stored=12)
    one = data, inspect_codestream(data, "")
    seen = []
    for turn in range(100):
        for pixels in dali.decode_batch([one] * 8):
            assert pixels.shape == values.shape
        if turn in (9, 99):
            cupy.get_default_memory_pool().free_all_blocks()
            seen.append(cupy.cuda.runtime.memGetInfo()[0])
    assert seen[0] - seen[1] < 64 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_pipelines_give_the_preprocessors_images(
    gpu: None, files: list[Path], images: np.ndarray, device: str
) -> None:
    pipeline = fastmammo.dali.pipeline(
        files, preprocessor=prepare(device=device), batch_size=4, device_id=0
    )
    for _ in range(2):
        found = []
        try:
            while True:
                pixels, labels = (output.as_cpu().as_array() for output in pipeline.run())
                found.append((np.array(pixels), np.array(labels)))
        except StopIteration:
            pipeline.reset()
        labels = np.concatenate([labels for _, labels in found])
        assert np.array_equal(labels, np.arange(11))
        assert np.array_equal(np.concatenate([p for p, _ in found])[..., 0], images[:, 0])


def test_dali_is_an_attribute_that_needs_no_dali() -> None:
    program = "import fastmammo; print(fastmammo.dali.__name__, fastmammo.dali.Batches.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "fastmammo.dali Batches\n", done.stderr


@pytest.mark.parametrize("where", ["making", "building"])
def test_a_pipeline_on_a_gpu_that_is_not_there(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI's own error came out bare."""

    class Pipeline:
        def __init__(self, **_: Any) -> None:
            if where == "making":
                raise RuntimeError("CUDA is not\navailable")

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def set_outputs(self, *_: Any) -> None: ...

        def build(self) -> None:
            raise RuntimeError("CUDA is not\navailable")

    loader = fastmammo.dali
    monkeypatch.setattr(loader, "_dali", lambda: SimpleNamespace(Pipeline=Pipeline))
    monkeypatch.setattr(loader, "mammograms", lambda *_, **__: ())
    with pytest.raises(
        BackendUnavailableError, match=r"device_id: got 0, .*: CUDA is not available\. `fastmammo"
    ):
        loader.pipeline([b""], device_id=0)
    with pytest.raises(RuntimeError, match="CUDA is not") as caught:
        loader.pipeline([b""])
    assert not isinstance(caught.value, BackendUnavailableError)
