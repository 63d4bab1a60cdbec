"""Frames in flight, on a stand-in library that delays, reorders and fails: no GPU is needed."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvjpeg2000_standin import (
    POISON,
    REFUSED_AT_DECODE,
    REFUSED_AT_PARSE,
    WELL,
    Array,
    CudaFailure,
    StandIn,
    build,
    eventually,
    facts,
    frame,
    values,
)

from fastmammo.decoding.cuda_runtime import target_of
from fastmammo.decoding.frame_queue import SURPLUS, FrameQueue, Order
from fastmammo.decoding.frames_in_flight import WORK_BYTES_A_PIXEL, Decoder, Request
from fastmammo.decoding.nvjpeg2000 import _decode, _Lender, refuses
from fastmammo.decoding.nvjpeg2000_state import Handle, State
from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    FastMammoError,
    MismatchError,
    UnsupportedSyntaxError,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def standin(built: Path, tmp_path: Path) -> StandIn:
    # The loader gives a file that it has loaded already once more: each test loads its own copy.
    return StandIn(Path(shutil.copy(built, tmp_path)))


def decoder(standin: StandIn, **settings: object) -> Decoder:
    return Decoder(library=standin.library, runtime=standin, **settings)  # type: ignore[arg-type]


def request(data: bytes, level: int = 0, **others: object) -> Request:
    return Request(data, facts(data), level, **others)  # type: ignore[arg-type]


def assert_all_closed(standin: StandIn) -> None:
    gc.collect()
    assert eventually(lambda: not any(standin.alive().values())), standin.alive()
    assert not any(standin.violations().values()), standin.violations()


def test_a_thousand_mixed_frames_keep_order_and_values(standin: StandIn) -> None:
    random = np.random.default_rng(7)

    def draw(index: int) -> tuple[bytes, int]:
        bits, levels = int(random.choice([8, 10, 12, 16])), int(random.integers(0, 5))
        data = frame(
            *map(int, random.integers(1, 90, 2)),
            levels=levels,
            bits=bits,
            signed=bits > 8 and bool(random.integers(2)),
            tag=index,
            host=int(random.choice([0, 100, 900])),
            gpu=int(random.choice([0, 200, 3000])),
        )
        return data, int(random.integers(0, levels + 1))

    drawn = [draw(index) for index in range(1000)]
    assert all(refuses(facts(data)) is None for data, _ in drawn)

    def requests() -> object:
        for data, level in drawn:  # the bytes of each belong to the decoder alone
            yield request(memoryview(np.frombuffer(data, np.uint8).copy()), level)  # type: ignore[arg-type]

    with decoder(standin, states=6) as d:
        for (data, level), found in zip(drawn, d.map(requests()), strict=True):  # type: ignore[arg-type]
            assert isinstance(found, Array), found
            wanted = values(data, level)
            assert found.values.dtype == wanted.dtype
            assert np.array_equal(found.values, wanted)
    assert standin.count("decoded") == 1000
    assert 2 <= standin.count("at_once") <= 6
    assert_all_closed(standin)


@pytest.mark.parametrize(
    ("kind", "status", "error", "words"),
    [
        (REFUSED_AT_PARSE, 3, CorruptCodestreamError, "StreamParse gave BAD_JPEG"),
        (REFUSED_AT_PARSE, 4, UnsupportedSyntaxError, "JPEG_NOT_SUPPORTED"),
        (REFUSED_AT_DECODE, 1, DecodeError, "DecodeImage gave NOT_INITIALIZED"),
        (REFUSED_AT_DECODE, 2, DecodeError, "INVALID_PARAMETER"),
        (REFUSED_AT_DECODE, 3, CorruptCodestreamError, "BAD_JPEG"),
        # the stream goes on: the CPU may take the frame, and nothing says that the GPU is lost
        (REFUSED_AT_DECODE, 6, DecodeError, "for this frame alone: the device goes on"),
        (REFUSED_AT_DECODE, 7, BackendUnavailableError, "ARCH_MISMATCH"),
        (REFUSED_AT_DECODE, 8, DecodeError, "INTERNAL_ERROR"),
        (REFUSED_AT_DECODE, 9, UnsupportedSyntaxError, "IMPLEMENTATION_NOT_SUPPORTED"),
        (REFUSED_AT_DECODE, 42, DecodeError, "status 42"),
    ],
)
def test_a_failing_frame_costs_itself(
    standin: StandIn, kind: int, status: int, error: type[DecodeError], words: str
) -> None:
    frames = [frame(tag=index, gpu=300) for index in range(30)]
    frames[11] = frame(kind=kind, status=status)
    with decoder(standin, states=3) as d:
        ordered = (request(data, path=f"{i}.dcm", frame=i) for i, data in enumerate(frames))
        found = list(d.map(ordered))
        assert d.states == 3
    failed = found.pop(11)
    assert type(failed) is error
    assert words in str(failed)
    assert (failed.path, failed.frame) == ("11.dcm", 11)
    for data, array in zip(frames[:11] + frames[12:], found, strict=True):
        assert np.array_equal(array.values, values(data, 0))
    assert_all_closed(standin)


def test_other_facts_than_the_header_s_are_a_mismatch(standin: StandIn) -> None:
    data = frame(40, 30)
    wrong = [
        Request(data, facts(frame(41, 30))),
        Request(data, facts(frame(40, 30, bits=10))),
        Request(data, facts(frame(40, 30, levels=2))),
    ]
    with decoder(standin, states=1) as d:
        for found in d.map(wrong):
            assert isinstance(found, MismatchError)
            assert "nvJPEG2000 reads" in str(found)
        tiled = Request(data, facts(frame(40, 30, levels=3)), 4)
        with pytest.raises(UnsupportedSyntaxError, match="level 4 of a codestream with 3 levels"):
            d.submit(tiled)
        [found] = d.map([Request(data, facts(data), 4, path="a.dcm", frame=2)])
        assert isinstance(found, UnsupportedSyntaxError)
        assert (found.path, found.frame) == ("a.dcm", 2)
    assert_all_closed(standin)


def test_a_level_of_another_size_is_a_mismatch(standin: StandIn) -> None:
    handle = Handle(standin.library)
    state, data = State(handle), frame(40, 30)
    state.parse(data, facts(data))
    other = facts(frame(44, 30))
    target = target_of(Array(np.empty((22, 15), np.uint16)), (22, 15), np.uint16)
    with pytest.raises(MismatchError, match="level 1 is 20 x 15, wanted 22 x 15"):
        state.decode(other, 1, target, standin.caller.ptr)
    state.close()
    handle.close()
    assert_all_closed(standin)


def test_submit_blocks_while_too_many_wait(standin: StandIn) -> None:
    taken = []

    def feed(d: Decoder) -> None:
        for index in range(12):
            d.submit(request(frame(tag=index, gpu=30_000)))
            taken.append(index)

    with decoder(standin, states=2, waiting=3) as d:
        thread = threading.Thread(target=feed, args=(d,))
        start = time.monotonic()
        thread.start()
        assert eventually(lambda: len(taken) >= 5)
        assert len(taken) - standin.count("decoded") <= 2 + 3 + 1
        thread.join()
        assert time.monotonic() - start > 0.08  # the twelfth waited for three rounds of two
    assert standin.count("decoded") == 12
    assert_all_closed(standin)


def test_the_library_s_cpu_work_is_bounded_by_threads(standin: StandIn) -> None:
    start = time.monotonic()
    with decoder(standin, states=4, threads=1) as d:
        list(d.map(request(frame(host=10_000)) for _ in range(8)))
    assert time.monotonic() - start > 0.08
    assert_all_closed(standin)


def test_where_memory_is_short_fewer_states_hold_it(standin: StandIn) -> None:
    standin.set("limit", 3 * 40 * 30 * 8 + 100)  # three states of the fake's 8 bytes a pixel
    frames = [frame(tag=index, host=200, gpu=500) for index in range(80)]
    with decoder(standin, states=8) as d:
        for data, found in zip(frames, d.map(map(request, frames)), strict=True):
            assert isinstance(found, Array), found
            assert np.array_equal(found.values, values(data, 0))
        assert 1 <= d.states <= 3
        assert standin.count("memory") <= standin.count("limit")
    assert standin.released > 0
    assert_all_closed(standin)


def test_a_frame_that_does_not_fit_even_alone_costs_itself(standin: StandIn) -> None:
    standin.set("limit", 100 * 40 * 30 * 8)
    frames = [frame(tag=index, gpu=300) for index in range(40)]
    frames[13] = frame(900, 900)
    with decoder(standin, states=4) as d:
        found = list(d.map(request(data, path="huge.dcm", frame=0) for data in frames))
        assert d.states == 4
    assert isinstance(found[13], DeviceMemoryError)
    assert "ALLOCATOR_FAILURE (5)" in str(found[13])
    assert found[13].path == "huge.dcm"
    del found[13], frames[13]
    for data, array in zip(frames, found, strict=True):
        assert np.array_equal(array.values, values(data, 0))
    assert_all_closed(standin)


def test_a_device_failure_with_no_memory_left_counts_as_short_memory(standin: StandIn) -> None:
    standin.free = 0
    with decoder(standin, states=3) as d:
        [found] = d.map([request(frame(kind=REFUSED_AT_DECODE, status=6))])
        assert type(found) is DecodeError
        assert d.states == 3
    assert standin.released == 4  # with three states, with two, with one, and alone once more
    assert_all_closed(standin)


def test_no_order_is_given_out_while_a_surplus_worker_holds_memory(standin: StandIn) -> None:
    queue = FrameQueue(3, 10)
    orders = [Order(request(frame()), standin.caller, 1) for _ in range(4)]  # type: ignore[arg-type]
    for order in orders:
        queue.put(order)
    first = queue.take(0)
    assert (first, queue.take(2)) == (orders[0], orders[1])
    queue.finish(0, holds=False)
    assert queue.retry(orders[0])  # memory was short: two may hold it, the third still does
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take(0)))
    thread.start()
    time.sleep(0.05)
    assert not taken
    queue.finish(2, holds=True)
    assert queue.take(2) is SURPLUS
    assert not taken
    queue.let_go(2)
    thread.join(5)
    assert taken == [orders[0]]  # before all that came later
    assert queue.limit == 2


def test_a_state_is_not_used_after_an_error(standin: StandIn) -> None:
    with decoder(standin, states=1) as d:
        made = standin.count("states_made")
        for kind, states in ((WELL, 1), (REFUSED_AT_PARSE, 1), (REFUSED_AT_DECODE, 1), (WELL, 2)):
            list(d.map([request(frame(kind=kind, status=8))]))
            assert standin.count("states_made") - made == states


def test_a_budget_bounds_the_states_at_work(standin: StandIn) -> None:
    need = 40 * 30 * (2 + WORK_BYTES_A_PIXEL)
    with decoder(standin, states=8, budget_bytes=2 * need + 10) as d:
        frames = [frame(tag=index, gpu=2000) for index in range(30)]
        found = list(d.map(map(request, frames)))
        assert all(isinstance(array, Array) for array in found)
        assert d.states == 2
        assert standin.count("at_once") == 2
        # a larger frame leaves room for one; the other state gives its memory back
        list(d.map([request(frame(60, 60))]))
        assert d.states == 1
        assert eventually(lambda: standin.count("states") <= 1)
    assert_all_closed(standin)


def test_a_lost_device_ends_the_decoder_and_nothing_hangs(standin: StandIn) -> None:
    d = decoder(standin, states=2, waiting=20)
    futures = [d.submit(request(frame(tag=index, gpu=2000), frame=index)) for index in range(4)]
    futures.append(d.submit(request(frame(kind=POISON, gpu=1000), path="bad.dcm", frame=4)))
    slow = frame(gpu=30_000)
    futures += [d.submit(request(slow, frame=index)) for index in range(5, 15)]
    errors = [future.exception(timeout=10) for future in futures]
    assert errors[0] is None
    # those beside the poisoned frame may have been faster, those behind it cannot
    assert isinstance(errors[4], DeviceError)
    assert all(isinstance(error, DeviceError) for error in errors[8:])
    for error in filter(None, errors):
        assert "the decoder is dead" in str(error)
        assert "illegal memory access" in str(error)
    assert (errors[4].path, errors[4].frame) == ("bad.dcm", 4)  # type: ignore[union-attr]
    assert [error.frame for error in errors[8:]] == list(range(8, 15))  # type: ignore[union-attr]
    with pytest.raises(DeviceError, match="the decoder is dead"):
        d.submit(request(frame()))
    d.close()
    assert_all_closed(standin)


def test_closing_finishes_what_was_taken(standin: StandIn) -> None:
    d = decoder(standin, states=2, waiting=30)
    futures = [d.submit(request(frame(tag=index, gpu=1000))) for index in range(20)]
    d.close()
    assert all(future.done() for future in futures)
    assert standin.count("decoded") == 20
    d.close()  # once more does nothing
    with pytest.raises(DecodeError, match="the decoder is closed"):
        d.submit(request(frame()))
    del futures
    assert_all_closed(standin)


def test_an_exception_cancels_what_has_not_begun(standin: StandIn) -> None:
    futures = []
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        decoder(standin, states=1, waiting=30) as d,
    ):
        for _ in range(20):
            futures.append(d.submit(request(frame(gpu=20_000))))
        raise ZeroDivisionError
    assert standin.count("decoded") < 5
    with pytest.raises(CancelledError):
        futures[-1].result()
    del futures
    assert_all_closed(standin)


def test_whoever_stops_early_leaves_nothing_behind(standin: StandIn) -> None:
    with decoder(standin, states=2) as d:
        results = d.map((request(frame(gpu=5000)) for _ in range(500)), ahead=3)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert isinstance(d.submit(request(frame())).result(timeout=5), Array)
    assert standin.count("decoded") < 20
    assert_all_closed(standin)


def test_a_forgotten_decoder_ends_its_threads(standin: StandIn) -> None:
    before = threading.active_count()
    d = decoder(standin, states=3)
    future = d.submit(request(frame(gpu=5000)))
    del d
    gc.collect()
    assert isinstance(future.result(timeout=5), Array)
    assert threading.active_count() == before
    del future
    assert_all_closed(standin)


def test_a_process_ends_with_a_decoder_still_open(built: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from nvjpeg2000_standin import *
from fastmammo.decoding.frame_queue import SURPLUS, FrameQueue, Order
from fastmammo.decoding.frames_in_flight import Decoder, Request
s = StandIn(Path({str(built)!r}))
d = Decoder(library=s.library, runtime=s, states=2)
data = frame(gpu=1000)
futures = [d.submit(Request(data, facts(data))) for _ in range(4)]
print("out")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "out", "")


def test_frames_and_samples_are_not_kept(standin: StandIn) -> None:
    data = frame(gpu=1000)
    source = np.frombuffer(data, np.uint8).copy()
    seen = weakref.ref(source)
    with decoder(standin, states=1) as d:
        future = d.submit(Request(memoryview(source), facts(data)))
        del source
        array = future.result(timeout=5)
        result = weakref.ref(array)
        assert np.array_equal(array.values, values(data, 0))
        del future, array
        assert eventually(lambda: result() is None)
        # the next frame takes the place of the bytes in the state
        d.submit(request(frame())).result(timeout=5)
        assert eventually(lambda: seen() is None)


def test_a_failed_frame_keeps_no_device_memory(standin: StandIn) -> None:
    made = []
    empty = standin.empty

    def watched(*arguments: object) -> Array:
        array = empty(*arguments)  # type: ignore[arg-type]
        made.append(weakref.ref(array))
        return array

    standin.empty = watched  # type: ignore[method-assign, assignment]
    with decoder(standin, states=1) as d:
        future = d.submit(request(frame(kind=REFUSED_AT_DECODE, status=8)))
        assert isinstance(future.exception(timeout=5), DecodeError)
        assert eventually(lambda: made[0]() is None)


def test_the_caller_s_memory_is_written(standin: StandIn) -> None:
    data = frame(21, 30)
    wide = np.full((21, 40), 9, np.uint16)
    part = Array(wide[:, 5:35])
    with decoder(standin, states=1) as d:
        assert d.submit(request(data, out=part)).result(timeout=5) is part
        assert np.array_equal(wide[:, 5:35], values(data, 0))
        assert (wide[:, :5] == 9).all()
        assert (wide[:, 35:] == 9).all()
        small = Array(np.empty((6, 8), np.uint16))
        d.submit(request(data, 2, out=small)).result(timeout=5)
        assert np.array_equal(small.values, values(data, 2))
        for out, words in (
            (np.empty((21, 30), np.uint16), "got ndarray, wanted an array on the device"),
            (Array(np.empty((20, 30), np.uint16)), r"got uint16 \(20, 30\), wanted uint16 \(21, 3"),
            (Array(np.empty((21, 30), np.int16)), "got int16"),
            (Array(np.empty((21, 60), np.uint16)[:, ::2]), "strides"),
        ):
            with pytest.raises(ConfigError, match=words):
                d.submit(request(data, out=out)).result(timeout=5)
    assert_all_closed(standin)


def test_memory_that_the_caller_s_stream_still_uses_is_waited_for(standin: StandIn) -> None:
    """A decode on the caller's stream stands for kernels that read memory freed since."""
    handle = Handle(standin.library)
    state, slow = State(handle), frame(gpu=60_000)
    out = Array(np.empty((40, 30), np.uint16))
    state.parse(slow, facts(slow))
    with decoder(standin, states=1) as d:
        target = target_of(out, (40, 30), np.uint16)
        state.decode(facts(slow), 0, target, standin.caller.ptr)
        d.submit(request(frame(tag=3))).result(timeout=5)
        assert standin.count("decoded") == 2
        assert np.array_equal(out.values, values(slow, 0))
    state.close()
    handle.close()
    assert_all_closed(standin)


