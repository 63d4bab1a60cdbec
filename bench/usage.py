"""What a machine does meanwhile: CPU seconds of all our processes, GPU utilisation, copy speed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """Return the CPU time of this process, its ended children and its living descendants."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total + sum(_descendants(os.getpid()))


def _descendants(process: int) -> list[float]:
    """Return the CPU seconds of each living descendant, its own ended children included."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError, IndexError):
                    # fields 14 to 17 of proc(5): utime, stime, cutime, cstime; the name has spaces
                    text = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                    found.append(sum(map(int, text[11:15])) / TICKS)
                    found += _descendants(int(child))
    return found


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@functools.cache
def _nvml() -> tuple[Any, Any] | None:
    """Return NVML and its handle of the first visible GPU, or None."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2():
        return None
    if visible.isdigit():
        failed = library.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(handle))
    else:  # a UUID
        failed = library.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(handle))
    return None if failed else (library, handle)


def gpu_missing() -> str | None:
    """Return why no GPU can be used, or None."""
    return None if _nvml() else "no NVIDIA GPU: its driver's libnvidia-ml.so.1 finds none"


def gpu_name() -> str | None:
    """Return the name of the first visible GPU."""
    if not (found := _nvml()):
        return None
    name = ctypes.create_string_buffer(96)
    found[0].nvmlDeviceGetName(found[1], name, 96)
    return name.value.decode()


class GpuMeter:
    """Asks the GPU for its utilisation until it is stopped; without one `share` is None."""

    def __init__(self, every: float = 0.05) -> None:
        self.share: float | None = None
        self._every = every
        self._seen: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> GpuMeter:
        if _nvml():
            self._thread.start()
        return self

    def _ask(self) -> None:
        found = _nvml()
        if found is None:
            return
        library, handle = found
        value = _Utilisation()
        while not self._end.wait(self._every):
            if not library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(value)):
                self._seen.append(value.gpu)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._seen:
            self.share = round(sum(self._seen) / len(self._seen) / 100, 3)


@functools.cache
def _blocks(megabytes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.ones(megabytes << 17), np.zeros(megabytes << 17)


def copy_rate(seconds: float, megabytes: int = 64) -> float:
    """Return the bytes a second that one process moves, read and written, by copying a block."""
    source, target = _blocks(megabytes)
    target[:] = source
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        np.copyto(target, source)
        count += 1
    return 2 * source.nbytes * count / taken


def drop_from_cache(paths: list[Path]) -> None:
    """Have the system forget files that it has read (posix_fadvise, POSIX_FADV_DONTNEED)."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not on the disk yet stays in memory
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
