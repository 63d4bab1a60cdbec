"""The RSNA-shaped set: its table, its files, its truth; the same whatever the workers."""

from __future__ import annotations

import csv
import fcntl
import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest

from fastmammo.errors import ConfigError, WorkerError
from fastmammo.testing import make_dataset
from fastmammo.testing.machines import MACHINES
from fastmammo.testing.plan import Row, make_plan
from fastmammo.testing.workers import run_jobs

if TYPE_CHECKING:
    from pathlib import Path

HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,"
    "machine_id,difficult_negative_case"
)
SETTINGS: dict[str, Any] = {
    "patients": 12,
    "seed": 5,
    "scale": 0.05,
    "positive_share": 0.1,
    "nuisance_share": 0.3,
    "noise": 0.2,
}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "set"
    seen: list[tuple[int, int]] = []
    found = make_dataset(folder, workers=2, on_image=lambda *n: seen.append(n), **SETTINGS)
    assert found == folder / "train.csv"
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    return folder


def test_the_table_has_rsna_s_columns_and_the_files_it_names(archive: Path) -> None:
    rows = table(archive / "train.csv")
    assert ",".join(rows[0]) == HEADER
    assert len({row["patient_id"] for row in rows}) == 12
    assert len({row["image_id"] for row in rows}) == len(rows)
    named = {
        archive / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm" for row in rows
    }
    assert named == set(archive.rglob("*.dcm"))
    assert sorted(path.name for path in archive.iterdir()) == [
        "lesions.csv",
        "train.csv",
        "train_images",
    ]
    assert [path.name for path in archive.parent.iterdir()] == ["set"]  # no leavings
    breasts = defaultdict(list)
    for row in rows:
        breasts[row["patient_id"], row["laterality"]].append(row)
    assert len(breasts) == 24
    for images in breasts.values():
        assert {"CC", "MLO"} <= {row["view"] for row in images}
        assert len({row["cancer"] for row in images}) == 1
    assert sum(images[0]["cancer"] == "1" for images in breasts.values()) == 2  # 10 % of 24


def test_headers_agree_with_the_table_and_the_machine(archive: Path) -> None:
    machines = {str(machine.machine_id): machine for machine in MACHINES}
    rows = table(archive / "train.csv")
    assert len({row["machine_id"] for row in rows}) >= 4
    assert {row["site_id"] for row in rows} == {"1", "2"}
    for row in rows:
        header = pydicom.dcmread(
            archive / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm"
        )
        machine = machines[row["machine_id"]]
        assert header.PatientID == row["patient_id"]
        assert header.ImageLaterality == row["laterality"]
        assert header.ViewPosition == row["view"]
        assert str(machine.site_id) == row["site_id"]
        assert header.file_meta.TransferSyntaxUID == machine.transfer_syntax_uid
        assert header.PhotometricInterpretation == machine.photometric_interpretation
        assert header.get("VOILUTFunction") == machine.voi_lut_function
        assert header.Rows == round(machine.size.rows * 0.05)
        assert header.BitsStored == machine.bits_stored
        assert np.size(header.WindowCenter) == machine.windows
        assert ("PixelSpacing" in header) == machine.has_pixel_spacing
        if not machine.declares_padding:
            assert "PixelPaddingValue" not in header
        if row["site_id"] == "2":
            assert row["BIRADS"] == row["density"] == ""
            assert row["implant"] == "0"
        # the window meets the values: not all is black or white under it
        pixels = header.pixel_array.astype(float)
        center, width = (
            float(np.ravel(header[k].value)[0]) for k in ("WindowCenter", "WindowWidth")
        )
        grey = np.abs(pixels - center) < width / 2
        assert grey.mean() > 0.1


def test_a_high_background_is_declared_as_a_range(archive: Path) -> None:
    rows = [row for row in table(archive / "train.csv") if row["machine_id"] == "29"]
    assert rows
    low_shares = []
    for row in rows:
        header = pydicom.dcmread(
            archive / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm"
        )
        if "PixelPaddingValue" not in header:
            continue
        assert (header.PixelPaddingValue, header.PixelPaddingRangeLimit) == (3044, 3204)
        low_shares.append((header.pixel_array == 3044).mean())
    assert np.median(low_shares) > 0.2


