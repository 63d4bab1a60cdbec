"""Converting folders, lists and CSVs: what lands in DST, and what a second run keeps."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import convert_standin
import numpy as np
import pytest
from PIL import Image

from fastmammo.conversion import ConvertOptions, Summary, convert, find_inputs
from fastmammo.conversion.manifest import COLUMNS
from fastmammo.conversion.names import output_name
from fastmammo.conversion.writers import encode_png, encode_row, write_atomic
from fastmammo.decoding import cuda_runtime, nvjpeg2000
from fastmammo.errors import ConfigError, ConvertError, OutputCollisionError
from fastmammo.preprocess import RECORD_COLUMNS, STAGES, Config, Preprocessor
from fastmammo.testing import write_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = Config(size=(96, 64))


def run(src: Path, dst: Path, *, note: Any = None, **settings: Any) -> Summary:
    """Run with the stand-in: what is tested is not the pixels."""
    config = Config(size=settings.pop("size", convert_standin.SIZE), bits=settings.pop("bits", 8))
    options = ConvertOptions(**{"workers": 1, **settings})
    name = convert_standin.PREPROCESSOR
    return convert(src, dst, config=config, options=options, note=note, preprocessor=name)


def make(root: Path, *paths: str, text: str = "DICM") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text} {path}")
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_png(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def manifest(dst: Path) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in read_csv(dst / "manifest.csv")}


def tree(dst: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and ".fastmammo" not in path.parts and path.name != "timings.csv"
    }


# ---------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantoms as <patient>/<image>.dcm, in as many syntaxes."""
    root = tmp_path_factory.mktemp("phantoms")
    write_dataset(root, count=8, rows=277, columns=208, seed=2)
    return root


@pytest.mark.parametrize("bits", [8, 16])
def test_phantoms_become_what_the_preprocessor_says(
    phantoms: Path, tmp_path: Path, bits: int
) -> None:
    config = Config(size=(96, 64), bits=bits)
    png = convert(phantoms, tmp_path / "png", config=config, options=ConvertOptions(workers=1))
    options = ConvertOptions(workers=2, format="packed")
    convert(phantoms, tmp_path / "packed", config=config, options=options)
    assert (png.files, png.ok, png.exit_code) == (8, 8, 0)
    array = np.load(tmp_path / "packed" / "images.npy", mmap_mode="r")
    assert array.shape == (8, 96, 64)
    assert array.dtype == (np.uint8 if bits == 8 else np.uint16)
    prepare = Preprocessor(config).prepare
    rows = manifest(tmp_path / "png")
    packed = manifest(tmp_path / "packed")
    assert list(rows) == list(packed) == sorted(rows)
    for number, (path, row) in enumerate(rows.items()):
        expected = prepare(phantoms / path)
        written = read_png(tmp_path / "png" / row["output"])
        np.testing.assert_array_equal(written, expected.image)
        assert written.dtype == expected.image.dtype
        assert packed[path]["row"] == str(number)
        np.testing.assert_array_equal(array[number], expected.image)
        assert row["output"] == path.removesuffix(".dcm") + ".png"
        assert (row["patient_id"], row["image_id"]) == tuple(row["output"][:-4].split("/"))
        for name, value in expected.record.items():
            assert row[name] == str(value), name
    timings = read_csv(tmp_path / "png" / "timings.csv")
    assert [row["path"] for row in timings] == list(rows)
    assert all(float(row["total"]) >= float(row["decode"]) > 0 for row in timings)


