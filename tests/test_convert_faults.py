"""A run whose workers die or hang, that is killed, or whose disk fills: nothing is lost or half."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import convert_standin
import numpy as np
import pytest
from PIL import Image

from fastmammo.conversion import ConvertOptions, Summary, convert
from fastmammo.conversion.journal import Journal
from fastmammo.conversion.pool import Pool
from fastmammo.conversion.process import Worker
from fastmammo.conversion.warm import warm_up_files
from fastmammo.conversion.worker import process as process_file
from fastmammo.conversion.worker import warm_up
from fastmammo.errors import ConvertError, WorkerError
from fastmammo.preprocess import Config

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = Config(size=convert_standin.SIZE)


def run(src: Path, dst: Path, *, config: Config = CONFIG, **options: Any) -> Summary:
    chosen = ConvertOptions(**{"workers": 1, **options})
    return convert(
        src, dst, config=config, options=chosen, preprocessor=convert_standin.PREPROCESSOR
    )


def source(tmp_path: Path, count: int = 12, **named: str) -> Path:
    """Make SRC: <patient>/<image>.dcm, and further files whose bytes say what happens."""
    src = tmp_path / "src"
    for index in range(count):
        path = src / f"p{index // 4}" / f"{index:03d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"DICM {index}")
    for name, words in named.items():
        path = src / "p0" / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    return src


def manifest(dst: Path) -> dict[str, dict[str, str]]:
    with open(dst / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def tree(dst: Path) -> dict[str, bytes]:
    """Return every file of DST that a user sees, times aside."""
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and ".fastmammo" not in path.parts and path.name != "timings.csv"
    }


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the run has not come to the point in time"
        time.sleep(0.01)
    return found


def start(src: Path, dst: Path, kind: str = "png", *point: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, convert_standin.__file__, str(src), str(dst), kind, *point],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lives(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---------------------------------------------------------------- workers


def test_a_worker_that_hangs_or_crashes_costs_its_file_only(tmp_path: Path) -> None:
    src = source(tmp_path, hang="DICM hang", abort="DICM abort")
    began = time.monotonic()
    summary = run(src, tmp_path / "dst", timeout_seconds=2)
    assert time.monotonic() - began < 60
    assert (summary.ok, summary.failed, summary.exit_code) == (12, 2, 1)
    rows = manifest(tmp_path / "dst")
    assert rows["p0/hang.dcm"]["message"] == "timed out after 2 s: see timeout_seconds"
    assert rows["p0/abort.dcm"]["reason"] == "worker died"
    assert rows["p0/abort.dcm"]["message"] == (
        "the worker process died on this file with SIGABRT, a second one too"
    )
    assert summary.reasons == {"failed: timed out": 1, "failed: worker died": 1}


def test_no_file_pays_for_what_a_worker_does_once(tmp_path: Path) -> None:
    options = ConvertOptions(workers=1, timeout_seconds=1)
    name = convert_standin.PREPROCESSOR.replace("StandIn", "SlowStart")
    src, dst = source(tmp_path, 2), tmp_path / "dst"
    assert convert(src, dst, config=CONFIG, options=options, preprocessor=name).ok == 2


def test_what_a_worker_does_once_covers_the_usual_files() -> None:
    """The kernels meet no new type of array in a file after the warm-up."""
    from fastmammo.conversion.writers import encode_png
    from fastmammo.kernels import cpu
    from fastmammo.preprocess import Preprocessor
    from fastmammo.testing import phantom, write_dicom

    lasting = [kernel for kernel in vars(cpu).values() if hasattr(kernel, "signatures")]
    assert lasting
    prepare = Preprocessor(Config(size=(64, 48))).prepare
    files = list(warm_up_files())
    records = [prepare(each).record for each in files]
    assert {record["decoder"] for record in records} == {"numpy", "numba"}
    assert {record["roi_level"] for record in records} == {2}
    assert {record["flags"] for record in records} == {""}
    calls: list[Any] = []
    warm_up(lambda data: prepare(data), lambda image: calls.append(encode_png(image)))
    assert len(calls) == len(files)
    before = [len(kernel.signatures) for kernel in lasting]
    pixels = phantom(1400, 1100, seed=1).pixels
    for uid in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"):
        prepare(write_dicom(pixels, transfer_syntax_uid=uid))
    assert [len(kernel.signatures) for kernel in lasting] == before


@pytest.mark.parametrize("seconds", [1e7, math.inf])
def test_any_time_limit_can_be_waited_for(tmp_path: Path, seconds: float) -> None:
    assert run(source(tmp_path, 1), tmp_path / "dst", timeout_seconds=seconds).ok == 1


def test_a_file_that_needs_too_much_memory_is_a_row(tmp_path: Path) -> None:
    src = source(tmp_path, 4, huge="DICM huge")
    summary = run(src, tmp_path / "dst")
    assert (summary.ok, summary.reasons) == (4, {"failed: out of memory": 1})
    assert "see memory_limit_mb" in manifest(tmp_path / "dst")["p0/huge.dcm"]["message"]
    assert run(src, tmp_path / "dst", memory_limit_mb=0).ok == 5


def test_the_largest_detector_fits_into_the_memory_limit(tmp_path: Path) -> None:
    from fastmammo.testing import write_dicom

    y, x = np.ogrid[:5355, :4915]
    inside = (y - 2700) ** 2 + x**2 < 2000**2
    pixels = np.where(inside, 2000 + x % 2, 0).astype(np.uint16)
    (tmp_path / "src").mkdir()
    write_dicom(pixels, path=tmp_path / "src" / "a.dcm")
    config = Config(size=(1024, 1024), bits=16, scale="full", crop="none")
    summary = convert(
        tmp_path / "src", tmp_path / "dst", config=config, options=ConvertOptions(workers=1)
    )
    assert summary.ok == 1, summary.reasons


def test_what_workers_print_is_heard_and_bounded(tmp_path: Path) -> None:
    workers: list[Worker] = []

    def shouting(self: Worker) -> None:
        workers.append(self)
        original(self)

    original = Worker.listen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "listen", shouting)
        src = source(tmp_path, 1, shout="DICM shout", then="DICM shout abort")
        summary = run(src, tmp_path / "dst", timeout_seconds=20)
    assert (summary.ok, summary.failed) == (2, 1)
    assert len(workers) > 3
    assert any("warning: row" in worker.last_words for worker in workers)
    assert all(len(worker.last_words) <= 1000 for worker in workers)


def test_a_worker_that_cannot_be_killed_is_not_waited_for() -> None:
    class Stuck:
        returncode = None

        def poll(self) -> None: ...

        def kill(self) -> None: ...

        def wait(self, timeout: float) -> None:
            raise subprocess.TimeoutExpired("worker", timeout)

    worker = Worker({})
    process, worker.process = worker.process, Stuck()  # type: ignore[assignment]
    assert worker.end() == "no end 10 s after SIGKILL"
    process.kill()
    process.wait(20)


def test_workers_that_started_do_not_outlive_one_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    before = len(os.listdir("/proc/self/fd"))
    original = subprocess.Popen

    def limited(*args: Any, **kwargs: Any) -> Any:
        if started:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(original(*args, **kwargs))
        return started[0]

    monkeypatch.setattr("fastmammo.conversion.process.subprocess.Popen", limited)
    with pytest.raises(ConvertError, match="EAGAIN"):
        run(source(tmp_path, 4), tmp_path / "dst", workers=2)
    assert started[0].returncode == -signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_signal_after_the_pool_is_closed_writes_nowhere() -> None:
    pool = Pool(1, {}, 1)
    pool.close()
    ends = [os.pipe() for _ in range(4)]  # they take the numbers of what was closed
    try:
        pool.stop()
        pool.abandon()
        for reading, _ in ends:
            os.set_blocking(reading, False)
            with pytest.raises(BlockingIOError):
                os.read(reading, 1)
        pool.close()
    finally:
        for pair in ends:
            for end in pair:
                os.close(end)


def test_one_worker_compiles_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    original = Pool._start

    def start(pool: Pool, count: int) -> None:
        starts.append((count, [worker.ready for worker in pool._workers]))
        original(pool, count)

    monkeypatch.setattr(Pool, "_start", start)
    monkeypatch.setattr("fastmammo.conversion.run.never_compiled", lambda: True)
    assert run(source(tmp_path, 6), tmp_path / "dst", workers=3).ok == 6
    assert starts == [(1, []), (3, [True])]


def test_what_is_compiled_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastmammo.conversion import warm

    package = tmp_path / "fastmammo"
    kept = package / "decoding" / "ebcot" / "__pycache__"
    kept.mkdir(parents=True)
    monkeypatch.setattr(warm, "__file__", str(package / "conversion" / "warm.py"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert warm.never_compiled()
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    (kept / f"codeblock._decode_blocks-80.{version}.nbi").touch()
    assert not warm.never_compiled()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not warm.never_compiled()


def test_a_file_whose_worker_was_killed_is_tried_again(tmp_path: Path) -> None:
    src = source(tmp_path, killed=f"DICM die_once:{tmp_path / 'marker'}")
    assert run(src, tmp_path / "dst").ok == 13
    assert (tmp_path / "marker").exists()


def test_killed_workers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = source(tmp_path, 40)
    run(src, tmp_path / "calm")
    pools: list[Pool] = []
    original = Pool.run

    def watched(self: Pool, *args: Any) -> Any:
        pools.append(self)
        return original(self, *args)

    monkeypatch.setattr(Pool, "run", watched)
    victims = []

    def progress(done: int, *_: Any) -> None:
        if done in (5, 20):  # two are enough: each file has one more try only
            victims.append(pools[0].process_ids[0])
            os.kill(victims[-1], signal.SIGKILL)

    summary = convert(
        src,
        tmp_path / "dst",
        config=CONFIG,
        options=ConvertOptions(workers=2),
        progress=progress,
        preprocessor=convert_standin.PREPROCESSOR,
    )
    assert len(set(victims)) == 2
    assert summary.ok == 40
    assert tree(tmp_path / "dst") == tree(tmp_path / "calm")
    assert not any(lives(victim) for victim in victims)


def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"does not start \(exit code 1\)[\s\S]*nonsense"):
        convert(source(tmp_path, 1), tmp_path / "dst", preprocessor="nonsense:None")


def test_a_defect_of_ours_is_a_row(tmp_path: Path) -> None:
    src = source(tmp_path, 2, defect="DICM defect", memory="DICM memory", broken="DICM broken")
    summary = run(src, tmp_path / "dst")
    rows = manifest(tmp_path / "dst")
    assert (summary.ok, summary.failed) == (2, 3)
    assert rows["p0/defect.dcm"]["message"] == "ZeroDivisionError: division by zero"
    assert rows["p0/defect.dcm"]["reason"] == "internal error"
    assert rows["p0/memory.dcm"]["reason"] == "out of memory"
    assert rows["p0/broken.dcm"]["reason"] == "corrupt codestream"
    # where SRC lies on this machine is not told
    assert rows["p0/broken.dcm"]["message"] == "p0/broken.dcm: frame 0: no end of codestream"
    journal = (tmp_path / "dst" / ".fastmammo" / "journal.jsonl").read_text()
    assert "Traceback" in journal


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    src = source(tmp_path, 1, grow="DICM grow")
    run(src, tmp_path / "dst")
    assert manifest(tmp_path / "dst")["p0/grow.dcm"]["reason"] == "changed while read"


# ---------------------------------------------------------------- the whole run


POINTS = [
    ("png", "before-add", 5),
    ("png", "after-add", 5),
    ("png", "before-tables", 1),
    ("packed", "after-add", 5),
    ("packed", "before-copy", 7),
    ("packed", "after-add_packed", 1),
    ("packed", "after-load", 3),
    ("packed", "after-gather", 1),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with src, and png and packed made from it by runs that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    src = source(folder, broken="DICM broken", text="no image")
    for kind in ("png", "packed"):
        run(src, folder / kind, format=kind)
    return folder


@pytest.mark.parametrize(("kind", "point", "count"), POINTS)
def test_a_killed_run_goes_on(
    tmp_path: Path, undisturbed: Path, kind: str, point: str, count: int
) -> None:
    src, dst = undisturbed / "src", tmp_path / "dst"
    with start(src, dst, kind, point, str(count)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    for path in dst.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    summary = run(src, dst, format=kind)
    assert summary.kept > 0
    assert tree(dst) == tree(undisturbed / kind)
    assert sorted(p.name for p in (dst / ".fastmammo").iterdir()) == ["journal.jsonl", "lock"]


@pytest.mark.parametrize("point", ["written", "renamed"])
def test_killed_between_write_and_journal(tmp_path: Path, point: str) -> None:
    marker = tmp_path / "marker"
    src = source(tmp_path, last=f"DICM kill_parent:{point},{marker}")
    with start(src, tmp_path / "dst") as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "dst" / "p0" / "last.png").exists() == (point == "renamed")
    run(src, tmp_path / "dst")
    run(src, tmp_path / "calm")
    assert tree(tmp_path / "dst") == tree(tmp_path / "calm")


@pytest.mark.parametrize(("kind", "point"), [("png", "after-redo"), ("packed", "before-forget")])
def test_killed_while_changed_settings_are_taken_up(
    tmp_path: Path, undisturbed: Path, kind: str, point: str
) -> None:
    src, dst = undisturbed / "src", tmp_path / "dst"
    run(src, dst, format=kind, config=Config(size=(8, 8)))
    with start(src, dst, kind, point, "1") as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    run(src, dst, format=kind)
    assert tree(dst) == tree(undisturbed / kind)


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    src = source(tmp_path, 0, one=f"DICM wait:{tmp_path}", two=f"DICM  wait:{tmp_path}")
    with start(src, tmp_path / "dst") as process:
        until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("started-*")]
        assert all(lives(worker) for worker in workers)
        process.kill()
    until(lambda: not any(lives(worker) for worker in workers))
    # no lock is left, and the files are converted
    (tmp_path / "go").touch()
    assert run(src, tmp_path / "dst").ok == 2


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal and wait until the process has received it."""
    process.send_signal(number)

    def received() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        pending = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
        return not any(int(mask, 16) >> (number - 1) & 1 for mask in pending)

    until(received)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, "png"), (signal.SIGTERM, "packed")])
