"""Takes SRC (a folder, a file, a list or a CSV), gives the sorted inputs and their output names."""

from __future__ import annotations

import csv
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from fastmammo.conversion.names import (
    OWN_FILES,
    STATE_FOLDER,
    is_component,
    is_dicom_name,
    output_name,
)
from fastmammo.errors import ConfigError, ConvertError, NotDicomError, OutputCollisionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATH_COLUMNS = ("path", "filename", "file", "file_path", "filepath", "dicom_path", "dicom")


class Input(NamedTuple):
    """One file to convert, or one row that says why it cannot be."""

    path: str
    """Relative to SRC (a list or CSV: to the common root), with "/": the key of the manifest."""
    source: str
    """The absolute path to open."""
    name: str
    """The output's path below DST without its suffix; empty where there will be none."""
    patient_id: str = ""
    image_id: str = ""
    listed: str = ""
    """The path as a list or CSV has it, to join by."""
    meant: bool = False
    """Whether the user named it, or its name says DICOM: it has failed if it is none."""
    rows: int = 1
    """How many rows of a list or CSV name it."""
    status: str = ""
    """Empty: to be converted. "failed" or "skipped": settled while looking, see `reason`."""
    reason: str = ""
    message: str = ""


def find_inputs(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    image_root: str | None = None,
    path_column: str | None = None,
    follow_links: bool = False,
    keep_names: bool = False,
) -> list[Input]:
    """Find every input of a run, sorted by path. A file is opened only if two share a name.

    SRC is a folder of any shape (DST inside of it is left out), one DICOM file, a text list
    (`.txt`, one path a line), or a CSV (`.csv`): one with a path column, or RSNA's `train.csv`,
    whose patient_id and image_id give `image_root/patient_id/image_id.dcm`. Paths in a list or CSV
    start from `image_root`, or else from the folder of the list. patient_id and image_id come from
    the CSV or from a folder that is exactly `<patient>/<image>.dcm`, never from DICOM headers.

    Args:
        keep_names: outputs get the inputs' own names, suffix and all; two never share one.

    Raises:
        ConfigError: an option that says nothing about such a SRC.
        ConvertError: SRC is not there, holds nothing, or its CSV has no usable column.
        OutputCollisionError: two DICOM files would give one output name.
        OSError: the list or CSV cannot be read.
    """
    source = os.path.abspath(src)
    if image_root is not None and not os.path.isdir(image_root):
        raise ConvertError(f"image_root is not a folder: {image_root}")
    is_csv, is_list = (
        source.lower().endswith(suffix) and not os.path.isdir(source) for suffix in (".csv", ".txt")
    )
    for option, value, fits, wanted in (
        ("path_column", path_column, is_csv, "a CSV"),
        ("image_root", image_root, is_csv or is_list, "a list or CSV"),
    ):
        if value is not None and not fits and os.path.exists(source):
            raise ConfigError(f"{option}: got {value!r}, but SRC is not {wanted}: {source}")
    if os.path.isdir(source):
        destination = os.path.realpath(dst)
        if destination == os.path.realpath(source):
            raise ConvertError(
                f"SRC and DST are the same folder: {source}. Name another folder for DST"
            )
        inputs = _with_layout(list(_walk(source, destination, follow_links)))
    elif not os.path.exists(source):
        raise ConvertError(
            f"SRC is not there: {source}. Wanted a folder, a DICOM file, a .txt list or a .csv"
        )
    elif is_csv:
        inputs = _from_csv(source, image_root, path_column)
    elif is_list:
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            paths = [line.rstrip("\r\n") for line in file if line.strip()]
        base = os.path.abspath(image_root) if image_root else os.path.dirname(source)
        inputs = _rooted([(each, "", "") for each in paths], base, image_root)
    else:
        inputs = [_input(os.path.basename(source), source)._replace(meant=True)]
    if not inputs:
        raise ConvertError(f"SRC holds no files: {source}")
    inputs.sort(key=lambda each: each.path)
    if keep_names:
        return [each._replace(name=each.path) if each.name else each for each in inputs]
    return _checked(inputs)


