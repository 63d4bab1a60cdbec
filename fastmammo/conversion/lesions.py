"""Takes a table of lesion boxes on the DICOMs, gives boxes.csv: where they lie on the outputs."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fastmammo.conversion.inputs import PATH_COLUMNS
from fastmammo.conversion.manifest import write_csv
from fastmammo.conversion.results import FILTERED
from fastmammo.errors import ConfigError
from fastmammo.preprocess import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastmammo.conversion.inputs import Input
    from fastmammo.conversion.results import Results

NAME = "boxes.csv"

COLUMN_SETS = (
    ("row0", "column0", "row1", "column1"),
    ("y0", "x0", "y1", "x1"),
    ("ymin", "xmin", "ymax", "xmax"),
    ("y_min", "x_min", "y_max", "x_max"),
)
"""Names of a box's columns: those of `fastmammo.testing`, the usual ones, VinDr-Mammo's."""

_ADDED = ("output", "output_row", "inside_share", "reason")
_LARGEST = 1e6


class Box(NamedTuple):
    """One row of the table."""

    values: list[str]
    edges: tuple[float, float, float, float]
    """row0, column0, row1, column1 in the DICOM's pixels."""


@dataclass
class Boxes:
    """A table of boxes: read before a run starts, written beside the manifest at its end.

    Edges are in the pixels of the DICOM, from 0 at the outer edge of the first one; they may be
    fractions. A box is half-open: it covers the pixels x0 <= x < x1. (A table that counts the last
    pixel in is off by that pixel: add 1 to its second edges.)
    """

    path: str
    columns: list[str]
    edges: tuple[str, ...]
    """The names of the box's columns, as the table spells them: row0, column0, row1, column1."""
    keys: dict[str, int]
    """Where the columns stand that name the file: path, sop_instance_uid, image_id, patient_id."""
    rows: list[Box]
    empty: int
    """Rows without a box, which are left out."""
    base: str
    """The folder that relative paths start from."""

    def write(
        self,
        dst: str,
        inputs: Sequence[Input],
        results: Results,
        size: tuple[int, int],
        array_row: Callable[[str], int | None],
        *,
        packed: bool,
    ) -> dict[str, int]:
        """Write boxes.csv, in the table's order, and return how many boxes came out how.

        It has the table's columns and further `output` and `output_row` as the manifest's output
        and row; the box on the output's pixels, cut to what of the image is in the crop, under the
        table's own names with _output behind; `inside_share`, how much of the box's area that is;
        and `reason`, why a box is not mapped. It depends on the table, the journal and the settings
        alone.
        """
        outcomes: Counter[str] = Counter()
        find = self._finder(inputs, results)
        mapped_names = [f"{name}_output" for name in self.edges]

        def rows() -> Iterator[dict[str, Any]]:
            for box in self.rows:
                row: dict[str, Any] = dict(zip(self.columns, box.values, strict=True))
                found, row["reason"] = find(box.values)
                entry = None if found is None else results.get(found.path)
                if found is not None:
                    row["reason"] = _not_ok(entry)
                if found is not None and entry is not None and not row["reason"]:
                    geometry = Geometry.from_record(entry["record"], size)
                    share, row["reason"] = _inside(box.edges, geometry)
                    place = array_row(found.path) if packed else None
                    # the array is made when all files are done
                    row["output"] = entry["output"] if place is not None or not packed else ""
                    row["output_row"] = place
                    row["inside_share"] = f"{share:.4f}"
                    if not row["reason"]:
                        mapped = geometry.to_output(box.edges, clip=True).tolist()
                        texts = (f"{edge:.3f}" for edge in mapped)
                        row.update(zip(mapped_names, texts, strict=True))
                outcomes[row["reason"] or "mapped"] += 1
                yield row

        columns = [*self.columns, *_ADDED[:2], *mapped_names, *_ADDED[2:]]
        write_csv(dst, NAME, columns, rows(), results.journal.partial_folder)
        return {"mapped": outcomes.pop("mapped", 0), **dict(sorted(outcomes.items()))}

    def _finder(
        self, inputs: Sequence[Input], results: Results
    ) -> Callable[[list[str]], tuple[Input | None, str]]:
        """Return a function from a row's values to its input, or to why there is none."""
        index: dict[str, list[Input]] = {}
        kind = next(iter(self.keys))

        def add(name: str, each: Input) -> None:
            listed = index.setdefault(name, [])
            if name and each not in listed:
                listed.append(each)

        for each in inputs:
            if kind == "path":
                for name in (each.path, each.listed, each.source):
                    add(name, each)
            elif kind == "image_id" and not _no_image(results.get(each.path)):
                add(each.image_id or _stem(each.path), each)
            elif kind == "sop_instance_uid":
                record = (results.get(each.path) or {}).get("record", {})
                add(record.get("sop_instance_uid", ""), each)

        def find(values: list[str]) -> tuple[Input | None, str]:
            wanted = values[self.keys[kind]].strip()
            found = index.get(wanted, [])
            if kind == "path" and wanted and not found:
                found = index.get(os.path.normpath(os.path.join(self.base, wanted)), [])
            if kind == "image_id" and "patient_id" in self.keys:
                patient = values[self.keys["patient_id"]].strip()
                found = [
                    each
                    for each in found
                    if patient in ("", each.patient_id) or not each.patient_id
                ]
            if len(found) != 1:
                return None, "several files" if found else "no such file"
            return found[0], ""

        return find


