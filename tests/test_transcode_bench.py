"""bench/transcode.py runs, on tiny phantoms, and its table says what it found."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastmammo.encoding import missing

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("transcode")


def test_the_bench(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    size = ["--rows", "200", "--columns", "160", "--height", "64"]
    bench.main([*size, "--files", "4", "--rounds", "1", "--workers", "1", "--save"])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "transcode.json").read_text())
    assert bench.table(result) in printed
    assert set(result["images_per_second"]) == {
        *("transcode", "auto before", "auto after", "full before", "full after"),
    }
    assert result["bytes_before"] > 0 < result["bytes_after"]
    assert "| `convert`, full |" in printed


def test_when_it_has_paid(bench: ModuleType) -> None:
    assert bench.passes(2.0, 5.0, 10.0) == 5
    assert bench.passes(2.0, 10.0, 10.0) is None
    assert bench.span([5, 7]) == "5 to 7"
    assert bench.span([4, 4]) == "4"
    assert bench.span([None, 6]) == "6 at least"
    assert bench.span([None]) == "it does not"
    assert bench.require_equal_images.__doc__


def test_images_that_differ_end_the_bench(bench: ModuleType, tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(data)
    with pytest.raises(SystemExit, match=r"x\.png differs"):
        bench.require_equal_images(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "x.png").unlink()
    with pytest.raises(SystemExit, match="do not hold the same images"):
        bench.require_equal_images(tmp_path / "a", tmp_path / "b")
