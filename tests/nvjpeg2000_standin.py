"""The stand-in for nvJPEG2000 and CUDA (fake_nvjpeg2k.c), and frames that tell it what to do."""

from __future__ import annotations

import ctypes as C
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastmammo.decoding.nvjpeg2000_library import Library
from fastmammo.dicom import inspect_codestream

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.dicom import Codestream

SOURCE = Path(__file__).with_name("fake_nvjpeg2k.c")
COUNTERS = (
    *("handles", "states", "bitstreams", "streams", "events"),
    *("reused", "shared", "early", "changed"),
    *("decoded", "at_once", "poisoned", "memory", "limit"),
    *("device_padding", "pinned_padding", "no_device", "states_made", "discard"),
)
WELL, REFUSED_AT_PARSE, REFUSED_AT_DECODE, POISON = range(4)


def header_folder() -> Path | None:
    """The folder of nvjpeg2k.h, if a wheel of nvJPEG2000 is installed."""
    import importlib.util

    try:
        spec = importlib.util.find_spec("nvidia.nvjpeg2k")
    except ImportError:
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "include" / "nvjpeg2k.h").is_file():
            return Path(folder) / "include"
    return None


def build(folder: Path) -> Path:
    """Compile the stand-in, against NVIDIA's header where that is installed."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: it compiles the stand-in for nvJPEG2000")
    made = folder / "libfake_nvjpeg2k.so"
    header = header_folder()
    with_header = [] if header is None else ["-DWITH_HEADER", f"-I{header}"]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    flags = ["-std=c11", "-O1", *warnings, "-D_DEFAULT_SOURCE", "-pthread", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, *with_header, str(SOURCE), "-o", str(made)], check=True)
    return made


class CudaFailure(Exception):
    """What the stand-in raises as CuPy raises CUDARuntimeError."""


class Array:
    """Memory that calls itself a device's."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.__cuda_array_interface__ = {**values.__array_interface__, "version": 3}


class Stream:
    def __init__(self, runtime: StandIn) -> None:
        self.runtime = runtime
        self.ptr: int = runtime.call("stream_create")

    def record(self, event: Event) -> Event:
        self.runtime.check("event_record", event.ptr, self.ptr)
        return event

    def wait_event(self, event: Event) -> None:
        self.runtime.check("stream_wait", self.ptr, event.ptr)

    def synchronize(self) -> None:
        self.runtime.check("stream_synchronize", self.ptr)

    def __del__(self) -> None:
        self.runtime.call("stream_destroy", self.ptr)


class Event:
    def __init__(self, runtime: StandIn) -> None:
        self.runtime = runtime
        self.ptr: int = runtime.call("event_create")

    @property
    def done(self) -> bool:
        return bool(self.runtime.call("event_done", self.ptr))

    def synchronize(self) -> None:
        self.runtime.check("event_synchronize", self.ptr)

    def __del__(self) -> None:
        self.runtime.call("event_destroy", self.ptr)


class StandIn:
    """A `Runtime` on the stand-in; each instance loads a copy of it, with counters of its own."""

    failures = (CudaFailure,)

    def __init__(self, path: Path) -> None:
        self.library = Library(path)
        self.c = C.CDLL(str(path))
        for name in ("stream_create", "event_create"):
            self.function(name).restype = C.c_void_p
        self.c.fake_count.restype = C.c_long
        self.c.fake_set.argtypes = [C.c_int, C.c_long]
        self.caller = Stream(self)
        self.free = 1 << 40
        self.released = 0

    def function(self, name: str) -> Any:
        return getattr(self.c, f"fake_{name}")

    def call(self, name: str, *addresses: int) -> Any:
        return self.function(name)(*map(C.c_void_p, addresses))

    def check(self, name: str, *addresses: int) -> None:
        if status := self.call(name, *addresses):
            raise CudaFailure(f"error {status}: an illegal memory access was encountered")

    def count(self, name: str) -> int:
        return int(self.c.fake_count(COUNTERS.index(name)))

    def set(self, name: str, value: int) -> None:
        self.c.fake_set(COUNTERS.index(name), value)

    def violations(self) -> dict[str, int]:
        return {name: self.count(name) for name in ("reused", "shared", "early", "changed")}

    def alive(self) -> dict[str, int]:
        """What is not destroyed yet, the caller's own stream left out."""
        names = ("handles", "states", "bitstreams", "streams", "events")
        return {name: self.count(name) - (name == "streams") for name in names}

    def bind(self) -> None: ...
    def new_stream(self) -> Stream:
        return Stream(self)

    def new_event(self) -> Event:
        return Event(self)

    def stream_of(self, stream: Stream | None) -> Stream:
        return stream or self.caller

    def empty(self, shape: tuple[int, int], dtype: Any, stream: Stream) -> Array:
        assert stream is self.caller
        return Array(np.full(shape, 77, dtype))

    def upload(self, values: np.ndarray, stream: Stream) -> Array:
        return Array(values.copy())

    def download(self, array: Array, stream: Stream) -> np.ndarray:
        stream.synchronize()
        return array.values.copy()

    def release_cached(self) -> None:
        self.released += 1

    def free_bytes(self) -> int:
        return self.free


def frame(
    rows: int = 40,
    columns: int = 30,
    *,
    levels: int = 3,
    bits: int = 12,
    signed: bool = False,
    tag: int = 0,
    kind: int = WELL,
    status: int = 0,
    host: int = 0,
    gpu: int = 0,
) -> bytes:
    """A codestream with true headers, no pixels, and orders for the stand-in (times in μs)."""
    siz = struct.pack(">HIIIIIIIIH", 0, columns, rows, 0, 0, columns, rows, 0, 0, 1)
    siz += bytes([bits - 1 | signed << 7, 1, 1])
    cod = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, levels, 4, 4, 0, 1)
    qcd = bytes([0x40, *[bits << 3] * (3 * levels + 1)])
    com = b"\0\0" + struct.pack("<IBBHH", tag, kind, status, host, gpu)
    segments = [(0xFF51, siz), (0xFF52, cod), (0xFF5C, qcd), (0xFF64, com)]
    main = b"".join(struct.pack(">HH", m, len(body) + 2) + body for m, body in segments)
    body = bytes(range(64))
    tile = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14 + len(body), 0, 1) + b"\xff\x93" + body
    return b"\xff\x4f" + main + tile + b"\xff\xd9"


def values(data: bytes, level: int) -> np.ndarray:
    """What the stand-in makes of a frame."""
    c = facts(data)
    tag = struct.unpack_from("<I", data, data.index(b"\xff\x64") + 6)[0]
    rows, columns = -(-c.rows // (1 << level)), -(-c.columns // (1 << level))
    y, x = np.mgrid[:rows, :columns]
    v = (tag + 31 * y + 7 * x + 1000 * (c.levels + 1 - level)) & ((1 << c.precision) - 1)
    if c.signed:
        return (v - (1 << (c.precision - 1))).astype(np.int16)
    return v.astype(np.uint8 if c.precision <= 8 else np.uint16)


def facts(data: bytes) -> Codestream:
    return inspect_codestream(data, "jpeg2000")


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition comes true in that time."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
