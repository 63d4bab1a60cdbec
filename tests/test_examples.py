"""The examples run, on phantoms."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastmammo.testing import make_dataset, write_dataset

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_dataset(tmp_path_factory.mktemp("dicom"), count=4, rows=300, columns=240)


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in here, path.name


def test_read_and_decode(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    load("read_and_decode").main(str(files[0]))
    out = capsys.readouterr().out
    assert "stored values: uint16 (300, 240)" in out
    assert "at 1/4: uint16 (75, 60)" in out
    assert "windowed: uint8 0 255" in out


def test_batch_for_a_model(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no DICOM")
    load("batch_for_a_model").main([str(files[0]), str(bad), str(files[1])])
    out = capsys.readouterr().out
    assert "images: uint16 (2, 1, 512, 256)" in out
    assert f"left out: {bad}: not a DICOM file" in out
    assert out.count("the model's box in DICOM pixels") == 2


def test_convert_a_folder(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("convert_a_folder").main(str(files[0].parents[1]), str(tmp_path / "out"))
    out = capsys.readouterr().out
    assert out.count(" ok ") >= 4


def test_own_training_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    import fastmammo

    table = make_dataset(tmp_path / "set", patients=6, size=(96, 80), positive_share=0.5, workers=1)
    fastmammo.convert(
        tmp_path / "set" / "train_images",
        tmp_path / "images",
        config=fastmammo.Config(size=(64, 32)),
        options=fastmammo.ConvertOptions(format="packed", workers=1),
    )
    load("own_training_loop").main(str(table), str(tmp_path / "images"), "resnet10t", epochs=1)
    out = capsys.readouterr().out
    assert "epoch 0: loss 0." in out
    assert "ROC AUC by breast 0." in out
