"""Takes a CSV, gives its columns by the names and types that every table here has."""

from __future__ import annotations

import csv
import difflib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmammo.conversion.inputs import PATH_COLUMNS
from fastmammo.errors import TableError
from fastmammo.training.values import MISSING, READERS, read_column, read_ids, some, words

if TYPE_CHECKING:
    from collections.abc import Sequence

GIVEN = (
    *("patient_id", "image_id", "laterality", "view", "cancer", "age", "site_id", "machine_id"),
    *("density", "implant", "biopsy", "invasive", "BIRADS", "difficult_negative_case", "path"),
    "fold",
)
"""The columns that a CSV may give."""

COLUMNS = (*GIVEN[:-2], "prediction_id", "path", "fold")
"""The columns of every table, in order; others of the CSV follow."""

_IDS = ("patient_id", "image_id", "site_id", "machine_id")
FLOATS = ("cancer", "age", "implant", "biopsy", "invasive", "BIRADS", "difficult_negative_case")


def read_csv(path: str) -> tuple[pd.DataFrame, list[int]]:
    """Give all cells as stripped text, and each row's line in the file."""
    rows: list[list[str]] = []
    lines: list[int] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            separator = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if any(row):  # spreadsheets leave lines of commas at the end
                    rows.append(row)
                    lines.append(reader.line_num)
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(
                f"{path}: not a CSV in UTF-8 (after line {len(rows) + 1}): {error}"
            ) from error
    if not rows:
        raise TableError(f"{path}: the table has no rows, wanted a header and a row an image")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise TableError(
            f"{path}: columns that stand twice: {', '.join(twice)}. Rename one of each"
        )
    ragged = [
        f"line {line} ({len(row)})"
        for row, line in zip(rows, lines, strict=True)
        if len(row) != len(header)
    ]
    if ragged:
        raise TableError(
            f"{path}: the header has {len(header)} columns, {len(ragged)} rows have another "
            f"number: {some(ragged)}. A cell with a {separator!r} in it wants quotes"
        )
    cells = zip(*rows, strict=True)
    # the column without a name is the index that pandas writes
    named = {
        name: [cell.strip() for cell in column]
        for name, column in zip(header, cells, strict=True)
        if name
    }
    return pd.DataFrame(named, dtype=str), lines


def find_columns(
    raw: pd.DataFrame, mapping: dict[str, str], where: str, labelled: bool
) -> dict[str, str]:
    """Give our name → the CSV's, for every column that is there."""
    have = {name.casefold(): name for name in raw.columns}
    have |= {name: name for name in raw.columns}  # an exact match goes first
    names: dict[str, str] = {}
    for ours in GIVEN:
        theirs = mapping.get(ours, ours)
        found = have.get(theirs, have.get(theirs.casefold()))
        if found is None and ours == "path" and ours not in mapping:
            found = next((have[name] for name in PATH_COLUMNS if name in have), None)
        if found is not None:
            names[ours] = found
        elif theirs and ours in mapping:
            raise TableError(f"{where}: columns: {_no_column(ours, theirs, raw)}")
    needed = ["patient_id", *(["cancer"] if labelled else [])]
    needed += [] if "path" in names else ["image_id"]
    for ours in needed:
        if ours not in names:
            raise TableError(f"{where}: {_no_column(ours, ours, raw)}")
    return names


def _no_column(ours: str, theirs: str, raw: pd.DataFrame) -> str:
    near = difflib.get_close_matches(theirs, [str(name) for name in raw.columns], 2, 0.5)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    have = some(raw.columns, 30) or "none"
    return f"no column {theirs!r}{hint}; it has {have}. Name it by columns='{ours}=...'"


def typed(
    raw: pd.DataFrame,
    names: dict[str, str],
    lines: Sequence[int],
    where: str,
    positive_labels: str,
    notes: list[str],
) -> pd.DataFrame:
    """Give the table with `COLUMNS` and what else the CSV has."""
    found: dict[str, Any] = {}
    for ours, theirs in names.items():
        texts = raw[theirs]
        if ours in _IDS:
            found[ours], said = read_ids(texts, ours, lines, where)
            notes += [said] if said else []
        elif ours == "cancer" and positive_labels:
            found[ours] = _chosen_labels(texts, positive_labels, where, notes)
        elif ours in READERS:
            found[ours] = read_column(texts, ours, lines, where)
        elif ours == "view":
            found[ours] = ["" if text.casefold() in MISSING else text.upper() for text in texts]
        else:
            found[ours] = list(texts)
    count = len(raw)
    for name in GIVEN:
        default = READERS[name][1] if name in READERS else ""
        found.setdefault(name, [default] * count)
    if "image_id" not in names:
        found["image_id"] = _ids_from_paths(found["patient_id"], found["path"])
    found["prediction_id"] = [
        f"{patient}_{side}"
        for patient, side in zip(found["patient_id"], found["laterality"], strict=True)
    ]
    own = raw.get("prediction_id")
    if own is not None and list(own) != found["prediction_id"]:
        notes.append("prediction_id: that of the table is not patient_laterality, which is used")
    table = pd.DataFrame({name: found[name] for name in COLUMNS})
    table = table.astype({**dict.fromkeys(FLOATS, np.float64), "fold": np.int64})
    used = set(names.values())
    rest = [name for name in raw.columns if name not in used and name not in COLUMNS]
    whole: pd.DataFrame = pd.concat([table, raw[rest]], axis=1)
    return whole


def _chosen_labels(
    texts: pd.Series[Any], positive_labels: str, where: str, notes: list[str]
) -> list[float]:
    wanted = {word.casefold() for word in words(positive_labels)}
    counts: dict[float, dict[str, int]] = {1.0: {}, 0.0: {}}
    labels = []
    for text in texts:
        word = text.casefold()
        label = 1.0 if word in wanted else np.nan if word in MISSING else 0.0
        labels.append(label)
        if label in counts:
            counts[label][text] = counts[label].get(text, 0) + 1
    said = {
        label: some([f"{text} ({count})" for text, count in by_text.items()], 10) or "none"
        for label, by_text in counts.items()
    }
    if not counts[1.0]:
        raise TableError(
            f"{where}: positive_labels: none of {positive_labels!r} is in the cancer column, which "
            f"has {said[0.0]}"
        )
    notes.append(f"cancer: positive are {said[1.0]}; negative are {said[0.0]}")
    return labels


def _ids_from_paths(patients: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Give the files' names without suffix, or the whole paths where names are not enough."""
    stems = [os.path.splitext(path.replace("\\", "/").rpartition("/")[2])[0] for path in paths]
    unique = len(set(zip(patients, stems, strict=True))) == len(stems)
    return stems if unique else list(paths)
