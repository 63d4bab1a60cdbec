"""The settings of a bulk run that change no pixel: one frozen dataclass, checked in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from fastmammo.conversion.filters import SCREENING, VIEW_NAMES, Filters
from fastmammo.dicom.attributes import MODIFIERS
from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, option


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


_FILTERS = tuple(each.name for each in fields(Filters))

SHARE_OF_FREE = 0.8
"""Of the device memory that is free: the rest is for CUDA's contexts, and for whoever comes."""

WORKERS_A_GPU = 1
"""Processes on each GPU, where `workers` does not say: each has several files in hand."""

_LEAST_MEMORY_MB = 1024
"""Measured: 0.3 GiB of address space for the libraries alone, 0.7 GiB for 5355 x 4915 pixels."""


def _check_workers(options: Any) -> None:
    if not _is_number(options.workers, int) or not 0 <= options.workers <= 1024:
        raise ConfigError(f"workers: got {options.workers!r}, wanted a whole number 0 to 1024")


def _check_limits(options: Any) -> None:
    seconds = options.timeout_seconds
    # NaN is neither more nor less: it would be no limit at all
    if not _is_number(seconds, int, float) or not seconds > 0:
        raise ConfigError(f"timeout_seconds: got {seconds!r}, wanted more than 0 seconds, or inf")
    limit = options.memory_limit_mb
    if not _is_number(limit, int) or (limit and not _LEAST_MEMORY_MB <= limit <= 1 << 30):
        raise ConfigError(
            f"memory_limit_mb: got {limit!r}, wanted 0 (no limit), or a whole number from "
            f"{_LEAST_MEMORY_MB}: less does not hold one large image"
        )


def cores() -> int:
    """Return how many cores this process may use."""
    # sched_getaffinity, not cpu_count: in a container or a batch job the machine's cores are
    # not ours, and more processes than cores only cost memory
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ConvertOptions:
    """How a run reads, writes and goes on; what it makes of the pixels is `Config`'s."""

    workers: int = option(
        0,
        "worker processes; 0 is one for each core this process may use, on cuda one for each GPU",
    )
    format: str = option(
        "png",
        "png: one greyscale PNG a file; packed: one array images.npy (N, rows, columns) for "
        "training, its row of each file in the manifest",
        choices=("png", "packed"),
    )
    timeout_seconds: float = option(
        300.0,
        "a file that takes longer is given up as failed and its worker is replaced; inf: no limit",
    )
    memory_limit_mb: int = option(
        4096,
        "address space of a worker, in MiB: a file that needs more is failed as out of memory (or "
        "as the codec's words have it); 0: no limit; on cuda there is none",
    )
    device_memory_mb: int = option(
        0,
        "on cuda: device memory of a worker, in MiB; 0 is four fifths of what is free when it "
        "starts, shared out among the workers of a GPU",
    )
    compare: str = option(
        "stat",
        "how a second run notices that an input has changed: stat (size and time of last change) "
        "or content (SHA-256; and CRC-32 of the outputs: reads every file of both again)",
        choices=("stat", "content"),
    )
    image_root: str | None = option(
        None, "folder that the paths of a list or CSV start from (RSNA: train_images)"
    )
    path_column: str | None = option(
        None, "CSV column with the path; by default path, filename, file, file_path or dicom_path"
    )
    follow_links: bool = option(False, "follow links to folders, and links to files outside of SRC")
    fail_fast: bool = option(False, "end the run at the first file that fails")
    screening_views: bool = option(
        False, "convert standard screening views only: as --view CC,MLO --view-modifiers none"
    )
    view: str | None = option(
        None, f"convert these views only, as CC,MLO; allowed are {', '.join(VIEW_NAMES)}"
    )
    view_modifiers: str | None = option(
        None,
        "view modifiers that may occur (none: views without one), or that may not, as 'not spot "
        f"compression,not magnification'; allowed are none, {', '.join(MODIFIERS)}",
    )
    presentation_intent: str | None = option(
        None, "convert only images FOR PRESENTATION or only FOR PROCESSING (or short: presentation)"
    )
    laterality: str | None = option(None, "convert these sides only: L, R or B")
    manufacturer: str | None = option(
        None, "convert only what a maker's name has a part of, in any case, as hologic,siemens"
    )
    boxes: str | None = option(
        None,
        "CSV of lesion boxes in pixels of the DICOMs (row0, column0, row1, column1; x0, y0, x1, "
        "y1; or xmin, ymin, xmax, ymax), joined by path, sop_instance_uid or image_id: mapped to "
        "the outputs in boxes.csv",
        metavar="CSV",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        _check_workers(self)
        filters = Filters(**{name: getattr(self, name) for name in _FILTERS})
        for name, value in filters.to_dict().items():
            object.__setattr__(self, name, value)
        if self.boxes is not None:
            object.__setattr__(self, "boxes", os.fspath(self.boxes))
            if not self.boxes:
                raise ConfigError("boxes: got an empty path, wanted a CSV, or None")
        _check_limits(self)
        device = self.device_memory_mb
        if not _is_number(device, int) or not 0 <= device <= 1 << 30:
            raise ConfigError(
                f"device_memory_mb: got {device!r}, wanted 0 (a share of what is free), or a whole "
                "number of MiB"
            )

    @property
    def filters(self) -> tuple[Filters, ...]:
        """What a file's header must say: all of these, none where there is nothing to ask."""
        own = Filters(**{name: getattr(self, name) for name in _FILTERS})
        chosen = (own, SCREENING) if self.screening_views else (own,)
        return tuple(each for each in chosen if each)

    def worker_count(self, files: int, gpus: int = 0) -> int:
        """Return how many processes to start for so many files: never more than files.

        Args:
            gpus: that they are to be spread over; 0 on the CPU.
        """
        if gpus:
            return max(1, min(self.workers or gpus * WORKERS_A_GPU, files))
        return max(1, min(self.workers or cores(), files))


_AS_CONVERT = {each.name: each for each in fields(ConvertOptions)}


def _as_convert(name: str, text: str = "") -> Any:
    """Declare a field as `ConvertOptions` does, with another help line where one is given."""
    found = _AS_CONVERT[name]
    metadata = {**found.metadata, **({"help": text} if text else {})}
    return field(default=found.default, metadata=metadata)


@dataclass(frozen=True)
class TranscodeOptions:
    """How a run of `transcode` reads, writes and goes on."""

    workers: int = _as_convert(
        "workers", "worker processes; 0 is one for each core this process may use"
    )
    others: str = option(
        "copy",
        "files that are not transcoded (HTJ2K already, lossy, colour, no image): copy them byte "
        "for byte, so that DST can stand in SRC's place, or skip them",
        choices=("copy", "skip"),
    )
    timeout_seconds: float = _as_convert("timeout_seconds")
    memory_limit_mb: int = _as_convert(
        "memory_limit_mb",
        "address space of a worker, in MiB: a file that needs more is failed as out of memory (or "
        "as the codec's words have it); 0: no limit",
    )
    compare: str = _as_convert("compare")
    image_root: str | None = _as_convert("image_root")
    path_column: str | None = _as_convert("path_column")
    follow_links: bool = _as_convert("follow_links")
    fail_fast: bool = _as_convert("fail_fast")

    def __post_init__(self) -> None:
        check_choices(self)
        _check_workers(self)
        _check_limits(self)

    def worker_count(self, files: int, gpus: int = 0) -> int:
        """Return how many processes to start for so many files: never more than files."""
        return max(1, min(self.workers or cores(), files))
