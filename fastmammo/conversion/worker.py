"""A worker process: takes tasks from a pipe, gives one reply each; the image goes to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.filters import guarded
from fastmammo.conversion.in_hand import by_the_cpu, device_arguments, serve
from fastmammo.conversion.warm import warm_up_files
from fastmammo.conversion.writers import encode_png, encode_row, write_atomic
from fastmammo.errors import (
    DeviceError,
    DeviceMemoryError,
    FastMammoError,
    FilteredError,
    NotDicomError,
    NotImageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.preprocess import Config

Message = dict[str, Any]

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc

OF_THE_RUN = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
        *(errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Why DST cannot be written that every other file would meet too; the rest (a name that is too
long, a folder where the output should be) is one file's."""


def main(descriptor: int, parent: int) -> None:
    """Serve tasks until the pipe is closed or the parent is gone.

    Args:
        descriptor: of the pipe: setup, then tasks, in; "ready", then replies, out; all JSON.
        parent: the process id of the parent.
    """
    # The parent decides when to end: a Ctrl-C or a batch system's SIGTERM reaches the whole group,
    # and the file in hand should be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A killed parent must not leave workers behind that write into DST beside the next run.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    _keep_memory()
    without_scipy()
    faulthandler.enable()
    pipe = Connection(descriptor)
    setup = json.loads(pipe.recv_bytes())
    limit_memory(setup["memory_limit_mb"])
    warnings.simplefilter("ignore")  # the record's notes say what a warning would
    partial = os.path.join(setup["partial_folder"], str(os.getpid()))
    steps = _transcoding(setup) if "transcoder" in setup else _conversion(setup)
    pipe.send_bytes(b'{"ready":true}')
    if setup["in_hand"] > 1:
        serve(
            pipe, lambda task, own: process(task, partial=own, **steps), setup["in_hand"], partial
        )
        return
    while True:
        try:
            task = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        reply = process(task, partial=partial, **steps)
        pipe.send_bytes(json.dumps(reply).encode())
        if "ending" in reply:
            return


def _conversion(setup: Message) -> dict[str, Any]:
    """Return what `process` takes to make images; all of it has run once."""
    kind = class_of(setup["preprocessor"])
    preprocessor = kind(_config(setup["config"]), **device_arguments(setup))
    prepare = guarded(preprocessor, setup["filters"], setup["config"]["frame"])
    encode = encode_png if setup["format"] == "png" else encode_row
    warm_up(preprocessor.prepare, encode)
    found = {"prepare": prepare, "encode": encode}
    if setup["in_hand"] > 1:
        found["spare"] = by_the_cpu(lambda config: kind(_config(config)), setup["config"])
    return found


def _transcoding(setup: Message) -> dict[str, Any]:
    """Return what `process` takes to make DICOM files; most of it has run once."""
    transcoder = class_of(setup["transcoder"])(setup["others"])
    warm_up(transcoder.rehearse, transcoder.encode)
    return {
        "prepare": transcoder.prepare,
        "encode": transcoder.encode,
        "check": transcoder.check,
    }


def limit_memory(megabytes: int) -> None:
    """Limit this process's address space (setrlimit(2), RLIMIT_AS); 0 leaves it as it is.

    A file that makes a decoder allocate without bound then fails, or costs its worker: without a
    limit the system would run out of memory and kill what it likes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, megabytes << 20) if limit > 0]
    if megabytes and limits:
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def without_scipy() -> None:
    """Import numba's array functions without SciPy, which takes a tenth of a second to import.

    They look there for BLAS, which no kernel of this package calls.
    """
    if "scipy" in sys.modules:
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules["scipy"]


def warm_up(prepare: Callable[[Any], Any], encode: Callable[..., Any]) -> None:
    """Take made-up images through the whole path once: no file's time counts what is loaded."""
    # whatever fails here fails with the files too, and is told there
    with contextlib.suppress(Exception):
        for data in warm_up_files():
            encode(prepare(data).image)


def _keep_memory() -> None:
    """Have glibc keep freed memory instead of handing it back after every image.

    Files, frames and look-ups of 17 to 55 MB are blocks of their own to malloc, mapped anew for
    every image: 10,000 page faults each. Kept, uncompressed images take half of the time and
    JPEG 2000 in full 9 % less; the peak of memory is the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library: nothing is lost but the time
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


def class_of(name: str) -> Any:
    """Import "module:class": a preprocessor (see `filters.guarded`), or a transcoder."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _config(settings: dict[str, Any]) -> Config:
    from fastmammo.preprocess import Config

    return Config(**settings)