def test_a_signal_ends_the_run_after_the_files_in_hand(
    tmp_path: Path, number: signal.Signals, kind: str
) -> None:
    src = source(tmp_path, 20, a=f"DICM wait:{tmp_path}", b=f"DICM  wait:{tmp_path}")
    with start(src, tmp_path / "dst", kind) as process:
        until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        send(process, number)
        (tmp_path / "go").touch()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    summary = json.loads(output)
    rows = manifest(tmp_path / "dst")
    assert list(rows) == [*(f"p0/00{n}.dcm" for n in range(4)), "p0/a.dcm", "p0/b.dcm"]
    assert all(row["status"] == "ok" for row in rows.values())
    assert summary["unfinished"] == 16
    # images.npy is made when all files are done: until then no row may name it
    assert summary["array_pending"] == (kind == "packed")
    outputs = [row["output"] for row in rows.values()]
    assert ("" in outputs) == (set(outputs) == {""}) == (kind == "packed")
    resumed = run(src, tmp_path / "dst", format=kind)
    assert (resumed.kept, resumed.array_pending) == (6, False)
    run(src, tmp_path / "calm", format=kind)
    assert tree(tmp_path / "dst") == tree(tmp_path / "calm")


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    src = source(tmp_path, 4, a=f"DICM wait:{tmp_path}", b=f"DICM  wait:{tmp_path}")
    with start(src, tmp_path / "dst") as process:
        until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        send(process, signal.SIGINT)
        send(process, signal.SIGINT)  # the files in hand never end
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert json.loads(output)["signal"] == signal.SIGINT
    assert len(manifest(tmp_path / "dst")) == 4


