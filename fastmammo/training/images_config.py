"""Declares the settings of where images are kept; no part of it imports torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, check_range, option


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
        "the processes of one machine; by default one in the run folder, removed when all folds "
        "are scored",
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
