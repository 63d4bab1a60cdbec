"""Runs of `transcode`: what lands in DST, what a second run keeps, what a file's failure costs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
import transcode_killed

import fastmammo
from fastmammo.cli import main
from fastmammo.conversion import ConvertOptions, TranscodeOptions, TranscodeSummary, transcode
from fastmammo.conversion.transcoding import COLUMNS, TRANSCODER
from fastmammo.dicom import read
from fastmammo.encoding import HTJ2K_LOSSLESS_RPCL, missing
from fastmammo.errors import BackendUnavailableError, ConfigError, ConvertError
from fastmammo.testing import phantom, write_dataset, write_dicom

if TYPE_CHECKING:
    from pathlib import Path

ENCODER = pytest.mark.skipif(missing() is not None, reason=str(missing()))
J = "1.2.840.10008.1.2.4."
LOSSY = J + "91"
PIXELS = phantom(120, 90, seed=1).pixels


def run(
    src: Path, dst: Path, *, kind: str = "", note: Any = None, **options: Any
) -> TranscodeSummary:
    chosen = TranscodeOptions(**{"workers": 1, **options})
    name = transcode_killed.PREFIX + kind if kind else TRANSCODER
    return transcode(src, dst, options=chosen, note=note, transcoder=name)


def fill(folder: Path, *names: str, uid: str = J + "90") -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(PIXELS, seed, axis=0)
        write_dicom(pixels, path=folder / name, transfer_syntax_uid=uid, seed=seed)
    return folder


def manifest(dst: Path) -> dict[str, dict[str, str]]:
    with open(dst / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def tree(dst: Path) -> dict[str, bytes]:
    """Return every file of DST that a user sees, times aside."""
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and ".fastmammo" not in path.parts and path.name != "timings.csv"
    }


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two to transcode, one lossy, one HTJ2K, a text file."""
    src = fill(tmp_path / "src", "b/two.DCM", "a/one", "one.1.dcm")
    fill(src, "lossy.dcm", uid=LOSSY)
    if missing() is None:
        fill(src, "done.dcm", uid=J + "201")
    (src / "notes.txt").write_text("no DICOM")
    return src


# ---------------------------------------------------------------- DST


