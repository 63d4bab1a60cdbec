"""The CUDA kernels equal the CPU's bit for bit: run by g++ without a GPU, and by CuPy with one."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kernel_cases as cases
import numpy as np
import pytest
from cuda_on_cpu import HostCupy, Program, build, compiler
from gpu import require_gpu

from fastmammo.errors import BackendUnavailableError, ConfigError
from fastmammo.kernels import batch, cpu, floats, gpu, launches
from fastmammo.kernels.batch import BatchImage
from fastmammo.preprocess.resize import taps

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).parent


def bits_of(array: np.ndarray) -> np.ndarray:
    return array.view(f"uint{8 * array.itemsize}")


# --- Without a GPU: the same .cu files, compiled by g++ ------------------------------------------


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Program]:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    path = build(tmp_path_factory.mktemp("kernels"))
    return functools.partial(Program, path)


def test_low_pass(kernels: Callable[[], Program]) -> None:
    rng = np.random.default_rng(1)
    program, wanted = kernels(), []
    for shape in cases.SHAPES:
        for kind in cases.KINDS:
            pixels = cases.noise(rng, shape, kind)
            size = pixels.itemsize
            source = program.surface(pixels, gap=int(rng.integers(0, 9)) * size, skew=size)
            expected = cpu.low_pass(pixels)
            address = program.buffer(np.full(expected.shape, 77, np.int32))
            program.launch(launches.low_pass(source, address))
            wanted.append((shape, kind, expected))
    for (shape, kind, expected), found in zip(wanted, program.run()[1::2], strict=True):
        assert np.array_equal(found, expected), (shape, kind)


def test_clip_and_extremes(kernels: Callable[[], Program]) -> None:
    rng = np.random.default_rng(2)
    program, wanted = kernels(), []
    for number, shape in enumerate([*cases.SHAPES, (1, 30_000)]):
        kind = cases.KINDS[number % 5]
        values = cases.noise(rng, shape, kind)
        values[0, 0] = np.iinfo(kind).min  # the distance to 0 does not fit an int32
        to = np.dtype(cases.KINDS[(number + number // 5) % 4])
        first, last = sorted(rng.integers(np.iinfo(to).min, np.iinfo(to).max, 2).tolist())
        slack = int(rng.choice([0, 1, 500, 2**31 - 1]))
        source = program.surface(values, gap=values.itemsize * (number % 3))
        out = program.buffer(np.full(shape, 77, to))
        far = program.buffer(np.zeros(1, np.int64))
        ends = program.buffer(np.array([2**31 - 1, -(2**31)], np.int32))
        program.launch(launches.clip(source, first, last, slack, out, to.name, far))
        program.launch(launches.extremes(source, ends))
        wanted.append((values, *cpu.clip_to(values, first, last, slack, to)))
    found = program.run()
    for number, (values, clipped, far) in enumerate(wanted):
        assert np.array_equal(found[4 * number + 1], clipped), number
        assert found[4 * number + 2] == far, number
        assert found[4 * number + 3].tolist() == [values.min(), values.max()], number


def test_batches_of_every_type(kernels: Callable[[], Program]) -> None:
    rng = np.random.default_rng(3)
    program, wanted = kernels(), []
    for images, expected, meant in cases.batches():
        dtype, bits, scale, offset = meant
        sources = []
        for image in images:
            size = image.pixels.itemsize
            # contiguous rows of any width, or a pitch that lets 16 bytes be read at once
            gap = int(rng.choice([0, size, -image.pixels.shape[1] % 16 * size]))
            skew = int(rng.choice([0, 0, size, 6 * size]))
            sources.append(program.surface(image.pixels, gap, skew))
        place = expected.shape[2:]
        address = program.buffer(np.full(expected.shape, 99, expected.dtype))
        pitch = place[1] * expected.itemsize
        program.batch(
            images,
            sources,
            launches.Surface(address, pitch, *place, dtype),
            place[0] * place[1],
            bits=bits or (8 if dtype == "uint8" else 16),
            scale=scale,
            offset=offset,
            multiprocessors=int(rng.choice([1, 132])),
        )
        wanted.append((address, expected, meant))
    found = program.run()
    for address, expected, meant in wanted:
        made = found[(address >> 40) - 1]
        assert np.array_equal(bits_of(made), bits_of(expected)), (expected.shape, meant)


def test_several_tiles_share_a_table(kernels: Callable[[], Program]) -> None:
    """Tall outputs with padding above, below and beside, on a device of few processors."""
    rng = np.random.default_rng(4)
    program, place = kernels(), (700, 70)
    images = [
        dataclasses.replace(
            cases.image(rng, place, 16, samples=(300, 90), size=(400, 40), kind="uint16"),
            table=rng.integers(0, 65536, entries).astype(np.uint16),
            top=120,
        )
        for entries in (4096, 60000)
    ]
    sources = [program.surface(image.pixels) for image in images]
    address = program.buffer(np.zeros((2, 1, *place), np.uint16))
    out = launches.Surface(address, 2 * place[1], *place, "uint16")
    program.batch(images, sources, out, place[0] * place[1], bits=16, multiprocessors=1)
    assert program.launches[-1].grid[1] < -(-place[0] // launches.TILE_ROWS)
    found = program.run()[(address >> 40) - 1]
    assert np.array_equal(found, cases.on_cpu(images, place, ("uint16", None, 1.0, 0.0)))


def test_rows_of_the_output_may_lie_apart(kernels: Callable[[], Program]) -> None:
    rng = np.random.default_rng(5)
    image = cases.image(rng, (30, 70), 8, size=(30, 70), kind="int16")
    image = dataclasses.replace(image, mirror=True)
    program = kernels()
    source = program.surface(image.pixels)
    frame = np.full((40, 100), 7, np.uint8)
    address = program.buffer(frame)
    out = launches.Surface(address + 5 * 100 + 20, 100, 30, 70, "uint8")
    program.batch([image], [source], out, 0, bits=8)
    arguments = image.pixels, image.first, image.table, image.row_taps, image.column_taps
    cpu.resample(*arguments, frame[5:35, 20:90], mirror=True)
    assert np.array_equal(program.run()[(address >> 40) - 1], frame)


def test_a_stray_access_is_seen(kernels: Callable[[], Program]) -> None:
    """The sanitizers are on: a source said to have a row more than it has ends the program."""
    program = kernels()
    source = program.surface(np.zeros((4, 6), np.uint16))._replace(rows=5)
    program.launch(launches.low_pass(source, program.buffer(np.zeros((3, 3), np.int32))))
    with pytest.raises(RuntimeError, match="AddressSanitizer"):
        program.run()


def merged_tiles(launch: launches.Launch) -> launches.Launch:
    """Return the launch with all tiles of a column in one block."""
    arguments = list(launch.arguments)
    arguments[7] = np.int32(launch.grid[1])
    return launch._replace(grid=(launch.grid[0], 1, launch.grid[2]), arguments=tuple(arguments))


def test_there_is_no_race(tmp_path: Path) -> None:
    """Each thread of a block as a thread of this machine, under the thread sanitizer."""
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    program = Program(build(tmp_path, "thread"))
    rng = np.random.default_rng(6)
    place = (18, 60)
    image = cases.image(rng, place, 8, size=(17, 50), samples=(90, 300), kind="uint16")
    whole = taps(90, 0, 90, 17, 0), taps(300, 0, 300, 50, 0)  # several chunks along both axes
    images = [dataclasses.replace(image, row_taps=whole[0], column_taps=whole[1])]
    sources = [program.surface(image.pixels) for image in images]
    address = program.buffer(np.zeros((1, 1, *place), np.uint8))
    out = launches.Surface(address, place[1], *place, "uint8")
    program.batch(images, sources, out, place[0] * place[1], bits=8)
    program.launches[-1] = merged_tiles(program.launches[-1])
    pixels = cases.noise(rng, (20, 33), "int16")
    low = program.buffer(np.zeros((10, 17), np.int32))
    program.launch(launches.low_pass(program.surface(pixels), low))
    row = program.surface(pixels.reshape(1, -1))
    far = program.buffer(np.zeros(1, np.int64))
    clipped = program.buffer(np.zeros((20, 33), np.uint8))
    program.launch(launches.clip(row, 3, 90, 5, clipped, "uint8", far))
    ends = program.buffer(np.array([2**31 - 1, -(2**31)], np.int32))
    program.launch(launches.extremes(row, ends))
    found = program.run()
    wanted = cases.on_cpu(images, place, ("uint8", None, 1.0, 0.0))
    assert np.array_equal(found[(address >> 40) - 1], wanted)
    assert np.array_equal(found[(low >> 40) - 1], cpu.low_pass(pixels))
    assert found[(ends >> 40) - 1].tolist() == [pixels.min(), pixels.max()]


# --- The host's part ----------------------------------------------------------------------------


def test_divisions_by_multiplication_are_exact() -> None:
    n = np.arange((65535 << 32) + (257 << 31) >> 32, dtype=np.uint64) + np.uint64(1)
    n = np.concatenate([[np.uint64(0)], n])
    assert n[-1] == 65663
    assert (n * 65281 < 1 << 32).all()
    assert np.array_equal(n * 65281 >> 24, n // 257)
    items = np.arange(3001)
    for divisor in range(1, 21):
        assert np.array_equal(items * (65536 // divisor + 1) >> 16, items // divisor)


def test_a_trimmed_table_says_the_same() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        given = np.sort(rng.integers(0, 4, 30)).astype(np.uint16)[:: rng.choice([-1, 1])]
        first, kept = launches.trimmed(-5, given)
        values = np.arange(-50, 50)
        whole = given[np.clip(values + 5, 0, 29)]
        assert np.array_equal(kept[np.clip(values - first, 0, kept.size - 1)], whole)
        assert kept.size == 1 or (kept[0] != kept[1] and kept[-1] != kept[-2])


def test_ranges_cover_what_each_tile_reads() -> None:
    starts = np.array([0, 2, 4, 6, 8], np.int32)
    found = launches.ranges(starts, starts + 3, 6, 4, 14)
    assert found.tolist() == [[0, 0], [0, 5], [4, 11], [0, 0]]
    found = launches.ranges(starts[::-1], starts[::-1] + 3, 0, 4, 5)
    assert found.tolist() == [[2, 11], [0, 3]]


def test_weights_travel_once() -> None:
    rows, columns = taps(40, 0, 40, 20, 0), taps(30, 0, 30, 15, 0)
    image = BatchImage(
        np.zeros((40, 30), np.uint16), 0, np.arange(9, dtype=np.uint16), rows, columns
    )
    surface = launches.Surface(1 << 40, 60, 40, 30, "uint16")
    one = launches.plan([image], [surface], 20, 15)
    two = launches.plan([image, image], [surface, surface], 20, 15)
    assert len(two.arrays) == len(one.arrays) + 3  # a table and two ranges
    blob, jobs = two.blob()
    assert jobs % 16 == 0
    job = blob[jobs:].view(launches.JOB)[1]
    at = int(job["column_weights"])
    size = columns.weights.size
    weights = blob[at : at + 4 * size].view(np.int32).reshape(-1, 15)
    assert np.array_equal(weights.T, columns.weights)


def test_launches_that_no_device_can_address_are_refused() -> None:
    rows = taps(4, 0, 4, 2, 0)
    image = BatchImage(np.zeros((4, 4), np.uint8), 0, np.zeros(2, np.uint16), rows, rows)
    huge = launches.Surface(0, 1 << 30, 4, 4, "uint8")
    with pytest.raises(ConfigError, match="image 0: 4294967296 bytes, wanted less than 2"):
        launches.plan([image], [huge], 2, 2)
    with pytest.raises(ConfigError, match="got 65536 in one batch, wanted at most 65535"):
        launches.plan([image] * 65536, [huge] * 65536, 2, 2)


def example(**changes: Any) -> BatchImage:
    made = BatchImage(
        np.zeros((20, 16), np.uint16),
        0,
        np.arange(16, dtype=np.uint16),
        taps(20, 0, 20, 10, 0),
        taps(16, 0, 16, 8, 0),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((20, 16), np.float32)}, "image 0 of 1: pixels are float32"),
        ({"pixels": np.zeros(20, np.uint8)}, r"pixels are uint8 \(20,\)"),
        ({"table": np.zeros(0, np.uint16)}, r"the table is uint16 \(0,\)"),
        ({"table": np.zeros(9, np.int32)}, "the table is int32"),
        ({"first": 1 << 20}, "first is 1048576, no stored value"),
        ({"row_taps": taps(30, 0, 30, 10, 0)}, "row_taps reach sample 29, there are 20"),
        ({"row_taps": tuple(-part for part in taps(20, 0, 20, 10, 0))}, "row_taps start before"),
        (
            {"column_taps": tuple(part.astype(np.int64) for part in taps(16, 0, 16, 8, 0))},
            "column_taps are no three int32 arrays",
        ),
        ({"left": 1}, "rows 0 to 10, columns 1 to 9, the output has 10 x 8 pixels"),
        ({"top": -1}, "rows -1 to 9"),
        ({"black": 65536}, "black is 65536, wanted 0 to 65535"),
    ],
)
def test_images_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batch.resample_batch([example(**changes)], np.zeros((1, 1, 10, 8), np.uint16))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("float64", {}, "dtype: got 'float64', allowed are uint8, uint16, float16"),
        ("uint8", {"bits": 16}, "uint8 holds 8-bit values as they are"),
        ("uint16", {"scale": 2.0}, "ask for a float type"),
        ("float32", {"bits": 12}, "bits: got 12, allowed are 8, 16"),
        ("uint8", {"dtype": "bfloat16"}, "out: got uint8, wanted uint16"),
        ("uint16", {"dtype": "float32"}, "out: got uint16, wanted float32"),
        ("float16", {"scale": 1.0}, "16-bit values become infinite in float16"),
        ("float32", {"offset": float("nan")}, "become infinite in float32"),
    ],
)
def test_outputs_that_cannot_hold_it_are_refused(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        batch.resample_batch([example()], np.zeros((1, 1, 10, 8), kind), **options)


def test_the_output_must_have_the_batch_s_shape() -> None:
    with pytest.raises(ConfigError, match=r"got the shape \(2, 1, 10, 8\), wanted \(1, 1, height"):
        batch.resample_batch([example()], np.zeros((2, 1, 10, 8), np.uint16))


def test_to_float_rounds_each_step_by_itself() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    scale, offset = 1 / (0.23 * 65535), -0.17 / 0.23
    product = (values.astype(np.float64) * np.float64(np.float32(scale))).astype(np.float32)
    exact = (product.astype(np.float64) + np.float64(np.float32(offset))).astype(np.float32)
    found = floats.to_float(values, "float32", scale=scale, offset=offset)
    assert np.array_equal(found, exact)
    fused = (values.astype(np.float64) * np.float64(np.float32(scale)) + np.float32(offset)).astype(
        np.float32
    )
    assert not np.array_equal(found, fused)  # these constants tell one from the other
    half = floats.to_float(values, "float16", scale=scale, offset=offset)
    assert np.array_equal(half, exact.astype(np.float16))
    brain = floats.to_float(values, "bfloat16", scale=scale, offset=offset)
    back = (brain.astype(np.uint32) << 16).view(np.float32)
    spacing = np.abs((brain.astype(np.uint32) << 16 ^ 1 << 16).view(np.float32) - back)
    assert (np.abs(back - exact) <= spacing / 2).all()
    ties = np.abs(back - exact) == spacing / 2
    assert (brain[ties] % 2 == 0).all()


def test_to_float_refuses_other_types() -> None:
    with pytest.raises(ConfigError, match="images: got int32, allowed are uint8, uint16"):
        floats.to_float(np.zeros(3, np.int32), "float32")
    with pytest.raises(ConfigError, match="dtype: got 'float8', allowed are float16"):
        floats.to_float(np.zeros(3, np.uint8), "float8")


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    gpu._cupy.cache_clear()
    yield monkeypatch
    gpu._cupy.cache_clear()


def test_without_cupy_or_device_the_message_is_plain(no_device: pytest.MonkeyPatch) -> None:
    no_device.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailableError, match=r"need CuPy .*fastmammo\[cuda13"):
        gpu.low_pass(np.zeros((2, 2), np.uint8))
    no_device.setitem(sys.modules, "cupy", types.SimpleNamespace(is_available=lambda: False))
    with pytest.raises(BackendUnavailableError, match="need a CUDA device: CuPy sees none"):
        gpu.extremes(np.zeros((2, 2), np.uint8))


def test_a_kernel_that_cannot_be_compiled_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, library: Path
) -> None:
    made = HostCupy(library)
    monkeypatch.setattr(gpu, "_cupy", lambda: made)
    for name in ("_kernel", "_module", "_multiprocessors"):
        monkeypatch.setattr(gpu, name, functools.cache(getattr(gpu, name).__wrapped__))
    error: Exception = RuntimeError("cannot open source file\n cuda_fp16.h")

    def fails(**_: Any) -> Any:
        def get_function(name: str) -> Any:
            raise error

        return types.SimpleNamespace(get_function=get_function)

    made.RawModule = fails  # type: ignore[method-assign]
    with pytest.raises(
        BackendUnavailableError,
        match=r"cannot compile .* low_pass\w* \(RuntimeError: cannot open source file cuda_fp16\.h"
        r"\): pip install 'fastmammo\[cuda13\]'",
    ):
        gpu.low_pass(made.zeros((3, 3), np.uint16))
    error = made.cuda.driver.CUDADriverError("CUDA_ERROR_LAUNCH_FAILED")  # the device's own
    with pytest.raises(RuntimeError, match="CUDA_ERROR_LAUNCH_FAILED"):
        gpu.low_pass(made.zeros((3, 3), np.uint16))


def test_sources_are_plain_ascii() -> None:
    """CuPy writes them to a file in the locale's encoding."""
    assert all(gpu.source(name).isascii() for name in launches.SOURCES)


