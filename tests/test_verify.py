"""`fastmammo verify`: true files are all exact, every kind of wrong route is found and named."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from fastmammo.cli import main
from fastmammo.decoding import BACKENDS, imagecodecs, openjpeg
from fastmammo.dicom import read
from fastmammo.errors import ConfigError, ConvertError, CorruptCodestreamError
from fastmammo.kernels import cpu as kernels
from fastmammo.report import routes
from fastmammo.report.difference import difference, draw_difference
from fastmammo.report.routes import Check, Result
from fastmammo.report.verify import Verification, verify
from fastmammo.testing import can_encode, phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

J = "1.2.840.10008.1.2.4"
SIZE = (96, 64)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Large enough for the breast to be sought on a level: odd sizes, 12 bits."""
    return phantom(701, 481, seed=2).pixels


@pytest.fixture(scope="module")
def j2k(large: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("j2k")
    write_dicom(large, path=folder / "view.dcm")
    return folder


def rows(found: Verification, **wanted: str) -> list[dict[str, Any]]:
    return [r for r in found.routes() if all(r[name] == value for name, value in wanted.items())]


def wrong(found: Verification) -> set[tuple[str, str]]:
    return {(r.route, r.backend) for file in found.files for r in file.results if r.wrong}


def altered(function: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decoder that changes what `function` gave: change(pixels, level)."""

    def decode(data: Any, codestream: Any, level: int = 0, threads: int = 1) -> Any:
        pixels = function(data, codestream, level, threads).copy()
        change(pixels, level)
        return pixels

    return decode


def one_pixel(pixels: np.ndarray, level: int) -> None:
    pixels[40, 30] += 3


# ---------------------------------------------------------------- all as it must be


def test_phantoms_in_several_syntaxes_are_exact(
    pixels: np.ndarray, large: np.ndarray, tmp_path: Path
) -> None:
    write_dicom(large, path=tmp_path / "a.dcm")
    write_dicom(large, path=tmp_path / "b.dcm", transfer_syntax_uid=f"{J}.201")
    write_dicom(large, path=tmp_path / "c.dcm", tile=(256, 256))
    for uid in ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", f"{J}.70", f"{J}.80"):
        write_dicom(pixels, path=tmp_path / f"{uid}.dcm", transfer_syntax_uid=uid)
    signed = pixels.astype(np.int16) - 2048
    write_dicom(
        signed,
        path=tmp_path / "signed.dcm",
        transfer_syntax_uid=f"{J}.57",
        photometric_interpretation="MONOCHROME1",
    )
    found = verify(tmp_path, size=SIZE)
    assert found.exit_code == 0, found.text()
    assert [each.status for each in found.files] == ["ok"] * 8
    statuses = Counter(r.status for each in found.files for r in each.results)
    assert set(statuses) <= {"reference", "exact", "not possible"}
    assert statuses["reference"] == 8

    # every level is compared with the transform, by the codec where its levels serve
    for level in range(1, 6):
        route = f"level {level}"
        assert sum(r["exact"] for r in rows(found, route=route, backend="kernels")) == 8
        codec = rows(found, route=route, backend="openjpeg", syntax="JPEG 2000 Lossless")[0]
        assert (codec["exact"], codec["reasons"]) == (1, {"several tiles": 1})
        assert rows(found, route=route, backend="openjpeg", syntax="HTJ2K Lossless")[0]["exact"]
    by_levels = rows(found, route="auto image (codec levels)", syntax="JPEG 2000 Lossless")
    assert [(r["backend"], r["exact"]) for r in by_levels] == [("auto", 1), ("openjpeg", 1)]
    reduced = rows(found, route="auto image (integer reduction)", syntax="JPEG 2000 Lossless")
    assert {(r["backend"], r["exact"]) for r in reduced} >= {("imagecodecs", 2), ("auto", 1)}
    # HTJ2K: another backend than the one of level 0 gives the levels, so both are named
    whole = rows(found, route="full image", syntax="HTJ2K Lossless")
    assert {r["backend"] for r in whole} == {"auto", "imagecodecs", "openjpeg", "pylibjpeg"}
    assert sum(r["exact"] for r in rows(found, route="level 0", backend="pydicom")) >= 5


def test_reencoded_in_every_lossless_syntax(pixels: np.ndarray, tmp_path: Path) -> None:
    write_dicom(
        pixels.astype(np.int16) - 2048,
        path=tmp_path / "a.dcm",
        transfer_syntax_uid="1.2.840.10008.1.2.5",
        photometric_interpretation="MONOCHROME1",
        attributes={"PixelPaddingValue": -2048, "RescaleSlope": 2, "RescaleIntercept": 7},
    )
    found = verify(tmp_path / "a.dcm", size=SIZE, reencode=True)
    assert found.exit_code == 0, found.text()
    again = [r for r in found.files[0].results if r.route.startswith("as ")]
    exact = [r.route for r in again if r.status == "exact"]
    if can_encode("1.2.840.10008.1.2.4.202"):
        assert len(exact) == 33  # 11 syntaxes: values, auto, full
        assert "as HTJ2K Lossless RPCL: full image" in exact
    else:
        assert len(exact) == 27


def test_a_reencoding_that_loses_something_is_found(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(pixels, path=tmp_path / "a.dcm", transfer_syntax_uid="1.2.840.10008.1.2.1")
    real = imagecodecs.decode
    monkeypatch.setattr(imagecodecs, "decode", altered(real, one_pixel))
    found = verify(tmp_path, size=SIZE, reencode=True)
    assert ("as RLE Lossless: level 0", "auto") in wrong(found)
    assert ("as Implicit VR Little Endian: level 0", "auto") not in wrong(found)


def test_lossy_formats_may_differ_within_their_tolerance(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(pixels, path=tmp_path / "a.dcm", transfer_syntax_uid=f"{J}.91")
    real = imagecodecs.decode

    def by(step: int) -> Callable[..., Any]:
        def change(values: np.ndarray, level: int) -> None:
            values[100:110, 50] += step

        return altered(real, change)

    monkeypatch.setattr(imagecodecs, "decode", by(1))
    found = verify(tmp_path, size=SIZE)
    assert found.exit_code == 0, found.text()
    row = rows(found, route="level 0", backend="imagecodecs")[0]
    assert (row["within"], row["maximum"], row["differs"]) == (1, 1, 0)
    assert "1 (by 1)" in found.text()
    image = rows(found, route="full image", backend="imagecodecs")[0]
    assert image["reasons"] == {"lossy: its stored values differ within the tolerance": 1}
    level = rows(found, route="level 1", backend="openjpeg")[0]
    assert level["reasons"] == {"9/7 wavelet: not the integer transform": 1}

    monkeypatch.setattr(imagecodecs, "decode", by(2))
    found = verify(tmp_path, size=SIZE)
    assert found.exit_code == 1
    assert ("level 0", "imagecodecs") in wrong(found)


@pytest.mark.parametrize(
    ("syntax", "bits", "allowed"), [("50", 8, 1), ("51", 12, 4), ("81", 12, 0), ("90", 12, 0)]
)
def test_tolerance(pixels: np.ndarray, syntax: str, bits: int, allowed: int) -> None:
    values = (pixels >> 4).astype(np.uint8) if bits == 8 else pixels
    data = write_dicom(values, transfer_syntax_uid=f"{J}.{syntax}", bits_stored=bits)
    assert routes.tolerance(read(data).codestream()) == allowed
    # nvJPEG and libjpeg may be 1 from the true value on opposite sides
    assert routes.tolerance(read(data).codestream(), "cuda") == (2 if syntax == "50" else allowed)


def test_values_beyond_bits_stored(pixels: np.ndarray) -> None:
    values = pixels.copy()
    values[100:120, 80:100] = 12000
    dataset = pydicom.dcmread(io.BytesIO(write_dicom(values, bits_stored=16)))
    dataset.BitsStored, dataset.HighBit = 12, 11
    out = io.BytesIO()
    dataset.save_as(out)
    results = list(Check(read(out.getvalue()), size=SIZE, reencode=True).results())
    assert not [r for r in results if r.wrong]
    images = [r for r in results if r.route == "full image"]
    assert {r.status for r in images} == {"exact"}
    again = {(r.status, r.note) for r in results if r.route.startswith("as ")}
    assert again == {("not possible", "values beyond Bits Stored")}


def test_real_files(data: Path) -> None:
    """All CTs of one slice, lossless and lossy: every route of each, pydicom's too."""
    found = verify(data / "cornerstone", limit=0, size=SIZE)
    assert found.exit_code == 0, found.text()
    assert (found.count("ok"), found.count("skipped")) == (10, 1)
    assert sum(r["exact"] + r["within"] for r in rows(found, backend="pydicom")) >= 6


# ---------------------------------------------------------------- what is wrong is found


def test_a_wrong_backend(
    j2k: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(imagecodecs, "decode", altered(imagecodecs.decode, one_pixel))
    pictures = tmp_path / "new" / "pictures"
    arguments = ["verify", str(j2k), "--size", "96x64", "--picture", str(pictures)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    told = "view.dcm: level 0 by imagecodecs differs in 1 pixels, by up to 3 at row 40, column 30"
    assert told in printed.out
    assert "1 of 1 files verified: 0 as they must be, 1 differing; 0 failed, 0" in printed.out
    assert "verifying 1/1: view.dcm" in printed.err
    picture = pictures / "000-view.dcm-level_0-imagecodecs.png"
    assert str(picture) in printed.out
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("L"))
    assert shown.shape[0] > 2 * 420
    # one pixel of 337,181, yet white in the third panel of the first row
    assert shown[60:480, -shown.shape[1] // 3 :].max() > 200

    assert main(["verify", str(j2k), "--size", "96x64", "--quiet", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert (found["exit_code"], found["differs"], found["ok"]) == (1, 1, 0)
    assert found["files"][0]["path"] == "view.dcm"
    level_0 = next(r for r in found["files"][0]["results"] if r["backend"] == "imagecodecs")
    assert (level_0["status"], level_0["count"], level_0["at"]) == ("differs", 1, [40, 30])
    assert found["backends"]["openjpeg"].startswith("OpenJPEG")


def test_wrong_levels_of_a_codec(j2k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray, level: int) -> None:
        if level == 1:  # where the breast is sought
            values[values.shape[0] // 2 :] = 0

    monkeypatch.setattr(openjpeg, "decode", altered(openjpeg.decode, change))
    found = verify(j2k, size=SIZE)
    assert wrong(found) == {("level 1", "openjpeg"), ("auto image (codec levels)", "openjpeg")}


def test_a_wrong_kernel(j2k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.low_pass
    monkeypatch.setattr(kernels, "low_pass", lambda pixels: real(pixels) + (pixels.shape[0] < 300))
    found = verify(j2k, size=SIZE)
    assert {route for route, name in wrong(found) if name == "kernels"} == {
        "level 3",
        "level 4",
        "level 5",
    }


def test_a_backend_that_breaks_and_one_that_is_not_there(
    j2k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: object) -> None:
        raise CorruptCodestreamError("imagecodecs refused it: made up")

    monkeypatch.setattr(imagecodecs, "decode", breaks)
    monkeypatch.setattr(BACKENDS["pylibjpeg"], "missing", lambda: "pip install pylibjpeg-openjpeg")
    found = verify(j2k, size=SIZE)
    assert found.exit_code == 1
    assert wrong(found) == {("level 0", "imagecodecs")}
    assert "view.dcm: level 0 by imagecodecs failed: imagecodecs refused it" in found.text()
    missing = rows(found, backend="pylibjpeg")
    assert [r["reasons"] for r in missing] == [{"pip install pylibjpeg-openjpeg": 1}]
    image = rows(found, route="full image", backend="imagecodecs")[0]
    assert image["reasons"] == {"it did not decode level 0": 1}


def test_a_pydicom_that_differs(j2k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import utils

    real = utils.pixel_array
    monkeypatch.setattr(utils, "pixel_array", lambda *a, **k: real(*a, **k)[:-1])
    found = verify(j2k, size=SIZE)
    assert wrong(found) == {("level 0", "pydicom")}
    assert "differs: 700 x 481 pixels, the reference has 701 x 481" in found.text()

    def cannot(*arguments: object, **options: object) -> None:
        raise RuntimeError("no plugin\nat all")

    monkeypatch.setattr(utils, "pixel_array", cannot)
    found = verify(j2k, size=SIZE)
    assert found.exit_code == 0
    assert rows(found, backend="pydicom")[0]["reasons"] == {"pydicom: no plugin": 1}


def test_a_broken_file_is_a_row(pixels: np.ndarray, tmp_path: Path) -> None:
    good = write_dicom(pixels, transfer_syntax_uid="1.2.840.10008.1.2.5")
    (tmp_path / "good.dcm").write_bytes(good)
    (tmp_path / "cut.dcm").write_bytes(good[: len(good) // 2])
    damaged = bytearray(write_dicom(pixels))
    damaged[-len(damaged) // 2 : -len(damaged) // 3] = bytes(len(damaged))[: len(damaged) // 6]
    (tmp_path / "damaged.dcm").write_bytes(damaged)
    (tmp_path / "no.dcm").write_bytes(b"x" * 300)
    (tmp_path / "notes.txt").write_text("not DICOM")
    os.mkfifo(tmp_path / "pipe.dcm")
    found = verify(tmp_path, size=SIZE)
    assert found.exit_code == 1
    by_path = {each.path: each for each in found.files}
    assert by_path["good.dcm"].status == "ok"
    assert (by_path["cut.dcm"].status, by_path["cut.dcm"].reason) == ("failed", "truncated file")
    assert by_path["damaged.dcm"].status in ("failed", "differs")
    assert (by_path["no.dcm"].status, by_path["no.dcm"].reason) == ("failed", "not dicom")
    assert by_path["notes.txt"].status == "skipped"
    assert by_path["pipe.dcm"].message == "not a regular file"
    assert "cut.dcm: failed, truncated file: " in found.text()
    assert json.loads(json.dumps(found.to_dict()))["skipped"] == 1


def test_a_defect_of_ours_costs_its_file(j2k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(pixels: np.ndarray) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(routes, "low_pass", breaks)
    found = verify(j2k, size=SIZE)
    assert found.files[0].reason == "internal error"
    assert found.files[0].message == "ZeroDivisionError: made up"


# ---------------------------------------------------------------- what is verified


def test_the_limit_spreads_evenly_and_skips_what_is_no_dicom(tmp_path: Path) -> None:
    data = write_dicom(phantom(64, 48, seed=1).pixels, transfer_syntax_uid="1.2.840.10008.1.2.1")
    for index in range(9):
        (tmp_path / f"{index}.dcm").write_bytes(data)
    (tmp_path / "2.txt").write_text("sorts before 3.dcm")
    paths: list[tuple[int, int, str]] = []
    found = verify(tmp_path, limit=3, size=SIZE, progress=lambda *each: paths.append(each))
    # three parts: 0 1 2, 2.txt 3 4, 5 6 7 8
    assert [each.path for each in found.files] == ["0.dcm", "2.txt", "3.dcm", "5.dcm"]
    assert [each.status for each in found.files] == ["ok", "skipped", "ok", "ok"]
    assert (found.count("ok"), found.inputs) == (3, 10)
    assert paths[0] == (0, 3, "0.dcm")
    assert verify(tmp_path, limit=0, size=SIZE).count("ok") == 9


def test_a_list_and_its_image_root(j2k: Path, tmp_path: Path) -> None:
    (tmp_path / "files.csv").write_text("name,dicom\nx,view.dcm\n")
    found = verify(tmp_path / "files.csv", size=SIZE, image_root=str(j2k), path_column="dicom")
    assert [each.status for each in found.files] == ["ok"]


def test_cannot_run(j2k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert "SRC is not there" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(ConvertError, match="none of the 1 files looked at is a DICOM image"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="limit: got -1, wanted a whole number from 0"):
        verify(j2k, limit=-1)
    with pytest.raises(ConfigError, match=r"size: got \(0, 5\), wanted \(rows, columns\)"):
        verify(j2k, size=(0, 5))
    assert main(["verify", str(j2k), "--picture", str(tmp_path / "notes.txt")]) == 2
    assert "notes.txt" in capsys.readouterr().err


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 1), (2, 2), (3, 2), (4, 5), (9, 12)])
def test_two_forms_of_the_transform_agree(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(-4000, 4000, shape).astype(np.int32)
    assert np.array_equal(routes.low_pass(values), kernels.low_pass(values))


def test_difference() -> None:
    a = np.array([[0, 65535], [5, 5]], np.uint16)
    b = np.array([[0, 0], [5, 6]], np.int16)
    found = difference(a, b)
    assert (found.count, found.maximum, found.at) == (2, 65535, (0, 1))
    assert difference(a, a.astype(np.int32)).count == 0
    assert difference(a, a[:1]).shapes == "1 x 2 pixels, the reference has 2 x 2"


def test_a_picture_of_a_tiny_image(tmp_path: Path) -> None:
    a = np.zeros((3, 5), np.uint8)
    b = a.copy()
    b[2, 4] = 1
    draw_difference(a, b, tmp_path / "p.png", "tiny")
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 500


def test_names_of_pictures_stay_in_their_folder(
    large: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src" / "..a b" / ("x" * 90)
    source.mkdir(parents=True)
    write_dicom(large, path=source / "ä:..dcm")
    monkeypatch.setattr(imagecodecs, "decode", altered(imagecodecs.decode, one_pixel))
    found = verify(tmp_path / "src", size=SIZE, picture=tmp_path / "pictures")
    names = os.listdir(tmp_path / "pictures")
    assert len(names) == len(found.files[0].pictures) >= 1
    assert all(".." not in name and name.isascii() and len(name) < 200 for name in names)


def test_result_is_wrong_only_where_it_must_not_be() -> None:
    statuses = ("reference", "exact", "within", "not possible", "differs", "failed")
    results = [Result("level 0", "x", "cpu", status) for status in statuses]
    assert [r.status for r in results if r.wrong] == ["differs", "failed"]
