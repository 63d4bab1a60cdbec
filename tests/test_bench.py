"""The benchmarks run, on a tiny phantom; what they time is compared first."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])


@pytest.mark.usefixtures("bench")
def test_decode(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("decode").main(["--rows", "128", "--columns", "96", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "JPEG 2000 Lossless" in out
    assert "numba r=2" in out
    assert "openjpeg r=2" in out


@pytest.fixture
def roi(bench: None) -> ModuleType:
    return importlib.import_module("roi")


@pytest.fixture
def fidelity(bench: None) -> ModuleType:
    pytest.importorskip("cv2")
    return importlib.import_module("fidelity")


def test_a_box_is_scored_on_the_breast_alone(roi: ModuleType) -> None:
    mask, belly = np.zeros((2, 20, 20), np.bool_)
    mask[2:12, 0:10] = True
    belly[12:16, 0:5] = True
    assert roi.judge((2, 0, 12, 10), mask, belly) == (1.0, 1.0, (2, 0, 12, 10))
    # belly that the box takes in is no fault; air is; what is cut off is
    assert roi.judge((2, 0, 16, 10), mask, belly) == (1.0, 1.0, (2, 0, 16, 10))
    assert roi.judge((2, 0, 16, 10), mask, None)[1] == pytest.approx(1.4)
    assert roi.judge((2, 0, 16, 20), mask, belly)[1] == pytest.approx(2.0)
    assert roi.judge((3, 0, 12, 10), mask, belly)[:2] == pytest.approx((0.9, 0.9))


def test_shares_and_sides_are_counted(roi: ModuleType) -> None:
    facts = {"view": "CC", "machine_id": 1, "box": (0, 0, 1, 1), "tight": (0, 0, 1, 1), "flags": ()}
    scores = [
        roi.Score(0, side="L", nuisances=(), coverage=1.0, area=1.0, laterality="L", **facts),
        roi.Score(
            1, side="L", nuisances=("air",), coverage=0.99, area=1.1, laterality="R", **facts
        ),
        roi.Score(2, side="R", nuisances=("air",), coverage=1.0, area=1.3, laterality="", **facts),
    ]
    found = roi.table(scores)
    assert list(found) == ["all", "CC", "air", "machine 1", "no nuisance"]
    assert found["air"]["coverage_reached"] == 0.5
    assert found["air"]["area_reached"] == 0.5
    assert found["all"]["coverage_lowest"] == 0.99
    assert found["all"]["area_largest"] == 1.3
    sides = [found["all"][f"laterality_{name}"] for name in ("right", "wrong", "undecided")]
    assert sides == [1, 1, 1]
    assert max(scores, key=lambda each: each.badness) is scores[1]


def test_the_marks_of_the_roi_hold_on_a_few(roi: ModuleType) -> None:
    scores = roi.all_scores([(seed, 240, 1.0) for seed in range(0, 40, 3)], 1)
    total = roi.summary(scores)
    assert total["coverage_reached"] >= roi.COVERAGE_SHARE
    assert total["area_reached"] >= roi.AREA_SHARE
    assert total["laterality_wrong"] == 0
    assert {each.machine_id for each in scores} == {m.machine_id for m in roi.MACHINES}


def test_roi(
    roi: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    sheet = tmp_path / "worst.png"
    size = ["--count", "5", "--rows", "160", "--workers", "2"]
    roi.main([*size, "--picture", str(sheet), "--save"])
    out = capsys.readouterr().out
    assert "coverage at least 99.9% in" in out
    assert "worst" in out
    assert sheet.stat().st_size > 1000
    saved = json.loads((tmp_path / "roi_160.json").read_text())
    assert saved["groups"]["all"]["images"] == 5
    assert saved["groups"]["CC"]["images"] == 3
    assert saved["machine"]["versions"]["numpy"]


def test_the_area_mean_is_exact(fidelity: ModuleType) -> None:
    values = np.random.default_rng(1).random((21, 10))
    fine = np.kron(values, np.ones((4, 3)))  # 84 x 30: whole numbers of parts an output pixel
    wanted = fine.reshape(12, 7, 6, 5).mean((1, 3))
    np.testing.assert_allclose(fidelity.area_mean(values, (12, 6)), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.1, -0.05), (-0.3, 0.2)])
def test_a_known_shift_is_found(fidelity: ModuleType, shift: tuple[float, float]) -> None:
    from fastmammo.testing.texture import power_law

    generator = np.random.default_rng(2)
    field = power_law(generator, (256, 256), beta=3.0) + generator.normal(0, 0.1, (256, 256))
    rows, columns = np.fft.fftfreq(256)[:, np.newaxis], np.fft.fftfreq(256)
    turn = np.exp(-2j * np.pi * (rows * shift[0] + columns * shift[1]))
    moved = np.fft.ifft2(np.fft.fft2(field) * turn).real
    found = fidelity.aligning_shift(moved, field, np.ones((256, 256), np.bool_))
    # it errs outwards, by a few percent: a central difference is less than the gradient
    assert found == pytest.approx(shift, rel=0.08, abs=1e-6)
    assert all(abs(f) >= abs(s) - 1e-6 for f, s in zip(found, shift, strict=True))


def test_fidelity(
    fidelity: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    size = ["--count", "1", "--scale", "0.15", "--sizes", "Hologic 18x24"]
    fidelity.main([*size, "--save", "--markdown"])
    out = capsys.readouterr().out
    assert "output pixels: holds" in out
    cells = {line.count("|") for line in out.splitlines() if line.startswith("|")}
    assert "| all |" in out
    assert len(cells) == 1  # else no table is drawn
    saved = json.loads((tmp_path / "fidelity.json").read_text())
    reduced = [row for row in saved["cases"] if row["level"]]
    assert {row["level"] for row in reduced} == {1, 2}
    for row in saved["cases"]:
        assert row["full"] > 90  # one rounding to 16 bits
        assert row["cv2_area"] > 120  # the reference, computed by another
    for row in reduced:
        assert row["cv2_linear"] < row["auto"] < row["full"]
        assert max(abs(row["shift_rows"]), abs(row["shift_columns"])) < fidelity.SHIFT


@pytest.fixture
def memory(bench: None) -> ModuleType:
    return importlib.import_module("memory")


def test_peaks_of_processes_are_read(memory: ModuleType) -> None:
    held = np.ones(8 << 20, np.float64)  # 64 MiB
    assert memory.peak_mib(os.getpid()) > held.nbytes / 2**20
    code = "import time; held = b'1' * (64 << 20); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert child.pid in memory.children(os.getpid())
        end = time.monotonic() + 20
        while (memory.peak_mib(child.pid) or 0) < 64:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert memory.peak_mib(child.pid) is None
    assert memory.children(child.pid) == []


def test_the_largest_change_is_found(memory: ModuleType) -> None:
    runs = [
        {
            "format": kind,
            "files": files,
            "parent_mib": 100.0,
            "worker_mib": worker,
            "all_mib": 300.0,
        }
        for kind, files, worker in (("png", 9, 210.0), ("png", 2, 200.0), ("packed", 2, 250.0))
    ]
    assert memory.largest_change(runs) == pytest.approx(0.05)


def test_memory(
    memory: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    size = ["--rows", "160", "--columns", "120", "--workers", "1", "--formats", "png"]
    memory.main([*size, "--counts", "3", "1", "--mixed", "0", "--save"])
    assert "largest change with the number of files" in capsys.readouterr().out
    saved = json.loads((tmp_path / "memory.json").read_text())
    assert [run["files"] for run in saved["runs"]] == [1, 3]
    for run in saved["runs"]:
        assert 20 < run["parent_mib"] < run["all_mib"]
        assert run["worker_mib"] < run["all_mib"]


@pytest.mark.usefixtures("bench")
def test_results_say_where_they_come_from() -> None:
    machine = importlib.import_module("common").machine()
    assert machine["cores"] >= 1
    assert machine["versions"]["numpy"]
    assert len(machine["date"]) == 10
