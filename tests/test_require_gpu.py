"""FASTMAMMO_REQUIRE_GPU=1: a skipped test of the GPU counts as failed, whatever the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CASES = """
import pytest

@pytest.mark.gpu
def test_body():
    pytest.skip("no real files")

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="not here")
def test_mark():
    pass

@pytest.fixture
def absent():
    pytest.skip("no such wheel")

@pytest.mark.gpu
def test_fixture(absent):
    pass

@pytest.mark.gpu
@pytest.mark.xfail(raises=ValueError)
def test_expected():
    raise ValueError

@pytest.mark.gpu
def test_well():
    pass

def test_other():
    pytest.skip("nothing to do with a GPU")
"""


@pytest.mark.parametrize(
    ("required", "wanted"),
    [
        ("0", "1 passed, 4 skipped, 1 xfailed"),
        ("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),
    ],
)
def test_a_skip_is_a_failure(tmp_path: Path, required: str, wanted: str) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a device\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "FASTMAMMO_REQUIRE_GPU": required},
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert f"{wanted} in " in done.stdout, done.stdout + done.stderr
    if required == "1":
        for reason in ("no real files", "not here", "no such wheel"):
            assert (
                f"{reason}, and FASTMAMMO_REQUIRE_GPU=1 takes a skip for a failure" in done.stdout
            )