def test_the_default_stream_of_a_thread_is_told_of_in_that_thread(standin: StandIn) -> None:
    """cudaStreamPerThread is one address and another stream in each thread."""

    class PerThread:
        ptr = 2

        def record(self, event: Any) -> Any:
            threads.append(("record", threading.get_ident()))
            return standin.caller.record(event)

    threads: list[tuple[str, int]] = []
    own = PerThread()
    standin.stream_of = lambda stream: own  # type: ignore[method-assign, assignment]

    def empty(shape: tuple[int, int], dtype: Any, stream: Any) -> Array:
        assert stream is own
        threads.append(("empty", threading.get_ident()))
        return Array(np.full(shape, 77, dtype))

    standin.empty = empty  # type: ignore[method-assign]
    handle = Handle(standin.library)
    state, slow = State(handle), frame(gpu=60_000)
    out = Array(np.empty((40, 30), np.uint16))
    state.parse(slow, facts(slow))
    with decoder(standin, states=1) as d:
        target = target_of(out, (40, 30), np.uint16)
        state.decode(facts(slow), 0, target, standin.caller.ptr)
        found = d.submit(request(frame(tag=3), 1)).result(timeout=5)
        assert np.array_equal(found.values, values(frame(tag=3), 1))
        assert standin.count("decoded") == 2  # what the caller's stream held came first
        # memory first: the event then comes after all that may still read it
        assert threads == [(what, threading.get_ident()) for what in ("empty", "record")]
        d.submit(request(frame(), out=out)).result(timeout=5)
        assert [what for what, _ in threads] == ["empty", "record", "record"]
    state.close()
    handle.close()
    assert_all_closed(standin)