def test_lesions_lie_in_the_images_of_the_positive_breasts(archive: Path) -> None:
    rows = {row["image_id"]: row for row in table(archive / "train.csv")}
    lesions = table(archive / "lesions.csv")
    found = Counter(lesion["image_id"] for lesion in lesions)
    positive = {image_id for image_id, row in rows.items() if row["cancer"] == "1"}
    assert len(positive) >= 4
    assert set(found) <= positive
    assert len(found) >= 0.8 * len(positive)  # nuisances may cover one
    for lesion in lesions:
        row = rows[lesion["image_id"]]
        assert (lesion["patient_id"], lesion["laterality"]) == (
            row["patient_id"],
            row["laterality"],
        )
        box = [int(lesion[name]) for name in ("row0", "column0", "row1", "column1")]
        header = pydicom.dcmread(
            archive / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm",
            stop_before_pixels=True,
        )
        assert 0 <= box[0] < box[2] <= header.Rows
        assert 0 <= box[1] < box[3] <= header.Columns
        assert 0.2 <= float(lesion["contrast"]) <= 1.2


def test_the_same_seed_gives_the_same_set_whatever_the_workers(
    archive: Path, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "alone", workers=1, **SETTINGS)
    assert contents(tmp_path / "alone") == contents(archive)
    make_dataset(tmp_path / "other", workers=1, **{**SETTINGS, "seed": 6, "patients": 2})
    assert not set(contents(tmp_path / "other")) & set(contents(archive)) - {
        "train.csv",
        "lesions.csv",
    }


def test_copies_are_links_and_keep_the_truth(tmp_path: Path) -> None:
    make_dataset(
        tmp_path / "set",
        patients=40,
        distinct=3,
        workers=1,
        size=(96, 72),
        positive_share=0.05,
        transfer_syntax_uids=["1.2.840.10008.1.2.1"],
    )
    rows = table(tmp_path / "set" / "train.csv")
    images = {path.stem: path for path in (tmp_path / "set").rglob("*.dcm")}
    assert len(images) == len(rows) >= 160
    files = {path.stat().st_ino for path in images.values()}
    assert len(files) <= 3 * 2 * 4 * 2
    assert len({row["patient_id"] for row in rows}) == 40
    positive = {row["image_id"] for row in rows if row["cancer"] == "1"}
    assert len({(r["patient_id"], r["laterality"]) for r in rows if r["cancer"] == "1"}) == 4
    assert {lesion["image_id"] for lesion in table(tmp_path / "set" / "lesions.csv")} == positive
    # no file serves a positive and a negative row
    shared = {images[name].stat().st_ino for name in positive}
    assert not shared & {p.stat().st_ino for name, p in images.items() if name not in positive}


def test_shares_of_a_large_plan_are_those_of_rsna() -> None:
    rows = make_plan(patients=2000, seed=1, positive_share=0.02, nuisance_share=0.1, distinct=2000)
    assert 4.2 < len(rows) / 2000 < 5.2
    breasts = {(row.patient_id, row.columns["laterality"]) for row in rows}
    sick = {(r.patient_id, r.columns["laterality"]) for r in rows if r.columns["cancer"] == "1"}
    assert len(breasts) == 4000
    assert len(sick) == 80
    machines = Counter(row.columns["machine_id"] for row in rows)
    assert set(machines) >= {"49", "48", "29", "21", "93", "216"}
    assert 0.35 < machines["49"] / len(rows) < 0.55
    sigmoid = sum(row.recipe.machine.voi_lut_function == "SIGMOID" for row in rows) / len(rows)
    assert 0.15 < sigmoid < 0.28
    for row in rows:
        if row.columns["cancer"] == "1":
            assert row.recipe.lesions
            assert row.columns["biopsy"] == "1"
            assert row.columns["BIRADS"] in ("0.0", "" if row.columns["site_id"] == "2" else "0.0")
        else:
            assert not row.recipe.lesions
            assert row.columns["invasive"] == "0"


