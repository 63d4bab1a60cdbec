"""The shape of the package: imports point one way, names are exported, imports are light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastmammo
import fastmammo.errors

PACKAGE = Path(fastmammo.__file__).parent
LADDER = [
    *("errors", "options", "dicom", "kernels", "decoding", "encoding", "preprocess"),
    *("conversion", "training", "report", "cli"),
]
ASIDE = {
    "testing": {"errors", "dicom", "encoding", "testing"},
    "dali": {"errors", "dicom", "kernels", "decoding", "preprocess", "dali"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the stages that a module imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fastmammo":
                names = [f"fastmammo.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastmammo" and len(parts) > 1 and not parts[1].startswith("_"):
                found.add(parts[1])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_stage_imports_only_what_comes_before_it(path: Path) -> None:
    own = stage(path)
    if own in ("__init__", "__main__"):
        return  # the public face names every stage, lazily
    if own in ASIDE:
        allowed = ASIDE[own]
    else:
        allowed = set(LADDER[: LADDER.index(own) + 1])
        if own in ("report", "cli"):
            allowed |= {"testing"}  # demo and doctor make phantoms
    assert imported(path) <= allowed


def test_exports() -> None:
    assert sorted(fastmammo.__all__) == fastmammo.__all__ == dir(fastmammo)
    for name in fastmammo.__all__:
        assert getattr(fastmammo, name) is not None
    # A subpackage of the same name would take the function's place once it is imported.
    assert callable(fastmammo.convert)
    assert callable(fastmammo.decode)
    assert callable(fastmammo.transcode)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fastmammo.nonsense  # noqa: B018


def test_exports_of_the_trainer() -> None:
    pytest.importorskip("torch")
    import fastmammo.training as training

    assert sorted(training.__all__) == sorted(training._HOMES) == sorted(dir(training))
    for name in training.__all__:
        assert (getattr(training, name).__doc__ or "").strip(), name
    # a module of the same name would take the function's place once it is imported
    assert not {path.stem for path in PACKAGE.glob("training/*.py")} & set(training.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        training.nonsense  # noqa: B018


def test_public_names_have_docstrings() -> None:
    for name in fastmammo.__all__:
        if name != "__version__":
            assert (getattr(fastmammo, name).__doc__ or "").strip(), name


def heavy(command: list[str]) -> set[str]:
    """Return which heavy packages a fresh interpreter has loaded after running the command."""
    code = (
        f"import sys; sys.argv = ['fastmammo', *{command!r}]\n"
        "from fastmammo.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = ('torch', 'cupy', 'nvidia.dali', 'timm', 'pandas', 'numba', 'pydicom', 'rich')\n"
        "print('\\nLOADED', *[n for n in names if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_help_and_version_are_light() -> None:
    assert heavy(["--help"]) == set()
    assert heavy(["--version"]) == set()


def test_inspect_takes_no_heavy_package_of_the_trainer(tmp_path: Path) -> None:
    loaded = heavy(["inspect", str(tmp_path / "absent.dcm")])
    assert not loaded & {"torch", "cupy", "nvidia.dali", "timm", "pandas"}


def test_modules_are_short() -> None:
    for path in modules():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400, f"{path.relative_to(PACKAGE)}: {lines} lines"


def test_every_error_of_the_tree_is_drawn_and_raised() -> None:
    """Each leaf stands in the docstring, is raised in the package, and is matched in a test."""
    errors = {
        name: kind
        for name, kind in vars(fastmammo.errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    sources = "\n".join(p.read_text(encoding="utf-8") for p in modules() if stage(p) != "errors")
    tests = "\n".join(
        p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py")
    )
    for name, kind in errors.items():
        assert name in (fastmammo.errors.__doc__ or ""), name
        if kind.__subclasses__() or issubclass(kind, Warning):
            continue
        assert f"{name}(" in sources or f"raise {name}" in sources or f"{name} if" in sources, name
        caught = rf"raises\(\s*\(?{name}\b|, {name}, |except {name} as"
        assert re.search(caught, tests), name


def test_the_reason_of_an_error_reads_well() -> None:
    assert fastmammo.errors.CorruptCodestreamError("x").reason == "corrupt codestream"
    assert fastmammo.errors.NotDicomError("x").reason == "not dicom"


def test_who_plans_a_run_waits_for_no_kernel() -> None:
    program = (
        "import sys, fastmammo.conversion.run, fastmammo.preprocess as p; p.Config();"
        "print({'numba', 'pydicom', 'imagecodecs', 'torch', 'cupy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