# --- NVRTC, which needs no GPU ------------------------------------------------------------------


def nvrtc_libraries() -> list[Path]:
    """Return the NVRTC libraries of the nvidia wheels, CUDA 12 and 13."""
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or ()) if found else []
    patterns = ("cuda_nvrtc/lib/libnvrtc.so.*", "cu13/lib/libnvrtc.so.*")
    return [
        path
        for folder in folders
        for pattern in patterns
        for path in sorted(Path(folder).glob(pattern))
        if "alt" not in path.name and "builtins" not in path.name
    ]


class Nvrtc:
    """As much of NVRTC as it takes to compile a file."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.major = major.value

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(self.library.nvrtcGetErrorString(status).decode())

    def architectures(self) -> list[int]:
        count = ctypes.c_int()
        self.check(self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self.check(self.library.nvrtcGetSupportedArchs(found))
        return list(found)

    def cubin(self, text: str, options: tuple[str, ...]) -> bytes:
        program = ctypes.c_void_p()
        made = self.library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None
        )
        self.check(made)
        size = ctypes.c_size_t()
        try:
            listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self.library.nvrtcCompileProgram(program, len(options), listed)
            self.check(self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            self.check(self.library.nvrtcGetProgramLog(program, log))
            said = [line for line in log.value.decode().splitlines() if line.strip()]
            if status or any("Architectures prior to" not in line for line in said):
                raise RuntimeError("\n".join(said))
            self.check(self.library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
            cubin = ctypes.create_string_buffer(size.value)
            self.check(self.library.nvrtcGetCUBIN(program, cubin))
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin.raw


@pytest.mark.parametrize("major", [12, 13])
def test_every_kernel_compiles_for_every_architecture(major: int) -> None:
    libraries = [found for path in nvrtc_libraries() if (found := Nvrtc(path)).major == major]
    if not libraries:
        pytest.skip(f"no NVRTC of CUDA {major}: pip install nvidia-cuda-nvrtc")
    wanted = [75, 80, 86, 89, 90] + ([60, 70] if major == 12 else [])
    assert set(wanted) <= set(libraries[0].architectures())
    for name, kernels in launches.SOURCES.items():
        for architecture in wanted:
            # as CuPy compiles: with its own options added, without any header
            options = (
                *launches.OPTIONS,
                f"-arch=sm_{architecture}",
                "--device-as-default-execution-space",
                "-ftz=true",
            )
            cubin = libraries[0].cubin(gpu.source(name), options)
            assert cubin[:4] == b"\x7fELF"
            for kernel in kernels:
                assert f".text.{kernel}".encode() in cubin, (name, architecture)


# --- With a GPU ---------------------------------------------------------------------------------


@pytest.fixture
def cupy() -> Any:
    require_gpu()
    import cupy

    return cupy


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    return build(tmp_path_factory.mktemp("library"), "none")


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy; or, to run `gpu` itself without a GPU, a stand-in over the kernels built by g++."""
    if request.param == "gpu":
        return request.getfixturevalue("cupy")
    made = HostCupy(request.getfixturevalue("library"))
    monkeypatch.setattr(gpu, "_cupy", lambda: made)
    for name in ("_kernel", "_module", "_multiprocessors"):
        monkeypatch.setattr(gpu, name, functools.cache(getattr(gpu, name).__wrapped__))
    return made