def _input(path: str, source: str, patient_id: str = "", image_id: str = "") -> Input:
    name, meant = output_name(path), is_dicom_name(path)
    return Input(path, source, name, patient_id, image_id, meant=meant)


def _settled(path: str, source: str, status: str, reason: str, message: str) -> Input:
    return Input(path, source, "", status=status, reason=reason, message=message)


def _walk(root: str, destination: str, follow_links: bool) -> Iterator[Input]:
    real_root = os.path.realpath(root)
    seen = {real_root}  # with follow_links a link to a folder above would never end
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            # a folder that cannot be listed is a row: its files must not vanish unsaid
            path = _relative(folder, root)
            yield _settled(path, folder, "failed", "unreadable folder", str(error.strerror))
            continue
        if folder != root and _has_state(entries):
            message = "an earlier run's DST: its outputs are no inputs, unless it is named as SRC"
            yield _settled(_relative(folder, root), folder, "skipped", "made by fastmammo", message)
            continue
        own = {STATE_FOLDER, *OWN_FILES} if _has_state(entries) else set()
        for entry in entries:
            path = _relative(entry.path, root)
            if entry.name in own:  # tables of the run that made SRC
                continue
            if not _is_folder(entry):
                outside = entry.is_symlink() and not _inside(entry.path, real_root)
                if outside and os.path.exists(entry.path) and not follow_links:
                    message = "the link leads out of SRC: see follow_links"
                    yield _settled(path, entry.path, "failed", "link out of SRC", message)
                else:
                    yield _input(path, entry.path)
                continue
            if entry.is_symlink() and not follow_links:
                message = "a link to a folder is not followed: see follow_links"
                yield _settled(path, entry.path, "skipped", "link to a folder", message)
                continue
            real = os.path.realpath(entry.path)
            if real == destination or entry.name == STATE_FOLDER or real in seen:
                continue
            if follow_links:
                seen.add(real)
            folders.append(entry.path)


