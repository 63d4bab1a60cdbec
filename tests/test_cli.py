"""The command line: what each verb prints, writes and returns."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from fastmammo.cli import main
from fastmammo.decoding import cuda_runtime, nvjpeg2000
from fastmammo.testing import can_encode, phantom, write_dataset, write_dicom

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "dicom"
    write_dataset(root, count=4, rows=300, columns=240)
    return root


@pytest.mark.parametrize("verb", [[], ["convert"], ["inspect"], ["verify"], ["doctor"], ["demo"]])
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Exit codes: 0 fine" in out
    if verb == ["convert"]:
        for flag in ("--size", "--bits", "--scale", "--crop", "--flip", "--margin", "--window"):
            assert flag in out
        for flag in ("--workers", "--format", "--device", "--json", "--quiet", "--image-root"):
            assert flag in out


def test_no_verb_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "convert" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["convert", "inspect", "verify"])
def test_without_a_gpu_cuda_is_refused_once(
    verb: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cuda_runtime, "missing", lambda: "a CUDA device: none")
    files = sorted(map(str, folder.rglob("*.dcm")))[:2]
    places = {"convert": [str(folder), str(tmp_path / "a")], "verify": [str(folder)]}
    assert main([verb, *places.get(verb, files), "--device", "cuda", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"fastmammo {verb}: device 'cuda' is missing a CUDA device: none; device 'auto' takes the "
        "CPU where there is no GPU\n"
    )
    # what it recommends is allowed
    monkeypatch.setattr(nvjpeg2000, "missing", lambda: "a CUDA device: none")
    assert main([verb, *places.get(verb, files), "--device", "auto"]) == 0
    assert "auto: missing a CUDA device: none" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([verb, *places.get(verb, files), "--device", "cuda:0"])
    assert stop.value.code == 2
    assert "set CUDA_VISIBLE_DEVICES=0 and device to cuda" in capsys.readouterr().err


def test_convert(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), str(tmp_path / "a"), "--size", "128x96", "--quiet"]) == 0
    assert "4 converted, 0 failed" in capsys.readouterr().out
    with open(tmp_path / "a" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 4
    for row in rows:
        with Image.open(tmp_path / "a" / row["output"]) as image:
            assert image.size == (96, 128)


def test_convert_says_what_failed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    good = write_dicom(phantom(128, 96).pixels)
    (source / "good.dcm").write_bytes(good)
    (source / "cut.dcm").write_bytes(good[: len(good) // 2])
    (source / "notes.txt").write_text("not DICOM")
    code = main(["convert", str(source), str(tmp_path / "b"), "--size", "64x48", "--json"])
    assert code == 1
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["ok"], summary["failed"], summary["skipped"]) == (1, 1, 1)
    assert "Traceback" not in printed.err


def test_convert_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "c")]) == 2
    assert "absent" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["convert", "a", "b", "--size", "big"])
    assert stop.value.code == 2
    assert "wanted ROWSxCOLUMNS, like 1024x512" in capsys.readouterr().err
    assert main(["convert", "a", "b", "--margin", "9"]) == 2
    assert "margin: got 9.0, allowed is 0.0 to 0.5" in capsys.readouterr().err


def test_inspect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted(folder.rglob("*.dcm"))[0]
    picture = tmp_path / "p.png"
    assert main(["inspect", str(path), "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    for words in ("transfer syntax", "codestream", "window", "box", "rows: 300"):
        assert words in out
    with Image.open(picture) as image:
        assert np.asarray(image).std() > 10


def test_inspect_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted(folder.rglob("*.dcm"))[0]
    assert main(["inspect", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["header"]["rows"] == 300
    assert found["plan"]["output"] == [1024, 512]
    assert "patient_id" not in found["header"]
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"x" * 300)
    assert main(["inspect", str(bad)]) == 1
    assert "not a DICOM file" in capsys.readouterr().err
    assert main(["inspect", str(path), str(bad), "--picture", "x.png"]) == 2
    assert "takes one FILE, got 2" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["table"]) == 16
    lossless = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.201")
    for uid in filter(can_encode, lossless):
        assert found["table"][uid][found["chosen"][uid]] == "exact"
    assert main(["doctor"]) == 0
    assert "numba*: exact" in capsys.readouterr().out
    assert main(["doctor", "--markdown"]) == 0
    assert "| JPEG 2000 Lossless | 1.2.840.10008.1.2.4.90 |" in capsys.readouterr().out


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    arguments = ["demo", str(folder), "--count", "4", "--phantom-size", "300x240", "--quiet"]
    assert main(arguments) == 0
    assert "4 converted, 0 failed" in capsys.readouterr().out
    for name in ("contact-sheet.png", "explained.png"):
        with Image.open(folder / name) as image:
            assert image.width > 500


def test_the_program_is_installed_and_quiet_when_the_pipe_closes(folder: Path) -> None:
    path = sorted(folder.rglob("*.dcm"))[0]
    done = subprocess.run(
        [sys.executable, "-m", "fastmammo", "inspect", str(path), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.count("codestream") == 2
