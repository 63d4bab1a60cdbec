"""Lesion boxes: from the DICOMs' pixels to the outputs', in boxes.csv, whatever was done when."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import convert_standin
import numpy as np
import pytest
from PIL import Image

from fastmammo.cli import main
from fastmammo.conversion import ConvertOptions, Summary, convert
from fastmammo.conversion.lesions import read_boxes
from fastmammo.errors import ConfigError
from fastmammo.preprocess import Config, Geometry, Preprocessor
from fastmammo.testing import make_dataset, phantom, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = Config(size=convert_standin.SIZE)
OUTPUT = ("row0_output", "column0_output", "row1_output", "column1_output")


def run(src: Path, dst: Path, **options: Any) -> Summary:
    chosen = ConvertOptions(**{"workers": 1, **options})
    name = convert_standin.PREPROCESSOR
    return convert(src, dst, config=CONFIG, options=chosen, preprocessor=name)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def floats(row: dict[str, str], names: tuple[str, ...]) -> list[float]:
    return [float(row[name]) for name in names]


# ---------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSNA-shaped set of small phantoms, every breast with a lesion."""
    root = tmp_path_factory.mktemp("archive") / "set"
    make_dataset(
        root,
        patients=2,
        seed=4,
        workers=1,
        scale=0.15,
        positive_share=1,
        noise=0.2,
        nuisance_share=0,
    )
    return root


@pytest.mark.parametrize("spacing", [None, 0.8])
@pytest.mark.parametrize("flip", ["none", "right"])
def test_boxes_of_an_archive(
    archive: Path, tmp_path: Path, spacing: float | None, flip: str
) -> None:
    config = Config(size=(380, 320), flip=flip, spacing_mm=spacing)
    options = ConvertOptions(workers=1, format="packed", boxes=str(archive / "lesions.csv"))
    summary = convert(archive / "train_images", tmp_path, config=config, options=options)
    given, found = rows_of(archive / "lesions.csv"), rows_of(tmp_path / "boxes.csv")
    manifest = {row["image_id"]: row for row in rows_of(tmp_path / "manifest.csv")}
    array = np.load(tmp_path / "images.npy")
    prepare = Preprocessor(config).prepare
    assert len(given) == len(found) > 3
    assert summary.boxes["mapped"] == sum(not row["reason"] for row in found)
    whole = 0
    for before, after in zip(given, found, strict=True):
        assert {name: after[name] for name in before} == before
        row = manifest[before["image_id"]]
        assert (after["output"], after["output_row"]) == (row["output"], row["row"])
        prepared = prepare(archive / "train_images" / row["path"])
        np.testing.assert_array_equal(array[int(after["output_row"])], prepared.image)
        box = floats(before, ("row0", "column0", "row1", "column1"))
        r0, c0, r1, c1 = box
        crop = prepared.geometry.box
        height = min(r1, crop[2]) - max(r0, crop[0])
        share = max(0, height) * max(0, min(c1, crop[3]) - max(c0, crop[1])) / (r1 - r0) / (c1 - c0)
        assert float(after["inside_share"]) == pytest.approx(share, abs=1e-4)
        assert after["reason"] == ("" if share else "outside the crop")
        whole += share == 1
        if share:
            meant = prepared.geometry.to_output(box, clip=True)
            assert floats(after, OUTPUT) == pytest.approx(meant.tolist(), abs=2e-3)
    assert whole > 0.8 * len(found)


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("flip", ["left", "right"])
@pytest.mark.parametrize("spacing", [None, 0.35])
def test_a_lesion_is_where_its_box_says(
    tmp_path: Path, side: Any, flip: str, spacing: float | None
) -> None:
    """The same breast with and without its mass: what differs on the output is in the box."""
    facts: dict[str, Any] = {"seed": 5, "laterality": side, "noise": 0, "label": False}
    bare = phantom(832, 640, **facts)
    ill = phantom(832, 640, lesions=["round mass"], lesion_contrast=0.8, **facts)
    (lesion,) = ill.lesions
    for name, made in (("bare", bare), ("ill", ill)):
        (tmp_path / "src").mkdir(exist_ok=True)
        path = tmp_path / "src" / f"{name}.dcm"
        path.write_bytes(
            write_dicom(made.pixels, laterality=side, pixel_spacing=made.pixel_spacing)
        )
    top, left, bottom, right = lesion.box
    table = tmp_path / "found.csv"
    table.write_text(f"image_id,xmin,ymin,xmax,ymax\nill,{left},{top},{right},{bottom}\n")
    config = Config(size=(700, 512), bits=16, flip=flip, spacing_mm=spacing, window="0,8192")
    options = ConvertOptions(workers=1, boxes=str(table))
    convert(tmp_path / "src", tmp_path / "dst", config=config, options=options)
    (row,) = rows_of(tmp_path / "dst" / "boxes.csv")
    images = [
        np.asarray(Image.open(tmp_path / "dst" / f"{name}.png")).astype(int)
        for name in ("bare", "ill")
    ]
    difference = np.abs(images[1] - images[0])
    rows, columns = np.nonzero(difference > 0.15 * difference.max())
    seen = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    names = ("ymin_output", "xmin_output", "ymax_output", "xmax_output")
    assert floats(row, names) == pytest.approx(seen, abs=2)
    assert list(row)[-8:] == [
        *("output", "output_row", *names),
        *("inside_share", "reason"),
    ]


