"""What the verbs of the trainer share: the extra that they need, and their output."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastmammo.errors import TrainingError

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


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is printed."""
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
