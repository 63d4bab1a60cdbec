"""`fastmammo verify`: takes the user's files, gives a table of every route and what differs."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmammo import __version__
from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.decoding import BACKENDS, cuda_runtime
from fastmammo.decoding.backends import resolve_device
from fastmammo.dicom import read
from fastmammo.errors import ConfigError, ConvertError, FastMammoError, NotDicomError, NotImageError
from fastmammo.report.difference import draw_difference
from fastmammo.report.routes import Check, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_STATUSES = ("exact", "within", "differs", "failed", "not possible")
_LISTED = 50
"""Lines of differing routes that the text shows; the JSON has them all."""


@dataclass(frozen=True)
class FileResult:
    """One file and the result of each of its routes."""

    path: str
    """As in a manifest: relative to SRC."""
    status: str
    """"ok", "differs" (a route is not as it must be), "failed" (not decoded) or "skipped"."""
    reason: str = ""
    message: str = ""
    syntax: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 0
    """Of several frames the first is verified."""
    results: tuple[Result, ...] = ()
    pictures: tuple[str, ...] = ()
    """The pictures that were written, where a folder for them was given."""
    lost: str = ""
    """How CUDA failed for good on this file, or ""."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    src: str
    inputs: int
    """Files that SRC holds; `files` are those that were looked at."""
    files: tuple[FileResult, ...]
    limit: int
    device: str = "cpu"
    """"cuda" where the GPU's routes were verified too."""
    device_reason: str = ""
    """Why device "auto" was the CPU, or ""."""

    @property
    def lost(self) -> str:
        """How CUDA failed for good, after which no route of the GPU was tried, or ""."""
        return next((each.lost for each in self.files if each.lost), "")

    @property
    def exit_code(self) -> int:
        """0 if every route is as it must be, 1 if one is not or a file failed."""
        return int(any(each.status in ("differs", "failed") for each in self.files))

    def count(self, status: str) -> int:
        """Return how many files have a status of `FileResult`."""
        return sum(each.status == status for each in self.files)

    def routes(self) -> list[dict[str, Any]]:
        """Return one row a route: syntax, route, backend, device, counts of files, worst, notes."""
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for file in self.files:
            for result in file.results:
                key = file.syntax, result.route, result.backend, result.device
                row = rows.setdefault(
                    key,
                    {
                        **dict(zip(("syntax", "route", "backend", "device"), key, strict=True)),
                        **dict.fromkeys(("files", "reference", *_STATUSES), 0),
                        "maximum": 0,
                        "reasons": {},
                    },
                )
                row["files"] += 1
                row[result.status] += 1
                row["maximum"] = max(row["maximum"], result.maximum)
                if result.status == "not possible":
                    row["reasons"][result.note] = row["reasons"].get(result.note, 0) + 1
        return sorted(rows.values(), key=_order)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able values."""
        return {
            "fastmammo": __version__,
            "backends": {
                name: None if backend.missing() else backend.version()
                for name, backend in BACKENDS.items()
                if backend.DEVICE in ("cpu", self.device)
            },
            "device": self.device,
            "device_reason": self.device_reason,
            "lost": self.lost,
            "src": self.src,
            "inputs": self.inputs,
            "limit": self.limit,
            **{status: self.count(status) for status in ("ok", "differs", "failed", "skipped")},
            "exit_code": self.exit_code,
            "routes": self.routes(),
            "files": [asdict(file) for file in self.files],
        }

    def text(self) -> str:
        """Return the table, the differing routes and the failed files as lines for a terminal."""
        lines = [*_table(self.routes()), ""]
        wrong = [(file, r) for file in self.files for r in file.results if r.wrong]
        lines += [f"{file.path}: {_told(result)}" for file, result in wrong[:_LISTED]]
        if len(wrong) > _LISTED:
            lines.append(f"... and {len(wrong) - _LISTED} more: --json lists them all")
        for file in self.files:
            lines += [f"{file.path}: picture {picture}" for picture in file.pictures]
            if file.status == "failed":
                lines.append(f"{file.path}: failed, {file.reason}: {file.message}")
        if self.lost:
            lines.append(f"CUDA failed; no route of the GPU was tried after that: {self.lost}")
        if self.device_reason:
            lines.append(f"device: {self.device} ({self.device_reason})")
        verified = self.count("ok") + self.count("differs")
        several = sum(file.frames > 1 for file in self.files)
        if several:
            lines.append(f"{several} file(s) of several frames: the first frame was verified")
        lines.append(
            f"{verified} of {self.inputs} files verified: {self.count('ok')} as they must be, "
            f"{self.count('differs')} differing; {self.count('failed')} failed, "
            f"{self.count('skipped')} skipped"
        )
        return "\n".join(lines)


def verify(
    src: str | os.PathLike[str],
    *,
    limit: int = 20,
    size: tuple[int, int] = (1024, 512),
    reencode: bool = False,
    picture: str | os.PathLike[str] | None = None,
    image_root: str | None = None,
    path_column: str | None = None,
    follow_links: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Decode and convert files by every route there is here, and compare pixel for pixel.

    A route is compared with what is computed another way: see `fastmammo.report.routes`. Images
    are compared at 16 bits, of the first frame. Lossy formats may differ by `references.tolerance`.

    Args:
        src: a folder, a DICOM file, a list or a CSV: see `find_inputs`.
        limit: how many files to verify, spread evenly over the sorted inputs; 0 for all. Files
            that are not DICOM do not count.
        size: (rows, columns) of the images.
        reencode: write the stored values in every lossless syntax too, and prove that they give
            identical images.
        picture: folder for a picture of each difference; it is made if it is not there.
        image_root, path_column, follow_links: see `find_inputs`.
        device: "cuda" for the routes of the GPU beside the CPU's; "auto" for them where GPU, CuPy
            and nvJPEG2000 are there.
        progress: called with (done, total, path) before each file.

    Raises:
        BackendUnavailableError: device "cuda", and CuPy or a GPU is not there.
        ConfigError: a setting that is not allowed.
        ConvertError, OSError: SRC is not there or holds no DICOM file; `picture` cannot be made.
    """
    if limit < 0:
        raise ConfigError(f"limit: got {limit}, wanted a whole number from 0 (0 verifies all)")
    if len(size) != 2 or not all(1 <= each <= 16384 for each in size):
        raise ConfigError(f"size: got {size}, wanted (rows, columns), 1 to 16384 each")
    device, why = resolve_device(device)
    if device == "cuda":
        cuda_runtime.require()
    inputs = find_inputs(
        src,
        os.devnull,  # nothing is written: no folder inside of SRC is left out as the destination
        image_root=image_root,
        path_column=path_column,
        follow_links=follow_links,
    )
    folder = None if picture is None else Path(picture)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    settled = [FileResult(i.path, i.status, i.reason, i.message) for i in inputs if i.status]
    strata = list(_strata([each for each in inputs if not each.status], limit))
    files: list[FileResult] = []
    on = device
    for index, stratum in enumerate(strata):
        for each in stratum:
            if progress is not None:
                progress(index, len(strata), each.path)
            files.append(_verify_file(each, len(files), size, reencode, folder, on))
            if files[-1].lost:
                on = "cpu"  # nothing can be decoded on that device in this process any more
            if files[-1].status != "skipped":
                break
    files += settled
    if all(each.status == "skipped" for each in files):
        raise ConvertError(
            f"nothing to verify in {os.fspath(src)}: none of the {len(files)} files looked at is "
            "a DICOM image. Name a folder, a file, a list or a CSV of DICOM images"
        )
    files.sort(key=lambda each: each.path)
    return Verification(os.fspath(src), len(inputs), tuple(files), limit, device, why)


