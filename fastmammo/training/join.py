"""Takes a table and what files there are, gives the file of each row, or why it has none."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.conversion.names import is_dicom_name
from fastmammo.errors import TableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

_SHOWN = 5


@dataclass(frozen=True)
class Candidate:
    """A file that a row of the table may mean."""

    paths: tuple[str, ...]
    """Its names: relative to the root, as a list had it, absolute; the first is for messages."""
    patient_id: str = ""
    image_id: str = ""
    reason: str = ""
    """Why there is no image of it, if there is none."""


def join(
    table: pd.DataFrame, candidates: Sequence[Candidate]
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Find the file of each row of the table.

    By patient_id and image_id where both are known of a file; else by an image_id that one file
    alone bears (or its name without the suffix); else by the row's path, relative to the root or
    absolute, with or without a suffix. A file of another patient is never taken for its image_id.

    Returns:
        (N,) the position of each row's candidate, -1 where there is none; and for those rows why.

    Raises:
        TableError: two rows mean the same file: a split may put it on both sides.
    """
    columns = ("patient_id", "image_id", "path")
    texts = [
        table[name].astype(str).tolist() if name in table else [""] * len(table) for name in columns
    ]
    with_paths = any(texts[2])
    by_id: dict[str, list[int]] = {}
    by_path: dict[str, list[int]] = {}
    for position, each in enumerate(candidates):
        _add(by_id, each.image_id or _stem(each.paths[0].rpartition("/")[2]), position)
        for path in each.paths if with_paths else ():
            _add(by_path, path, position)
            _add(by_path, _stem(path), position)
    found = np.full(len(table), -1, np.int64)
    reasons: dict[int, str] = {}
    for row, (patient, image, path) in enumerate(zip(*texts, strict=True)):
        position, reason = _find(candidates, by_id, by_path, patient, image, path)
        if not reason:
            reason = candidates[position].reason
        if reason:
            reasons[row] = reason
        else:
            found[row] = position
    _check_once(table, candidates, found)
    return found, reasons


def _find(
    candidates: Sequence[Candidate],
    by_id: Mapping[str, list[int]],
    by_path: Mapping[str, list[int]],
    patient: str,
    image: str,
    path: str,
) -> tuple[int, str]:
    """Return the position of a row's file, or why there is none."""
    named = by_id.get(image, []) if image else []
    own = [each for each in named if patient and candidates[each].patient_id == patient]
    if not own:  # a file whose patient nobody knows
        own = [each for each in named if not (patient and candidates[each].patient_id)]
    if len(own) > 1:
        # beside the DICOM a text file of its name, say, which was skipped
        usable = [each for each in own if not candidates[each].reason]
        own = usable if len(usable) == 1 else own
    if len(own) == 1:
        return own[0], ""
    if path:
        normal = os.path.normpath(path).replace(os.sep, "/")
        listed = by_path.get(path) or by_path.get(normal) or by_path.get(_stem(normal)) or []
        if len(listed) == 1:
            return listed[0], ""
        own = own or listed
    if own:
        return -1, "several files of that name"
    return -1, "only of another patient" if named else "no such file"


def _add(index: dict[str, list[int]], name: str, position: int) -> None:
    listed = index.setdefault(name, [])
    if name and not (listed and listed[-1] == position):
        listed.append(position)


def _stem(path: str) -> str:
    """Return a path without the suffix of DICOM or PNG: of 1.2.840.1.dcm and 1.2.840.1 the same."""
    if is_dicom_name(path) or path.lower().endswith(".png"):
        return path.rpartition(".")[0]
    return path


def _check_once(
    table: pd.DataFrame, candidates: Sequence[Candidate], found: NDArray[np.int64]
) -> None:
    """Refuse two rows that mean one file."""
    used = found[found >= 0]
    positions, counts = np.unique(used, return_counts=True)
    twice = positions[counts > 1]
    if len(twice):
        rows = np.flatnonzero(found == twice[0])[:2]
        first, second = (name_of(table, int(row)) for row in rows)
        raise TableError(
            f"images: {len(twice)} files are each named by several rows of the table, such as "
            f"{candidates[twice[0]].paths[0]} by {first} and {second}; wanted one row an image: "
            "remove the others, or correct image_id and path"
        )


def name_of(table: pd.DataFrame, row: int) -> str:
    """Return what a message calls a row: its number from 0, its ids or path."""
    known = [str(table[name].iloc[row]) for name in ("patient_id", "image_id") if name in table]
    text = "/".join(each for each in known if each)
    if not text and "path" in table:
        text = str(table["path"].iloc[row])
    return f"row {row} ({text[:80]})"


def missing_text(table: pd.DataFrame, reasons: Mapping[int, str], source: str) -> str:
    """Say how many rows have no image, why, and which the first ones are."""
    lines = []
    for reason, count in Counter(reasons.values()).most_common():
        rows: Iterable[int] = [row for row in sorted(reasons) if reasons[row] == reason][:_SHOWN]
        names = ", ".join(name_of(table, row) for row in rows)
        lines.append(f"{count} {reason}: {names}{', ...' if count > _SHOWN else ''}")
    shown = "; ".join(lines[:_SHOWN]) + ("; ..." if len(lines) > _SHOWN else "")
    have = "has" if len(reasons) == 1 else "have"
    return f"{len(reasons)} of the table's {len(table)} rows {have} no image in {source}: {shown}"
