"""nvJPEG2000 without a GPU: the binding against the header, the refusals against the library."""

from __future__ import annotations

import ctypes as C
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvjpeg2000_standin import build, header_folder

from fastmammo.decoding import cuda_runtime, nvjpeg2000, nvjpeg2000_library
from fastmammo.decoding import twins as twins_module
from fastmammo.decoding.cuda_runtime import CupyRuntime
from fastmammo.decoding.nvjpeg2000_library import (
    FUNCTIONS,
    STRUCTURES,
    Image,
    Library,
    PixelType,
    Status,
    error_of,
    find_library,
)
from fastmammo.decoding.nvjpeg2000_probe import CODESTREAM
from fastmammo.decoding.nvjpeg2000_state import dtype_of, shape_of
from fastmammo.decoding.once import once
from fastmammo.dicom import Codestream, inspect_codestream, read
from fastmammo.errors import (
    BackendUnavailableError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    FastMammoError,
    UnsupportedSyntaxError,
)
from fastmammo.kernels import INSTALL, no_device
from fastmammo.testing import encode
from fastmammo.testing.openjpeg import encode_jpeg2000

J = "1.2.840.10008.1.2.4"


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return find_library()
    except BackendUnavailableError as error:
        pytest.skip(str(error))


class Parser:
    """nvjpeg2kStreamParse and the queries, which need no GPU."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.handle = library.new("CreateSimple")
        self.stream = library.new("StreamCreate")

    def close(self) -> None:
        self.library("StreamDestroy", self.stream)
        self.library("Destroy", self.handle)

    def status(self, data: bytes) -> Status:
        source = np.frombuffer(data, np.uint8)
        where = source.ctypes.data, len(data), 0, 0, self.stream
        return Status(self.library.quietly("StreamParse", self.handle, *where))

    def facts(self, levels: int) -> dict[str, object]:
        """What the library has read of the codestream that was parsed last."""
        image, component = nvjpeg2000_library.ImageInfo(), nvjpeg2000_library.ComponentInfo()
        self.library("StreamGetImageInfo", self.stream, C.byref(image))
        self.library("StreamGetImageComponentInfo", self.stream, C.byref(component), 0)
        sizes = []
        for level in range(levels + 1):
            w, h = C.c_uint32(), C.c_uint32()
            query = self.stream, 0, 0, levels - level, C.byref(w), C.byref(h)
            self.library("StreamGetResolutionComponentDim", *query)
            sizes.append((h.value, w.value))
        return {
            "size": (image.image_height, image.image_width),
            "tiles": image.num_tiles_x * image.num_tiles_y,
            "components": image.num_components,
            "component": (component.component_height, component.component_width),
            "precision": (component.precision, bool(component.sgn)),
            "levels": self.library.number("StreamGetResolutionsInTile", self.stream, 0) - 1,
            "sizes": sizes,
        }


@pytest.fixture(scope="module")
def parser(library: Library) -> object:
    made = Parser(library)
    yield made
    made.close()


def verdict(data: bytes) -> tuple[str | None, Codestream | None]:
    """Why the package would not hand these bytes to the library, and its facts of them."""
    try:
        c = inspect_codestream(data, "jpeg2000")
    except FastMammoError as error:
        return str(error), None
    return nvjpeg2000.refuses(c), c


# ---------------------------------------------------------------- the binding


def test_structures_constants_and_prototypes_are_those_of_the_header(tmp_path: Path) -> None:
    header = header_folder()
    if header is None:
        pytest.skip("no nvjpeg2k.h: pip install nvidia-nvjpeg2k-cu12")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    wanted, lines = [], []
    for name, kind in STRUCTURES.items():
        wanted.append(f"{name} {C.sizeof(kind)}")
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in kind._fields_:  # type: ignore[misc]
            place = getattr(kind, field)
            wanted.append(f"{name}.{field} {place.offset} {place.size}")
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), '
                f"sizeof((({name}*)0)->{field}));"
            )
    for status in Status:
        wanted.append(f"{status.name} {status.value}")
        lines.append(f'printf("{status.name} %d\\n", NVJPEG2K_STATUS_{status.name});')
    for pixel in PixelType:
        wanted.append(f"{pixel.name} {pixel.value}")
        lines.append(f'printf("{pixel.name} %d\\n", NVJPEG2K_{pixel.name});')
    for name, arguments in FUNCTIONS.items():
        words = [f"{C.sizeof(a)}{'p' if is_pointer(a) else 'n'}" for a in arguments]
        wanted.append(f"{name}: 4 {' '.join(words)}")
        lines.append(f'describe("{name}", {name});')
    program = f"""