def pitched(device: Any, array: np.ndarray, gap: int) -> Any:
    """Return the array on the device, its rows `gap` samples apart."""
    rows, columns = array.shape
    made = device.full((rows, columns + gap), 77, array.dtype)[:, :columns]
    made[...] = device.asarray(array)
    return made


def shapes(device: Any) -> tuple[tuple[int, int], ...]:
    """Return the shapes to try: on a GPU a large one too."""
    return cases.SHAPES if isinstance(device, HostCupy) else (*cases.SHAPES, (1001, 1333))


@pytest.mark.parametrize("gap", [0, 3, 16])
def test_low_pass_on_the_device(device: Any, gap: int) -> None:
    rng = np.random.default_rng(1)
    for shape in shapes(device):
        for kind in cases.KINDS:
            pixels = cases.noise(rng, shape, kind)
            found = gpu.low_pass(pitched(device, pixels, gap))
            assert np.array_equal(found.get(), cpu.low_pass(pixels)), (shape, kind)


@pytest.mark.parametrize("gap", [0, 5])
def test_clip_and_extremes_on_the_device(device: Any, gap: int) -> None:
    rng = np.random.default_rng(2)
    for shape in shapes(device):
        for kind in cases.KINDS:
            values = cases.noise(rng, shape, kind)
            on_device = pitched(device, values, gap)
            for to in map(np.dtype, cases.KINDS):
                first, last = sorted(rng.integers(np.iinfo(to).min, np.iinfo(to).max, 2).tolist())
                found, far = gpu.clip_to(on_device, first, last, 9, to)
                wanted, count = cpu.clip_to(values, first, last, 9, to)
                assert isinstance(far, device.ndarray)
                assert far.shape == ()
                assert np.array_equal(found.get(), wanted), (shape, kind, to)
                assert int(far) == count, (shape, kind, to)
            assert gpu.extremes(on_device).get().tolist() == [values.min(), values.max()]


