"""The README's commands and code run as they stand."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastmammo
from fastmammo.cli import main
from fastmammo.testing import make_dataset, phantom, write_dicom

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCH = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the code block after a marker."""
    found = re.search(rf"<!-- command: {name} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, name
    return found.group(1)


def files(folder: Path) -> None:
    for i in range(3):
        path = folder / "train_images" / f"{100 + i}" / f"{i}.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(write_dicom(phantom(200, 160, seed=i).pixels, seed=i))
    (folder / "view.dcm").write_bytes(path.read_bytes())
    (folder / "lesions.csv").write_text("image_id,xmin,ymin,xmax,ymax\n1,10,60,40,90\n")


def test_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in block("shell").splitlines() if line.strip()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "fastmammo"
        assert main(arguments) == 0, line
    assert (tmp_path / "out" / "manifest.csv").is_file()
    assert "1,10,60,40,90,101/1.png," in (tmp_path / "out-mm" / "boxes.csv").read_text()
    assert (tmp_path / "view.png").is_file()


TRAINING = ["--no-pretrained", "--epochs", "1", "--batch-size", "8", "--folds", "2"]


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines as they stand, but for models that need no download and one epoch."""
    pytest.importorskip("torch")
    make_dataset(tmp_path / "set", patients=8, size=(128, 96), positive_share=0.5, workers=1)
    monkeypatch.chdir(tmp_path / "set")
    lines = [line for line in block("training").splitlines() if line.strip()]
    assert len(lines) == 7
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "fastmammo"
        if arguments[0] == "convert":
            arguments += ["--size", "64x32"]
        if arguments[0] == "split":
            arguments += ["--folds", "2"]
        if arguments[0] == "train":
            arguments += [*TRAINING, "--model", "small_cnn"]
        if arguments[0] == "compare":
            arguments[arguments.index("--models") + 1] = "small_cnn,resnet10t"
            arguments += TRAINING
        assert main(arguments) == 0, line
    for path in ("explore.html", "run/report.html", "scored/submission.csv", "judged/report.html"):
        assert (tmp_path / "set" / path).is_file(), path


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), scope)
    assert scope["batch"].images.shape == (1, 1, 1024, 512)  # type: ignore[attr-defined]
    assert scope["summary"].ok == 3  # type: ignore[attr-defined]


def test_set_up_commands_name_what_exists() -> None:
    assert "fastmammo demo" in block("demo")
    assert 'pip install -e ".[dev-cuda12]"' in block("tests")
    assert "pytest" in block("tests")


def test_the_table_is_what_doctor_prints() -> None:
    from fastmammo.report.doctor import diagnose, markdown

    table = re.search(r"<!-- table: doctor -->\n(.*?)\n?<!-- end of table -->", README, re.S)
    assert table

    def cells(line: str) -> list[str]:
        return re.sub(r"within \d+", "within", line).split("|")[1:7]

    here = [line for line in markdown(diagnose()).splitlines() if line.startswith("|")]
    there = table.group(1).splitlines()
    # name, UID, numpy, numba, openjpeg, imagecodecs; pylibjpeg's cells depend on its GPL part
    assert len(there) == len(here)
    for shown, found in zip(there, here, strict=True):
        if "not tried" not in found:  # HTJ2K, where its encoder is not installed
            assert cells(shown) == cells(found)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return importlib.import_module("table")


def test_the_measured_tables_are_the_committed_results(table: ModuleType) -> None:
    for name, make in table.SECTIONS.items():
        shown = [found for text in (README, BENCH) if (found := table.section(name, text))]
        assert len(shown) == 1, name
        assert shown[0].group(1).splitlines() == make(), (
            f"python bench/table.py --write README.md bench/README.md: {name}"
        )


def test_the_tables_are_printed_and_written(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main([])
    printed = capsys.readouterr().out
    paths = [tmp_path / "README.md", tmp_path / "bench.md"]
    old = re.sub(r"(<!-- table: roi -->\n).*?(<!-- end)", r"\1typed by hand\n\2", BENCH, flags=re.S)
    assert old != BENCH
    for path, text in zip(paths, (README, old), strict=True):
        path.write_text(text, encoding="utf-8")
    table.main(["--write", *map(str, paths)])
    assert [path.read_text(encoding="utf-8") for path in paths] == [README, BENCH]
    assert all(table.section(name, printed) for name in table.SECTIONS)
    paths[0].write_text("no section", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"no section throughput in .*README.md, .*bench.md"):
        table.main(["--write", *map(str, paths)])


def test_every_benchmark_has_its_line() -> None:
    scripts = {
        path.name
        for path in (ROOT / "bench").glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    for name in scripts - {"table.py"}:
        assert f"`{name}`" in BENCH, name


def test_version() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{fastmammo.__version__}"' in text
