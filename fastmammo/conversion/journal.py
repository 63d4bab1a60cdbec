"""DST/.fastmammo: the lock on a run, and the journal of finished files that a later run trusts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from typing import IO, TYPE_CHECKING, Any

from fastmammo.conversion.names import STATE_FOLDER
from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

VERSION = 1

Entry = dict[str, Any]


class Journal:
    """An append-only file, one JSON object a line, of what became of each input.

    A line is written after the output has its final name, so a line can be trusted: its output is
    whole. A line that a dying run has torn is cut off. A context manager: it holds the lock
    (flock: the kernel drops it with the process, so that a dead run locks nobody out).

    Raises:
        ConvertError: another run works on this DST, or a later version has written the journal.
        OSError: DST cannot be made or written.
    """

    def __init__(self, dst: str) -> None:
        self.folder = os.path.join(dst, STATE_FOLDER)
        self.partial_folder = os.path.join(self.folder, "partial")
        # offsets, not entries: a hundred thousand files must not cost a hundred megabytes
        self._offsets: dict[str, int] = {}
        self.packed: list[Entry] = []
        """The last two lines on the packed array, and which of their paths are "gone" since."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._lock = self._take_lock(dst)
        # what a killed run has left unfinished
        shutil.rmtree(self.partial_folder, ignore_errors=True)
        os.makedirs(self.partial_folder, mode=0o700, exist_ok=True)
        self._file: IO[bytes] = open(  # noqa: SIM115
            os.path.join(self.folder, "journal.jsonl"), "a+b"
        )
        try:
            self._read()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.partial_folder, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._lock.close()

    def _take_lock(self, dst: str) -> IO[str]:
        lock = open(os.path.join(self.folder, "lock"), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise ConvertError(
                f"another run works on {dst} (process {owner}): wait for it, or choose another DST"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._note(line, end)
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._append({"journal": VERSION})

    def _note(self, line: bytes, offset: int) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # a damaged line costs its file another conversion, nothing else
        if entry.get("journal", VERSION) != VERSION:
            raise ConvertError(
                f"{self.folder}: the journal is of version {entry['journal']}, this program writes "
                f"version {VERSION}: choose another DST"
            )
        if "packed" in entry:
            self.packed = [*self.packed[-1:], entry | {"gone": set()}]
        elif "redo" in entry:
            self._forget(entry["redo"])
        elif "path" in entry:
            self._offsets[entry["path"]] = offset

    def _append(self, entry: Entry) -> int:
        offset = self._file.tell()
        try:
            self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError:
            # half of a line must not be completed by whatever is written next
            os.ftruncate(self._file.fileno(), offset)
            raise
        return offset

    def __contains__(self, path: str) -> bool:
        return path in self._offsets

    def paths(self) -> list[str]:
        """Return the inputs that have an entry, those of earlier runs with other SRC included."""
        return list(self._offsets)

    def get(self, path: str) -> Entry | None:
        """Return the last entry of an input, or None where there is none that counts."""
        offset = self._offsets.get(path)
        if offset is None:
            return None
        line = bytearray()
        while not line.endswith(b"\n"):
            piece = os.pread(self._file.fileno(), 1 << 14, offset + len(line))
            if not piece:
                break
            line += piece.partition(b"\n")[0] + (b"\n" if b"\n" in piece else b"")
        entry: Entry = json.loads(line)
        return entry

    def add(self, entry: Entry) -> None:
        """Append what became of one input; `entry["path"]` names it."""
        self._offsets[entry["path"]] = self._append(entry)

    def redo(self, paths: Iterable[str]) -> None:
        """Forget inputs before their outputs are touched: a kill must not leave a stale promise."""
        for path in paths:
            self._append({"redo": path})
            self._forget(path)
        self.sync()

    def _forget(self, path: str) -> None:
        self._offsets.pop(path, None)
        for entry in self.packed:
            entry["gone"].add(path)

    def add_packed(self, stamp: list[int], paths: list[str]) -> None:
        """Append which inputs lie, in order, in the packed array of this size and mtime."""
        entry: Entry = {"packed": stamp, "paths": paths}
        self._append(entry)
        self.packed = [*self.packed[-1:], entry | {"gone": set()}]
        self.sync()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())