def test_any_number_of_workers_gives_the_same_bytes(phantoms: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        options = ConvertOptions(workers=workers)
        convert(phantoms, tmp_path / str(workers), config=SMALL, options=options)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def test_the_shared_real_files(data: Path, tmp_path: Path) -> None:
    """Broken, coloured and foreign files are rows with a reason; nothing is a defect of ours."""
    summary = convert(data, tmp_path / "dst", config=SMALL)
    rows = manifest(tmp_path / "dst")
    assert summary.exit_code == 1
    assert len(rows) == summary.files == sum(1 for path in data.rglob("*") if path.is_file())
    assert summary.ok + summary.failed + summary.skipped == summary.files
    assert summary.ok > 40
    assert {row["status"] for row in rows.values()} == {"ok", "failed", "skipped"}
    for path, row in rows.items():
        if row["status"] == "ok":
            assert read_png(tmp_path / "dst" / row["output"]).shape == SMALL.size
        else:
            assert row["reason"] not in ("", "internal error", "worker died"), (path, row)
            assert row["message"], path
            assert not row["output"]
    assert rows["README.md"]["status"] == "skipped"
    assert rows["pydicom/MR_truncated.dcm"]["reason"] == "truncated file"
    assert rows["pydicom/examples_rgb_color.dcm"]["reason"] == "unsupported image"


def test_the_manifest_has_no_direct_identifier(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", count=1, rows=64, columns=48)
    (source,) = (tmp_path / "made").rglob("*.dcm")
    secret = "SECRET^NAME"
    import pydicom

    dataset = pydicom.dcmread(source)
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "InstitutionName"):
        setattr(dataset, keyword, secret[:16])
    (tmp_path / "src").mkdir()
    dataset.save_as(tmp_path / "src" / "one.dcm")
    assert convert(tmp_path / "src", tmp_path / "dst", config=SMALL).ok == 1
    for path in (tmp_path / "dst").rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path


# ---------------------------------------------------------------- writers


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 33)])
def test_png_reads_back(dtype: Any, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    image: NDArray[Any] = generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    for given in (image, np.asfortranarray(image), image.astype(image.dtype.newbyteorder(">"))):
        encoded = b"".join(bytes(chunk) for chunk in encode_png(given))
        found = np.asarray(Image.open(io.BytesIO(encoded)))
        np.testing.assert_array_equal(found, image)
        assert b"".join(bytes(chunk) for chunk in encode_row(given)) == image.tobytes()


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)])
def test_png_refuses(image: NDArray[Any]) -> None:
    with pytest.raises(ConfigError, match=r"PNG: got .* wanted \(rows, columns\) of uint8 or"):
        encode_png(image)


def test_write_atomic_leaves_nothing_half(tmp_path: Path) -> None:
    target, partial = tmp_path / "new" / "file", tmp_path / "partial"
    assert write_atomic(str(target), [b"one", memoryview(b"two")], str(partial)) == 6
    assert target.read_bytes() == b"onetwo"

    def failing() -> Any:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomic(str(target), failing(), str(partial))
    assert target.read_bytes() == b"onetwo"
    assert not partial.exists()


# ---------------------------------------------------------------- inputs


