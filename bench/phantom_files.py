"""The files that bench/throughput.py converts: phantoms, kept between runs, or real ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import fastmammo.testing
from fastmammo.dicom import SYNTAXES
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 4
"""Phantoms a set: both views, both sides."""
REAL = 64
"""Real files that are taken, evenly from all that there are."""
COLD_BYTES = 4 << 30
"""That copies for a cold cache may take of the disk."""


class Set(NamedTuple):
    """Phantoms of one transfer syntax and size; `quick` sets are part of the default run."""

    uid: str
    rows: int
    columns: int
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{SYNTAXES[self.uid].name}, {self.rows}x{self.columns}"


SETS = (
    Set("1.2.840.10008.1.2.4.90", 3328, 2560, quick=True),
    Set("1.2.840.10008.1.2.4.70", 3328, 2560, quick=True),
    Set("1.2.840.10008.1.2.4.90", 4096, 3328),
    Set("1.2.840.10008.1.2.4.90", 2294, 1914),
    Set("1.2.840.10008.1.2.1", 3328, 2560),
    Set("1.2.840.10008.1.2.4.201", 3328, 2560),
)


def cache_folder() -> Path:
    """Return where phantoms are kept: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmammo" / "bench"


def key(of: Set) -> str:
    """Return a name that changes with whatever the files' bytes depend on."""
    text = hashlib.sha256(repr((of[:3], COUNT)).encode())
    for path in sorted(Path(fastmammo.testing.__file__).parent.glob("*.py")):
        text.update(path.read_bytes())
    for package in ("numpy", "imagecodecs", "pylibjpeg-openjpeg", "pydicom"):
        text.update(f"{package} {version(package)}".encode())
    return text.hexdigest()[:12]


def phantoms(cache: Path, of: Set) -> list[Path]:
    """Return the files of a set, which are made where they are not in the cache yet."""
    folder = cache / f"{of.uid}-{of.rows}x{of.columns}-{key(of)}"
    paths = [folder / f"{i}.dcm" for i in range(COUNT)]
    if all(path.is_file() for path in paths):
        return paths
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as making:
        for i, path in enumerate(paths):
            _write(Path(making) / path.name, of, i)
        folder.mkdir(exist_ok=True)
        for path in paths:  # whole or not at all, even beside another run
            os.replace(Path(making) / path.name, path)
    return paths


def _write(path: Path, of: Set, i: int) -> None:
    view = ("CC", "MLO")[i % 2]
    made = phantom(of.rows, of.columns, seed=i, view_position=view, laterality="LR"[i // 2])
    write_dicom(
        made.pixels,
        path=path,
        transfer_syntax_uid=of.uid,
        window_center=made.window_center,
        window_width=made.window_width,
        laterality=made.laterality,
        view_position=made.view_position,
        seed=i,
    )


@contextlib.contextmanager
def work_folder(cache: Path) -> Iterator[Path]:
    """Give a folder on the phantoms' own file system, for links; drop what killed runs have left.

    Its name begins with the process that has it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("work-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"work-{os.getpid()}-") as folder:
        yield Path(folder)


def real_files(root: Path) -> dict[str, list[Path]]:
    """Return files under a folder by transfer syntax: all, or so many, evenly taken.

    Raises:
        SystemExit: there are none that can be converted.
    """
    every = sorted(root.rglob("*.dcm"))
    found: dict[str, list[Path]] = {}
    for path in every[:: max(1, len(every) // REAL)][:REAL]:
        try:
            uid = fastmammo.read(path).transfer_syntax_uid
        except (fastmammo.FastMammoError, OSError) as error:
            print(f"{path} is left out: {error}")
            continue
        found.setdefault(uid, []).append(path)
    if not found:
        raise SystemExit(f"--root {root}: no file *.dcm there that can be converted")
    return found


def linked(sources: list[Path], folder: Path, count: int, *, copies: bool = False) -> list[Path]:
    """Return `count` links to the sources, in turn, in a folder of their own.

    Args:
        copies: copy instead, so that each file has pages of its own in the system's cache; at most
            `COLD_BYTES` of them: links to those begin again.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if copies:
        mean = sum(path.stat().st_size for path in sources) // len(sources)
        count = max(len(sources), min(count, COLD_BYTES // mean))
    made = []
    for i in range(count):
        source = sources[i % len(sources)].resolve()
        made.append(folder / f"{i:05d}.dcm")
        try:
            if copies:
                raise OSError
            os.link(source, made[-1])
        except OSError:  # another file system
            shutil.copyfile(source, made[-1])
    return made
