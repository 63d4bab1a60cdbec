"""Takes the journal, gives DST's tables: manifest.csv, timings.csv, and config.json beside them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.packed import NAME as ARRAY
from fastmammo.conversion.writers import write_atomic
from fastmammo.preprocess import RECORD_COLUMNS, STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastmammo.conversion.inputs import Input
    from fastmammo.conversion.journal import Journal
    from fastmammo.conversion.results import Results

COLUMNS = (
    "path",
    "listed",
    "status",
    "reason",
    "message",
    "output",
    "row",
    "patient_id",
    "image_id",
)
"""The first columns of every manifest; those of the image's record follow, in its order."""

_CODECS = ("numpy", "numba", "pydicom", "imagecodecs", "pylibjpeg", "pylibjpeg-openjpeg", "pillow")


def write_tables(
    dst: str,
    inputs: Sequence[Input],
    results: Results,
    row: Callable[[str], int | None],
) -> None:
    """Write manifest.csv and timings.csv, sorted by path, from what became of the inputs.

    The manifest has one row for each input that is done. It depends on the inputs and settings
    alone, not on the order of the work or on an interruption: times go to a file of their own.

    Args:
        row: gives an input's row in the packed array, or None.
    """
    # every manifest has the same header, even one whose files have all failed
    record_columns = dict.fromkeys(RECORD_COLUMNS)
    for each in inputs:
        entry = results.get(each.path)
        if entry is not None:
            record_columns.update(dict.fromkeys(entry.get("record", ())))

    def manifest() -> Iterator[dict[str, Any]]:
        for each in inputs:
            entry = results.get(each.path)
            if entry is None:
                continue
            place = row(each.path) if entry["status"] == "ok" else None
            output = entry.get("output", "")
            if output == ARRAY and place is None:
                output = ""  # the array is made when all files are done
            yield {
                **entry.get("record", {}),
                "path": each.path,
                "listed": each.listed,
                "status": entry["status"],
                "reason": entry.get("reason", ""),
                "message": one_line(entry.get("message", "")),
                "output": output,
                "row": place,
                "patient_id": each.patient_id,
                "image_id": each.image_id,
            }

    added = [name for name in record_columns if name not in COLUMNS]
    partial_folder = results.journal.partial_folder
    write_csv(dst, "manifest.csv", [*COLUMNS, *added], manifest(), partial_folder)
    write_timings(dst, inputs, results, (*STAGES, "encode", "write", "total"))


def write_timings(
    dst: str, inputs: Sequence[Input], results: Results, stages: tuple[str, ...]
) -> None:
    """Write timings.csv: seconds by stage of each file that was made, sorted by path.

    Args:
        stages: the columns that stand there in any case, before those that only some files have.
    """
    columns = dict.fromkeys(stages)
    for each in inputs:
        columns.update(dict.fromkeys((results.get(each.path) or {}).get("seconds", ())))

    def rows() -> Iterator[dict[str, Any]]:
        for each in inputs:
            entry = results.get(each.path)
            if entry is not None and "seconds" in entry:
                seconds = {name: f"{value:.6f}" for name, value in entry["seconds"].items()}
                yield {"path": each.path, **seconds}

    partial_folder = results.journal.partial_folder
    write_csv(dst, "timings.csv", ["path", *columns], rows(), partial_folder)


def one_line(message: str) -> str:
    """Return a message for a row: a codec's words may have several lines."""
    return re.sub(r"\s*[\r\n]+\s*", "; ", message.strip())


def write_csv(
    dst: str, name: str, columns: list[str], rows: Iterator[dict[str, Any]], partial_folder: str
) -> None:
    """Write a table into DST, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()

    def chunks() -> Iterator[bytes]:
        for each in rows:
            writer.writerow(each)
            if text.tell() > 1 << 16:
                yield take()
        yield take()

    def take() -> bytes:
        # a name whose bytes are no UTF-8 comes out as those bytes, so that it can be found again
        data = text.getvalue().encode(errors="surrogateescape")
        text.seek(0)
        text.truncate()
        return data

    partial = os.path.join(partial_folder, name)
    write_atomic(os.path.join(dst, name), chunks(), partial)


def write_config(dst: str, journal: Journal, settings: dict[str, Any]) -> None:
    """Write config.json: the settings that decide DST's pixels, and what the last run was.

    Versions are the last run's, as its device is: images of earlier runs are kept.
    """
    versions = {name: version(name) for name in ("fastmammo", *_CODECS)}
    text = json.dumps({**settings, "versions": versions}, indent=2) + "\n"
    partial = os.path.join(journal.partial_folder, "config.json")
    write_atomic(os.path.join(dst, "config.json"), [text.encode()], partial)


def version(distribution: str) -> str:
    """Return the version of an installed distribution, or "" where it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