def _strata(inputs: list[Input], limit: int) -> Iterator[list[Input]]:
    """Divide the sorted inputs into `limit` equal parts: one file of each is verified."""
    count = min(limit or len(inputs), len(inputs))
    for i in range(count):
        yield inputs[i * len(inputs) // count : (i + 1) * len(inputs) // count]


def _verify_file(
    each: Input,
    number: int,
    size: tuple[int, int],
    reencode: bool,
    folder: Path | None,
    device: str,
) -> FileResult:
    pictures: list[str] = []

    def draw(result: Result, reference: NDArray[Any], other: NDArray[Any]) -> None:
        if folder is not None:
            name = _file_name(f"{number:03d}-{each.path[-80:]}-{result.route}-{result.backend}")
            path = folder / f"{name}.png"
            draw_difference(
                reference, other, path, f"{each.path}: {result.route} by {result.backend}"
            )
            pictures.append(str(path))

    try:
        if not stat.S_ISREG(os.stat(each.source).st_mode):
            # opening a named pipe would wait for ever
            return FileResult(each.path, "failed", "unreadable file", "not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a file's oddities; what counts of them is in its notes
            mammogram = read(each.source)
        facts: dict[str, Any] = {
            "syntax": mammogram.transfer_syntax.name,
            "rows": mammogram.rows,
            "columns": mammogram.columns,
            "frames": len(mammogram.frames),
        }
    except FastMammoError as error:
        none = isinstance(error, NotDicomError) and not each.meant
        status = "skipped" if none or isinstance(error, NotImageError) else "failed"
        return FileResult(each.path, status, error.reason, str(error))
    except OSError as error:
        return FileResult(each.path, "failed", "unreadable file", error.strerror or str(error))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom warns of while its pixels are asked for
            check = Check(mammogram, size=size, reencode=reencode, seen=draw, device=device)
            results = tuple(check.results())
    except FastMammoError as error:
        return FileResult(each.path, "failed", error.reason, str(error), **facts)
    except OSError:
        raise  # the file has been read: it is the picture that cannot be written
    except Exception as error:  # a defect of ours costs its file, not the run
        message = f"{type(error).__name__}: {error}"
        return FileResult(each.path, "failed", "internal error", message, **facts)
    status = "differs" if any(result.wrong for result in results) else "ok"
    return FileResult(
        each.path, status, results=results, pictures=tuple(pictures), lost=check.lost, **facts
    )


def _file_name(text: str) -> str:
    """Return text as a file name: a path of the user's must not lead out of the folder."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in text)
    return kept.replace("..", "__")


def _told(result: Result) -> str:
    text = f"{result.route} by {result.backend}"
    if result.status == "failed":
        return f"{text} failed: {result.note}"
    if result.at is None:
        return f"{text} differs: {result.note}"
    return (
        f"{text} differs in {result.count} pixels, by up to {result.maximum} "
        f"at row {result.at[0]}, column {result.at[1]}"
    )


def _order(row: dict[str, Any]) -> tuple[str, int, str]:
    """Return what rows are sorted by: levels, images, re-encodings, the rest as it comes."""
    route = str(row["route"])
    stage = ("level", "auto", "full", "batch", "as").index(route.split()[0])
    return row["syntax"], stage, route if stage < 2 else ""


def _table(routes: list[dict[str, Any]]) -> list[str]:
    """Return the rows as aligned text; a count of nothing is a dot, to let the others stand out."""
    heads = ("syntax", "route", "backend", "device", "files", *_STATUSES)
    cells: list[tuple[str, ...]] = [heads]
    for row in routes:
        counts = [str(row[status] or ".") for status in _STATUSES]
        if row["within"]:
            counts[1] += f" (by {row['maximum']})"
        cells.append((*(str(row[head]) for head in heads[:5]), *counts))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, line in zip([{}, *routes], cells, strict=True):
        text = "  ".join(
            cell.rjust(width) if i >= 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        notes = [f"reference of {row['reference']}"] if row.get("reference") else []
        notes += [f"{reason} ({count})" for reason, count in row.get("reasons", {}).items()]
        lines.append(f"{text}  {'; '.join(notes)}".rstrip())
    return lines