def test_lesions_and_ages_are_those_asked_for() -> None:
    def plan(**more: Any) -> list[Row]:
        settings = {"patients": 1500, "seed": 4, "positive_share": 0.3, "nuisance_share": 0.1}
        return make_plan(distinct=1500, **settings, **more)

    def age_gap(rows: list[Row]) -> float:
        ages: dict[bool, dict[str, float]] = {True: {}, False: {}}
        sick = {row.patient_id for row in rows if row.columns["cancer"] == "1"}
        for row in rows:
            if row.columns["age"]:
                ages[row.patient_id in sick][row.patient_id] = float(row.columns["age"])
        return float(np.mean([*ages[True].values()]) - np.mean([*ages[False].values()]))

    usual, even = plan(), plan(age_gap=0)
    assert 4.5 < age_gap(usual) < 7.5
    assert abs(age_gap(even)) < 1.5
    assert [row.recipe for row in even] == [row.recipe for row in usual]
    assert [row.columns | {"age": ""} for row in even] == [
        row.columns | {"age": ""} for row in usual
    ]
    chosen = plan(lesion_kinds=("round mass", "calcifications"), lesion_contrast=(0.7, 1.1))
    lesions = {(row.recipe.lesions, row.recipe.lesion_contrast) for row in chosen}
    contrasts = {
        kind: [contrast for kinds, contrast in lesions if kinds == (kind,)]
        for kind in ("round mass", "calcifications")
    }
    assert {kinds for kinds, _ in lesions} == {(), ("round mass",), ("calcifications",)}
    assert 0.7 <= min(contrasts["round mass"]) < 0.75 < 1.05 < max(contrasts["round mass"]) <= 1.1
    assert min(contrasts["calcifications"]) >= 1.4
    assert [row.columns for row in chosen] == [row.columns for row in usual]


def test_the_default_plan_stays_as_it_was() -> None:
    rows = make_plan(patients=50, seed=3, positive_share=0.2, nuisance_share=0.3, distinct=40)
    text = repr([(row.columns, asdict(row.recipe)) for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "817480de0ab24a4f"


def test_a_folder_in_use_is_refused_and_a_dead_run_s_leavings_are_replaced(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patients": 1, "size": (32, 24), "workers": 1, "noise": 0}
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "half.dcm").write_bytes(b"half")
    (tmp_path / "set").mkdir()
    make_dataset(tmp_path / "set", **settings)
    assert not list(tmp_path.rglob("half.dcm"))
    with pytest.raises(ConfigError, match="set is not empty; give a new folder"):
        make_dataset(tmp_path / "set", **settings)
    with open(tmp_path / ".other.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is filling"):
            make_dataset(tmp_path / "other", **settings)
    assert not (tmp_path / "other").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="noise -1"):
        make_dataset(tmp_path / "set", patients=1, size=(32, 24), workers=1, noise=-1)
    with pytest.raises(WorkerError, match="noise -1"):
        make_dataset(tmp_path / "set", patients=1, size=(32, 24), workers=2, noise=-1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patients": 0}, "patients 0; wanted 1 to 500000"),
        ({"size": "huge"}, "size 'huge'"),
        ({"scale": 0}, "scale 0; wanted above 0"),
        ({"transfer_syntax_uids": ["1.2.3"]}, "transfer_syntax_uids ['1.2.3']"),
        ({"positive_share": 2}, "positive_share 2; wanted 0 to 1"),
        ({"nuisance_share": -1}, "nuisance_share -1"),
        ({"distinct": 0}, "distinct 0; wanted None, or 1 or more"),
        ({"workers": 0}, "workers 0; wanted 1 or more"),
        ({"lesion_kinds": []}, "lesion_kinds []; wanted some of ['calcifications'"),
        ({"lesion_kinds": ["cyst"]}, "lesion_kinds ['cyst']"),
        ({"lesion_contrast": (0, 0.5)}, "lesion_contrast (0, 0.5); wanted 0 < low <= high <= 2.5"),
        ({"lesion_contrast": (0.6, 0.5)}, "lesion_contrast (0.6, 0.5)"),
        ({"lesion_contrast": (1, 3)}, "lesion_contrast (1, 3)"),
        ({"age_gap": 31}, "age_gap 31; wanted -30 to 30 years"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_dataset(tmp_path / "set", **options)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_workers_answer_in_order_and_a_dead_one_is_named() -> None:
    assert run_jobs("math:sqrt", [float(n * n) for n in range(9)], 2) == list(range(9))
    with pytest.raises(WorkerError, match=r"math:sqrt failed on -1\.0"):
        run_jobs("math:sqrt", [4.0, -1.0], 2)
    with pytest.raises(WorkerError, match=r"a worker died \(exit code 7\)"):
        run_jobs("os:_exit", [7, 7], 2)
    with pytest.raises(ZeroDivisionError):  # the caller's own error comes back as it is
        run_jobs("math:sqrt", [4.0, 9.0], 2, lambda done: 1 // (done - done))