def test_settings_and_beginnings(standin: StandIn) -> None:
    for name in ("states", "threads", "waiting", "budget_bytes"):
        with pytest.raises(ConfigError, match=f"{name}: got 0, wanted 1 or more"):
            decoder(standin, **{name: 0})
    with decoder(standin, device_padding=1 << 21, pinned_padding=1 << 20):
        assert standin.count("device_padding") == 1 << 21
        assert standin.count("pinned_padding") == 1 << 20
    standin.set("no_device", 1)
    with pytest.raises(BackendUnavailableError, match=r"EXECUTION_FAILED .* there is no GPU"):
        decoder(standin)
    standin.set("no_device", 0)
    assert_all_closed(standin)


def test_a_worker_that_breaks_lets_nobody_wait(standin: StandIn) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("defect")

    standin.free_bytes = broken  # type: ignore[method-assign, assignment]
    with decoder(standin, states=1) as d:
        first = d.submit(request(frame(kind=REFUSED_AT_DECODE, status=6)))
        assert isinstance(first.exception(timeout=5), DeviceError)
        assert eventually(lambda: d._threads[0].is_alive() is False)
        with pytest.raises(FastMammoError, match="the decoder is dead"):
            d.submit(request(frame()))


def test_one_frame_at_a_time_from_several_threads(standin: StandIn) -> None:
    """`decode` of the backend: states are lent, none before its work is done."""
    handle = Handle(standin.library)
    lender = _Lender(handle)
    frames = [frame(tag=index, gpu=400, host=100) for index in range(60)]
    wrong: list[int] = []

    def run(part: int) -> None:
        for index in range(part, 60, 3):
            found = _decode(lender, standin, frames[index], facts(frames[index]), index % 4)  # type: ignore[arg-type]
            standin.caller.synchronize()
            if not np.array_equal(found.values, values(frames[index], index % 4)):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    bad = frame(kind=REFUSED_AT_DECODE, status=8)
    with pytest.raises(DecodeError, match="INTERNAL_ERROR"):
        _decode(lender, standin, bad, facts(bad), 0)  # type: ignore[arg-type]
    bad = frame(kind=REFUSED_AT_DECODE, status=6)
    with pytest.raises(DecodeError, match=r"EXECUTION_FAILED .* the device goes on") as caught:
        _decode(lender, standin, bad, facts(bad), 0)  # type: ignore[arg-type]
    assert type(caught.value) is DecodeError
    del caught
    bad = frame(kind=REFUSED_AT_DECODE, status=5)
    with pytest.raises(DeviceMemoryError, match="ALLOCATOR_FAILURE"):
        _decode(lender, standin, bad, facts(bad), 0)  # type: ignore[arg-type]
    # without a wait between them, the pool grows to its bound and then waits
    kept = [_decode(lender, standin, data, facts(data), 0) for data in frames[:20]]  # type: ignore[arg-type]
    assert standin.count("states") <= 4
    standin.caller.synchronize()

    def go_on_with_a_lost_device() -> None:
        for data in (frame(kind=POISON), *frames[:10]):
            kept.append(_decode(lender, standin, data, facts(data), 0))  # type: ignore[arg-type]

    with pytest.raises(DeviceError, match="CUDA failed: error 700"):
        go_on_with_a_lost_device()
    with pytest.raises(CudaFailure):
        standin.caller.synchronize()
    for state in lender._idle:
        state.close()
    handle.close()
    lender._idle.clear()
    del state
    assert_all_closed(standin)
