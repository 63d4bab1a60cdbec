"""A worker process: takes tasks from a pipe, gives one reply each; see `one_file` for the work."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.filters import guarded
from fastmammo.conversion.in_hand import by_the_cpu, device_arguments, serve
from fastmammo.conversion.one_file import process
from fastmammo.conversion.warm import warm_up_files
from fastmammo.conversion.writers import encode_png, encode_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.preprocess import Config

Message = dict[str, Any]

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


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
        "may_replace": transcoder.may_replace,
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