@pytest.mark.parametrize("gap", [0, 1, 16])
def test_batches_on_the_device(device: Any, gap: int) -> None:
    for images, expected, meant in cases.batches():
        dtype, bits, scale, offset = meant
        on_device = [
            dataclasses.replace(image, pixels=pitched(device, image.pixels, gap))
            for image in images
        ]
        out = device.full(expected.shape, 99, expected.dtype)
        tensor = gpu.DeviceTensor(out.data.ptr, dtype, out.shape)
        options = {"bits": bits, "scale": scale, "offset": offset}
        gpu.resample_batch(on_device, tensor, **options)
        assert np.array_equal(bits_of(out.get()), bits_of(expected)), (expected.shape, meant)
        out[...] = 99
        gpu.resample_batch(on_device, out, dtype=dtype, **options)
        assert np.array_equal(bits_of(out.get()), bits_of(expected)), (expected.shape, meant)


def test_one_image_on_a_gpu_into_a_part_of_an_array(device: Any) -> None:
    rng = np.random.default_rng(5)
    for number in range(20):
        image = cases.image(rng, (130, 210), 16, size=(130, 210))
        frame = np.full((150, 240), 7, np.uint16 if number % 2 else np.uint8)
        whole = device.asarray(frame)
        arguments = image.first, image.table, image.row_taps, image.column_taps
        part = np.s_[9:139, 20:230]
        cpu.resample(image.pixels, *arguments, frame[part], mirror=image.mirror)
        pixels = device.asarray(image.pixels)
        gpu.resample(pixels, *arguments, whole[part], mirror=image.mirror)
        assert np.array_equal(whole.get(), frame), number