def test_a_folder_of_any_shape(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm", "deep/er/b.DICOM", "c.dic", "IM0001", "d.1.2.3")
    make(src, "dst/old.png", "dst/.fastmammo/x", text="")
    os.symlink(src, src / "loop")
    found = {each.path: each.name for each in find_inputs(src, src / "dst")}
    assert found == {
        "IM0001": "IM0001",
        "a.dcm": "a",
        "c.dic": "c",
        "d.1.2.3": "d.1.2.3",
        "deep/er/b.DICOM": "deep/er/b",
        "loop": "",
    }
    assert all(each.patient_id == "" for each in find_inputs(src, src / "dst"))
    followed = find_inputs(src, src / "dst", follow_links=True)
    assert [each.path for each in followed] == [path for path in found if path != "loop"]


def test_patient_and_image_come_from_an_exact_layout_only(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "10/1.dcm", "10/2.dcm", "train.csv")
    ids = [(each.patient_id, each.image_id) for each in find_inputs(src, tmp_path / "dst")]
    assert ids == [("10", "1"), ("10", "2"), ("", "")]
    make(src, "3.dcm")
    assert not any(each.patient_id for each in find_inputs(src, tmp_path / "dst"))


def test_links_out_of_src(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "secret.dcm")
    src = make(tmp_path / "src", "a.dcm")
    os.symlink(outside / "secret.dcm", src / "link.dcm")
    os.symlink(src / "a.dcm", src / "inner.dcm")
    os.symlink(outside, src / "folder")
    run(src, tmp_path / "dst")
    rows = manifest(tmp_path / "dst")
    assert rows["link.dcm"]["reason"] == "link out of SRC"
    assert rows["folder"]["reason"] == "link to a folder"
    assert rows["inner.dcm"]["status"] == rows["a.dcm"]["status"] == "ok"
    assert run(src, tmp_path / "dst", follow_links=True).ok == 4


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm", "text.txt")
    (src / "text.txt").write_text("no image")
    os.symlink(tmp_path / "nowhere", src / "dangling.dcm")
    os.symlink(src / "self.dcm", src / "self.dcm")
    os.mkfifo(src / "pipe.dcm")
    os.mkfifo(src / "tube")
    (src / "empty.dcm").touch()
    (src / "page.dic").write_text("<html>404</html>")
    (src / "folder.dcm").mkdir()
    summary = run(src, tmp_path / "dst")
    reasons = {path: row["reason"] for path, row in manifest(tmp_path / "dst").items()}
    assert reasons == {
        "a.dcm": "",
        "dangling.dcm": "file not found",
        "empty.dcm": "not dicom",
        "page.dic": "not dicom",
        "pipe.dcm": "not a file",
        "self.dcm": "unreadable file",
        "text.txt": "not dicom",
        "tube": "not a file",
    }
    # what is called DICOM and is none has failed; of what else lies there only DICOM is wanted
    assert (summary.ok, summary.failed, summary.skipped) == (1, 5, 2)


def test_a_pipe_beside_an_input_of_its_name_is_not_opened(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm")
    os.mkfifo(src / "a")
    found: list[Any] = []
    search = threading.Thread(
        target=lambda: found.extend(find_inputs(src, tmp_path / "dst")), daemon=True
    )
    search.start()
    search.join(20)
    assert [(each.path, each.reason) for each in found] == [
        ("a", "not dicom"),
        ("a.dcm", "not dicom"),  # a stand-in's: DICM does not stand at byte 128
    ]


def test_a_single_file(tmp_path: Path) -> None:
    src = make(tmp_path, "one.dcm") / "one.dcm"
    assert run(src, tmp_path / "dst").ok == 1
    assert (tmp_path / "dst" / "one.png").exists()
    (tmp_path / "page").write_text("<html>404</html>")
    assert run(tmp_path / "page", tmp_path / "dst").reasons == {"failed: not dicom": 1}


def test_a_list(tmp_path: Path) -> None:
    make(tmp_path, "in/a/1.dcm", "in/b/2.dcm")
    listed = tmp_path / "list.txt"
    (tmp_path / "in" / "notes").write_text("no image")
    listed.write_text(
        f"in/a/1.dcm\n\n{tmp_path}/in/b/2.dcm\nin/b/../b/2.dcm\nin/b/absent.dcm\nin/notes\nin\n"
    )
    summary = run(listed, tmp_path / "dst")
    rows = manifest(tmp_path / "dst")
    assert {path: (row["status"], row["listed"]) for path, row in rows.items()} == {
        "in": ("failed", "in"),
        "in/a/1.dcm": ("ok", "in/a/1.dcm"),
        "in/b/2.dcm": ("ok", f"{tmp_path}/in/b/2.dcm"),
        "in/b/absent.dcm": ("failed", "in/b/absent.dcm"),
        "in/notes": ("failed", "in/notes"),
    }
    assert rows["in/notes"]["reason"] == "not dicom"
    assert rows["in/b/absent.dcm"]["reason"] == "file not found"
    # no absolute path: where SRC lies is no business of the manifest's
    assert rows["in/b/absent.dcm"]["message"] == "no such file: in/b/absent.dcm"
    assert summary.exit_code == 1
    assert summary.merged_rows == 1
    assert "1 row merged: of a file that several rows name, one image is made" in summary.text()


def test_a_list_of_files_that_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists" / "list.txt"
    listed.write_text("../in/a/1.dcm\n../in/b/2.dcm\n")
    paths = [each.path for each in find_inputs(listed, tmp_path / "dst")]
    assert paths == ["a/1.dcm", "b/2.dcm"]


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("File_Path,label,patient_id", {}),
        ("where,path,patient_id", {"path_column": "where"}),
        ("\ufefffilename,label,patient_id", {}),
    ],
)
def test_a_csv_with_paths(tmp_path: Path, header: str, options: dict[str, str]) -> None:
    make(tmp_path, "in/a.dcm", "in/b.dcm")
    table = tmp_path / "table.csv"
    table.write_text(f"{header}\nin/a.dcm,x,7\nin/b.dcm,y,8\nin/b.dcm,z,8\n,w,9\n", "utf-8")
    found = find_inputs(table, tmp_path / "dst", **options)
    assert [(each.path, each.patient_id, each.reason, each.rows) for each in found] == [
        ("in/a.dcm", "7", "", 1),
        ("in/b.dcm", "8", "", 2),
        ("row 4", "", "no path", 1),
    ]
    table.write_text(f"{header}\na.dcm,x,7\nb.dcm,y,8\n", "utf-8")
    rooted = find_inputs(table, tmp_path / "dst", **options, image_root=str(tmp_path / "in"))
    assert [(each.path, each.listed) for each in rooted] == [("a.dcm", "a.dcm"), ("b.dcm", "b.dcm")]
    assert [each.source for each in rooted] == [f"{tmp_path}/in/a.dcm", f"{tmp_path}/in/b.dcm"]


