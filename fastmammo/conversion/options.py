"""The settings of a bulk run that change no pixel: one frozen dataclass, checked in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from fastmammo.errors import ConfigError


def _option(default: Any, help: str, *, choices: tuple[str, ...] = ()) -> Any:
    """Declare a field with its help line and its allowed values: the CLI reads both."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ConvertOptions:
    """How a run reads, writes and goes on; what it makes of the pixels is `Config`'s."""

    workers: int = _option(0, "worker processes; 0 is one for each core this process may use")
    format: str = _option(
        "png",
        "png: one greyscale PNG a file; packed: one array images.npy (N, rows, columns) for "
        "training, its row of each file in the manifest",
        choices=("png", "packed"),
    )
    timeout_seconds: float = _option(
        300.0, "a file that takes longer is given up as failed and its worker is replaced"
    )
    compare: str = _option(
        "stat",
        "how a second run notices that an input has changed: stat (size and time of last change) "
        "or content (SHA-256: reads every input again)",
        choices=("stat", "content"),
    )
    image_root: str | None = _option(
        None, "folder that the paths of a list or CSV start from (RSNA: train_images)"
    )
    path_column: str | None = _option(
        None, "CSV column with the path; by default path, filename, file, file_path or dicom_path"
    )
    follow_links: bool = _option(
        False, "follow links to folders, and links to files outside of SRC"
    )
    fail_fast: bool = _option(False, "end the run at the first file that fails")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{each.name}: got {value!r}, allowed are {', '.join(choices)}")
        if not isinstance(self.workers, int) or not 0 <= self.workers <= 1024:
            raise ConfigError(f"workers: got {self.workers!r}, wanted a whole number 0 to 1024")
        if not self.timeout_seconds > 0:
            raise ConfigError(
                f"timeout_seconds: got {self.timeout_seconds!r}, wanted more than 0 seconds"
            )

    def worker_count(self, files: int) -> int:
        """Return how many processes to start for so many files: never more than files."""
        # sched_getaffinity, not cpu_count: in a container or a batch job the machine's cores are
        # not ours, and more processes than cores only cost memory
        return max(1, min(self.workers or len(os.sched_getaffinity(0)), files))