@pytest.mark.gpu
def test_a_whole_batch_of_mammogram_size_on_a_gpu(cupy: Any, pixels: np.ndarray) -> None:
    """Many images, every processor busy, tiles that share tables; on a stream of its own."""
    rng = np.random.default_rng(8)
    place = (1024, 512)
    images = []
    for number in range(64):
        samples = 1664 - number, 1280 + 3 * number
        repeated = np.tile(pixels, (6, 6))[: samples[0], : samples[1]]
        images.append(
            BatchImage(
                np.ascontiguousarray(repeated),
                0,
                cases.table(rng, 4096),
                taps(samples[0], 0, 2 * samples[0] - 3, 1000, 1),
                taps(samples[1], 5, 2 * samples[1], 500 + number % 13, 1),
                top=number % 25,
                mirror=number % 2 == 1,
                black=number,
            )
        )
    wanted = cases.on_cpu(images, place, ("uint16", None, 1.0, 0.0))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        device = [dataclasses.replace(i, pixels=cupy.asarray(i.pixels)) for i in images]
        out = cupy.empty((64, 1, *place), np.uint16)
        for _ in range(3):
            gpu.resample_batch(device, out)
        stream.synchronize()
        assert np.array_equal(out.get(stream=stream), wanted)


@pytest.mark.gpu
def test_torch_tensors_on_a_gpu(cupy: Any) -> None:
    torch = pytest.importorskip("torch")
    images, _, _ = next(iter(cases.batches()))
    place = (1, 1)
    for name, bits, scale, offset in cases.OUTPUTS:
        images = [dataclasses.replace(image, black=3) for image in images]
        wanted = cases.on_cpu(images, place, (name, bits, scale, offset))
        device = [dataclasses.replace(i, pixels=cupy.asarray(i.pixels)) for i in images]
        tensor = torch.empty((3, 1, *place), dtype=getattr(torch, name), device="cuda")
        out = gpu.DeviceTensor(tensor.data_ptr(), name, tuple(tensor.shape))
        gpu.resample_batch(device, out, bits=bits, scale=scale, offset=offset)
        cupy.cuda.get_current_stream().synchronize()
        raw = tensor.cpu().contiguous().view(torch.uint8).numpy()
        assert np.array_equal(raw.reshape(-1), wanted.reshape(-1).view(np.uint8)), name