def test_the_index_of_pandas_is_no_patient(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(",path,cancer\n0,a.dcm,0\n1,b.dcm,1\n")
    found = find_inputs(table, tmp_path / "dst")
    assert [(each.patient_id, each.image_id) for each in found] == [("", ""), ("", "")]


def test_the_csv_of_rsna(tmp_path: Path) -> None:
    root = make(tmp_path / "train_images", "10/1.dcm", "10/2.dcm", "77/3.dcm")
    make(tmp_path, "secret.dcm")
    table = tmp_path / "train.csv"
    table.write_text(
        "site_id,patient_id,image_id,cancer\n1,10,1,0\n1,10,2,1\n2,11,4,0\n2,..,secret,0\n"
        "1,10,1,0\n"
    )
    with pytest.raises(ConvertError, match="set image_root"):
        run(table, tmp_path / "dst")
    assert run(table, tmp_path / "dst", image_root=str(root)).merged_rows == 1
    rows = manifest(tmp_path / "dst")
    assert {path: (row["patient_id"], row["image_id"]) for path, row in rows.items()} == {
        "../secret.dcm": ("", ""),
        "10/1.dcm": ("10", "1"),
        "10/2.dcm": ("10", "2"),
        "11/4.dcm": ("11", "4"),
    }
    assert rows["10/2.dcm"]["output"] == "10/2.png"
    assert rows["11/4.dcm"]["reason"] == "file not found"
    assert rows["../secret.dcm"]["reason"] == "unsafe name"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {}, "no column with paths; its columns are a, b"),
        ("", {}, "no column with paths; its columns are none"),
        ("path\nx\n", {"path_column": "nope"}, "no column 'nope'"),
        ("path\n", {}, "SRC holds no files"),
        ("path\nx\n", {"image_root": "/nowhere"}, "image_root is not a folder: /nowhere"),
    ],
)
def test_a_csv_of_no_use(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConvertError, match=message):
        find_inputs(tmp_path / "t.csv", tmp_path / "dst", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {"path_column": "path"}, "path_column: got 'path', but SRC is not a CSV"),
        ("", {"image_root": "."}, "image_root: got '.', but SRC is not a list or CSV"),
        ("a.dcm", {"path_column": "path"}, "path_column: got 'path', but SRC is not a CSV"),
        ("a.dcm", {"image_root": "."}, "image_root: got '.', but SRC is not a list or CSV"),
        ("list.txt", {"path_column": "path"}, "path_column: got 'path', but SRC is not a CSV"),
    ],
)
def test_options_that_say_nothing_about_src(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    make(tmp_path, "a.dcm", "list.txt")
    with pytest.raises(ConfigError, match=message):
        find_inputs(tmp_path / name, tmp_path / "dst", **options)


def test_an_empty_src_or_dst_is_not_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="SRC is empty: name a folder, or"):
        convert("", tmp_path / "dst")
    with pytest.raises(ConvertError, match="DST is empty"):
        convert(tmp_path, "")


def test_src_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"SRC is not there: .*Wanted a folder"):
        find_inputs(tmp_path / "absent", tmp_path / "dst")
    with pytest.raises(ConvertError, match="SRC holds no files"):
        find_inputs(tmp_path, tmp_path / "dst")
    with pytest.raises(ConvertError, match="SRC and DST are the same folder"):
        find_inputs(tmp_path, tmp_path)


