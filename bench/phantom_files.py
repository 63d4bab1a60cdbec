"""The files that bench/throughput.py converts: phantoms, kept between runs, or real ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import fastmammo.testing
from fastmammo.dicom import SYNTAXES
from fastmammo.dicom.source import looks_like_dicom
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
    print(f"{of.name}: phantoms are made, for all later runs: about half a minute", flush=True)
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


class Files(NamedTuple):
    """Real files of one transfer syntax, and the median seconds that fastmammo takes for one."""

    paths: list[Path]
    seconds: float


def real_files(root: Path) -> dict[str, Files]:
    """Return DICOM files under a folder by transfer syntax: all, or so many, evenly taken.

    Each is converted once, in full: one that fastmammo does not take would end all, so it is named
    and left out.

    Raises:
        SystemExit: there are none that can be converted.
    """
    every = [path for path in sorted(root.rglob("*")) if path.is_file() and _is_dicom(path)]
    chosen = every[:: max(1, len(every) // REAL)][:REAL]
    if chosen:
        print(f"{root}: {len(every)} DICOM files; {len(chosen)} are tried", flush=True)
    convert = fastmammo.Preprocessor(size=(64, 32), scale="full", workers=1)
    found: dict[str, dict[Path, float]] = {}
    for path in chosen:
        try:
            read = fastmammo.read(path)
            if read.number_of_frames > 1:
                print(f"{path} is left out: {read.number_of_frames} frames; wanted one image")
                continue
            start = time.perf_counter()
            convert([path])
        except (fastmammo.FastMammoError, OSError) as error:
            print(f"{path} is left out: {' '.join(str(error).split())}")
            continue
        found.setdefault(read.transfer_syntax_uid, {})[path] = time.perf_counter() - start
    if not found:
        raise SystemExit(f"--root {root}: no DICOM file there that fastmammo can convert")
    # medians: the first of a syntax compiles, or loads what is compiled
    return {uid: Files([*own], statistics.median(own.values())) for uid, own in found.items()}


def _is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does; one that is only called so is named."""
    try:
        with path.open("rb") as file:
            found = looks_like_dicom(file.read(132))
    except OSError as error:
        print(f"{path} is left out: {error}")
        return False
    if not found and path.suffix.lower() == ".dcm":
        print(f"{path} is left out: it is no DICOM")
    return found


def even(sources: list[Path], workers: int) -> list[Path]:
    """Return the sources that a turn is made of, the largest first: then the shortest end it.

    Of more than there are processes, so many that these share them evenly.
    """
    count = len(sources) // workers * workers or len(sources)
    chosen = [sources[i * len(sources) // count] for i in range(count)]
    return sorted(chosen, key=lambda path: -path.stat().st_size)


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
        cycles = max(1, min(count, COLD_BYTES // mean) // len(sources))
        count = cycles * len(sources)  # as many of each
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