@ENCODER
def test_a_folder(mixed: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    summary = run(mixed, dst)
    assert (summary.ok, summary.copied, summary.skipped, summary.failed) == (3, 2, 1, 0)
    assert (summary.files, summary.transcoded, summary.kept, summary.exit_code) == (6, 3, 0, 0)
    rows = manifest(dst)
    assert list(rows) == sorted(rows)
    assert list(rows["a/one"]) == list(COLUMNS)
    for path, row in rows.items():
        source, output = mixed / path, dst / row["output"]
        assert row["bytes_before"] == str(source.stat().st_size)
        if row["status"] == "skipped":
            assert (path, row["reason"], row["output"]) == ("notes.txt", "not dicom", "")
            continue
        assert row["output"] == path
        assert row["bytes_after"] == str(output.stat().st_size)
        assert row["source_syntax"] == read(source).transfer_syntax_uid
        if row["status"] == "ok":
            assert read(output).transfer_syntax_uid == HTJ2K_LOSSLESS_RPCL
            assert read(output).sop_instance_uid == read(source).sop_instance_uid
            assert (row["frames"], row["verified_by"]) == ("1", "openjpeg")
        else:
            assert row["status"] == "copied"
            assert output.read_bytes() == source.read_bytes()
    assert {path: row["reason"] for path, row in rows.items() if row["status"] == "copied"} == {
        "lossy.dcm": "lossy coding",
        "done.dcm": "already htj2k",
    }
    done = [row for row in rows.values() if row["output"]]
    for name in ("bytes_before", "bytes_after"):
        assert getattr(summary, name) == sum(int(row[name]) for row in done)
    assert json.loads((dst / "config.json").read_text())["verb"] == "transcode"
    assert "3 transcoded, 2 copied, 0 failed, 1 skipped, of 6 files" in summary.text()
    assert "MB before" in summary.text()
    assert summary.to_dict()["unfinished"] == 0


@ENCODER
def test_convert_of_either_folder_gives_the_same_images(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_dataset(src, count=7, rows=277, columns=208, seed=4)
    fill(src, "lossy.dcm", uid=LOSSY)
    assert run(src, tmp_path / "dst").failed == 0
    for scale in ("auto", "full"):
        config = fastmammo.Config(size=(96, 64), scale=scale, bits=16)
        images = []
        for folder in ("src", "dst"):
            out = tmp_path / f"{folder}-{scale}"
            options = ConvertOptions(workers=1)
            assert fastmammo.convert(tmp_path / folder, out, config=config, options=options).ok == 8
            images.append({name: data for name, data in tree(out).items() if name[-4:] == ".png"})
        assert len(images[0]) == 8
        assert images[0] == images[1]


@ENCODER
def test_others_are_skipped_on_request_and_only_they_are_done_again(
    mixed: Path, tmp_path: Path
) -> None:
    dst = tmp_path / "dst"
    summary = run(mixed, dst, others="skip")
    assert (summary.ok, summary.copied, summary.skipped) == (3, 0, 3)
    assert not (dst / "lossy.dcm").exists()
    assert manifest(dst)["lossy.dcm"]["reason"] == "lossy coding"
    before = (dst / "a" / "one").stat().st_mtime_ns
    notes: list[str] = []
    summary = run(mixed, dst, note=notes.append)
    assert (summary.kept, summary.again) == (4, {"settings changed": 2})
    assert notes == ["4 of 6 files kept from an earlier run; 2 done again: 2 settings changed"]
    assert (summary.ok, summary.copied, summary.transcoded) == (3, 2, 0)
    assert (dst / "a" / "one").stat().st_mtime_ns == before
    assert "3 transcoded (3 of them before), 2 copied" in summary.text()
    assert run(mixed, dst).kept == 6
    run(mixed, dst, others="skip")
    assert not (dst / "lossy.dcm").exists()


@ENCODER
def test_what_changed_is_done_again(mixed: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    run(mixed, dst)
    calm = tree(dst)
    (dst / "lossy.dcm").write_bytes(b"cut")
    (dst / "a" / "one").unlink()
    changed = pydicom.dcmread(mixed / "one.1.dcm")
    changed.ImageComments = "corrected"  # the same image still, by its SOP Instance UID
    changed.save_as(mixed / "one.1.dcm")
    summary = run(mixed, dst)
    assert summary.again == {"input changed": 1, "output missing or changed": 2}
    after = tree(dst)
    assert after["lossy.dcm"] == calm["lossy.dcm"]
    assert after["a/one"] == calm["a/one"]
    assert after["one.1.dcm"] != calm["one.1.dcm"]
    (mixed / "b" / "two.DCM").unlink()
    summary = run(mixed, dst)
    assert summary.orphans == ["b/two.DCM"]
    assert "of inputs that are gone" in summary.text()


@ENCODER
def test_lists_and_tables(tmp_path: Path) -> None:
    src = fill(tmp_path / "src", "7/70.dcm", "8/80.dcm")
    (tmp_path / "list.txt").write_text("src/7/70.dcm\nsrc/7/70.dcm\nsrc/9/90.dcm\n")
    summary = run(tmp_path / "list.txt", tmp_path / "a")
    assert (summary.ok, summary.failed, summary.merged_rows, summary.exit_code) == (1, 1, 1, 1)
    assert (tmp_path / "a" / "src" / "7" / "70.dcm").is_file()
    assert manifest(tmp_path / "a")["src/9/90.dcm"]["reason"] == "file not found"
    assert "1 row merged" in summary.text()
    (tmp_path / "train.csv").write_text("patient_id,image_id\n7,70\n8,80\n")
    summary = run(tmp_path / "train.csv", tmp_path / "b", image_root=str(src))
    assert summary.ok == 2
    assert (tmp_path / "b" / "8" / "80.dcm").is_file()
    # names that convert would have to share one output for
    fill(tmp_path / "twins", "a.dcm", "a", "a.png")
    assert run(tmp_path / "twins", tmp_path / "c").ok == 3


# ---------------------------------------------------------------- what is refused


@ENCODER
def test_nothing_that_others_made_is_written_over(tmp_path: Path) -> None:
    src = fill(tmp_path / "src", "deep/a.dcm")
    with pytest.raises(ConvertError, match="SRC and DST are the same folder"):
        run(src, src)
    with pytest.raises(ConvertError, match=r"holds other files \(src, \.\.\.\)"):
        run(src, tmp_path)
    taken = fill(tmp_path / "taken", "deep/a.dcm", "deep/other.dcm")
    held = tree(taken)
    with pytest.raises(ConvertError, match="outputs have the names of their inputs"):
        run(src, taken)
    assert tree(taken) == held
    images = tmp_path / "images"
    fastmammo.convert(src, images, options=ConvertOptions(workers=1))
    with pytest.raises(ConvertError, match="holds what `convert` made"):
        run(src, images)
    run(src, tmp_path / "dst")
    with pytest.raises(ConvertError, match="holds what `transcode` made"):
        fastmammo.convert(src, tmp_path / "dst")
    with pytest.raises(ConvertError, match="SRC has files in DST itself"):
        run(tmp_path / "dst" / "deep", tmp_path / "dst")
    with pytest.raises(ConvertError, match="DST is empty: name a folder"):
        transcode(src, "")
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(tmp_path / "dst" / "deep" / "a.dcm", linked / "a.dcm")
    held = tree(tmp_path / "dst")
    with pytest.raises(ConvertError, match=r"a\.dcm in SRC is a link into DST itself"):
        run(linked, tmp_path / "dst", follow_links=True)
    assert tree(tmp_path / "dst") == held
    assert run(src, src / "inside").ok == 1  # DST in SRC is left out of it
    assert run(src, src / "inside").files == 1


@ENCODER
def test_names_that_the_run_needs_itself(tmp_path: Path) -> None:
    src = fill(tmp_path / "src", "a.dcm")
    (src / "manifest.csv").write_text("path\na.dcm\n")
    (src / "list.txt").write_text("a.dcm\nconfig.json\n")
    fill(src, "config.json", "timings.csv/a.dcm", "Images.npy/b")
    (src / "timings.csv" / "notes").write_text("no DICOM")
    for _ in range(2):
        summary = run(src, tmp_path / "dst")
        assert (summary.ok, summary.failed, summary.skipped) == (1, 3, 3)
        assert {path: row["reason"] for path, row in manifest(tmp_path / "dst").items()} == {
            "Images.npy/b": "reserved name",
            "a.dcm": "",
            "config.json": "reserved name",
            "list.txt": "not dicom",
            "manifest.csv": "not dicom",
            "timings.csv/a.dcm": "reserved name",
            "timings.csv/notes": "not dicom",
        }
    (src / "config.json").write_text("named, and no DICOM")
    summary = run(src / "list.txt", tmp_path / "named")
    assert manifest(tmp_path / "named")["config.json"]["reason"] == "reserved name"
    assert "rename it" in manifest(tmp_path / "named")["config.json"]["message"]


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="others: got 'drop', allowed are copy, skip"):
        TranscodeOptions(others="drop")
    with pytest.raises(ConfigError, match="workers: got -1"):
        TranscodeOptions(workers=-1)
    with pytest.raises(ConfigError, match="memory_limit_mb: got 5"):
        TranscodeOptions(memory_limit_mb=5)


def test_without_an_encoder_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    src, dst = fill(tmp_path / "src", "a.dcm"), tmp_path / "dst"
    # as the newest of Python 3.10
    without = types.SimpleNamespace(__version__="2025.3.30")
    monkeypatch.setitem(sys.modules, "imagecodecs", without)
    with pytest.raises(BackendUnavailableError, match=r"under Python 3\.11 or later"):
        transcode(src, dst)
    assert main(["transcode", str(src), str(dst)]) == 2
    assert "fastmammo transcode: cannot encode HTJ2K: this version" in capsys.readouterr().err
    assert not dst.exists()


# ---------------------------------------------------------------- failures cost a file


@ENCODER
def test_what_is_not_exact_leaves_no_output(tmp_path: Path) -> None:
    src, dst = fill(tmp_path / "src", "a.dcm", "broken.dcm", "c.dcm"), tmp_path / "dst"
    summary = run(src, dst, kind="Broken")
    assert (summary.ok, summary.failed, summary.exit_code) == (2, 1, 1)
    row = manifest(dst)["broken.dcm"]
    assert (row["status"], row["reason"], row["output"]) == ("failed", "not exact", "")
    assert "decoded by openjpeg: 1 of 10800 pixels differ, the first at row 0" in row["message"]
    assert sorted(p.name for p in dst.rglob("*.dcm")) == ["a.dcm", "c.dcm"]
    assert not (dst / ".fastmammo" / "partial").exists()
    assert "broken.dcm: frame 0, decoded by" in summary.text()
    with pytest.raises(ConvertError, match=r"fail_fast: broken\.dcm failed"):
        run(src, tmp_path / "other", kind="Broken", fail_fast=True)


@ENCODER
def test_crashes_and_hangs_cost_their_file(tmp_path: Path) -> None:
    names = ["a.dcm", "crash.dcm", "hang.dcm", "memory.dcm", "z.dcm"]
    src, dst = fill(tmp_path / "src", *names), tmp_path / "dst"
    summary = run(src, dst, kind="Crashing", timeout_seconds=3.0)
    rows = manifest(dst)
    assert {name: rows[name]["reason"] for name in names} == {
        "a.dcm": "",
        "crash.dcm": "worker died",
        "hang.dcm": "timed out",
        "memory.dcm": "out of memory",
        "z.dcm": "",
    }
    assert (summary.ok, summary.failed) == (2, 3)
    summary = run(src, dst)
    assert summary.again == {"settings changed": 2, "failed before": 3}
    assert summary.ok == 5


@ENCODER
@pytest.mark.parametrize("point", ["2", "manifest.csv", "config.json", "check"])
def test_a_killed_run_is_gone_on_with(point: str, tmp_path: Path) -> None:
    src = fill(tmp_path / "src", "a.dcm", "b/c.dcm", "d.dcm")
    fill(src, "lossy.dcm", uid=LOSSY)
    run(src, tmp_path / "calm")
    calm, dst = tree(tmp_path / "calm"), tmp_path / "dst"
    environment = dict(os.environ)
    if point == "check":
        (tmp_path / "marker").touch()
        environment[transcode_killed.POINT] = str(tmp_path / "marker")
    command = [sys.executable, transcode_killed.__file__, str(src), str(dst), point]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name, data in tree(dst).items():
        assert data == calm[name], name  # whole or not there
    summary = run(src, dst)
    assert (summary.ok, summary.copied, summary.failed) == (3, 1, 0)
    assert summary.kept == {"2": 2, "manifest.csv": 4, "config.json": 0, "check": 0}[point]
    assert tree(dst) == calm
    assert sorted(p.name for p in (dst / ".fastmammo").iterdir()) == ["journal.jsonl", "lock"]


@ENCODER
def test_ctrl_c_ends_the_run_after_the_file_in_hand(tmp_path: Path) -> None:
    src, dst = fill(tmp_path / "src", *(f"{i}.dcm" for i in range(6))), tmp_path / "dst"

    def interrupt(done: int, *_: Any) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    options = TranscodeOptions(workers=1)
    summary = transcode(src, dst, options=options, progress=interrupt)
    assert (summary.signal, summary.exit_code) == (signal.SIGINT, 130)
    assert 2 <= summary.ok == 6 - summary.unfinished < 6
    assert "ended by SIGINT" in summary.text()
    assert len(manifest(dst)) == summary.ok
    again = run(src, dst)
    assert (again.ok, again.kept) == (6, summary.ok)


# ---------------------------------------------------------------- the command line


@ENCODER
def test_the_verb(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = str(tmp_path / "dst")
    assert main(["transcode", str(mixed), dst, "--workers", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["copied"] == 2
    assert "6/6" in printed.err
    assert main(["transcode", str(mixed), dst, "--quiet", "--others", "skip"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "3 of them before), 0 copied" in printed.out
    assert main(["transcode", str(tmp_path / "absent"), str(tmp_path / "new")]) == 2
    assert "SRC is not there" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["transcode", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--others {copy,skip}", "--workers", "--timeout-seconds", "--memory-limit-mb"):
        assert flag in out
    assert "--device-memory-mb" not in out
