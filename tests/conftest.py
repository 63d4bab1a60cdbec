"""Fixtures: the shared real files, and small phantoms as DICOM in any syntax."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gpu import gpu_missing, gpu_required

# Several test processes share few cores: torch's threads, that wait by spinning, would take most of
# the time from each other. Before any test imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fastmammo.errors import BackendUnavailableError
from fastmammo.testing import phantom

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FASTMAMMO_TEST_DATA", ROOT.parent / "shared" / "data"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Under FASTMAMMO_REQUIRE_GPU end the session at once where there is no GPU."""
    # of pytest-xdist's processes the first one asks
    if gpu_required() and not hasattr(session.config, "workerinput") and (need := gpu_missing()):
        pytest.exit(f"FASTMAMMO_REQUIRE_GPU is set, and the GPU path is missing {need}", 1)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Skip a test that needs HTJ2K files where no encoder for them is installed."""
    try:
        return (yield)
    except BackendUnavailableError as error:
        if "writes no HTJ2K" in str(error):
            pytest.skip(str(error))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under FASTMAMMO_REQUIRE_GPU make a failure of each skip of a test marked `gpu`.

    Whatever the reason: a test of the GPU that did not run there has shown nothing.
    """
    report = yield
    if gpu_required() and report.skipped and item.get_closest_marker("gpu"):
        if hasattr(report, "wasxfail"):
            return report
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}, and FASTMAMMO_REQUIRE_GPU takes a skip for a failure"
    return report


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test files: FASTMAMMO_TEST_DATA, or ../shared/data."""
    if not (DATA / "MANIFEST.csv").is_file():
        pytest.skip(f"no test files at {DATA}: set FASTMAMMO_TEST_DATA to the folder of real files")
    return DATA


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Stored values of a small phantom of odd size: uint16 (301, 233), 12 bits."""
    made = phantom(301, 233, seed=5).pixels
    made.setflags(write=False)
    return made
