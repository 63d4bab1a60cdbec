"""Takes a folder of images that comes without a table, gives one: patients, sides and views."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastmammo.conversion.inputs import find_inputs
from fastmammo.conversion.names import is_dicom_name
from fastmammo.dicom import read
from fastmammo.errors import FastMammoError, NotDicomError, NotImageError, TableError
from fastmammo.training.columns import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT = (
    *("patient_id", "image_id", "laterality", "view", "site_id", "machine_id", "density"),
    *("prediction_id", "path"),
)


def table_of_images(
    source: str | os.PathLike[str], note: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Return a table, as `read_table` gives it, of all images of a folder; nothing is labelled.

    Of a folder of `convert` the manifest tells; of DICOMs their headers do. The patient is that of
    the manifest, or of a layout <patient>/<image>.dcm, or else the header's Patient ID (0010,0020);
    where nothing tells, the image stands for itself.

    Args:
        source: a folder of `convert`, or of DICOM files.
        note: called with each sentence that the user should read.

    Raises:
        TableError: the folder holds no image.
    """
    folder = Path(source)
    tell = note or (lambda line: None)
    if (folder / "manifest.csv").is_file():
        found = _of_manifest(folder, tell)
    else:
        found = _of_headers(folder, tell)
    if not found:
        raise TableError(f"{folder} holds no mammogram, neither converted nor as DICOM")
    unknown = sum(not each["patient_id"] for each in found)
    sideless = sum(not each["laterality"] for each in found)
    for each in found:
        each["patient_id"] = each["patient_id"] or each["image_id"]
        each["prediction_id"] = f"{each['patient_id']}_{each['laterality']}"
    if unknown:
        tell(f"{unknown} of {len(found)} images tell no patient: each is scored by itself")
    if sideless:
        tell(f"{sideless} of {len(found)} images tell no laterality: their scores are by patient")
    table = pd.DataFrame(found)
    for name in COLUMNS:
        if name not in table:
            table[name] = "" if name in _TEXT else -1 if name == "fold" else np.nan
    typed: pd.DataFrame = table[list(COLUMNS)].astype({"fold": np.int64})
    return typed


def _of_manifest(folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    lacking = {"path", "status"} - set(manifest.columns)
    if lacking:
        raise TableError(
            f"{folder / 'manifest.csv'} has no column {', '.join(sorted(lacking))}: no manifest of "
            "`fastmammo convert`; name the folder that it has written"
        )
    good = manifest[manifest["status"] == "ok"]
    if len(good) < len(manifest):
        tell(f"{len(manifest) - len(good)} of {len(manifest)} files were not converted: no scores")
    names = ("patient_id", "image_id", "laterality", "view_position")
    rows = []
    for row in good.to_dict("records"):
        patient, image, side, view = (str(row.get(name, "")) for name in names)
        rows.append(_row(str(row["path"]), patient, image, side, view))
    return rows


def _of_headers(folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    rows, failed = [], []
    for each in find_inputs(folder, os.devnull):
        if each.status:
            continue
        try:
            header = read(each.source)
        except (NotDicomError, NotImageError):
            continue  # what else lies in the folder
        except (FastMammoError, OSError) as error:
            failed.append(f"{each.path} ({error})")
            continue
        patient = each.patient_id or header.patient_id
        side, view = header.image_laterality, header.view_position
        rows.append(_row(each.path, patient, each.image_id, side, view))
    if failed:
        tell(f"{len(failed)} files cannot be read, no scores; the first: {failed[0]}")
    return rows


def _row(path: str, patient: str, image: str, side: str, view: str) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0]  # of 1.2.840.1 it is no suffix that the last dot begins
    return {
        "patient_id": patient,
        "image_id": image or (stem if is_dicom_name(name) else name),
        "laterality": side if side in ("L", "R") else "",
        "view": view,
        "path": path,
    }
