"""Takes a task, makes one file's output whole or not at all, gives what became of it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import traceback
import zlib
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import (
    DeviceError,
    DeviceMemoryError,
    FastMammoError,
    FilteredError,
    NotDicomError,
    NotImageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Bytes = bytes | memoryview

Message = dict[str, Any]

OF_THE_RUN = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
        *(errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Why DST cannot be written that every other file would meet too; the rest (a name that is too
long, a folder where the output should be) is one file's."""

NOT_FOUND, UNREADABLE = "file not found", "unreadable file"
"""Reasons that tell of the moment, not of the file: a disk that is not mounted has them all."""


def process(
    task: Message,
    prepare: Callable[[str], Any],
    encode: Callable[..., Any],
    partial: str,
    spare: Callable[[str, DeviceMemoryError], Any] | None = None,
    check: Callable[[str, Any], None] | None = None,
    may_replace: Callable[[str, Any], None] | None = None,
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
            raises if that must not be. The folder that then has the name reaches the disk too.
        may_replace: (final name, `Prepared`): raises where what has that name is to stay.
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
        return reply | unreadable(error, task["path"])
    except Exception as error:
        return reply | _failure(error, task)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        message = "size or time of the file changed while it was read: run again to convert it"
        return reply | _ended("failed", "changed while read", message, task)
    outcome = getattr(prepared, "outcome", {"status": "ok"})
    checked = 0.0
    checksum = 0

    def summed(pieces: Iterable[Bytes]) -> Iterator[Bytes]:
        nonlocal checksum
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            yield piece

    def checking(path: str) -> None:
        nonlocal checked
        checked = time.perf_counter()
        if check is not None:
            check(path, prepared)
        checked = time.perf_counter() - checked

    write_at = time.perf_counter()
    try:
        if outcome["status"] != "skipped":
            if may_replace is not None:
                may_replace(task["target"], prepared)
            pieces, durable = summed(chunks), check is not None
            size = write_atomic(task["target"], pieces, partial, checking, sync_folder=durable)
            reply |= {"output_size": size, "output_crc32": checksum}
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


def unreadable(error: OSError, path: str) -> Message:
    """Return the fields of a file that the system will not let us read.

    Args:
        path: as the manifest has it: where SRC lies is none of its business.
    """
    if isinstance(error, FileNotFoundError):
        message = f"no such file: {path}"
        return {"status": "failed", "reason": NOT_FOUND, "message": message}
    return {"status": "failed", "reason": UNREADABLE, "message": error.strerror or ""}


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def crc32(path: str) -> int:
    """Return the CRC-32 of a file's bytes: it finds what rots, not what someone forges."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _ended(status: str, reason: str, message: str, task: Message) -> Message:
    # where SRC lies is no business of the manifest's, and would differ from machine to machine
    message = message.replace(task["source"], task["path"])
    return {"status": status, "reason": reason, "message": message}


def _plain(value: Any) -> str | int | float:
    if isinstance(value, (str, int, float)):
        return value
    plain: str | int | float = value.item() if hasattr(value, "item") else str(value)
    return plain
