"""The statistics of phantoms beside real images, as bench/phantom.py measures them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    return importlib.import_module("phantom")


def test_the_slope_of_a_known_spectrum_is_found(bench: ModuleType) -> None:
    from fastmammo.testing.texture import power_law

    everywhere = np.ones((700, 700), np.bool_)
    for beta in (2.0, 3.0):
        field = power_law(np.random.default_rng(1), (700, 700), beta=beta)
        assert abs(bench.slope(field, everywhere, 0.09) - beta) < 0.25
    assert np.isnan(bench.slope(field[:100], everywhere[:100], 0.09))


def test_phantoms_have_the_statistics_of_real_images(bench: ModuleType, data: Path) -> None:
    real = {
        name: bench.statistics(grey, bench.breast_mask(grey), spacing)
        for name, (grey, spacing, lossy) in bench.real_images(data).items()
        if name.startswith("birads")
    }
    assert len(real) == 2
    (made,) = bench.drawn(1, 2600, 2000, 2)
    grey = bench.displayed(made.pixels, made.window_center, made.window_width)
    found = bench.statistics(grey, made.mask, made.pixel_spacing)
    for row in real.values():
        assert abs(found["slope"] - row["slope"]) < 0.4
        assert abs(found["bits"] - row["bits"]) < 0.5
        assert abs(found["entropy"] - row["entropy"]) < 0.8
        assert abs(found["middle"] - row["middle"]) < 60


def test_the_script_prints_both_tables_and_draws_the_sheet(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    size = ["--count", "2", "--rows", "300", "--columns", "240", "--largest", "0"]
    bench.main([*size, "--data", "nowhere", "--picture", str(sheet)])
    out = capsys.readouterr().out
    assert "phantom 1 L MLO noise 2" in out
    assert "frame, 12 bits" in out
    assert sheet.stat().st_size > 1000