#define _NVJPEG2K_DISABLE_CUDA_TOOLKIT_HEADERS
#include <cstdio>
#include <cstddef>
#include <type_traits>
#include "nvjpeg2k.h"
template <class R, class... A> void describe(const char *name, R (*)(A...)) {{
    std::printf("%s: %zu", name, sizeof(R));
    (std::printf(" %zu%c", sizeof(A), std::is_pointer<A>::value ? 'p' : 'n'), ...);
    std::printf("\\n");
}}
int main() {{ {" ".join(lines)} }}
"""
    (tmp_path / "abi.cpp").write_text(program, encoding="utf-8")
    # Only the types of the functions are taken, so the library itself is not linked.
    command = ["g++", "-std=c++17", "-O1", f"-I{header}", "abi.cpp", "-o", "abi"]
    link = ["-Wl,--unresolved-symbols=ignore-all"]
    subprocess.run([*command, *link], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "abi"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == wanted


def is_pointer(kind: type) -> bool:
    return kind is C.c_void_p or issubclass(kind, C._Pointer)  # type: ignore[attr-defined]


def test_version(library: Library) -> None:
    import re

    assert re.fullmatch(r"0\.\d+\.\d+ for CUDA 1[23]\.\d+\.\d+", library.version())
    assert nvjpeg2000.version().startswith("nvJPEG2000 0.")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (1, DecodeError),
        (2, DecodeError),
        (3, CorruptCodestreamError),
        (4, UnsupportedSyntaxError),
        (5, DeviceMemoryError),
        (6, DeviceError),
        (7, BackendUnavailableError),
        (8, DecodeError),
        (9, UnsupportedSyntaxError),
    ],
)
def test_every_status_is_an_error_with_its_name(status: int, error: type[DecodeError]) -> None:
    found = error_of(status, "nvjpeg2kDecodeTile")
    assert type(found) is error
    assert f"nvjpeg2kDecodeTile gave {Status(status).name} ({status}): " in str(found)
    assert len(Status) == 10


def test_an_unknown_status() -> None:
    assert "status 10, which 0.11 does not have" in str(error_of(10, "nvjpeg2kCreate"))


def test_an_older_library_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path)
    monkeypatch.setattr(nvjpeg2000_library, "_candidates", lambda: iter([made]))
    assert find_library.__wrapped__().path == made
    monkeypatch.setattr(Library, "release", lambda _: (0, 10, 0))
    with pytest.raises(BackendUnavailableError, match=r"\(0.11 or newer\).* version 0\.10\.0"):
        find_library.__wrapped__()


def test_an_absent_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg2000_library, "_candidates", lambda: iter(["absent.so", "libc.so.6"]))
    with pytest.raises(BackendUnavailableError, match=re.escape(INSTALL)) as caught:
        find_library.__wrapped__()
    assert "absent.so: absent.so: cannot open" in str(caught.value)
    assert "libc.so.6: " in str(caught.value)
    assert "undefined symbol: nvjpeg2kGetProperty" in str(caught.value)

    def absent() -> Library:
        raise BackendUnavailableError("no usable nvJPEG2000 library")

    monkeypatch.setattr(nvjpeg2000, "find_library", absent)
    assert nvjpeg2000.missing() == "no usable nvJPEG2000 library"


def test_without_cupy_or_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = cuda_runtime.missing
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda _: None)
    assert absent() == f"CuPy: {INSTALL}"
    with pytest.raises(
        BackendUnavailableError, match=r"device 'cuda' is missing CuPy: pip install"
    ):
        cuda_runtime.require()
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda _: object())
    cupy = types.ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cupy.is_available = lambda: False  # type: ignore[attr-defined]
    assert "a CUDA device: CuPy sees none" in (absent() or "")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "CuPy, which cannot be loaded" in (absent() or "")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 2, driverGetVersion=lambda: 13000)
    cupy = with_compiler(monkeypatch, runtime, (13, 2))
    assert absent() is None
    monkeypatch.setattr(cuda_runtime, "missing", lambda: None)
    with pytest.raises(BackendUnavailableError, match="CUDA device 2: there are 2"):
        CupyRuntime(2)
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "pip install it")
    with pytest.raises(BackendUnavailableError, match="CUDA: pip install it"):
        CupyRuntime(0)


def test_cuda_s_own_words_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    runtime = types.SimpleNamespace(
        getDeviceCount=count, driverGetVersion=lambda: 12080, runtimeGetVersion=lambda: 13000
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cupy = with_compiler(monkeypatch, runtime, (13, 2))
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda _: object())

    def raises() -> bool:
        raise RuntimeError("cudaErrorInsufficientDriver")

    for available in (lambda: False, raises):
        cupy.is_available = available  # type: ignore[attr-defined]
        assert cuda_runtime.missing() == (
            "a CUDA device: CuPy sees none (cudaErrorInsufficientDriver: CUDA driver version is "
            "insufficient; the driver is for CUDA 12.8, CuPy for CUDA 13.0)"
        )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    runtime.getDeviceCount, runtime.driverGetVersion = lambda: 0, lambda: 0
    assert no_device(cupy) == (
        "a CUDA device: CuPy sees none (CUDA counts 0; no driver is there, CuPy for CUDA 13.0; "
        "CUDA_VISIBLE_DEVICES is '')"
    )


def with_compiler(
    monkeypatch: pytest.MonkeyPatch, runtime: types.SimpleNamespace, compiler: object
) -> types.ModuleType:
    """A CuPy with a device; `compiler`: NVRTC's version, or what is raised instead."""

    def version() -> object:
        if isinstance(compiler, Exception):
            raise compiler
        return compiler

    cupy = types.ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cupy.is_available = lambda: True  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        runtime=runtime,
        nvrtc=types.SimpleNamespace(getVersion=version),
        driver=types.SimpleNamespace(get_build_version=lambda: 12090),
    )
    return cupy


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a driver alone no kernel could be compiled."""
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda _: object())
    of_cuda_12 = types.SimpleNamespace(driverGetVersion=lambda: 12080)
    with_compiler(monkeypatch, of_cuda_12, RuntimeError('Failure finding "libnvrtc.so.13"'))
    assert cuda_runtime.missing() == (
        'NVRTC, the compiler of CUDA kernels (RuntimeError: Failure finding "libnvrtc.so.13"): '
        f"{INSTALL}"
    )
    assert cuda_runtime.compiler_note() is None
    with_compiler(monkeypatch, of_cuda_12, (13, 5))
    assert (cuda_runtime.missing() or "").startswith(
        "NVRTC for CUDA 12: CuPy takes that of CUDA 13, whose kernels a driver of CUDA 12 does not"
    )
    of_cuda_13 = types.SimpleNamespace(driverGetVersion=lambda: 13000)
    with_compiler(monkeypatch, of_cuda_13, (13, 5))
    assert cuda_runtime.missing() is None
    note = cuda_runtime.compiler_note()
    assert note == "CuPy is built for CUDA 12 and compiles by NVRTC of CUDA 13"
    with_compiler(monkeypatch, of_cuda_13, (12, 9))
    assert cuda_runtime.compiler_note() is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file", "/h/.cupy"), "name one in CUPY_CACHE_DIR, or set"),
        (RuntimeError("no wheel"), r"CuPy, which cannot be loaded \(RuntimeError: no wheel\): pip"),
    ],
)
def test_a_cupy_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """It makes its folder of kernels while it is imported: HOME may not be writable."""

    class Breaks:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise error

    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda _: object())
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaks(), *sys.meta_path])
    assert re.search(words, cuda_runtime.missing() or "")


def test_a_search_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def candidates() -> object:
        tried.append(1)
        return iter(["absent.so"])

    monkeypatch.setattr(nvjpeg2000_library, "_candidates", candidates)
    finding = once(find_library.__wrapped__)
    said = set()
    for _ in range(3):
        with pytest.raises(BackendUnavailableError, match=r"absent\.so") as caught:
            finding()
        said.add(str(caught.value))
    assert (len(tried), len(said)) == (1, 1)
    finding.cache_clear()
    with pytest.raises(BackendUnavailableError):
        finding()
    assert len(tried) == 2
    counted = once(lambda: tried.append(1) or tried)  # type: ignore[func-returns-value]
    assert counted() is counted()
    assert len(tried) == 3


def test_packages_of_both_cudas_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"nvidia-nvjpeg2k-cu12", "nvidia-nvjpeg2k-cu13", "nvidia-nvimgcodec-cu12"}

    def distribution(name: str) -> object:
        if name not in here:
            raise twins_module.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(twins_module, "distribution", distribution)
    monkeypatch.setattr(twins_module, "twins", twins_module.twins.__wrapped__)
    both = "nvidia-nvjpeg2k-cu12 and nvidia-nvjpeg2k-cu13 are installed to the same files"
    assert both in twins_module.twins()
    assert twins_module.twins("nvimgcodec") is None
    assert twins_module.with_twins(None, "nvjpeg2k") is None
    assert twins_module.with_twins("no State", "dali") == "no State"
    monkeypatch.setattr(nvjpeg2000, "find_library", lambda: None)
    monkeypatch.setattr(cuda_runtime, "missing", lambda: None)
    monkeypatch.setattr(nvjpeg2000, "_probe", lambda device: "no State")
    runtime = types.SimpleNamespace(getDevice=lambda: 0)
    with_compiler(monkeypatch, runtime, (13, 5))
    assert (nvjpeg2000.missing() or "").startswith(f"no State; {both}")


def test_extras_bring_the_compiler_and_its_headers() -> None:
    """A driver has neither NVRTC nor cuda_fp16.h, which CuPy's own kernels include."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r"\[project.optional-dependencies\](.*?)\n\[", text, re.DOTALL)
    assert extras is not None
    lists = {name: body for name, body in re.findall(r"(?ms)^([\w-]+) = \[(.*?)^\]", extras[1])}
    assert {"cuda12", "cuda13", "dev", "dev-cuda12"} <= set(lists)
    for name, wanted in {
        "cuda12": ("cupy-cuda12x", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"),
        "cuda13": ("cupy-cuda13x", "nvidia-cuda-nvrtc>=13,<14", "nvidia-cuda-runtime>=13,<14"),
    }.items():
        assert all(f'"{package}' in lists[name] for package in wanted), name
    # wheels for CUDA 12 and 13 overwrite each other: who develops on a GPU has those of its extra
    assert "nvidia-" not in lists["dev"]
    assert "-cu13" not in lists["cuda12"] + lists["dev-cuda12"]
    assert "-cu12" not in lists["cuda13"]


def test_cupy_s_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ours in CupyRuntime: whose stream, and what an exhausted pool becomes."""

    class Exhausted(MemoryError):
        pass

    class Stream:
        def __init__(self, ptr: int = 1) -> None:
            self.ptr = ptr

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

        @classmethod
        def from_external(cls, other: object) -> Stream:
            return cls(other.__cuda_stream__()[1])  # type: ignore[attr-defined]

    def empty(shape: tuple[int, int], dtype: object) -> None:
        raise Exhausted("Out of memory allocating 12 bytes")

    cupy = types.ModuleType("cupy")
    cupy.empty = empty  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError),
        memory=types.SimpleNamespace(OutOfMemoryError=Exhausted),
        Stream=Stream,
        get_current_stream=lambda: Stream(77),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cuda_runtime, "missing", lambda: None)
    runtime = CupyRuntime(0)
    assert runtime.stream_of(None).ptr == 77
    own = Stream(5)
    assert runtime.stream_of(own) is own
    assert runtime.stream_of(types.SimpleNamespace(cuda_stream=6)).ptr == 6
    assert runtime.stream_of(7).ptr == 7
    other = types.SimpleNamespace(__cuda_stream__=lambda: (0, 8))
    assert runtime.stream_of(other).ptr == 8
    with pytest.raises(DeviceMemoryError, match="device 0 has no memory for 3 x 2 samples of uint"):
        runtime.empty((3, 2), np.uint16, own)  # type: ignore[arg-type]


def test_without_a_gpu_the_true_library_fails_cleanly(library: Library) -> None:
    from fastmammo.decoding.nvjpeg2000_state import Handle, State

    if cuda_runtime.missing() is None:
        pytest.skip("there is a GPU")
    handle = Handle(library, 1 << 20, 1 << 20)
    found = C.c_size_t()
    library("GetDeviceMemoryPadding", C.byref(found), handle.pointer)
    assert found.value == 1 << 20
    library("GetPinnedMemoryPadding", C.byref(found), handle.pointer)
    assert found.value == 1 << 20
    with pytest.raises(BackendUnavailableError, match=r"EXECUTION_FAILED .* there is no GPU"):
        State(handle)
    handle.close()


# ---------------------------------------------------------------- refusals


def j2k(pixels: np.ndarray, syntax: str = "90", **options: object) -> bytes:
    return encode(pixels, f"{J}.{syntax}", bits_stored=12, **options)  # type: ignore[arg-type]


STYLES: dict[str, tuple[str, dict[str, object], str | None]] = {
    # name → transfer syntax, settings, a word of the refusal
    "plain": ("90", {}, None),
    "no levels": ("90", {"levels": 0}, None),
    "seven levels": ("90", {"levels": 7}, None),
    "9/7": ("91", {}, None),
    "tiles": ("90", {"tile": (128, 96)}, None),
    "boxed": ("90", {"jp2": True}, None),
    "32 layers": ("90", {"layers": 32}, None),
    "33 layers": ("90", {"layers": 33}, "33 quality layers"),
    **{order: ("90", {"progression": order}, None) for order in ("RLCP", "RPCL", "PCRL", "CPRL")},
    "bypass": ("90", {"mode": 1}, "style bypass"),
    "reset": ("90", {"mode": 2}, "style reset"),
    "restart": ("90", {"mode": 4}, "style restart"),
    "causal": ("90", {"mode": 8}, "style vertically causal"),
    "predictable": ("90", {"mode": 16}, None),
    "segmentation": ("90", {"mode": 32}, "style segmentation symbols"),
    "all styles": ("90", {"mode": 63}, "bypass, reset, restart"),
    "blocks 4x4": ("90", {"codeblock": (4, 4)}, None),
    "blocks 32x128": ("90", {"codeblock": (32, 128)}, None),
    "blocks 1024x4": ("90", {"codeblock": (1024, 4)}, None),
    "blocks 16x256": ("90", {"codeblock": (16, 256)}, "256 columns wide"),
    "blocks 4x1024": ("90", {"codeblock": (4, 1024)}, "1024 columns wide"),
    "ht": ("201", {}, None),
    "ht RPCL": ("202", {}, None),
    "ht tiles": ("201", {"tile": (128, 96)}, None),
    "ht 9/7": ("203", {}, None),
}


@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_refused_by_us_where_the_library_refuses(
    pixels: np.ndarray, parser: Parser, name: str
) -> None:
    syntax, options, words = STYLES[name]
    data = j2k(pixels, syntax, **options)
    why, c = verdict(data)
    assert c is not None
    status = parser.status(data[c.offset : c.offset + c.length])
    if words is None:
        assert (why, status) == (None, Status.SUCCESS)
        assert_same_facts(parser, c)
    else:
        assert words in str(why)
        assert status is Status.JPEG_NOT_SUPPORTED


def assert_same_facts(parser: Parser, c: Codestream) -> None:
    found = parser.facts(c.levels)
    sizes = found.pop("sizes")
    size = (c.rows, c.columns)
    wanted = {"size": size, "tiles": c.tiles, "components": 1, "component": size}
    wanted |= {"precision": (c.precision, c.signed), "levels": c.levels}
    assert found == wanted
    if c.tiles == 1:
        assert sizes == [shape_of(c, level) for level in range(c.levels + 1)]


@pytest.mark.parametrize("precision", [2, 7, 8, 9, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_precision_and_sign(parser: Parser, precision: int, signed: bool) -> None:
    values = np.random.default_rng(1).integers(0, 1 << precision, (33, 21))
    made = (values - (1 << (precision - 1))).astype(np.int16) if signed else values.astype("u2")
    why, c = verdict(data := encode_jpeg2000(made, precision=precision, levels=2))
    assert c is not None
    assert parser.status(data) is Status.SUCCESS
    assert_same_facts(parser, c)
    if signed and precision <= 8:
        assert why == f"signed samples of {precision} bits: it has no signed type of 8 bits"
    else:
        assert why is None
        assert dtype_of(c) == ("int16" if signed else "uint8" if precision <= 8 else "uint16")


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (64, 65), (17, 130)])
def test_small_and_odd_sizes(parser: Parser, shape: tuple[int, int]) -> None:
    why, c = verdict(data := j2k(np.zeros(shape, np.uint16)))
    assert why is None
    assert c is not None
    assert parser.status(data) is Status.SUCCESS
    assert_same_facts(parser, c)


def put(data: bytes, at: int, value: int, width: int = 4) -> bytes:
    return data[:at] + value.to_bytes(width, "big") + data[at + width :]


def insert(data: bytes, at: int, segment: str) -> bytes:
    return data[:at] + bytes.fromhex(segment) + data[at:]


def test_headers_that_no_encoder_here_writes(pixels: np.ndarray, parser: Parser) -> None:
    data = j2k(pixels)
    cod, sot = data.index(b"\xff\x52"), data.index(b"\xff\x90")
    psot = int.from_bytes(data[sot + 6 : sot + 10], "big")

    def in_tile(segment: str) -> bytes:
        longer = put(data, sot + 6, psot + len(bytes.fromhex(segment)) if psot else 0)
        return insert(longer, sot + 12, segment)

    ht = j2k(pixels, "201")
    cap, ht_cod = ht.index(b"\xff\x50"), ht.index(b"\xff\x52")
    refused_by_both = {
        "ends too early": data[: len(data) // 2],
        "no EOC marker": data[:-2],
        "where it is not due": put(data, sot + 10, 1, 1),
        "subsampled": put(data, 43, 2, 1),
        "17 bits": put(data, 42, 16, 1),
        "38 bits": put(data, 42, 37, 1),
        "read: RGN": insert(data, sot, "ff5e0005000007"),
        "read: FF76": insert(data, sot, "ff760006ffff0b03"),  # NLT of 15444-2
        "read: PPM": insert(data, sot, "ff600005000000"),
        "read: CRG": insert(data, sot, "ff63000600000000"),
        "read: FF7F": insert(data, sot, "ff7f00040000"),
        "main header": insert(data, sot, "ff5800040000"),  # PLT belongs into tile-parts
        "read: PPT": in_tile("ff6100040001"),
        "0 layers": put(data, cod + 6, 0, 2),
        "progression order 5": put(data, cod + 5, 5, 1),
        "component transform": put(data, cod + 8, 1, 1),
        "wavelet 2": put(data, cod + 13, 2, 1),
        "QCD marker": put(data, cod + 9, 4, 1),
        "style 0x80": put(data, cod + 12, 0x80, 1),
        "do not announce": put(data, cod + 12, 0x40, 1),
        "exponents 9": put(data, cod + 10, 9, 1),
        "COD marker of 14 bytes": put(data, cod + 4, 1, 1),
        "tile grid": put(data, 32, 1),
        "predictable termination, high throughput": put(ht, ht_cod + 12, 0x50, 1),
        "vertically causal, high throughput": put(ht, ht_cod + 12, 0x48, 1),
        "CAP marker of 8 bytes": put(ht, cap + 4, 0x00030000),
    }
    for words, changed in refused_by_both.items():
        why, _ = verdict(changed)
        assert words in str(why), words
        assert parser.status(changed) is not Status.SUCCESS, words
    stricter = {  # the library parses these: what it makes of them nobody has compared
        "offset by (7, 5)": put(put(put(put(data, 8, 238), 12, 308), 16, 5), 20, 7),
        "tile-part's header changes": in_tile(data[cod : cod + 14].hex()),
        "several HT sets": put(ht, cap + 8, 0x2000 | 10, 2),
        "other code-blocks": put(ht, cap + 8, 0xC000 | 10, 2),
        "of JPEG 2000": put(ht, ht_cod + 12, 0, 1),
        "read: COC": insert(data, sot, f"ff5300090000{data[cod + 9 : cod + 14].hex()}"),
    }
    stricter["offset by (7, 5)"] = put(put(stricter["offset by (7, 5)"], 24, 300), 28, 400)
    for words, changed in stricter.items():
        why, _ = verdict(changed)
        assert words in str(why), words
        assert parser.status(changed) is Status.SUCCESS, words
    taken = {
        "padding": data + bytes(100),
        "comment": insert(data, sot, "ff6400060001abcd"),
        "tile comment": in_tile("ff6400060001abcd"),
        "length left open": put(data, sot + 6, 0),
        "parts left open": put(data, sot + 11, 0, 1),
        "larger tile": put(put(data, 24, 300), 28, 400),
    }
    for words, changed in taken.items():
        why, c = verdict(changed)
        assert why is None, words
        assert c is not None
        assert parser.status(changed) is Status.SUCCESS, words
        assert_same_facts(parser, c)


def test_facts_that_the_refusals_need(pixels: np.ndarray) -> None:
    """Read by the package itself, whether or not the library is installed."""
    for name, (syntax, options, words) in STYLES.items():
        why, c = verdict(j2k(pixels, syntax, **options))
        assert c is not None
        assert c.defects == (), name
        assert (why is None) == (words is None), name
    c = inspect_codestream(ht := j2k(pixels, "202"), "htj2k")
    assert c.markers == ("CAP", "TLM")
    assert c.high_throughput == int.from_bytes(
        ht[(at := ht.index(b"\xff\x50") + 8) : at + 2], "big"
    )
    assert c.high_throughput & 0x1F in range(5, 20)  # MAGB, the bits of magnitude
    data = j2k(pixels)
    cod, sot = data.index(b"\xff\x52"), data.index(b"\xff\x90")
    assert inspect_codestream(data, "jpeg2000").markers == ()
    c = inspect_codestream(insert(data, sot, "ff5300090000050304 0001"), "jpeg2000")
    assert (c.markers, c.codeblock) == (("COC",), (64, 32))
    assert inspect_codestream(put(data, cod + 6, 0, 2), "jpeg2000").defects == ("0 layers",)
    assert inspect_codestream(data[:-2], "jpeg2000").defects == (
        "no EOC marker after the last tile-part",
    )


@pytest.mark.parametrize("case", ["plain", "9/7", "ht RPCL", "tiles"])
def test_no_damaged_header_is_let_through(pixels: np.ndarray, parser: Parser, case: str) -> None:
    """Each byte of the headers in turn with other values: the library takes all that we let pass.

    Left out: a marker code that becomes POC, whose content we do not read.
    """
    syntax, options, _ = STYLES[case]
    data = j2k(pixels[:140, :110].copy(), syntax, **options)
    random = np.random.default_rng(3)
    let_through = 0
    for at in range(2, data.index(b"\xff\x90") + 14):
        for value in {0, 1, 2, 0x40, 0x7F, 0x80, 0xFF, *map(int, random.integers(0, 256, 8))}:
            if value == data[at] or (data[at - 1], value) == (0xFF, 0x5F):
                continue
            changed = put(data, at, value, 1)
            why, c = verdict(changed)
            if why is None and c is not None:
                let_through += 1
                assert parser.status(changed) is Status.SUCCESS, (at, value)
                found = parser.facts(c.levels)
                assert found["size"] == (c.rows, c.columns)
                assert found["levels"] == c.levels
    assert let_through > 50


def test_real_files(data: Path, parser: Parser) -> None:
    seen = 0
    for path in sorted(data.rglob("*")):
        try:
            m = read(path)
            c = m.codestream()
        except (FastMammoError, OSError):
            continue
        if c.format in ("jpeg2000", "htj2k"):
            seen += 1
            assert nvjpeg2000.refuses(c) is None, path
            frame = bytes(m.frame(0).data[c.offset : c.offset + c.length])
            assert parser.status(frame) is Status.SUCCESS, path
            assert_same_facts(parser, c)
    assert seen >= 12


def test_the_probe_s_codestream_is_read_by_the_library(parser: Parser) -> None:
    assert parser.status(CODESTREAM) == Status.SUCCESS
    assert_same_facts(parser, inspect_codestream(CODESTREAM, "jpeg2000"))


def test_levels_need_one_whole_tile(pixels: np.ndarray) -> None:
    whole = inspect_codestream(j2k(pixels, levels=3), "jpeg2000")
    assert [shape_of(whole, level) for level in range(4)] == [
        (301, 233),
        (151, 117),
        (76, 59),
        (38, 30),
    ]
    for changes in ({"tiles": 4}, {"origin": (0, 1)}, {"tile_overrides": True}, {"levels": 0}):
        c = dataclasses.replace(whole, **changes)  # type: ignore[arg-type]
        assert shape_of(c, 0) == (301, 233)
        with pytest.raises(UnsupportedSyntaxError, match="decode level 0 and reduce it"):
            shape_of(c, 1)


def test_the_image_structure_holds_what_it_is_given() -> None:
    pointers, pitches = (C.c_void_p * 1)(0x7F00_0000_1000), (C.c_size_t * 1)(6656)
    image = Image(pointers, pitches, PixelType.UINT16, 1)
    assert (image.pixel_data[0], image.pitch_in_bytes[0]) == (0x7F00_0000_1000, 6656)
    assert (image.pixel_type, image.num_components) == (1, 1)


def test_a_question_that_cannot_be_answered_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    size = ["--rows", "64", "--columns", "48", "--folder", str(tmp_path)]
    with monkeypatch.context() as patched:  # not seen by the processes that are asked
        patched.setattr(cuda_runtime, "missing", lambda: None)
        importlib.import_module("gpu_questions").main(["--only", "types", "damaged", *size])
    assert "gpu_questions.json" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu_questions.json").read_text(encoding="utf-8"))
    assert set(found) == {"machine", "gpu", "answers"}
    for answer in found["answers"].values():
        assert answer["question"].endswith("?")
        if cuda_runtime.missing() is None:
            assert "error" not in answer
        else:
            assert re.match(r"\w+(Error|NotFound\w*): ", answer["error"]), answer["error"]


def test_without_a_gpu_no_question_is_asked(
    tmp_path: Path, questions: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left a file of errors behind, and said by its exit code that all was well."""
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "a CUDA device: CuPy sees none")
    with pytest.raises(SystemExit, match="gpu_questions: missing a CUDA device") as stop:
        questions.main(["--folder", str(tmp_path / "results")])
    assert stop.value.code not in (0, None)
    assert not (tmp_path / "results").exists()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("gpu_questions")


