"""The benchmarks of single questions run on tiny input; their figures and tables hold together."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastmammo.decoding import BACKENDS

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"
JPEG2000, RAW, WAVELET_9_7 = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.91",
)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let the benchmarks be imported, and save into a folder of the test's."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def decode(results: Path) -> ModuleType:
    return importlib.import_module("decode")


@pytest.fixture
def stages(results: Path) -> ModuleType:
    return importlib.import_module("stages")


@pytest.fixture
def scaling(results: Path) -> ModuleType:
    return importlib.import_module("scaling")


def cells(table: str) -> list[list[str]]:
    """Return the rows of a table in Markdown, its head first; all must be equally wide."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in found}) == 1
    assert set(found.pop(1)) == {"---"}
    return found


def test_decode(decode: ModuleType, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "160", "--columns", "128", "--rounds", "2", "--noises", "1", "2"]
    decode.main([*size, "--syntaxes", RAW, JPEG2000, WAVELET_9_7, "--save"])
    assert "numba r=3, then 1" in capsys.readouterr().out
    saved = json.loads((results / "decode.json").read_text())
    assert [(each["uid"], each["noise"]) for each in saved["frames"]] == [
        (RAW, 1.0),
        (JPEG2000, 1.0),
        (WAVELET_9_7, 1.0),
        (JPEG2000, 2.0),
    ]
    raw, little, lossy, more = saved["frames"]
    assert more["bits_per_breast_pixel"] > little["bits_per_breast_pixel"] > 1
    assert [way["levels"] for way in raw["ways"]] == [[0], [1], [2], [3]]
    by_backend = {}
    for way in little["ways"]:
        by_backend.setdefault(way["backend"], []).append(way["levels"])
        assert 0 < way["lower_ms"] <= way["median_ms"] <= way["upper_ms"]
        assert way["megapixels_per_second"] > 0
    assert by_backend["numba"] == [[0], [1], [2], [3], [3, 1]]
    assert by_backend["openjpeg"] == [[0], [1], [2], [3]]  # no levels one after another
    assert by_backend["imagecodecs"] == [[0]]
    assert "9/7" in lossy["refused"]["numba"]
    assert "numba" not in {way["backend"] for way in lossy["ways"]}
    head, *rows = cells(decode.table(saved))
    own = next(row for row in rows if row[0] == "JPEG 2000 Lossless" and row[2] == "numba")
    assert "–" not in own
    assert rows[0][0] == "uncompressed"
    assert rows[0][head.index("MP/s, level 0")] == "–"  # nothing is decoded


