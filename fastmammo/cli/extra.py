"""What the verbs of the trainer share: the extra that they need, and their output."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastmammo.errors import TableError, TrainingError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_EXTRA = (*("torch", "torchvision", "timm", "lightning_fabric", "pandas", "sklearn", "matplotlib"),)


@contextmanager
def trainer() -> Iterator[None]:
    """Say what to install where a package of the trainer is missing.

    Raises:
        TrainingError: in the place of the ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _EXTRA:
            raise
        raise TrainingError(
            f"needs the extra train: pip install 'fastmammo[train]' ({name} is not installed)"
        ) from error


def note(line: str) -> None:
    """Print a line that the user should read."""
    print(line, file=sys.stderr, flush=True)


def need_files(**paths: str | None) -> None:
    """Refuse what is not there, before the imports and the reading that take seconds.

    Args:
        paths: what each is called → the file, None where none was given.

    Raises:
        TableError: it is no file.
    """
    for name, path in paths.items():
        if path is not None and not os.path.isfile(path):
            there = "is a folder" if os.path.isdir(path) else "there is no such file"
            raise TableError(f"{name}: got {path!r}, {there}; wanted a CSV file")


def need_folder(source: str | None) -> None:
    """Refuse a source of images that is not there, before the imports that take seconds.

    Raises:
        TableError: it is no folder.
    """
    if source is not None and not os.path.isdir(source):
        raise TableError(
            f"images: {source} is no folder; wanted what `fastmammo convert` has written, or a "
            "folder of DICOMs"
        )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is printed."""
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr; notes stay")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
