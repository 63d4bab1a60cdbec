"""Builds the .cu files with g++ and runs launches in that program: see cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmammo.kernels import gpu, launches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastmammo.kernels.batch import BatchImage

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread", "-DCUDA_ON_CPU_THREADS", "-pthread"),
    "none": ("-shared", "-fPIC"),
}
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def build(folder: Path, sanitizer: str = "address") -> Path:
    """Return the program that holds every kernel, or a library of them; warnings are errors."""
    lines, kernels = [], []
    for name, own in launches.SOURCES.items():
        (folder / f"{name}.cu").write_text(gpu.source(name), encoding="utf-8")
        # a namespace for each file, as each is a module of its own on a GPU
        lines.append(f'namespace {name}_cu {{\n#include "{name}.cu"\n}}')
        kernels += [f'{{"{kernel}", {{{name}_cu::{kernel}}}}}' for kernel in own]
    entries = ", ".join(kernels)
    lines.append(
        f"static const std::map<std::string, cuda_on_cpu::Kernel> kernels{{{entries}}};\n"
        "int main(int n, char** a) { return cuda_on_cpu::run(n, a, kernels); }\n"
        'extern "C" int call(const char* name, const std::uint64_t* shape, std::size_t count,\n'
        "    const std::uint64_t* sizes, const std::uint64_t* words) {\n"
        "    return cuda_on_cpu::call(kernels, name, shape, count, sizes, words);\n"
        "}"
    )
    main = folder / "main.cpp"
    main.write_text("\n".join(lines) + "\n", encoding="utf-8")
    program = folder / f"kernels-{sanitizer}"
    defines = [option for option in launches.OPTIONS if option.startswith("-D")]
    subprocess.run(
        [
            *(compiler(), "-std=c++17", "-O1", "-g", "-fno-strict-aliasing"),
            *("-ffp-contract=off", *WARNINGS, *SANITIZERS[sanitizer], *defines),
            *("-include", str(HEADER), str(main), "-o", str(program)),
        ],
        check=True,
        cwd=folder,
        timeout=300,
    )
    return program


def compiler() -> str | None:
    return shutil.which("g++")


class _Buffer(NamedTuple):
    array: np.ndarray
    skew: int


class Program:
    """Buffers and launches, to be run in one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffers: list[_Buffer] = []
        self.places: list[tuple[int, int]] = []
        self.launches: list[launches.Launch] = []

    def buffer(self, array: np.ndarray, skew: int = 0) -> int:
        """Copy an array to a buffer of its own, `skew` bytes past a multiple of 64; its address."""
        self.buffers.append(_Buffer(np.ascontiguousarray(array), skew))
        return len(self.buffers) << 40

    def surface(self, array: np.ndarray, gap: int = 0, skew: int = 0) -> launches.Surface:
        """Copy a 2-D array to a buffer, its rows `gap` bytes apart (none after the last)."""
        rows, columns = array.shape
        pitch = columns * array.itemsize + gap
        padded = np.full((rows, pitch), 0xCD, np.uint8)
        padded[:, : pitch - gap] = np.ascontiguousarray(array).view(np.uint8)
        pointer = self.buffer(padded.reshape(-1)[: rows * pitch - gap], skew)
        return launches.Surface(pointer, pitch, rows, columns, array.dtype.name)

    def launch(self, launch: launches.Launch) -> None:
        self.launches.append(launch)

    def batch(
        self,
        images: Sequence[BatchImage],
        sources: Sequence[launches.Surface],
        out: launches.Surface,
        stride: int,
        **options: float,
    ) -> None:
        """Launch `resample_batch`, each table in a buffer of its own."""
        plan = launches.plan(images, sources, out.rows, out.columns)
        jobs = plan.jobs_at([self.buffer(array) for array in plan.arrays])
        address = self.buffer(jobs.view(np.uint8))
        fields = [offset for kind, offset in launches.JOB.fields.values() if kind == np.uint64]
        for number in range(len(jobs)):
            for offset in fields:
                self.places.append(((address >> 40) - 1, number * jobs.itemsize + offset))
        self.launch(launches.resample_batch(plan, 0, address, out, stride, **options))

    def run(self) -> list[np.ndarray]:
        """Run the launches in order and return what the buffers hold then, typed as given."""
        words: list[bytes] = []

        def put(*values: int) -> None:
            words.append(struct.pack(f"<{len(values)}Q", *values))

        put(len(self.buffers))
        for array, skew in self.buffers:
            put(skew, array.nbytes)
            words.append(array.tobytes())
        put(len(self.places))
        for place in self.places:
            put(*place)
        put(len(self.launches))
        for launch in self.launches:
            name = launch.kernel.encode()
            put(len(name))
            words.append(name)
            put(*launch.grid, *launch.block, launch.shared, len(launch.arguments))
            for argument in launch.arguments:
                put(argument.nbytes)
                words.append(argument.tobytes().ljust(8, b"\0"))
        given, made = self.path.with_suffix(".in"), self.path.with_suffix(".out")
        given.write_bytes(b"".join(words))
        done = subprocess.run(
            [self.path, given, made], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the kernels' program ended with {done.returncode}: {done.stderr}")
        data, found, at = made.read_bytes(), [], 0
        for array, _ in self.buffers:
            flat = np.frombuffer(data, array.dtype, array.size, at)
            found.append(flat.reshape(array.shape).copy())
            at += array.nbytes
        return found


class HostArray(np.ndarray):
    """A NumPy array that says where it lies as CuPy's do."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self) -> np.ndarray:
        return np.array(self)


class HostCupy:
    """As much of CuPy as `gpu` uses, its arrays in host memory and its kernels run here."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.ndarray = HostArray
        runtime = SimpleNamespace(getDevice=lambda: 0)
        device = SimpleNamespace(attributes={"MultiProcessorCount": 2})
        runtime.CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})
        self.cuda = SimpleNamespace(
            runtime=runtime,
            driver=SimpleNamespace(CUDADriverError=type("CUDADriverError", (RuntimeError,), {})),
            memory=SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {})),
            Device=lambda number: device,
        )

    def is_available(self) -> bool:
        return True

    def empty(self, shape: tuple[int, ...], kind: Any) -> HostArray:
        return np.full(shape, 77, kind).view(HostArray)

    full = staticmethod(lambda shape, value, kind: np.full(shape, value, kind).view(HostArray))
    zeros = staticmethod(lambda shape, kind: np.zeros(shape, kind).view(HostArray))
    asarray = staticmethod(lambda array: np.array(array).view(HostArray))
    ascontiguousarray = staticmethod(lambda array: np.ascontiguousarray(array).view(HostArray))

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        assert 'extern "C"' in code
        assert options == launches.OPTIONS
        return SimpleNamespace(get_function=lambda name: functools.partial(self._call, name))

    def _call(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        *,
        shared_mem: int,
    ) -> None:
        count = len(arguments)
        words = (ctypes.c_uint64 * count)(
            *(int.from_bytes(argument.tobytes(), "little") for argument in arguments)
        )
        sizes = (ctypes.c_uint64 * count)(*(argument.nbytes for argument in arguments))
        shape = (ctypes.c_uint64 * 7)(*grid, *block, shared_mem)
        if self.library.call(name.encode(), shape, ctypes.c_size_t(count), sizes, words):
            raise RuntimeError(f"{name}: no such kernel, or other parameters")