def test_decode_takes_what_the_package_has(
    decode: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend of the table takes part by itself, and one that is wrong is not timed."""
    from fastmammo.decoding import decoder
    from fastmammo.testing import phantom

    made = phantom(64, 48, seed=1)
    m, wanted = decode.written(made, JPEG2000), decode.references(made)
    for name, backend in BACKENDS.items():
        took_part = any(way[0] == name for way in decode.ways(m, wanted)[0])
        takes = backend.DEVICE == "cpu" and "jpeg2000" in backend.FORMATS
        assert took_part == (takes and backend.missing() is None)
    whole = decoder.FrameDecoder.at
    monkeypatch.setattr(decoder.FrameDecoder, "at", lambda self, level: whole(self, level) ^ 1)
    with pytest.raises(SystemExit, match="numba differs at level 0"):
        decode.ways(m, wanted)


def test_decode_refuses_an_unknown_syntax(decode: ModuleType) -> None:
    with pytest.raises(SystemExit):
        decode.main(["--syntaxes", "1.2.3"])


def test_decode_says_what_cannot_be_written(
    decode: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastmammo.errors import BackendUnavailableError

    whole = decode.written

    def written(made: object, uid: str) -> object:
        if uid == WAVELET_9_7:
            raise BackendUnavailableError("no encoder\nfor it")
        return whole(made, uid)

    monkeypatch.setattr(decode, "written", written)
    result = decode.measure(64, 48, [1.0], 1, [WAVELET_9_7, RAW])
    assert result["frames"][0]["not_written"] == "no encoder for it"
    decode.show(result)
    assert "JPEG 2000: cannot be written here: no encoder for it" in capsys.readouterr().out
    assert [row[2] for row in cells(decode.table(result))] == ["decoder", "numpy"]


def test_stages(stages: ModuleType, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "208x160", "--output", "64x32", "--rounds", "1", "--copy-mb", "1"]
    stages.main([*size, "--save"])
    assert "find_breast" in capsys.readouterr().out
    saved = json.loads((results / "stages.json").read_text())
    found = saved["stages"]
    assert next(iter(found)) == stages.COPY
    for kind in ("alone", "together"):
        assert found[stages.COPY][kind]["share_of_copy"] == 1.0
        for own in found.values():
            assert 0 < own[kind]["lower_ms"] <= own[kind]["median_ms"] <= own[kind]["upper_ms"]
    assert found["low_pass, level 1"]["bytes_read"] == 208 * 160 * 2
    assert found["low_pass, level 1"]["bytes_written"] == 104 * 80 * 4
    assert found["clip_to, level 2"]["bytes_read"] == 52 * 40 * 4
    assert found["clip_to, level 2"]["bytes_written"] == 52 * 40 * 2
    eight, sixteen = (found[f"resample, level 0, {bits} bits"] for bits in (8, 16))
    assert sixteen["bytes_written"] == 2 * eight["bytes_written"] > 0
    assert eight["bytes_read"] <= 208 * 160 * 2 + 4096 * 2
    for level in (1, 2):
        coarser = found[f"resample, level {level}, 8 bits"]["bytes_read"]
        assert 4096 * 2 < coarser < eight["bytes_read"]
    assert found["read, uncompressed"]["bytes_read"] > 208 * 160 * 2
    _, *rows = cells(stages.table(saved))
    assert len(rows) == len(found)
    assert rows[0][0] == "copy of 1 MiB"


def test_the_share_of_copying(stages: ModuleType) -> None:
    def sample(alone: list[float]) -> dict[str, dict[str, object]]:
        slow = {"read": 2_000_000, "written": 0, "alone": [4.0] * len(alone), "together": [8.0]}
        copy = {"read": 1_000_000, "written": 1_000_000, "alone": alone, "together": [2.0]}
        return {stages.COPY: copy, "slow": slow}

    found = stages.figures([sample([1.0, 1.0]), sample([])])
    assert found[stages.COPY]["alone"]["gigabytes_per_second"] == 2.0
    assert found["slow"]["alone"]["share_of_copy"] == 0.25
    assert found["slow"]["together"]["share_of_copy"] == 0.25  # of copying, both at once


def test_a_stage_that_fails_ends_the_benchmark(
    stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "write_files", lambda folder, rows, columns: None)
    with pytest.raises(FileNotFoundError, match=r"uncompressed\.dcm"):
        stages.measure(208, 160, (64, 32), 1, 2, 1)


def test_scaling(scaling: ModuleType, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "208x160", "--output", "64x32", "--files", "3", "--rounds", "1"]
    scaling.main(
        [*size, "--steps", "1", "--batches", "1", "2", "--counts", "2", "--resumed", "5", "--save"]
    )
    assert "finds 5 files finished" in capsys.readouterr().out
    saved = json.loads((results / "scaling.json").read_text())
    numbers = {kind: list(saved[kind]) for kind in ("workers", "batch", "threads", "files")}
    assert numbers == {"workers": ["1"], "batch": ["1", "2"], "threads": ["1"], "files": ["2"]}
    for kind in numbers:
        for own in saved[kind].values():
            assert own["images_per_second"] == pytest.approx(
                own["files"] / own["seconds"], rel=0.01
            )
    assert saved["resumed"]["5"]["seconds"] < saved["files"]["2"]["seconds"]  # no worker starts
    assert saved["import"]["seconds"] > 0
    assert saved["fit"] == {}  # one number of files tells no start
    _, *rows = cells(scaling.table(saved))
    assert [row[2] for row in rows if row[0].endswith(": 1")] == ["1.00"] * 3


def test_workers_are_doubled_up_to_twice_the_cores(scaling: ModuleType) -> None:
    assert scaling.steps(1) == [1, 2]
    assert scaling.steps(2) == [1, 2, 4]
    assert scaling.steps(6) == [1, 2, 4, 6, 12]
    assert scaling.steps(8) == [1, 2, 4, 8, 16]


def test_start_and_time_a_file_are_found(scaling: ModuleType) -> None:
    seconds = {("files", n): [1.5 + 0.02 * n, 1.5 + 0.02 * n] for n in (8, 32, 128, 512)}
    found = scaling.fitted(seconds)
    assert found["start_seconds"] == pytest.approx(1.5, abs=1e-3)
    assert found["milliseconds_a_file"] == pytest.approx(20, abs=1e-2)
    assert found["largest_relative_error"] == pytest.approx(0, abs=1e-3)
    # each point counts by its own seconds: one long run that was slow does not hide the start
    seconds["files", 512] = [2 * 11.74]
    assert scaling.fitted(seconds)["start_seconds"] == pytest.approx(1.5, abs=0.3)


def test_a_resumed_run_must_find_all_finished(scaling: ModuleType, tmp_path: Path) -> None:
    import fastmammo

    paths = scaling.linked(scaling.phantoms(tmp_path / "made", 104, 80, 1), tmp_path / "src", 2)
    config = fastmammo.Config(size=(64, 32))
    with pytest.raises(SystemExit, match="2"):
        scaling.convert(paths[0].parent, tmp_path / "out", config, 1, kept=2)  # none is
    assert scaling.convert(paths[0].parent, tmp_path / "out", config, 1, kept=2) > 0