def _stem(path: str) -> str:
    """Return a file's name without the suffix of DICOM: of 1.2.840.1.dcm and 1.2.840.1 the same."""
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (".dcm", ".dicom", ".ima", ".dic") else name


def read_boxes(path: str, dst: str, *, image_root: str | None, path_column: str | None) -> Boxes:
    """Read a CSV of boxes.

    A file is named by a path column (`path_column`, or one of `inputs.PATH_COLUMNS`; relative to
    SRC, as SRC's list has it, or relative to `image_root` or the table), else by
    sop_instance_uid, else by image_id (of the manifest, or the file's name without its suffix),
    with patient_id where both have it. Rows whose four edges are empty (or nan) have no box.

    Raises:
        ConfigError: the table cannot be read or used; says the line and what is wrong there.
    """
    if os.path.realpath(path) == os.path.realpath(os.path.join(dst, NAME)):
        raise ConfigError(f"boxes: {path} is what this run would write: move it out of DST")
    lines = _lines(path)
    _, columns = next(lines, (0, []))
    columns = [name.strip() for name in columns]
    names = [name.lower() for name in columns]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"boxes: {path}, line 1: column {name!r} stands there twice")
    sets = [each for each in COLUMN_SETS if set(each) <= set(names)]
    if len(sets) != 1:
        wanted = "; ".join(", ".join(each) for each in COLUMN_SETS)
        raise ConfigError(
            f"boxes: {path}, line 1: got {'more than one set' if sets else 'no set'} of box "
            f"columns, its columns are {_brief(columns)}; wanted one of: {wanted}"
        )
    at = [names.index(name) for name in sets[0]]
    added = {*_ADDED, *(f"{columns[index]}_output" for index in at)} & set(columns)
    if added:
        raise ConfigError(
            f"boxes: {path}, line 1: column {min(added)} is one that {NAME} adds: rename it"
        )
    rows = []
    empty = 0
    for number, values in lines:
        if len(values) != len(columns):
            raise ConfigError(
                f"boxes: {path}, line {number}: got {len(values)} values, wanted {len(columns)}, "
                "as the first line has them"
            )
        edges = _edges([values[index].strip() for index in at], sets[0], f"{path}, line {number}")
        if edges is None:
            empty += 1
        else:
            rows.append(Box(values, edges))
    return Boxes(
        path=path,
        columns=columns,
        edges=tuple(columns[index] for index in at),
        keys=_keys(names, path, path_column),
        rows=rows,
        empty=empty,
        base=os.path.abspath(image_root or os.path.dirname(path) or "."),
    )