def test_what_a_gpu_cannot_write_to_is_refused(device: Any) -> None:
    image = example(pixels=device.zeros((20, 16), np.uint16))
    with pytest.raises(ConfigError, match="wanted a contiguous array"):
        gpu.resample_batch([image], device.zeros((1, 1, 10, 16), np.uint16)[..., ::2])
    arguments = image.pixels, 0, image.table, image.row_taps, image.column_taps
    with pytest.raises(ConfigError, match="wanted columns side by side"):
        gpu.resample(*arguments, device.zeros((10, 16), np.uint16)[:, ::2])
    with pytest.raises(ConfigError, match=r"out: got the shape \(9, 8\), wanted \(10, 8\)"):
        gpu.resample(*arguments, device.zeros((9, 8), np.uint16))
    with pytest.raises(ConfigError, match="values: got float32"):
        gpu.extremes(device.zeros((3, 3), np.float32))
    with pytest.raises(ConfigError, match="dtype: got float32"):
        gpu.clip_to(device.zeros((3, 3), np.int32), 0, 1, 0, np.dtype(np.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_is_clean(cupy: Any, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer (CUDA toolkit) is not on the path")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable]
    done = subprocess.run(
        [*command, str(TESTS / "gpu_sanitized.py")],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    if "finished" not in done.stdout and "not supported" in done.stdout.lower():
        pytest.skip(f"compute-sanitizer does not run here: {done.stdout[-300:]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "finished" in done.stdout


@pytest.mark.gpu
def test_the_benchmark_runs(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(TESTS.parent / "bench"), *sys.path])
    importlib.import_module("gpu_kernels").main(["--images", "2", "--rounds", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["copy"]["GB_per_s"] > 0
    assert all(case["of_copy"] > 0 for case in found["resample_batch"].values())
