"""bench/throughput.py, ended from outside: it saves nothing, and leaves no process behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCRIPT = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv.pop(1))
import common
common.RESULTS = Path(sys.argv.pop(1))
import throughput
throughput.script()
"""
PATIENCE_SECONDS = 60.0


def until(found: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


def alive(process: int) -> bool:
    """Return whether a process runs still; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(process: int) -> set[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


@contextmanager
def in_a_turn(folder: Path, contender: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give a run within a contender's first turn: more images are there than to be compared."""
    tiny = ["--size", "160x128", "--sets", "0", "--height", "64", "--cache", str(folder / "cache")]
    long = ["--seconds", "4", "--workers", "1", "--save", "--contenders", contender]
    given = [str(BENCH), str(folder / "results"), *tiny, *long]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *given], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        try:
            until(
                lambda: (
                    run.poll() is not None or len(list(folder.glob("cache/work-*/0/out/*.png"))) > 4
                ),
                "a turn",
            )
            assert run.poll() is None, run.communicate()[0].decode()
            yield run
        finally:
            run.kill()


@pytest.mark.parametrize("contender", ["fastmammo full", "ordinary"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_saves_nothing(
    tmp_path: Path, number: signal.Signals, contender: str
) -> None:
    if contender == "ordinary":
        pytest.importorskip("cv2")
    with in_a_turn(tmp_path, contender) as run:
        started = children(run.pid)
        run.send_signal(number)
        printed = run.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert run.returncode == 128 + number, printed
    assert "failed" not in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.glob("cache/work-*"))
    until(lambda: not any(map(alive, started)), "the end of its processes")


def test_a_killed_run_leaves_no_processes(tmp_path: Path) -> None:
    with in_a_turn(tmp_path, "fastmammo full") as run:
        started = children(run.pid)
        assert len(started) >= 3  # the resource tracker, a warm process, a worker of `convert`
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        until(lambda: not any(map(alive, started)), "the end of its processes", 10)


def test_a_process_whose_parent_is_gone_ends() -> None:
    code = (
        "import multiprocessing, types\n"
        "from contenders.processes import die_with_parent\n"
        "multiprocessing.parent_process = lambda: types.SimpleNamespace(pid=1 << 30)\n"
        "die_with_parent()\n"
        "print('went on')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(BENCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (1, ""), found.stderr


def test_what_dali_starts_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from fastmammo.testing import phantom, write_dicom

    made, path = phantom(160, 128, seed=1), tmp_path / "0.dcm"
    write_dicom(
        made.pixels, path=path, window_center=made.window_center, window_width=made.window_width
    )
    dali = importlib.import_module("contenders.dali")
    asked: list[bool] = []
    monkeypatch.setattr(dali, "die_with_parent", lambda: asked.append(True))
    reader = dali.Reader([str(path)] * 2, 1)
    for i in range(2):
        codestreams, headers = reader(SimpleNamespace(iteration=i))
        assert (len(codestreams), len(headers)) == (1, 1)
    assert asked == [True]
    with pytest.raises(StopIteration):
        reader(SimpleNamespace(iteration=2))
