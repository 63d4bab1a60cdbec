"""`convert --device cuda`: several files in hand in a worker, and what it costs when one fails."""

from __future__ import annotations

import csv
import time
from typing import TYPE_CHECKING, Any

import convert_standin
import pytest
from cuda_on_cpu import build, compiler

from fastmammo.conversion import ConvertOptions, Summary, convert
from fastmammo.conversion.in_hand import IN_HAND, device_arguments
from fastmammo.decoding import cuda_runtime
from fastmammo.errors import ConfigError
from fastmammo.preprocess import Config
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

J = "1.2.840.10008.1.2.4"


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "require", lambda: None)
    monkeypatch.setattr(cuda_runtime, "visible_devices", lambda: ["0"])


def rows(dst: Path) -> dict[str, dict[str, str]]:
    with open(dst / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["path"].removesuffix(".dcm"): row for row in csv.DictReader(file)}


def run(tmp_path: Path, words: dict[str, str], *, strict: bool = False, **options: Any) -> Summary:
    src = tmp_path / "src"
    src.mkdir(exist_ok=True)
    for name, said in words.items():
        (src / f"{name}.dcm").write_text(f"DICM {said} {name}")
    return convert(
        src,
        tmp_path / "dst",
        config=Config(size=convert_standin.SIZE, device="cuda", strict=strict),
        options=ConvertOptions(**options),
        preprocessor=convert_standin.PREPROCESSOR,
    )


def test_a_worker_has_several_files_in_hand(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    names = [f"{index:02d}" for index in range(IN_HAND)]
    summary = run(tmp_path, {name: f"beside:{IN_HAND},{seen} gpu:0,{seen}" for name in names})
    assert summary.ok == IN_HAND
    assert len({path.name.split("-")[1] for path in seen.glob("seen-*")}) == 1  # a GPU, a process


def test_a_file_that_kills_its_worker_is_found_among_those_in_hand(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    words = {name: f"beside_once:5,{seen}" for name in "abde"}
    summary = run(tmp_path, {**words, "c": f"beside_once:5,{seen} abort", "f": "", "g": "broken"})
    assert (summary.ok, summary.failed) == (5, 2)
    found = rows(tmp_path / "dst")
    assert found["c"]["message"] == (
        "the worker process died on this file with SIGABRT, a second one too"
    )
    assert found["g"]["reason"] == "corrupt codestream"


def test_a_file_that_hangs_is_found_among_those_in_hand(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    words = {name: f"beside_once:3,{seen}" for name in "ab"}
    began = time.monotonic()
    hanging = {"c": f"beside_once:3,{seen} hang"}
    summary = run(tmp_path, {**words, **hanging, "d": ""}, timeout_seconds=4)
    assert (summary.ok, summary.failed, summary.reasons) == (3, 1, {"failed: timed out": 1})
    assert rows(tmp_path / "dst")["c"]["message"].startswith("timed out after 4 s")
    assert time.monotonic() - began < 60


def test_device_memory_that_is_short_ends_no_worker(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    words = {"a": f"gpu:0,{seen}", "full": f"gpu_full:{seen}", "b": f"gpu:0,{seen}"}
    assert run(tmp_path, words).ok == 3
    tries = sorted(path.name.split("-")[2:] for path in seen.glob("full-*"))
    assert [device for _, device, _ in tries] == ["cuda", "cuda", "cpu"]
    assert len({process for *_, process in tries}) == 1
    note = rows(tmp_path / "dst")["full"]["notes"]
    assert note.startswith("made on the CPU: ")
    assert "no memory left" in note
    summary = run(tmp_path, {"other": f"gpu_full:{seen}"}, strict=True)
    assert summary.reasons == {"failed: device memory": 1}


def test_workers_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConvertOptions()
    assert options.worker_count(100, gpus=3) == 3
    assert options.worker_count(2, gpus=3) == 2
    assert ConvertOptions(workers=7).worker_count(100, gpus=3) == 7
    with pytest.raises(ConfigError, match="device_memory_mb: got -1, wanted 0"):
        ConvertOptions(device_memory_mb=-1)
    assert device_arguments({}) == {}  # on the CPU


# --- the real Preprocessor, on pretended CUDA ----------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no g++: the kernels' files are not run on the CPU")
    return build(tmp_path_factory.mktemp("pretended"), "none")


@pytest.fixture
def src(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "src"
    folder.mkdir()
    uids = (f"{J}.90", "1.2.840.10008.1.2.1", f"{J}.70", f"{J}.80")
    for index in range(12):
        pixels = phantom(700 + 10 * index, 300, seed=index).pixels
        data = write_dicom(pixels, transfer_syntax_uid=uids[index % 4], seed=index)
        (folder / f"{index:02d}.dcm").write_bytes(data)
    (folder / "cut.dcm").write_bytes(data[: len(data) // 2])
    (folder / "text.txt").write_text("no image")
    return folder


def test_its_files_are_the_cpus(
    tmp_path: Path, src: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("FASTMAMMO_TEST_KERNELS", str(library))
    monkeypatch.setenv("FASTMAMMO_TEST_NOTES", str(notes))
    summaries = [
        convert(
            src,
            tmp_path / device,
            config=Config(size=(96, 64), device=device),
            options=ConvertOptions(device_memory_mb=64, workers=1),
            **kind,
        )
        for device, kind in (
            ("cpu", {}),
            ("cuda", {"preprocessor": "convert_pretended:Preprocessor"}),
        )
    ]
    assert [(s.ok, s.failed, s.skipped) for s in summaries] == [(12, 1, 1)] * 2
    outputs = sorted(path.name for path in (tmp_path / "cpu").glob("*.png"))
    assert len(outputs) == 12
    for name in outputs:
        assert (tmp_path / "cuda" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()
    by_cpu, by_gpu = rows(tmp_path / "cpu"), rows(tmp_path / "cuda")
    for path, row in by_cpu.items():
        same = [name for name in row if name not in ("decoder", "notes")]
        assert {name: by_gpu[path][name] for name in same} == {name: row[name] for name in same}
    assert by_gpu["00"]["decoder"] == "nvjpeg2000"
    (file,) = notes.iterdir()
    lines = [line.split(";") for line in file.read_text().splitlines()]
    assert int(lines[-1][1]) >= 3  # frames went by way of the decoder of many at once
    assert lines[-1][2] == f"(0, 8, {32 << 20})"
    assert lines[-1][3] == f"[{32 << 20}]"
