"""Takes a table and converted images or DICOMs, gives the images of any rows on the device.

table ─► join ─► a file for each row ─► sources ─► store ─► fetch(rows)
                 or why there is none   decoded    kept     on the device
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmammo.errors import ConfigError, TableError, TrainingError
from fastmammo.training.fingerprint import fingerprint
from fastmammo.training.images_config import ImagesConfig
from fastmammo.training.join import join, missing_text, name_of
from fastmammo.training.sources import DicomSource, open_source
from fastmammo.training.storage import in_memory, local_rank, open_kept, open_store
from fastmammo.training.store import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from fastmammo.preprocess import Config
    from fastmammo.training.sources import Source
    from fastmammo.training.store import Store

    Progress = Callable[[int, int], None]

__all__ = ["Images", "ImagesConfig", "open_images"]

_AT_ONCE = 32
"""Images read together: enough for the threads, few enough to show progress."""

_REMEDY = (
    "Convert what is missing, correct the table (patient_id, image_id, path), or set missing=drop "
    "to leave these rows out"
)


class Images:
    """The images of a table's rows; closed at the end, or used in a `with` statement.

    For the threads of one process. Made by `open_images`.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        files: NDArray[np.int64],
        table: pd.DataFrame,
        device: torch.device,
        kept: FileStore | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.size: tuple[int, int] = source.size
        self.bits: int = source.bits
        """8 or 16."""
        self.settings: dict[str, Any] = source.settings
        """What made the images: "config", its "digest"; of a converted folder its config.json."""
        self.storage: str = store.kind
        """What "auto" came to: device, pinned, ram or memmap."""
        self.kept: NDArray[np.int64] = np.flatnonzero(files >= 0)
        """The table's rows that have an image, in order: all of them, unless missing="drop"."""
        self.dropped: dict[int, str] = {}
        """With missing="drop" the other rows, and why they have no image."""
        self.failures: dict[int, str] = {}
        """Rows whose file was found to be undecodable when it was asked for, and why."""
        self.files: NDArray[np.int64] = files
        """(N,) each row's file, by its place in the source (its row of manifest.csv); -1: none."""
        self.device = device
        self._source, self._store, self._table = source, store, table
        self._copy, self._note = kept, note
        self._slots = np.full(len(files), -1, np.int64)
        self._slots[self.kept] = np.arange(len(self.kept))
        self._slot_files, self._slot_rows = files[self.kept], self.kept
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many rows the table has."""
        return len(self._slots)

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the images of some rows of the table, in the order of `rows`.

        DICOMs that nobody has asked for yet are decoded now, and kept.

        Returns:
            (n, 1, H, W) on the device: uint8, or int32 from 0 to 65535 where `bits` is 16.

        Raises:
            TableError: a row that is not in the table or has no image, or whose file cannot be
                decoded.
            DeviceError: the GPU that decodes failed.
        """
        rows = np.asarray(rows, np.int64)
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise TableError(
                f"images: row {outside[0]} was asked for; wanted 0 to {len(self) - 1}, the rows of "
                "the table"
            )
        absent = rows[self._slots[rows] < 0]
        if len(absent):
            row = int(absent[0])
            raise TableError(
                f"images: {name_of(self._table, row)} was asked for, but has no image "
                f"({self.dropped[row]}); wanted rows of Images.kept"
            )
        failures = self._load(rows)
        if failures:
            self.failures |= failures
            row, why = min(failures.items())
            raise TableError(
                f"images: {name_of(self._table, row)}: {why}. Remove it from the table, or set "
                "missing=drop to find all such files before the training and leave them out"
            )
        pages = self._store.get(self._slots[rows], self.device)
        return pages if self.bits == 8 else pages.to(torch.int32).bitwise_and_(0xFFFF)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the pixels: see `fingerprint`.

        Raises:
            TableError: a file cannot be read.
        """
        return fingerprint(self._source, self._slot_files[self._slots[self.kept]])

    def close(self) -> None:
        """Give back the memory, and remove a temporary file."""
        self._store.close()
        if self._copy is not None:
            self._copy.close()

    def placed(self, row: int) -> tuple[int, int, int, int] | None:
        """Return where the breast's crop lies in a DICOM's image; None where that is not known.

        Of a converted folder manifest.csv tells.
        """
        known = self._source.placed if isinstance(self._source, DicomSource) else {}
        return known.get(int(self.files[row]))

    @contextmanager
    def all_failures(self, progress: Progress | None = None) -> Iterator[None]:
        """Within the block: where a file cannot be decoded, look for all such files before raising.

        The first one ends the block. The others would each end another run, hours later; so what
        has not been decoded yet is decoded now, and kept where the images are kept.

        Raises:
            TableError: names the rows, and says where the decoded images are.
        """
        try:
            yield
        except TableError as error:
            if not self.failures or int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise
            if self._note is not None:
                self._note(f"{error}. Looking for further such files: all images are decoded now")
            found = self.read_all(progress)
            store = self._copy or self._store
            where = ""
            if isinstance(store, FileStore):
                folder = os.path.dirname(store.folder)
                where = (
                    f". What is decoded lies in {folder}: a new run with image_cache={folder} and "
                    "missing=drop does not decode it again"
                )
            text = missing_text(self._table, found, self._source.root)
            raise TableError(f"images: {text}. {_REMEDY}{where}") from error

    def read_all(self, progress: Progress | None = None) -> dict[int, str]:
        """Read every image that is not in the store yet; return why rows could not be read.

        Several processes that share a store begin at different places, and so share the work.
        """
        rank, ranks = local_rank()
        order = np.roll(self.kept, -(len(self.kept) * rank // ranks))
        failures: dict[int, str] = {}
        for first in range(0, len(order), _AT_ONCE):
            failures |= self._load(order[first : first + _AT_ONCE])
            if progress is not None:
                progress(min(first + _AT_ONCE, len(order)), len(order))
        return failures

    def drop(self, reasons: dict[int, str]) -> None:
        """Leave rows out."""
        self.dropped |= reasons
        self._slots[list(reasons)] = -1
        self.kept = np.flatnonzero(self._slots >= 0)

    def _load(self, rows: NDArray[np.int64]) -> dict[int, str]:
        with self._lock:
            slots = self._store.missing(self._slots[rows])
            if not len(slots):
                return {}
            if self._copy is not None:
                absent = self._copy.missing(slots)
                there = np.setdiff1d(slots, absent)
                if len(there):
                    pages = self._copy.get(there, torch.device("cpu"))[:, 0]
                    self._store.put(there, pages)
                slots = absent
            if not len(slots):
                return {}
            loaded = self._source.load(self._slot_files[slots].tolist())
            if loaded.positions:
                self._store.put(slots[loaded.positions], loaded.images)
                self._keep(slots[loaded.positions], loaded.images)
        wanted = self._slot_rows[slots]
        return {int(wanted[place]): why for place, why in loaded.failures.items()}

    def _keep(self, slots: NDArray[np.int64], images: torch.Tensor) -> None:
        """Write images to the file for later processes; the run does without it if it must."""
        if self._copy is None:
            return
        try:
            self._copy.put(slots, images)
        except TrainingError as error:
            self._copy.close()
            self._copy = None
            if self._note is not None:
                self._note(f"decoded images are no longer kept for a run that goes on: {error}")


def open_images(
    source: str | os.PathLike[str],
    table: pd.DataFrame,
    options: ImagesConfig | None = None,
    *,
    config: Config | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> Images:
    """Find the image of each row of a table, and make ready to give any of them.

    Rows are joined to files as `join` says. The packed array of `convert` is mapped into memory,
    or read into the device's or the host's. PNGs are read now, all of them. DICOMs are decoded when
    a row is first asked for; with missing="drop" all of them now, since what cannot be decoded must
    be known before the training.

    Args:
        source: a folder that `convert` has written, or a folder of DICOMs.
        table: index 0 to N - 1, with the columns patient_id, image_id, path, of which those that
            are there and not "" name a row's file.
        config: how DICOMs become images; of a converted folder, None or what has made it.
        device: where `Images.fetch` puts the images.
        progress: called with (images read, images to read) where images are read now.
        note: called with a line on what was decided: the storage, rows left out.
        scratch: folder for what goes to a disk without an `image_cache`: decoded DICOMs, kept there
            and found again by a later call, and temporary files; it is the caller's to remove.
            None: nothing is kept, and temporary files are where the system puts them.

    Raises:
        TableError: the source is no such folder or damaged; rows have no image (with "error"), or
            no row has one; two rows name one file.
        ConfigError: a storage that this machine has not; other settings than the folder's.
        TrainingError: no room.
    """
    options = options or ImagesConfig()
    device = torch.device(device)
    if options.storage in ("device", "pinned") and device.type != "cuda":
        raise ConfigError(
            f"storage: got {options.storage}, which needs a GPU, but the device is {device}; "
            "choose auto, ram or memmap"
        )
    folder = os.path.abspath(source)
    opened = open_source(folder, config)
    files, reasons = join(table, opened.candidates)
    if reasons and (options.missing == "error" or not (files >= 0).any()):
        raise TableError(f"images: {missing_text(table, reasons, folder)}. {_REMEDY}")
    aside = None if scratch is None else os.path.abspath(scratch)
    used = files[files >= 0]
    store = open_store(opened, used, options, device, aside)
    copy, kept_line = (
        open_kept(opened, used, store, aside) if options.image_cache is None else (None, "")
    )
    known = [name for name in ("patient_id", "image_id", "path") if name in table]
    images = Images(opened, store, files, table[known].copy(), device, copy, note)
    try:
        if not isinstance(opened, DicomSource) or options.missing == "drop":
            failures = images.read_all(progress)
            if failures and (options.missing == "error" or len(failures) == len(images.kept)):
                raise TableError(f"images: {missing_text(table, failures, folder)}. {_REMEDY}")
            reasons |= failures
        images.drop(reasons)
    except BaseException:
        images.close()
        raise
    if note is not None:
        rows, columns = images.size
        note(
            f"{len(images.kept)} images of {rows} x {columns} pixels, {images.bits} bits, in "
            f"{images.storage}"
        )
        if kept_line:
            note(kept_line)
        if isinstance(store, FileStore) and in_memory(store.folder):
            note(
                f"{store.folder} lies in the machine's memory (tmpfs), not on a disk: name a "
                "folder of a disk with image_cache"
            )
        if reasons:
            note(f"left out: {missing_text(table, reasons, folder)}")
    return images
