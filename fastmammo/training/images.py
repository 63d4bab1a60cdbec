"""Takes a table and converted images or DICOMs, gives the images of any rows on the device.

table ─► join ─► a file for each row ─► sources ─► store ─► fetch(rows)
                 or why there is none   decoded    kept     on the device
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmammo.errors import ConfigError, TableError
from fastmammo.training.join import join, missing_text, name_of
from fastmammo.training.options import check_choices, check_range, option
from fastmammo.training.sources import DicomSource, open_source
from fastmammo.training.storage import local_rank, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    from fastmammo.preprocess import Config
    from fastmammo.training.sources import Source
    from fastmammo.training.store import Store

    Progress = Callable[[int, int], None]

_AT_ONCE = 32
"""Images read together: enough for the threads, few enough to show progress."""

_REMEDY = (
    "Convert what is missing, correct the table (patient_id, image_id, path), or set missing=drop "
    "to leave these rows out"
)


@dataclass(frozen=True)
class ImagesConfig:
    """Where the finished images are kept between the epochs, and what if one is not there."""

    storage: str = option(
        "auto",
        "where the images lie between the epochs: device (the GPU's memory), pinned (the host's, "
        "locked for fast copies), ram, memmap (a file); auto: the first of these that has room",
        choices=("auto", "device", "pinned", "ram", "memmap"),
    )
    image_cache: str | None = option(
        None,
        "folder to keep decoded images in, for memmap: found again by later runs, and shared by "
        "the processes of one machine; by default a temporary one, removed at the end",
        metavar="FOLDER",
    )
    budget_gb: float | None = option(
        None,
        "memory that auto may fill, in GB; by default half of what is free",
        type=float,
        metavar="GB",
    )
    missing: str = option(
        "error",
        "rows of the table without an image: error, or drop to leave them out, which decodes every "
        "DICOM before the training",
        choices=("error", "drop"),
    )
    prefetch: int = option(2, "batches that are made ahead")

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "prefetch", 1, 64, whole=True)
        if self.budget_gb is not None:
            check_range(self, "budget_gb", 0, 1e6)
        if self.image_cache is not None:
            object.__setattr__(self, "image_cache", os.fspath(self.image_cache))
            if not self.image_cache or self.storage not in ("auto", "memmap"):
                raise ConfigError(
                    f"image_cache: got {self.image_cache!r} with storage={self.storage}; wanted a "
                    "folder, with storage=memmap or auto"
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
        self.device = device
        self._source, self._store, self._table = source, store, table
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
            row, why = min(failures.items())
            raise TableError(
                f"images: {name_of(self._table, row)}: {why}. Remove it from the table, or set "
                "missing=drop to find all such files before the training and leave them out"
            )
        pages = self._store.get(self._slots[rows], self.device)
        return pages if self.bits == 8 else pages.to(torch.int32).bitwise_and_(0xFFFF)

    def close(self) -> None:
        """Give back the memory, and remove a temporary file."""
        self._store.close()

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
            loaded = self._source.load(self._slot_files[slots].tolist())
            if loaded.positions:
                self._store.put(slots[loaded.positions], loaded.images)
        wanted = self._slot_rows[slots]
        return {int(wanted[place]): why for place, why in loaded.failures.items()}


def open_images(
    source: str | os.PathLike[str],
    table: pd.DataFrame,
    options: ImagesConfig | None = None,
    *,
    config: Config | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
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
    store = open_store(opened, files[files >= 0], options, device)
    known = [name for name in ("patient_id", "image_id", "path") if name in table]
    images = Images(opened, store, files, table[known].copy(), device)
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
        if reasons:
            note(f"left out: {missing_text(table, reasons, folder)}")
    return images
