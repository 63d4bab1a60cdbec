"""The packed array: rows of finished files in, one images.npy (N, rows, columns) in order out."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

from numpy.lib import format as npy

from fastmammo.errors import ConvertError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastmammo.conversion.journal import Journal
    from fastmammo.preprocess import Config

NAME = "images.npy"

_HEADER_BYTES = 4096
"""Of the .npy header, padded: rows then start on a page, and file systems that can share blocks
(XFS, Btrfs) copy them without writing."""


class Packed:
    """Where each finished image lies while a packed run goes on, and the array at its end.

    While the run goes on every image is a file of raw bytes below DST/.fastmammo/rows. When all
    inputs are done, the rows of those that are "ok" are gathered in the manifest's order into a
    new array, which takes the name `images.npy` when it is whole: there are no holes, and an
    earlier `images.npy` stays as it was until then. Rows of inputs that are not there now, or
    cannot be read, are taken along, though no row of the manifest names them. For that moment DST
    needs the space twice, unless its file system shares blocks.
    """

    def __init__(self, dst: str, config: Config, journal: Journal) -> None:
        self.path = os.path.join(dst, NAME)
        self.rows_folder = os.path.join(journal.folder, "rows")
        self._journal = journal
        self._shape = config.size
        self._dtype = "|u1" if config.bits == 8 else "<u2"
        self.row_bytes = config.size[0] * config.size[1] * (config.bits // 8)
        self._order: list[str] = []
        self._rows: dict[str, int] = {}
        self.load()

    def load(self) -> None:
        """Take in which rows of images.npy hold what, if it is the file the journal tells of."""
        self._order, self._rows = [], {}
        try:
            status = os.stat(self.path)
        except OSError:
            return
        for entry in reversed(self._journal.packed):
            if entry["packed"] == [status.st_size, status.st_mtime_ns]:
                self._order = entry["paths"]
                self._rows = {
                    path: row
                    for row, path in enumerate(entry["paths"])
                    if path not in entry["gone"]
                }
                return

    def drop_stale(self, *, wanted: bool) -> None:
        """Remove an images.npy of ours of which no row counts any more: other settings made it.

        Args:
            wanted: whether this run makes the array. If not, it goes in any case, and so do rows
                that a run that was cut short has left for it.
        """
        self.load()
        if self._order and not (self._rows and wanted):
            os.unlink(self.path)
            self._order, self._rows = [], {}
        if not wanted:
            shutil.rmtree(self.rows_folder, ignore_errors=True)

    def row_path(self, name: str) -> str:
        """Return the path of the raw bytes of one output name."""
        return os.path.join(self.rows_folder, name + ".raw")

    def row(self, path: str) -> int | None:
        """Return the row of images.npy that holds an input's image, or None."""
        return self._rows.get(path)

    def has(self, path: str, name: str) -> bool:
        """Whether an input's finished image is there, in images.npy or on its own."""
        if path in self._rows:
            return True
        try:
            return os.stat(self.row_path(name)).st_size == self.row_bytes
        except OSError:
            return False

    def holds(self, items: Sequence[tuple[str, str]]) -> bool:
        """Whether images.npy is made of these (path, output name) already, in this order."""
        order = [path for path, _ in items]
        return self._order == order and len(self._rows) == len(order) and self._exists()

    def gather(self, items: Sequence[tuple[str, str]], stopped: Callable[[], bool]) -> None:
        """Write images.npy from the (path, output name) of every finished image, in order.

        Args:
            items: what is to be row 0, 1, ...
            stopped: asked between rows; True gives up, and leaves everything as it was.

        Raises:
            ConvertError: a row is gone, because something else has removed it.
            OSError: the disk is full.
        """
        order = [path for path, _ in items]
        if not self.holds(items):
            partial = os.path.join(self._journal.partial_folder, NAME)
            if not self._write(partial, items, stopped):
                return
            # The journal first: should the run die before the new name is there, the size and
            # time in its line match no file, and the rows still lie below rows/.
            status = os.stat(partial)
            self._journal.add_packed([status.st_size, status.st_mtime_ns], order)
            os.replace(partial, self.path)
            self.load()
        shutil.rmtree(self.rows_folder, ignore_errors=True)

    def _exists(self) -> bool:
        return os.path.exists(self.path)

    def _write(
        self, partial: str, items: Sequence[tuple[str, str]], stopped: Callable[[], bool]
    ) -> bool:
        old = os.open(self.path, os.O_RDONLY) if self._rows else -1
        try:
            with open(partial, "wb", buffering=0) as file:
                file.write(_header((len(items), *self._shape), self._dtype))
                for path, name in items:
                    if stopped():
                        return False
                    self._copy(path, name, old, file.fileno())
                os.fsync(file.fileno())
        finally:
            if old >= 0:
                os.close(old)
        return True

    def _copy(self, path: str, name: str, old: int, target: int) -> None:
        row = self._rows.get(path)
        if row is not None:
            _copy_bytes(old, _HEADER_BYTES + row * self.row_bytes, target, self.row_bytes, path)
            return
        try:
            source = os.open(self.row_path(name), os.O_RDONLY)
        except FileNotFoundError:
            raise ConvertError(
                f"the finished row of {path} is gone from {self.rows_folder}: run the same command "
                "again to convert it anew"
            ) from None
        try:
            _copy_bytes(source, 0, target, self.row_bytes, path)
        finally:
            os.close(source)


def _copy_bytes(source: int, offset: int, target: int, count: int, path: str) -> None:
    """Append bytes of one file to another within the kernel; blocks are shared where possible."""
    while count:
        try:
            done = os.copy_file_range(source, target, count, offset_src=offset)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            done = os.sendfile(target, source, offset, count)
        if not done:
            raise ConvertError(
                f"the finished row of {path} is too short by {count} bytes: "
                "run the same command again to convert it anew"
            )
        offset += done
        count -= done


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return a .npy header of version 1.0 (NEP 1), padded with spaces to its full length."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    length = _HEADER_BYTES - len(npy.magic(1, 0)) - 2
    return npy.magic(1, 0) + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