def test_two_inputs_of_one_output_name(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_dataset(tmp_path / "made", count=1, rows=64, columns=48)
    (image,) = (tmp_path / "made").rglob("*.dcm")
    for name in ("p/x.dcm", "p/x"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(image.read_bytes())
    with pytest.raises(OutputCollisionError, match=r"one output p/x: p/x and p/x\.dcm"):
        run(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    (src / "p/x").write_text("notes on x")
    assert {each.path: each.status for each in find_inputs(src, tmp_path / "dst")} == {
        "p/x": "skipped",
        "p/x.dcm": "",
    }
    (src / "p/x").write_bytes(image.read_bytes())
    (src / "p/x.dcm").write_bytes(b"")
    assert {each.path: each.status for each in find_inputs(src, tmp_path / "dst")} == {
        "p/x": "",
        "p/x.dcm": "failed",
    }


def test_an_output_that_would_be_the_folder_of_another(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", count=1, rows=64, columns=48)
    (image,) = (tmp_path / "made").rglob("*.dcm")
    for name in ("x.dcm", "x.png/y.dcm"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(image.read_bytes())
    with pytest.raises(OutputCollisionError, match=r"x\.dcm and x\.png/y\.dcm"):
        find_inputs(tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.DCM", "a/b"),
        ("a/.dcm", "a/.dcm"),
        ("1.2.840", "1.2.840"),
        ("../../etc/passwd", "__/__/etc/passwd"),
        ("/abs.dcm", "abs"),
        (".fastmammo/journal.dcm", "_.fastmammo/journal"),
        ("config.json/a.dcm", "_config.json/a"),
        ("nul.dcm", "_nul"),
        ("COM1.txt", "_COM1.txt"),
        ("a\nb\x1b[31m\u202e.dcm", "a_b_[31m_"),
        ("a:b*c?.dcm", "a_b_c_"),
        ("trailing. /x.dcm", "trailing__/x"),
        ("Brüst/映像.dcm", "Brüst/映像"),
        ("bad\udcff.dcm", "bad_"),
    ],
)
def test_output_names_are_safe(path: str, name: str) -> None:
    assert output_name(path) == name


def test_long_names_are_shortened_and_stay_apart() -> None:
    names = {output_name("x" * 300 + end) for end in ("1.dcm", "2.dcm")}
    assert len(names) == 2
    assert all(len(name.encode()) == 200 for name in names)


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    path = os.path.join(os.fsencode(src), b"\xff\xfe.dcm")
    with open(path, "wb") as file:
        file.write(b"DICM")
    run(src, tmp_path / "dst")
    assert b"\xff\xfe.dcm,,ok,,,__.png," in (tmp_path / "dst" / "manifest.csv").read_bytes()


# ---------------------------------------------------------------- a second run


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_a_second_run_does_what_has_changed_and_no_more(tmp_path: Path, kind: str) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm", "c.dcm", "no.txt"), tmp_path / "dst"
    (src / "no.txt").write_text("no image")
    make(src, "bad.dcm", text="DICM broken")
    notes: list[str] = []

    def again(**settings: Any) -> Summary:
        return run(src, dst, note=notes.append, format=kind, **settings)

    def calm(**settings: Any) -> dict[str, bytes]:
        folder = tmp_path / f"calm{len(list(tmp_path.iterdir()))}"
        run(src, folder, format=kind, **settings)
        return tree(folder)

    assert again().kept == 0
    assert notes == []
    summary = again()
    assert (summary.kept, summary.ok, summary.failed, summary.skipped) == (4, 3, 1, 1)
    assert notes.pop() == ("4 of 5 files kept from an earlier run; 1 done again: 1 failed before")
    (src / "bad.dcm").unlink()
    (src / "b.dcm").write_text("DICM b has changed")
    summary = again()
    assert (summary.kept, summary.again) == (3, {"input changed": 1})
    make(src, "aa.dcm")
    assert again().kept == 4
    assert tree(dst) == calm()
    (src / "aa.dcm").unlink()
    os.unlink(dst / ("b.png" if kind == "png" else "images.npy"))
    summary = again()
    assert summary.again == {"output missing or changed": 1 if kind == "png" else 3}
    summary = again(size=(8, 8))
    assert (summary.kept, summary.again) == (0, {"settings changed": 4})
    assert {k: v for k, v in tree(dst).items() if k != "aa.png"} == calm(size=(8, 8))
    # with another format nothing of the old one stays, even of an input that has gone
    other = "packed" if kind == "png" else "png"
    (src / "a.dcm").unlink()
    summary = run(src, dst, format=other)
    assert summary.orphans == (["a.png", "aa.png"] if kind == "png" else [])
    assert (dst / "images.npy").exists() == (other == "packed")
    assert (dst / "b.png").exists() == (other == "png")


def test_rows_of_a_packed_run_that_was_cut_short_do_not_stay(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm"), tmp_path / "dst"
    make(src, "b.dcm", text="DICM broken")
    with pytest.raises(ConvertError, match="fail_fast"):
        run(src, dst, format="packed", fail_fast=True)
    assert (dst / ".fastmammo" / "rows" / "a.raw").exists()
    (row,) = (row for path, row in manifest(dst).items() if path == "a.dcm")
    assert (row["status"], row["output"], row["row"]) == ("ok", "", "")
    run(src, dst)
    assert not (dst / ".fastmammo" / "rows").exists()


def test_outputs_whose_inputs_have_gone_are_told(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm", "c.dcm"), tmp_path / "dst"
    assert run(src, dst).orphans == []
    (src / "a.dcm").unlink()
    (src / "b.dcm").unlink()
    summary = run(src, dst, size=(8, 8))
    assert summary.orphans == ["a.png", "b.png"]
    assert "in no manifest row: 2 outputs (a.png, ...); delete what" in summary.text()
    assert manifest(dst).keys() == {"c.dcm"}
    make(src, "a")  # has the output name of what was a.dcm
    (dst / "b.png").unlink()
    summary = run(src, dst)
    assert summary.orphans == []
    assert "in no manifest row" not in summary.text()


def test_a_complete_second_run_says_so(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm", "b.dcm")
    assert run(src, tmp_path / "dst").text().startswith("2 converted, 0 failed, 0 skipped, of 2")
    summary = run(src, tmp_path / "dst")
    assert (summary.converted, summary.ok, summary.images_per_second) == (0, 2, 0.0)
    first = summary.text().splitlines()[0]
    assert first.startswith("0 converted now, 2 kept, 0 failed, 0 skipped, of 2 files in ")
    assert "images/s" not in first


def test_a_run_that_converts_nothing(tmp_path: Path) -> None:
    summary = run(make(tmp_path / "src", "a.txt", text="no image"), tmp_path / "dst")
    assert (summary.skipped, summary.failed, summary.exit_code) == (1, 0, 1)
    assert "no image was converted" in summary.text()
    # the tables have their columns nevertheless
    header = (tmp_path / "dst" / "manifest.csv").read_text().splitlines()[0]
    assert header.split(",") == [*COLUMNS, *RECORD_COLUMNS]
    timings = (tmp_path / "dst" / "timings.csv").read_text()
    assert timings.strip().split(",") == ["path", *STAGES, "encode", "write", "total"]


def test_a_message_of_several_lines_is_one_line_in_the_manifest(tmp_path: Path) -> None:
    run(make(tmp_path / "src", "a.dcm", text="DICM lines"), tmp_path / "dst")
    assert len((tmp_path / "dst" / "manifest.csv").read_text().splitlines()) == 2
    message = manifest(tmp_path / "dst")["a.dcm"]["message"]
    assert message == "the codec says:; bad marker; at byte 7"


def test_an_input_that_fails_after_its_change_leaves_no_output(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    run(src, dst)
    (src / "a.dcm").write_text("DICM broken now")
    run(src, dst)
    assert not (dst / "a.png").exists()
    assert manifest(dst)["a.dcm"]["reason"] == "corrupt codestream"


def test_changes_are_noticed_by_content_on_request(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    run(src, dst, compare="content")
    os.utime(src / "a.dcm", ns=(1, 1))
    status = os.stat(src / "b.dcm")
    (src / "b.dcm").write_text("DICM B.dcm")
    os.utime(src / "b.dcm", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(src, dst, compare="stat").again == {"input changed": 1}
    summary = run(src, dst, compare="content")
    # the first was converted anew without its hash being taken, the second has changed
    assert (summary.kept, summary.again) == (0, {"input changed": 2})
    os.utime(src / "a.dcm", ns=(2, 2))
    assert run(src, dst, compare="content").kept == 2


def test_fail_fast_ends_the_run(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "b.dcm", "c.dcm")
    make(src, "a.dcm", text="DICM broken")
    with pytest.raises(ConvertError, match=r"fail_fast: a.dcm failed \(corrupt codestream\)"):
        run(src, tmp_path / "dst", fail_fast=True)
    assert manifest(tmp_path / "dst").keys() == {"a.dcm"}


def test_config_json_tells_what_made_dst(tmp_path: Path) -> None:
    run(make(tmp_path / "src", "a.dcm"), tmp_path / "dst", bits=16)
    told = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert told["config"]["bits"] == 16
    # not "config": a run that keeps images has not made them on its device
    assert told["last_run"] == {"device": "cpu", "strict": False}
    assert not told["last_run"].keys() & told["config"].keys()
    assert told["digest"] == Config(size=convert_standin.SIZE, bits=16).digest()
    assert told["versions"]["fastmammo"]
    assert told["versions"]["imagecodecs"]


def test_auto_that_is_the_cpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "a CUDA device: none")
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "a CUDA device: none")
    notes: list[str] = []
    summary = convert(
        make(tmp_path / "src", "a.dcm"),
        tmp_path / "dst",
        config=Config(size=convert_standin.SIZE, device="auto"),
        options=ConvertOptions(workers=1),
        note=notes.append,
        preprocessor=convert_standin.PREPROCESSOR,
    )
    assert notes == ["device: cpu (auto: missing a CUDA device: none)"]
    assert notes[0] in summary.text().splitlines()
    assert summary.to_dict()["device"] == "cpu"
    assert summary.to_dict()["device_reason"] == "auto: missing a CUDA device: none"


def test_progress_and_summary(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm", "b.dcm")
    make(src, "c.dcm", text="DICM broken")
    calls: list[tuple[int, int, int]] = []
    summary = convert(
        src,
        tmp_path / "dst",
        config=SMALL,
        options=ConvertOptions(workers=1),
        progress=lambda done, total, failed, seconds: calls.append((done, total, failed)),
        preprocessor=convert_standin.PREPROCESSOR,
    )
    assert calls == [(1, 3, 0), (2, 3, 0), (3, 3, 1)]
    assert "2 converted, 1 failed, 0 skipped, of 3 files" in summary.text()
    assert "1 failed: corrupt codestream" in summary.text()
    assert json.loads(json.dumps(summary.to_dict()))["exit_code"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", -1),
        ("workers", 1.5),
        ("format", "tiff"),
        ("timeout_seconds", 0),
        ("timeout_seconds", math.nan),
        ("timeout_seconds", "9"),
        ("memory_limit_mb", -1),
        ("memory_limit_mb", 1023),
        ("memory_limit_mb", 4096.5),
    ],
)
def test_options_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field}: got {value!r}, "):
        ConvertOptions(**{field: value})


def test_every_option_has_its_help() -> None:
    from dataclasses import fields

    assert all(each.metadata["help"] for each in fields(ConvertOptions))


def test_the_summary_names_what_failed(tmp_path: Path) -> None:
    src = make(tmp_path / "src", "a.dcm")
    make(tmp_path / "src", *(f"bad{i}.dcm" for i in range(5)), text="DICM broken")
    summary = run(src, tmp_path / "dst")
    assert summary.failed >= 5
    assert len(summary.failures) == 3
    text = summary.text()
    for path, message in summary.failures:
        assert f"  {path}: {message}" in text
        assert message
    assert f"and {summary.failed - 3} more that failed: see the manifest" in text


def test_a_worker_starts_without_scipy_and_can_import_it_later() -> None:
    program = (
        "import sys; from fastmammo.conversion.worker import warm_up, without_scipy;"
        "from fastmammo.conversion.writers import encode_png; import fastmammo;"
        "without_scipy(); warm_up(fastmammo.Preprocessor().prepare, encode_png);"
        "print('scipy' in sys.modules); import numba.np.arraymath; import scipy"
    )
    pytest.importorskip("scipy")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