# ---------------------------------------------------------------- joins and reasons


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Files of the stand-in, whose crop is (10, 0, 90, 60) of 100 x 80, mirrored to rows 12-24."""
    root = tmp_path / "src"
    for name, words in {
        "p1/a.dcm": "DICM side:L",
        "p1/b.dcm": "DICM side:R",
        "p2/a.dcm": "DICM side:L other",
        "p2/broken.dcm": "DICM side:L broken",
        "p2/text.dcm": "none",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(words)
    return root


def table(tmp_path: Path, text: str) -> str:
    path = tmp_path / "boxes in.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_becomes_of_each_row(tmp_path: Path, src: Path) -> None:
    text = (
        "patient_id,image_id,kind,row0,column0,row1,column1\n"
        "p1,a,all of it,10,0,90,60\n"
        'p1,a,"half, and\nmore",50,30,130,60\n'
        "p1,a,above,0,0,10,60\n"
        "p1,a,not in the frame,500,0,600,60\n"
        "p1,b,filtered,10,0,90,60\n"
        "p2,broken,failed,10,0,90,60\n"
        "p2,absent,no file,10,0,90,60\n"
        ",a,two of them,10,0,90,60\n"
        "p1,b,No Finding,,,,\n"
        "\n"
        "p1,b,No Finding,nan,NaN,nan,nan\n"
    )
    given = table(tmp_path, text)
    summary = run(src, tmp_path / "dst", boxes=given, laterality="L")
    found = rows_of(tmp_path / "dst" / "boxes.csv")
    assert [(row["reason"], row["inside_share"]) for row in found] == [
        ("", "1.0000"),
        ("", "0.5000"),
        ("outside the crop", "0.0000"),
        ("outside the image", "0.0000"),
        ("filtered", ""),
        ("file failed", ""),
        ("no such file", ""),
        ("several files", ""),
    ]
    assert [row["kind"] for row in found][:2] == ["all of it", "half, and\nmore"]
    # mirrored, and the lower half of 24 x 16; cut to what is in the crop
    assert floats(found[0], OUTPUT) == [12, 0, 24, 16]
    assert floats(found[1], OUTPUT) == [18, 0, 24, 8]
    assert {row["output"] for row in found[:4]} == {"p1/a.png"}
    assert all(row["row0_output"] == "" for row in found[2:])
    assert all(row["output"] == row["output_row"] == "" for row in found[4:])
    assert summary.boxes == {
        "mapped": 2,
        "file failed": 1,
        "filtered": 1,
        "no such file": 1,
        "outside the crop": 1,
        "outside the image": 1,
        "several files": 1,
    }
    assert summary.boxes_empty == 2
    assert (
        "boxes.csv: 2 boxes mapped, 6 not (1 file failed, 1 filtered, 1 no such file, 1 outside "
        "the crop, 1 outside the image, 1 several files), 2 rows without a box left out"
    ) in summary.text()
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["boxes"] == given


@pytest.mark.parametrize(
    "text",
    [
        "image_id,patient_id,x0,y0,x1,y1\na,p2,0,10,60,90\n",
        "patient_id,IMAGE_ID, Y0 ,X0,Y1,X1\np2,a,10,0,90,60\n",
        "\ufeffsop_instance_uid,image_id,x_min,y_min,x_max,y_max\nUID,?,0,10,60,90\n",
        "path,xmin,ymin,xmax,ymax\np2/a.dcm,0,10,60,90\n",
        "filename,xmin,ymin,xmax,ymax\nsrc/p2/a.dcm,0,10,60,90\n",
        "dicom_path,xmin,ymin,xmax,ymax\nsrc/x/../p2/a.dcm,0.0,1e1,6e1,90\n",
        "path,xmin,ymin,xmax,ymax\nROOT/p2/a.dcm,0,10,60,90\n",
    ],
)
def test_ways_to_name_a_file(tmp_path: Path, src: Path, text: str) -> None:
    uid = convert_standin.facts((src / "p2/a.dcm").read_bytes())["sop_instance_uid"]
    given = table(tmp_path, text.replace("UID", uid, 1).replace("ROOT", str(src)))
    run(src, tmp_path / "dst", boxes=given)
    (row,) = rows_of(tmp_path / "dst" / "boxes.csv")
    assert (row["output"], row["reason"]) == ("p2/a.png", "")
    mapped = [value for name, value in row.items() if name.endswith("_output")]
    assert sorted(mapped) == sorted(["12.000", "0.000", "24.000", "16.000"])


def test_names_without_a_suffix(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for name in ("IMG0001", "1.2.840.55", "1.2.840.56.dcm"):
        (root / name).write_text(f"DICM side:L {name}")
    rows = "".join(f"{name},0,10,60,90\n" for name in ("IMG0001", "1.2.840.55", "1.2.840.56"))
    given = table(tmp_path, "image_id,x0,y0,x1,y1\n" + rows + "1.2.840,0,10,60,90\n")
    run(root, tmp_path / "dst", boxes=given)
    found = {row["image_id"]: row["reason"] for row in rows_of(tmp_path / "dst" / "boxes.csv")}
    expected = dict.fromkeys(("IMG0001", "1.2.840.55", "1.2.840.56"), "")
    assert found == {**expected, "1.2.840": "no such file"}


def test_a_list_with_a_root_and_a_deeper_tree(tmp_path: Path, src: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("where\np1/a.dcm\np1/b.dcm\n")
    given = table(tmp_path, "where,x0,y0,x1,y1\np1/b.dcm,0,10,60,90\n")
    run(listed, tmp_path / "dst", boxes=given, image_root=str(src), path_column="where")
    assert rows_of(tmp_path / "dst" / "boxes.csv")[0]["output"] == "p1/b.png"
    # no patient and image by the layout: the file's name serves
    given = table(tmp_path, "image_id,patient_id,x0,y0,x1,y1\nb,p1,0,10,60,90\n")
    run(tmp_path, tmp_path / "other", boxes=given)
    assert rows_of(tmp_path / "other" / "boxes.csv")[0]["output"] == "src/p1/b.png"


def test_bytes_that_are_no_utf8_come_back(tmp_path: Path, src: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"image_id,note,x0,y0,x1,y1\r\nb,caf\xe9,0,10,60,90\r\n")
    run(src, tmp_path / "dst", boxes=str(path))
    assert b"b,caf\xe9,0,10,60,90,p1/b.png," in (tmp_path / "dst" / "boxes.csv").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: got no set of box columns, its columns are none; wanted one of: row0, col"),
        ("image_id,x0,y0,x1\n", "line 1: got no set of box columns, its columns are 'image_id', "),
        (
            "image_id,x0,y0,x1,y1,xmin,ymin,xmax,ymax\n",
            "line 1: got more than one set of box columns",
        ),
        ("x0,y0,x1,y1\n", "line 1: no column names the file, its columns are 'x0', 'y0'"),
        ("image_id,x0,y0,x1,y1,Image_ID\n", "line 1: column 'image_id' stands there twice"),
        ("image_id,x0,y0,x1,y1,reason\n", "line 1: column reason is one that boxes.csv adds"),
        ("image_id,x0,y0,x1,y1,x0_output\n", "line 1: column x0_output is one that boxes.csv adds"),
        ("image_id,x0,y0,x1,y1\na,1,2,3\n", "line 2: got 4 values, wanted 5, as the first line"),
        ("image_id,x0,y0,x1,y1\n\na,1,2,3,4,5\n", "line 3: got 6 values, wanted 5"),
        (
            "image_id,x0,y0,x1,y1\na,1,2,3,4\na,1,,3,4\n",
            "line 3: got y0 '', x0 '1', y1 '4', x1 '3'; wanted numbers with y0 < y1 and x0 < x1, "
            "or all four empty",
        ),
        ("image_id,x0,y0,x1,y1\na,1,2,3,two\n", "line 2: got y0 '2', x0 '1', y1 'two', x1 '3'"),
        ("image_id,x0,y0,x1,y1\na,1,2,nan,4\n", "line 2: got y0 '2', x0 '1', y1 '4', x1 'nan'"),
        ("image_id,x0,y0,x1,y1\na,1,2,inf,4\n", "line 2: got y0 '2', x0 '1', y1 '4', x1 'inf'"),
        ("image_id,x0,y0,x1,y1\na,3,2,1,4\n", "line 2: got y0 '2', x0 '3', y1 '4', x1 '1'"),
        ("image_id,x0,y0,x1,y1\na,1,2,1,4\n", "line 2: got y0 '2', x0 '1', y1 '4', x1 '1'"),
        ('image_id,x0,y0,x1,y1\n"a,1,2,3,4\n', "line 2: not a CSV: unexpected end of data"),
        ("image_id,x0,y0,x1,y1\n" + "a" * 140_000, "line 2: not a CSV: field larger than field"),
        ("\x89PNG\r\n\x1a\n" * 9, "line 1: got no set of box columns, its columns are '\\x89PNG'"),
    ],
)
def test_a_table_of_no_use_ends_the_run_before_it_begins(
    tmp_path: Path, src: Path, text: str, message: str
) -> None:
    given = table(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        run(src, tmp_path / "dst", boxes=given)
    assert f"boxes: {given}, {message}" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "dst").exists()
    assert main(["convert", str(src), str(tmp_path / "dst"), "--boxes", given]) == 2


def test_a_table_that_cannot_be_read(tmp_path: Path, src: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.csv cannot be read: No such file"):
        run(src, tmp_path / "dst", boxes=str(tmp_path / "absent.csv"))
    with pytest.raises(ConfigError, match="boxes: got an empty path, wanted a CSV"):
        run(src, tmp_path / "dst", boxes="")
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "boxes.csv").write_text("image_id,x0,y0,x1,y1\n")
    with pytest.raises(ConfigError, match="is what this run would write: move it out of DST"):
        read_boxes(str(dst / ".." / "dst" / "boxes.csv"), str(dst), image_root=None, path_column="")


# ---------------------------------------------------------------- runs that go on

TEXT = "patient_id,image_id,x0,y0,x1,y1\np1,a,0,10,60,90\np1,b,1,11,31,41\np2,broken,0,0,9,9\n"


def tree(dst: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and ".fastmammo" not in path.parts and path.name != "timings.csv"
    }


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_boxes_given_later_or_no_more(tmp_path: Path, src: Path, kind: str) -> None:
    given, dst, calm = table(tmp_path, TEXT), tmp_path / "dst", tmp_path / "calm"
    run(src, calm, format=kind, boxes=given)
    run(src, dst, format=kind)
    assert not (dst / "boxes.csv").exists()
    summary = run(src, dst, format=kind, boxes=given)
    assert (summary.converted, summary.boxes["mapped"]) == (0, 2)
    assert tree(dst) == tree(calm)
    run(src, dst, format=kind, boxes=given, laterality="R")
    found = rows_of(dst / "boxes.csv")
    assert [row["reason"] for row in found] == ["filtered", "", "filtered"]
    assert [row["output_row"] for row in found] == ["", "0" if kind == "packed" else "", ""]
    run(src, dst, format=kind)
    assert not (dst / "boxes.csv").exists()
    # a table of that name that no run has made stays
    (dst / "boxes.csv").write_text("mine\n")
    run(src, dst, format=kind)
    assert (dst / "boxes.csv").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("kind", "point", "count"),
    [
        ("png", "after-add", 2),
        ("png", "after-tables", 1),
        ("packed", "after-add_packed", 1),
        ("packed", "after-gather", 1),
    ],
)
def test_a_killed_run_makes_the_same_table_later(
    tmp_path: Path, src: Path, kind: str, point: str, count: int
) -> None:
    given, dst = table(tmp_path, TEXT), tmp_path / "dst"
    settings = json.dumps({"boxes": given})
    # something to be replaced: rows of other inputs
    os.rename(src / "p1" / "a.dcm", tmp_path / "aside.dcm")
    run(src, dst, format=kind, boxes=given)
    os.rename(tmp_path / "aside.dcm", src / "p1" / "a.dcm")
    arguments = [str(src), str(dst), kind, point, str(count), settings]
    killed = subprocess.run(
        [sys.executable, convert_standin.__file__, *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (dst / "boxes.csv").exists()
    run(src, dst, format=kind, boxes=given)
    run(src, tmp_path / "calm", format=kind, boxes=given)
    assert tree(dst) == tree(tmp_path / "calm")


def test_an_interrupted_run_says_which_boxes_wait(tmp_path: Path, src: Path) -> None:
    from fastmammo.errors import ConvertError

    given, dst = table(tmp_path, "image_id,patient_id,x0,y0,x1,y1\na,p1,0,10,60,90\n"), tmp_path
    (src / "p0").mkdir()
    (src / "p0" / "first.dcm").write_text("DICM broken")
    with pytest.raises(ConvertError, match="fail_fast"):
        run(src, dst / "dst", boxes=given, fail_fast=True, format="packed")
    (row,) = rows_of(dst / "dst" / "boxes.csv")
    assert (row["output"], row["reason"]) == ("", "file not done")


def test_the_geometry_of_the_stand_in() -> None:
    record = convert_standin.StandIn(CONFIG).geometry() | {"level": 1}
    geometry = Geometry.from_record(record, CONFIG.size)
    assert geometry.to_output((10, 0, 90, 60)).tolist() == [12, 0, 24, 16]