def _has_state(entries: list[os.DirEntry[str]]) -> bool:
    return any(entry.name == STATE_FOLDER for entry in entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say: it becomes a row that tells why


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _inside(path: str, real_root: str) -> bool:
    return os.path.realpath(path).startswith(real_root.rstrip(os.sep) + os.sep)


def _with_layout(inputs: list[Input]) -> list[Input]:
    """Take patient_id and image_id from the paths, if all DICOM names are <patient>/<image>.dcm."""
    named = [each for each in inputs if is_dicom_name(each.path)]
    if not named or any(each.path.count("/") != 1 for each in named):
        return inputs
    return [
        each._replace(
            patient_id=each.path.split("/")[0],
            image_id=each.path.split("/")[1].rpartition(".")[0],
        )
        if is_dicom_name(each.path)
        else each
        for each in inputs
    ]


def _from_csv(path: str, image_root: str | None, path_column: str | None) -> list[Input]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
            rows = list(reader)
        except csv.Error as error:
            raise ConvertError(f"{path}: not a CSV (line {reader.line_num}): {error}") from error
    if path_column is not None and path_column.lower() not in columns:
        raise ConvertError(
            f"{path}: no column {path_column!r} (path_column); its columns are {', '.join(columns)}"
        )
    wanted = (path_column.lower(),) if path_column else PATH_COLUMNS
    column = next((columns[name] for name in wanted if name in columns), None)
    patient, image = columns.get("patient_id"), columns.get("image_id")
    if column is not None:
        base = os.path.abspath(image_root) if image_root else os.path.dirname(path)
        found = [
            (row[column] or "", _cell(row, patient), _cell(row, image))
            for row in rows
            if any(row.values())
        ]
        return _rooted(found, base, image_root)
    if patient is None or image is None:
        raise ConvertError(
            f"{path}: no column with paths; its columns are {', '.join(columns) or 'none'}. Wanted "
            f"one of {', '.join(PATH_COLUMNS)}, or patient_id and image_id, or path_column"
        )
    if image_root is None:
        raise ConvertError(
            f"{path}: patient_id and image_id name the files only below a folder: set image_root "
            "(RSNA: the folder train_images)"
        )
    root = os.path.abspath(image_root)
    inputs: dict[str, Input] = {}
    for row in rows:
        patient_id, image_id = _cell(row, patient), _cell(row, image)
        name = f"{patient_id}/{image_id if is_dicom_name(image_id) else image_id + '.dcm'}"
        if is_component(patient_id) and is_component(image_id):
            found_input = _input(name, os.path.join(root, name), patient_id, image_id)
        else:  # "../../etc/passwd" as an image_id must not be opened
            message = f"patient_id {patient_id!r} and image_id {image_id!r} are no file names"
            found_input = _settled(name, "", "failed", "unsafe name", message)
        _add(inputs, found_input)
    return list(inputs.values())


def _cell(row: dict[str, str], column: str | None) -> str:
    # a column that is not there is None: the name "" is that of the index in pandas' files
    return "" if column is None else (row[column] or "").strip()


def _add(inputs: dict[str, Input], found: Input) -> None:
    """Add an input, once: an image with a row for each of its lesions is converted once."""
    earlier = inputs.get(found.path)
    inputs[found.path] = found if earlier is None else earlier._replace(rows=earlier.rows + 1)


def _rooted(rows: Sequence[tuple[str, str, str]], base: str, image_root: str | None) -> list[Input]:
    """Give inputs for (path, patient_id, image_id), named relative to what they have in common."""
    inputs: dict[str, Input] = {}
    sources = [os.path.normpath(os.path.join(base, each[0])) for each in rows]
    usable = [bool(each[0].strip()) and "\0" not in each[0] for each in rows]
    named = [source for source, use in zip(sources, usable, strict=True) if use]
    if not named:
        return []
    # Below the list's folder (or image_root) names are relative to it, whatever else is listed;
    # paths that lie elsewhere are named relative to what they have in common.
    root = os.path.commonpath([os.path.dirname(each) for each in named])
    if (root + os.sep).startswith(base.rstrip(os.sep) + os.sep):
        root = base
    for number, (source, row) in enumerate(zip(sources, rows, strict=True), start=1):
        if not usable[number - 1]:
            path = f"row {number}"
            inputs[path] = _settled(path, "", "failed", "no path", "the row names no file")
            continue
        path = _relative(source, root)
        found = _input(path, source, row[1], row[2])
        _add(inputs, found._replace(listed=row[0], meant=True))
    return list(inputs.values())


def _checked(inputs: list[Input]) -> list[Input]:
    """Refuse two DICOM files of one output name; files that are no DICOM give no output."""
    by_name: dict[str, list[int]] = {}
    for index, each in enumerate(inputs):
        if each.name:
            by_name.setdefault(each.name, []).append(index)
    for name, indices in list(by_name.items()):
        # the output of "a" is the file a.png, which cannot be the folder of "a.png/b" too
        folders = [name[:end] for end, c in enumerate(name) if c == "/"]
        files = [folder[:-4] for folder in folders if folder.endswith((".png", ".raw"))]
        rivals = [*indices, *(index for file in files for index in by_name.get(file, ()))]
        if len(rivals) == 1:
            continue
        dicom = [index for index in rivals if begins_as_dicom(inputs[index].source)]
        if len(dicom) > 1:
            first, second = sorted(inputs[index].path for index in dicom[:2])
            raise OutputCollisionError(
                f"two inputs would give one output {name}: {first} and {second}. "
                "Rename or remove one of them, or convert them into two folders"
            )
        for index in set(rivals) - set(dicom):
            status = "failed" if inputs[index].meant else "skipped"
            reason, message = NotDicomError().reason, "not a DICOM file"
            inputs[index] = inputs[index]._replace(
                name="", status=status, reason=reason, message=message
            )
    return inputs


def begins_as_dicom(source: str) -> bool:
    """Whether a file begins as `dicom.read` wants it; no other byte of it is read here."""
    from fastmammo.dicom import looks_like_dicom

    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            return False  # opening a named pipe would wait for ever
        with open(source, "rb", buffering=0) as file:
            head = file.read(132)
    except OSError:
        return False
    return looks_like_dicom(head)
