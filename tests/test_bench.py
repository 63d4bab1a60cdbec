"""The benchmarks run, on a tiny phantom; what they time is compared first."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])


@pytest.mark.usefixtures("bench")
def test_decode(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("decode").main(["--rows", "128", "--columns", "96", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "JPEG 2000 Lossless" in out
    assert "openjpeg r=2" in out


@pytest.mark.usefixtures("bench")
def test_results_say_where_they_come_from() -> None:
    machine = importlib.import_module("common").machine()
    assert machine["cores"] >= 1
    assert machine["versions"]["numpy"]
    assert len(machine["date"]) == 10