def test_a_run_in_another_thread_works(tmp_path: Path) -> None:
    """There Python allows no signal handlers."""
    found: list[Summary] = []
    thread = threading.Thread(target=lambda: found.append(run(source(tmp_path), tmp_path / "dst")))
    thread.start()
    thread.join(60)
    assert found[0].ok == 12


def test_no_process_and_no_descriptor_stays_behind(tmp_path: Path) -> None:
    run(source(tmp_path, 1), tmp_path / "warm")
    src = source(tmp_path, 1, abort="DICM abort")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    # other tests' pools may have left a process of multiprocessing's own
    others = children.read_text() if children.exists() else ""
    before = len(os.listdir("/proc/self/fd"))
    run(src, tmp_path / "dst")
    assert len(os.listdir("/proc/self/fd")) == before
    if children.exists():
        assert children.read_text() == others


# ---------------------------------------------------------------- DST


def test_two_runs_on_one_dst(tmp_path: Path) -> None:
    src, dst = source(tmp_path, 1), tmp_path / "dst"
    dst.mkdir()
    with (
        Journal(str(dst)),
        pytest.raises(ConvertError, match=f"another run.*process {os.getpid()}"),
    ):
        run(src, dst)
    assert run(src, dst).ok == 1


@pytest.mark.parametrize("below", ["file", "file/dst"])
def test_dst_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConvertError, match=r"cannot write to DST .*Choose another folder"):
        run(source(tmp_path, 1), tmp_path / below)


