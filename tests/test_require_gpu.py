"""FASTMAMMO_REQUIRE_GPU: no GPU ends the session, a skipped test of the GPU counts as failed."""

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


CUPY = """
from types import SimpleNamespace

def is_available():
    return True

runtime = SimpleNamespace(driverGetVersion=lambda: 13000)
cuda = SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)))
"""
NO_DEVICE = """
from types import SimpleNamespace

def is_available():
    return False

def count():
    raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

runtime = SimpleNamespace(
    getDeviceCount=count, driverGetVersion=lambda: 12080, runtimeGetVersion=lambda: 13000
)
cuda = SimpleNamespace(runtime=runtime)
"""


def session(tmp_path: Path, required: str, cupy: str) -> subprocess.CompletedProcess[str]:
    """Run CASES in a session of their own, with a CuPy that is pretended."""
    for name in ("conftest.py", "gpu.py"):
        (tmp_path / name).write_text((TESTS / name).read_text(encoding="utf-8"))
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "cupy.py").write_text(cupy)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a device\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "FASTMAMMO_REQUIRE_GPU": required, "PYTHONPATH": path},
        cwd=tmp_path,
        timeout=120,
        check=False,
    )


def test_without_a_gpu_the_session_fails_once(tmp_path: Path) -> None:
    done = session(tmp_path, "true", NO_DEVICE)
    said = done.stdout
    assert done.returncode == 1, said
    assert (
        said.count("FASTMAMMO_REQUIRE_GPU is set, and the GPU path is missing a CUDA device") == 1
    )
    assert "cudaErrorNoDevice: no CUDA-capable device is detected" in said
    assert "the driver is for CUDA 12.8, CuPy for CUDA 13.0" in said
    assert "passed" not in said


@pytest.mark.parametrize(
    ("required", "wanted"),
    [
        ("0", "1 passed, 4 skipped, 1 xfailed"),
        ("", "1 passed, 4 skipped, 1 xfailed"),
        ("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),
        ("yes", "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),
    ],
)
def test_a_skip_is_a_failure(tmp_path: Path, required: str, wanted: str) -> None:
    done = session(tmp_path, required, CUPY)
    assert f"{wanted} in " in done.stdout, done.stdout + done.stderr
    if required in ("1", "yes"):
        for reason in ("no real files", "not here", "no such wheel"):
            assert f"{reason}, and FASTMAMMO_REQUIRE_GPU takes a skip for a failure" in done.stdout