def drop_boxes(dst: str) -> None:
    """Remove a boxes.csv that an earlier run has written; one of another kind stays."""
    path = os.path.join(dst, NAME)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            ours = file.readline(1 << 16).rstrip("\n").endswith("_output," + ",".join(_ADDED[2:]))
    except OSError:
        return
    if ours:
        os.unlink(path)


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its last line, values) of each row that is not blank."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for values in reader:
                    if any(value.strip() for value in values):
                        yield reader.line_num, values
            except csv.Error as error:
                raise ConfigError(
                    f"boxes: {path}, line {reader.line_num}: not a CSV: {error}"
                ) from error
    except OSError as error:
        raise ConfigError(f"boxes: {path} cannot be read: {error.strerror}") from error


def _keys(names: list[str], path: str, path_column: str | None) -> dict[str, int]:
    """Return where the columns stand that name a file: the first is looked up."""
    paths = ((path_column or "").lower(), *PATH_COLUMNS)
    for name in paths:
        if name and name in names:
            return {"path": names.index(name)}
    if "sop_instance_uid" in names:
        return {"sop_instance_uid": names.index("sop_instance_uid")}
    if "image_id" in names:
        known = [name for name in ("image_id", "patient_id") if name in names]
        return {name: names.index(name) for name in known}
    raise ConfigError(
        f"boxes: {path}, line 1: no column names the file, its columns are {_brief(names)}; wanted "
        f"image_id, sop_instance_uid, or one of {', '.join(PATH_COLUMNS)}"
    )


def _edges(
    texts: list[str], names: tuple[str, ...], where: str
) -> tuple[float, float, float, float] | None:
    """Return a box, or None where there is none."""
    if all(text.lower() in ("", "nan") for text in texts):
        return None
    try:
        row0, column0, row1, column1 = (float(text) for text in texts)
    except ValueError:
        row0 = row1 = column0 = column1 = math.nan
    box = row0, column0, row1, column1
    # NaN is neither more nor less
    if not (all(abs(edge) <= _LARGEST for edge in box) and row0 < row1 and column0 < column1):
        got = ", ".join(f"{name} {text[:40]!r}" for name, text in zip(names, texts, strict=True))
        raise ConfigError(
            f"boxes: {where}: got {got}; wanted numbers with {names[0]} < {names[2]} and "
            f"{names[1]} < {names[3]}, or all four empty"
        )
    return box


def _inside(box: tuple[float, ...], geometry: Geometry) -> tuple[float, str]:
    """Return how much of a box's area is in the crop, and why it is not mapped, if it is not."""
    share = _overlap(box, geometry.box)
    if share > 0:
        return share, ""
    in_frame = _overlap(box, (0, 0, geometry.rows, geometry.columns)) > 0
    return 0.0, "outside the crop" if in_frame else "outside the image"


def _overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the share of a box that lies in another."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    return height * width / ((box[2] - box[0]) * (box[3] - box[1]))


def _not_ok(entry: dict[str, Any] | None) -> str:
    """Return why a file has no output, or ""."""
    if entry is None:
        return "file not done"
    if entry["status"] == "ok":
        return ""
    return FILTERED if entry["reason"] == FILTERED else f"file {entry['status']}"


def _no_image(entry: dict[str, Any] | None) -> bool:
    """Whether a file is known to be none: a PNG beside the DICOM may bear its name."""
    return entry is not None and entry["status"] == "skipped" and entry["reason"] != FILTERED


def _brief(names: list[str]) -> str:
    """Return the names of columns, of a file that may be anything."""
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return f"{shown}, ..." if len(names) > 20 else shown or "none"