def process(
    task: Message,
    prepare: Callable[[str], Any],
    encode: Callable[..., Any],
    partial: str,
    spare: Callable[[str, DeviceMemoryError], Any] | None = None,
    check: Callable[[str, Any], None] | None = None,
) -> Message:
    """Make one file's output and say what became of it; only a failing DST is "fatal".

    Args:
        task: "path" (of the manifest), "source", "target" (final name), "content" (to hash it),
            "meant" (no DICOM is a failure, not skipped), "alone" (no other file is in hand).
        prepare: path → `Prepared`; its `outcome`, where it has one, says what stands for "ok".
        encode: its image → the bytes of the output, in chunks.
        partial: a temporary name of this worker's own.
        spare: (path, error) → `Prepared`, where device memory does not suffice for the file alone.
        check: (path, `Prepared`): is given the written file before it takes its final name, and
            raises if that must not be.
    """
    reply: Message = {"path": task["path"]}
    source = task["source"]
    start = time.perf_counter()
    try:
        before = os.stat(source)
        reply |= {"size": before.st_size, "mtime_ns": before.st_mtime_ns}
        if task["content"]:
            reply["content"] = sha256(source)
        try:
            prepared = prepare(source)
        except DeviceMemoryError as error:
            if spare is None or not task.get("alone"):
                raise
            prepared = spare(source, error)
        prepared_at = time.perf_counter()
        chunks = encode(prepared.image)
        encoded_at = time.perf_counter()
        after = os.stat(source)
    except OSError as error:
        return reply | unreadable(error)
    except Exception as error:
        return reply | _failure(error, task)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        message = "size or time of the file changed while it was read: run again to convert it"
        return reply | _ended("failed", "changed while read", message, task)
    outcome = getattr(prepared, "outcome", {"status": "ok"})
    checked = 0.0

    def checking(path: str) -> None:
        nonlocal checked
        checked = time.perf_counter()
        if check is not None:
            check(path, prepared)
        checked = time.perf_counter() - checked

    write_at = time.perf_counter()
    try:
        if outcome["status"] != "skipped":
            reply["output_size"] = write_atomic(task["target"], chunks, partial, checking)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        if error.errno in OF_THE_RUN:
            # a manifest full of "no space left" would hide that the run has to go on later
            return reply | {"fatal": f"cannot write {task['target']}: {error.strerror} ({name})"}
        message = f"the output cannot be written: {error.strerror} ({name})"
        return reply | _ended("failed", "cannot write", message, task)
    except Exception as error:
        return reply | _failure(error, task)
    written_at = time.perf_counter()
    reply |= outcome
    reply["record"] = {name: _plain(value) for name, value in prepared.record.items()}
    reply["seconds"] = {
        "encode": round(encoded_at - prepared_at, 6),
        **{name: round(float(value), 6) for name, value in prepared.seconds.items()},
        **({} if check is None else {"verify": round(checked, 6)}),
        "write": round(written_at - write_at - checked, 6),
        "total": round(written_at - start, 6),
    }
    return reply


def _failure(error: Exception, task: Message) -> Message:
    """Return the fields of a file on which something was raised."""
    if isinstance(error, FastMammoError):
        found: Message = {}
        none = isinstance(error, NotDicomError)
        skipped = isinstance(error, (NotImageError, FilteredError)) or (none and not task["meant"])
        if isinstance(error, DeviceMemoryError):
            found["again"] = True  # alone it may fit; the GPU is well
        elif isinstance(error, DeviceError):
            # After most CUDA errors this process can use the GPU no more: a new one goes on, and
            # tries this file once, which may have had no part in it.
            found |= {"ending": True, "again": True}
        if isinstance(error, FilteredError):
            found["record"] = error.facts
        return found | _ended("skipped" if skipped else "failed", error.reason, str(error), task)
    if isinstance(error, MemoryError):
        message = "the file needs more memory than a worker may take: see memory_limit_mb"
        # A library that was refused memory half-way may be in any state: a new worker goes on.
        return _ended("failed", "out of memory", message, task) | {"ending": True}
    # a defect of ours costs its file, not the run
    found = _ended("failed", "internal error", f"{type(error).__name__}: {error}", task)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return found | {"traceback": trace}


def unreadable(error: OSError) -> Message:
    """Return the fields of a file that the system will not let us read."""
    if isinstance(error, FileNotFoundError):
        return {
            "status": "failed",
            "reason": "file not found",
            "message": f"no such file: {error.filename}",
        }
    return {"status": "failed", "reason": "unreadable file", "message": error.strerror or ""}


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _ended(status: str, reason: str, message: str, task: Message) -> Message:
    # where SRC lies is no business of the manifest's, and would differ from machine to machine
    message = message.replace(task["source"], task["path"])
    return {"status": status, "reason": reason, "message": message}


def _plain(value: Any) -> str | int | float:
    if isinstance(value, (str, int, float)):
        return value
    plain: str | int | float = value.item() if hasattr(value, "item") else str(value)
    return plain


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
