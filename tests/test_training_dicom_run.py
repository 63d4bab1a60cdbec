"""Runs straight from DICOM files: decoded once for all folds, bad files told together, reports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from training_runs import make_rows, make_set, small

from fastmammo.errors import TableError
from fastmammo.preprocess import Config
from fastmammo.report.cases import choose, load_cases
from fastmammo.testing import phantom, write_dicom
from fastmammo.training.members import open_run
from fastmammo.training.run import train
from fastmammo.training.sources import DicomSource

if TYPE_CHECKING:
    from pathlib import Path

    from fastmammo.training.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """files/<patient>/<image>.dcm of four patients, and table.csv."""
    folder = tmp_path_factory.mktemp("dicoms")
    rows = make_rows(4, 4)
    for seed, row in enumerate(rows.itertuples()):
        path = folder / "files" / str(row.patient_id) / f"{row.image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = phantom(96, 80, seed=seed).pixels
        write_dicom(pixels, path=path, transfer_syntax_uid="1.2.840.10008.1.2.1", seed=seed)
    rows.to_csv(folder / "table.csv", index=False)
    return folder


def settings_of(*, resume: bool = False) -> Settings:
    found = replace(small(epochs=1), preprocess=Config(size=(48, 32), flip="left"))
    return replace(found, loop=replace(found.loop, resume=resume))


def test_a_run_decodes_each_file_once_and_removes_what_it_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (folder / "table.csv", folder / "files", tmp_path / "run")
    result = train(*args, settings_of(), fold=0)
    assert any("the breast is at the left: augment=light" in line for line in result.notes)
    kept = tmp_path / "run" / "images-cache"
    assert any(f"kept in {kept}" in line for line in result.notes)
    assert kept.is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(DicomSource, "load", lambda self, files: pytest.fail("decoded again"))
        train(*args, settings_of(resume=True), fold=1)
    assert not kept.exists()
    # the report decodes what it shows, and draws the crop
    run = open_run(tmp_path / "run")
    oof, table = (
        pd.read_csv(tmp_path / "run" / name, dtype={"patient_id": str, "image_id": str})
        for name in ("oof.csv", "table.csv")
    )
    notes: list[str] = []
    cases = load_cases(run, table.assign(path=""), choose(oof, 1), notes)
    case = next(iter(cases.values()))[0]
    assert case.roi is not None
    row0, column0, row1, column1 = map(int, case.roi)
    outside = case.image.copy()
    outside[row0:row1, column0:column1] = 0
    assert 0 <= row0 < row1 <= 48
    assert 0 <= column0 < column1 <= 32
    assert not outside.any()
    assert any("Lesions are not drawn" in line for line in notes)


def test_a_run_tells_all_files_that_cannot_be_decoded(folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(folder / "files", files)
    broken = sorted(files.glob("*/*.dcm"))[3:6]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-2000])
    progress: list[int] = []
    with pytest.raises(TableError) as e:
        train(
            *(folder / "table.csv", files, tmp_path / "run", settings_of()),
            progress=lambda event: (
                progress.append(event["done"]) if event["event"] == "images" else None
            ),
        )
    text = str(e.value)
    assert "3 of the table's 16 rows have no image" in text
    assert all(path.name in text for path in broken)
    assert f"image_cache={tmp_path / 'run' / 'images-cache'}" in text
    assert progress[-1] == 16


def test_boxes_are_drawn_where_the_table_is_joined_by_path(tmp_path: Path) -> None:
    """The ids of such a table are not those of the manifest."""
    folder = make_set(tmp_path / "set", patients=6, positive=4)
    images = folder / "images"
    manifest = pd.read_csv(images / "manifest.csv", dtype=str)
    for name, at in (("row0", 1), ("column0", 0), ("row1", 30), ("column1", 12)):
        manifest[f"placed_{name}"] = at
    manifest["placed_row0"] = np.arange(len(manifest)) % 5
    manifest["patient_id"] = manifest["image_id"] = ""
    manifest.to_csv(images / "manifest.csv", index=False)
    boxes = pd.DataFrame({"output": "images.npy", "output_row": manifest["row"]})
    for name, edge in (("row0", 8), ("column0", 4), ("row1", 16), ("column1", 10)):
        boxes[f"{name}_output"] = edge
    boxes.to_csv(images / "boxes.csv", index=False)
    table = pd.read_csv(folder / "table.csv", dtype={"patient_id": str, "image_id": str})
    table["path"] = manifest["path"]
    table["image_id"] = [f"other{at}" for at in range(len(table))]
    table.to_csv(folder / "table.csv", index=False)
    train(folder / "table.csv", images, tmp_path / "run", small(epochs=1), fold=0)
    run = open_run(tmp_path / "run")
    ids = {"patient_id": str, "image_id": str}
    oof, typed = (pd.read_csv(tmp_path / "run" / f"{n}.csv", dtype=ids) for n in ("oof", "table"))
    notes: list[str] = []
    for found in load_cases(run, typed, choose(oof, 2), notes).values():
        assert found
        for case in found:
            place = int(case.row["image_id"].removeprefix("other"))
            assert case.roi == (place % 5, 0, 30, 12)
            assert case.lesions == [(8, 4, 16, 10)]