def test_an_output_that_cannot_have_its_name_costs_one_file(tmp_path: Path) -> None:
    src, dst = source(tmp_path, 2), tmp_path / "dst"
    (dst / "p0" / "000.png" / "in the way").mkdir(parents=True)
    assert (run(src, dst).ok, run(src, dst).again) == (1, {"failed before": 1})
    row = manifest(dst)["p0/000.dcm"]
    assert row["reason"] == "cannot write"
    assert row["message"] == "the output cannot be written: Is a directory (EISDIR)"


@pytest.mark.parametrize(
    ("code", "ends_the_run"),
    [
        *((code, True) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)),
        *((code, True) for code in (errno.EACCES, errno.EPERM)),
        *((code, False) for code in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL)),
    ],
)
def test_which_errors_of_dst_end_the_run(tmp_path: Path, code: int, ends_the_run: bool) -> None:
    (tmp_path / "a.dcm").touch()
    task = {"path": "a.dcm", "source": str(tmp_path / "a.dcm"), "target": str(tmp_path / "a.png")}
    prepared = convert_standin.Image(np.zeros((2, 2), np.uint8), {})

    def chunks(_: Any) -> Any:
        yield b"x"
        raise OSError(code, os.strerror(code))

    task |= {"content": False, "meant": True}
    reply = process_file(task, lambda _: prepared, chunks, str(tmp_path / "partial"))
    assert ("fatal" in reply, reply.get("status")) == (
        ends_the_run,
        None if ends_the_run else "failed",
    )
    assert errno.errorcode[code] in (reply.get("fatal") or reply["message"])
    assert not (tmp_path / "partial").exists()


