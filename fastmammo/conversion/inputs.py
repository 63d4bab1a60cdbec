"""Takes SRC (a folder, a file, a list or a CSV), gives the sorted inputs and their output names."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, NamedTuple

from fastmammo.conversion.names import STATE_FOLDER, is_component, is_dicom_name, output_name
from fastmammo.errors import ConvertError, FastMammoError, NotDicomError, OutputCollisionError

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
) -> list[Input]:
    """Find every input of a run, sorted by path. No file of a folder is opened.

    SRC is a folder of any shape (DST inside of it is left out), one DICOM file, a text list
    (`.txt`, one path a line), or a CSV (`.csv`): one with a path column, or RSNA's `train.csv`,
    whose patient_id and image_id give `image_root/patient_id/image_id.dcm`. Paths in a list or CSV
    start from `image_root`, or else from the folder of the list. patient_id and image_id come from
    the CSV or from a folder that is exactly `<patient>/<image>.dcm`, never from DICOM headers.

    Raises:
        ConvertError: SRC is not there, holds nothing, or its CSV has no usable column.
        OutputCollisionError: two DICOM files would give one output name.
        OSError: the list or CSV cannot be read.
    """
    source = os.path.abspath(src)
    if image_root is not None and not os.path.isdir(image_root):
        raise ConvertError(f"image_root is not a folder: {image_root}")
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
    elif source.lower().endswith(".csv"):
        inputs = _from_csv(source, image_root, path_column)
    elif source.lower().endswith(".txt"):
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            paths = [line.rstrip("\r\n") for line in file if line.strip()]
        base = os.path.abspath(image_root) if image_root else os.path.dirname(source)
        inputs = _rooted([(each, "", "") for each in paths], base, image_root)
    else:
        inputs = [_input(os.path.basename(source), source)]
    if not inputs:
        raise ConvertError(f"SRC holds no files: {source}")
    return _checked(sorted(inputs, key=lambda each: each.path))


def _input(path: str, source: str, patient_id: str = "", image_id: str = "") -> Input:
    return Input(path, source, output_name(path), patient_id, image_id)


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
        for entry in entries:
            path = _relative(entry.path, root)
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
    patient, image = columns.get("patient_id", ""), columns.get("image_id", "")
    if column is not None:
        base = os.path.abspath(image_root) if image_root else os.path.dirname(path)
        found = [
            (row[column] or "", row.get(patient) or "", row.get(image) or "")
            for row in rows
            if any(row.values())
        ]
        return _rooted(found, base, image_root)
    if not (patient and image):
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
        patient_id, image_id = (row[patient] or "").strip(), (row[image] or "").strip()
        name = f"{patient_id}/{image_id if is_dicom_name(image_id) else image_id + '.dcm'}"
        if is_component(patient_id) and is_component(image_id):
            found_input = _input(name, os.path.join(root, name), patient_id, image_id)
        else:  # "../../etc/passwd" as an image_id must not be opened
            message = f"patient_id {patient_id!r} and image_id {image_id!r} are no file names"
            found_input = _settled(name, "", "failed", "unsafe name", message)
        inputs.setdefault(name, found_input)
    return list(inputs.values())


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
        # one image may have several rows (one a lesion): it is converted once
        inputs.setdefault(path, _input(path, source, row[1], row[2])._replace(listed=row[0]))
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
        dicom = [index for index in rivals if _is_dicom(inputs[index].source)]
        if len(dicom) > 1:
            first, second = sorted(inputs[index].path for index in dicom[:2])
            raise OutputCollisionError(
                f"two inputs would give one output {name}: {first} and {second}. "
                "Rename or remove one of them, or convert them into two folders"
            )
        for index in set(rivals) - set(dicom):
            settled = ("skipped", NotDicomError().reason, "not a DICOM file")
            inputs[index] = _settled(inputs[index].path, inputs[index].source, *settled)
    return inputs


def _is_dicom(source: str) -> bool:
    from fastmammo.dicom import read

    try:
        read(source)
    except (NotDicomError, OSError):
        return False
    except FastMammoError:
        return True
    return True
