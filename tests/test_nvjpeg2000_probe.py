"""The first look at a device: can nvJPEG2000 start there, and are its levels what they must be."""

from __future__ import annotations

import functools
import gc
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvjpeg2000_standin import (
    POISON,
    REFUSED_AT_DECODE,
    CudaFailure,
    StandIn,
    build,
    eventually,
    facts,
    frame,
    values,
)

from fastmammo.decoding import cuda_runtime, nvjpeg2000, nvjpeg2000_probe, openjpeg
from fastmammo.decoding.nvjpeg2000_probe import levels_fault
from fastmammo.decoding.nvjpeg2000_state import Handle, State
from fastmammo.errors import DeviceMemoryError
from fastmammo.report.references import low_pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def standin(built: Path, tmp_path: Path) -> StandIn:
    # The loader gives a file that it has loaded already once more: each test loads its own copy.
    return StandIn(Path(shutil.copy(built, tmp_path)))


def assert_all_closed(standin: StandIn) -> None:
    gc.collect()
    assert eventually(lambda: not any(standin.alive().values())), standin.alive()
    assert not any(standin.violations().values()), standin.violations()


def fault_of(standin: StandIn, **changes: Any) -> str:
    handle = Handle(standin.library)
    state, data = State(handle), frame(96, 80, levels=5, **changes)
    expected = functools.partial(values, data)
    found = levels_fault(state, standin, data, facts(data), expected)  # type: ignore[arg-type]
    state.close()
    handle.close()
    assert_all_closed(standin)
    return found


def test_a_library_that_counts_the_resolutions_to_leave_out_is_found(standin: StandIn) -> None:
    assert fault_of(standin) == ""
    standin.set("discard", 1)
    words = r"other samples at level 1 of a small .* \(1920 samples wanted, memory written up to"
    assert re.search(words, fault_of(standin))
    standin.set("discard", 0)
    words = "refuses level 1 of a small codestream: .*INTERNAL_ERROR"
    assert re.search(words, fault_of(standin, kind=REFUSED_AT_DECODE, status=8))
    assert "EXECUTION_FAILED" in fault_of(standin, kind=REFUSED_AT_DECODE, status=6)
    with pytest.raises(DeviceMemoryError, match="ALLOCATOR_FAILURE"):
        fault_of(standin, kind=REFUSED_AT_DECODE, status=5)
    with pytest.raises(CudaFailure, match="error 700"):
        fault_of(standin, kind=POISON)


def test_the_probe_s_codestream_is_what_it_says() -> None:
    c = facts(nvjpeg2000_probe.CODESTREAM)
    assert (c.rows, c.columns, c.levels, c.tiles, c.wavelet) == (96, 80, 5, 1, "5/3")
    assert nvjpeg2000.refuses(c) is None
    drawn = openjpeg.decode(nvjpeg2000_probe.CODESTREAM, c, 0)
    assert np.array_equal(drawn, nvjpeg2000_probe.drawn())
    expected = nvjpeg2000_probe.drawn().astype(np.int32)
    for level in range(1, 6):
        expected = low_pass(expected)
        assert np.array_equal(openjpeg.decode(nvjpeg2000_probe.CODESTREAM, c, level), expected)
    assert nvjpeg2000_probe.PATTERN > 4095


@pytest.fixture
def probing(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the library that is installed, on a device that nobody has looked at."""
    monkeypatch.setattr(nvjpeg2000, "find_library", lambda: standin.library)
    monkeypatch.setattr(nvjpeg2000, "runtime_of", lambda device: standin)
    monkeypatch.setattr(nvjpeg2000, "_probed", {})
    monkeypatch.setattr(nvjpeg2000, "LEVELS", True)
    monkeypatch.setattr(cuda_runtime, "missing", lambda: None)
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: 0))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return standin


def test_a_library_without_a_state_is_not_there(probing: StandIn) -> None:
    probing.set("no_device", 1)
    for _ in range(3):
        reason = nvjpeg2000.missing() or ""
        assert reason.startswith(
            "an nvJPEG2000 that works with this GPU and its driver: nvJPEG2000"
        )
        assert "its driver is older than the library's CUDA" in reason
    probing.set("no_device", 0)
    assert nvjpeg2000.missing() == reason  # kept: a device that cannot will not later
    assert_all_closed(probing)


def test_levels_that_are_wrong_are_not_used(probing: StandIn) -> None:
    """The stand-in makes values of its own: to the probe they are another level's."""
    assert nvjpeg2000.missing() is None
    made = probing.count("states_made")
    assert not nvjpeg2000.LEVELS
    assert "other samples at level 1" in (nvjpeg2000.levels_fault() or "")
    assert nvjpeg2000.missing() is None
    assert probing.count("states_made") == made == 1
    assert_all_closed(probing)


def test_levels_that_are_right_are_used(probing: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg2000_probe, "CODESTREAM", data := frame(96, 80, levels=5))
    monkeypatch.setattr(openjpeg, "decode", lambda _, c, level: values(data, level))
    assert nvjpeg2000.missing() is None
    assert nvjpeg2000.LEVELS
    assert nvjpeg2000.levels_fault() is None


def test_a_probe_short_of_memory_is_made_again(
    probing: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> State:
        raise DeviceMemoryError("ALLOCATOR_FAILURE")

    with monkeypatch.context() as patch:
        patch.setattr(nvjpeg2000_probe, "State", short)
        assert nvjpeg2000.missing() == "device memory to start nvJPEG2000: ALLOCATOR_FAILURE"
    assert nvjpeg2000.missing() is None

    def lost(*_: Any) -> State:
        raise CudaFailure("error 700")

    monkeypatch.setattr(nvjpeg2000, "_probed", {})
    monkeypatch.setattr(nvjpeg2000_probe, "State", lost)
    assert "works with this GPU and its driver: error 700" in (nvjpeg2000.missing() or "")