def test_disk_full_stops_the_run_and_it_goes_on(tmp_path: Path) -> None:
    marker, dst = tmp_path / "full", tmp_path / "dst"
    marker.touch()
    src = source(tmp_path, 12)
    # sorts last of all
    (src / "z.dcm").write_text(f"DICM disk_full:{marker}")
    with pytest.raises(ConvertError, match=r"ENOSPC.*12 of 13 files are done.*to go on") as caught:
        run(src, dst, workers=1)
    assert "No space left on device" in str(caught.value)
    assert len(manifest(dst)) == 12
    assert "z.dcm" not in manifest(dst)
    marker.unlink()
    assert run(src, dst).kept == 12
    run(src, tmp_path / "calm")
    assert tree(dst) == tree(tmp_path / "calm")


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_a_disk_that_is_really_full(tmp_path: Path, kind: str) -> None:
    src, disk = source(tmp_path, 30), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            try:
                with pytest.raises(ConvertError, match=r"No space left on device.*to go on"):
                    run(src, disk / "dst", config=Config(size=(96, 96)), format=kind)
                kept = len((disk / "dst" / ".fastmammo" / "journal.jsonl").read_text().splitlines())
                subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
                summary = run(src, disk / "dst", config=Config(size=(96, 96)), format=kind)
                run(src, tmp_path / "calm", config=Config(size=(96, 96)), format=kind)
                assert 0 < summary.kept < kept
                assert tree(disk / "dst") == tree(tmp_path / "calm")
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            return
    pytest.skip("may not mount a file system")


def test_disk_full_in_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Journal.add

    def add(self: Journal, entry: dict[str, Any]) -> None:
        if entry["path"].endswith("007.dcm"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, entry)

    src, dst = source(tmp_path), tmp_path / "dst"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(ConvertError, match=r"No space left on device \(ENOSPC\).*go on"):
            run(src, dst)
    run(src, dst)
    run(src, tmp_path / "calm")
    assert tree(dst) == tree(tmp_path / "calm")


def test_a_torn_journal_line_costs_one_file(tmp_path: Path) -> None:
    src, dst = source(tmp_path), tmp_path / "dst"
    run(src, dst, workers=1)
    calm = tree(dst)
    journal = dst / ".fastmammo" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert run(src, dst).kept == 11
    assert tree(dst) == calm
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\0\0 damaged \xff\n" + b"".join(lines[2:]))
    assert run(src, dst).kept == 11
    assert tree(dst) == calm


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    src, dst = source(tmp_path, 1), tmp_path / "dst"
    run(src, dst)
    (dst / ".fastmammo" / "journal.jsonl").write_text('{"journal":99}\n')
    with pytest.raises(ConvertError, match="journal is of version 99"):
        run(src, dst)


def test_a_row_that_someone_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmammo.conversion.packed import Packed

    original = Packed.gather

    def gather(self: Packed, *args: Any) -> None:
        os.unlink(self.row_path("p0/001"))
        original(self, *args)

    src, dst = source(tmp_path), tmp_path / "dst"
    with monkeypatch.context() as patch:
        patch.setattr(Packed, "gather", gather)
        with pytest.raises(ConvertError, match=r"finished row of p0/001.dcm is gone"):
            run(src, dst, format="packed")
    assert run(src, dst, format="packed").kept == 11
    assert np.load(dst / "images.npy").shape == (12, *convert_standin.SIZE)