def test_a_case_that_fails_is_an_answer_and_cuda_s_end_ends_the_question(
    questions: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Lost(RuntimeError):
        pass

    monkeypatch.setattr(questions, "is_fatal", lambda error: isinstance(error, Lost))

    def ask(answer: Any, rows: int, columns: int) -> None:
        with answer.case("first") as part:
            part["equal"] = True
        with answer.case("second"):
            raise ValueError("no such\n format")
        with answer.case("third"):
            raise Lost("cudaErrorIllegalAddress")
        raise AssertionError("never asked")

    monkeypatch.setitem(questions.QUESTIONS, "types", ask)
    questions.main(["--answer", "types"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"first": {"equal": True}}
    assert lines[-1] == {
        "first": {"equal": True},
        "second": {"error": "ValueError: no such format"},
        "third": {"error": "Lost: cudaErrorIllegalAddress"},
        "stopped": "third: Lost: cudaErrorIllegalAddress",
    }
    assert questions.name_of(4) == "JPEG_NOT_SUPPORTED"
    assert questions.name_of(17) == "unknown status 17"


@pytest.mark.parametrize("end", ["exec sleep 60", "exit 139"])
def test_what_was_found_before_the_end_is_kept(
    questions: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        """echo '{"first": {"equal": true}}'\necho 'a library talks'\nprintf '{"first": {"eq'\n"""
        f"{end}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(questions.sys, "executable", str(program))
    found = questions.ask("types", [], 1.5)
    assert found["first"] == {"equal": True}
    assert found["error"].startswith("cut short after" if "sleep" in end else "exit 139: ")
