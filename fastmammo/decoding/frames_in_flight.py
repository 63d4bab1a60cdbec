"""Many frames on the way at once: takes frames in order, gives device arrays in the same order.

nvJPEG2000 reads a frame's packet headers on the CPU and does the rest on the GPU, for one frame at
a time in each decode state. A `Decoder` has several states, each with a host thread and a CUDA
stream of its own, so that CPU and GPU work of different frames overlap; ctypes lets go of the GIL.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fastmammo.decoding.cuda_runtime import runtime_of, target_of
from fastmammo.decoding.frame_queue import FrameQueue, Order, Request, Surplus, fail
from fastmammo.decoding.nvjpeg2000_library import find_library
from fastmammo.decoding.nvjpeg2000_state import Handle, State, dtype_of, shape_of
from fastmammo.errors import (
    ConfigError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    FastMammoError,
    forget_frames,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastmammo.decoding.cuda_runtime import DeviceArray, Runtime, Stream
    from fastmammo.decoding.nvjpeg2000_library import Library

WORK_BYTES_A_PIXEL = 16
"""Device memory of a state for each pixel of its largest frame: an estimate, never measured."""

DEVICE_PADDING = 16 << 20
PINNED_PADDING = 4 << 20
"""Bytes to whose multiples a state's memory is rounded, so that it seldom grows; not measured."""

PER_THREAD_STREAM = 2
"""cudaStreamPerThread: an address that means another stream in each thread."""

_DEAD = "CUDA has failed and the decoder is dead; a new process may use the GPU again"


class Decoder:
    """Decodes frames on one GPU, several at once; a context manager.

    A frame that fails costs itself: its future has the error, with path and frame. Where device
    memory runs out, the frame waits, one state is given up, and it is tried again; alone at last.
    Where CUDA itself fails, the decoder is dead: all frames that wait get that error, and so does
    whoever submits another; only a new process can use the GPU again.

    It must not be used in a child that was forked, nor `submit` be called from a future's callback.
    """

    def __init__(
        self,
        *,
        device: int = 0,
        states: int = 8,
        threads: int | None = None,
        waiting: int | None = None,
        budget_bytes: int | None = None,
        device_padding: int | None = DEVICE_PADDING,
        pinned_padding: int | None = PINNED_PADDING,
        library: Library | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        """Load the library and start the threads.

        Args:
            states: frames that are decoded at once, each with a host thread.
            threads: how many of them may be in the library's CPU work at a time; None for all.
            waiting: frames that `submit` takes beyond those before it blocks; None: as many.
            budget_bytes: device memory that outputs on the way and states may take, by
                WORK_BYTES_A_PIXEL and the largest frame seen; fewer states work where it is short,
                one always does. Results that the caller holds are the caller's. None for no bound.
            device_padding, pinned_padding: bytes to whose multiples states' memory is rounded.
            library, runtime: others in their place, for tests.

        Raises:
            ConfigError: a number below 1.
            BackendUnavailableError: library, CuPy or GPU are not there.
        """
        settings = {"states": states, "threads": threads, "waiting": waiting}
        settings["budget_bytes"] = budget_bytes
        for name, value in settings.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, wanted 1 or more")
        self._library = library or find_library()
        self._runtime = runtime or runtime_of(device)
        self._runtime.bind()
        handle = Handle(self._library, device_padding, pinned_padding)
        try:
            State(handle).close()  # fails here where there is no GPU that the library can use
        except BaseException:
            handle.close()
            raise
        self._queue = FrameQueue(states, waiting or states, budget_bytes)
        gate = threading.BoundedSemaphore(threads or states)
        self._threads = [
            threading.Thread(
                target=_Worker(index, self._queue, self._runtime, handle, gate).run,
                name=f"fastmammo-decode-{index}",
                daemon=True,  # else a Decoder that nobody closed would keep the process
            )
            for index in range(states)
        ]
        for thread in self._threads:
            thread.start()
        self._shut = weakref.finalize(self, _shut, self._queue, self._threads, handle)

    @property
    def states(self) -> int:
        """How many frames are decoded at once: fewer than asked where memory was short."""
        return self._queue.limit

    @property
    def dead(self) -> bool:
        """Whether CUDA has failed, and only a new process can use the GPU again."""
        return self._queue.dead

    def submit(self, request: Request, *, stream: Any = None) -> Future[DeviceArray]:
        """Take a frame; blocks while too many wait.

        Args:
            stream: on which the caller will use the samples: a CuPy or torch stream, an address, or
                None for CuPy's current one. New arrays belong to its order, and what was queued
                there before (work that still reads memory since freed) is done first.

        Returns:
            The future of the device array (`out` where it was given). It is done when the samples
            are there: no stream has to wait for anything.

        Raises:
            UnsupportedSyntaxError: the level is not there to be decoded, see `shape_of`.
            DeviceError: the decoder is dead; the message says why.
            DeviceMemoryError: no memory for the samples, on the per-thread default stream alone
                (elsewhere the future has the error).
            DecodeError: it is closed.
        """
        c, runtime = request.codestream, self._runtime
        shape, kind = shape_of(c, request.level), dtype_of(c)
        size = shape[0] * shape[1] * kind.itemsize
        order = Order(request, runtime.stream_of(stream), size + WORK_BYTES_A_PIXEL * c.pixels)
        if order.stream.ptr == PER_THREAD_STREAM:
            # This address is another stream in a worker: memory and event are made here, memory
            # first, so that the event comes after all that may still read it.
            if request.out is None:
                out = runtime.empty(shape, kind, order.stream)
                order.request = dataclasses.replace(request, out=out)
            order.ready = order.stream.record(runtime.new_event())
        self._queue.put(order)
        return order.future

    def map(
        self, requests: Iterable[Request], *, ahead: int | None = None, stream: Any = None
    ) -> Iterator[DeviceArray | FastMammoError]:
        """Yield the array, or the error, of each frame, in order.

        Args:
            ahead: frames beyond the one that is yielded which may be decoded or on the way: the
                bound on memory. None: twice the states.
        """
        bound = ahead if ahead is not None else 2 * self.states
        taken: deque[Future[DeviceArray]] = deque()
        try:
            for request in requests:
                taken.append(self._attempt(request, stream))
                while len(taken) > bound:
                    yield _outcome(taken.popleft())
            while taken:
                yield _outcome(taken.popleft())
        finally:
            for future in taken:
                future.cancel()

    def _attempt(self, request: Request, stream: Any) -> Future[DeviceArray]:
        try:
            return self.submit(request, stream=stream)
        except DecodeError as error:
            error.path, error.frame = request.path, request.frame
            failed: Future[DeviceArray] = Future()
            failed.set_exception(error)
            return failed

    def close(self, *, cancel: bool = False) -> None:
        """Finish the frames that were taken (or, with `cancel`, only those begun) and free all."""
        self._queue.end(cancel=cancel)
        self._shut()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)


def _outcome(future: Future[DeviceArray]) -> DeviceArray | FastMammoError:
    try:
        return future.result()
    except FastMammoError as error:
        return error


def _shut(queue: FrameQueue, threads: list[threading.Thread], handle: Handle) -> None:
    """End the threads and free the library's memory; also when a Decoder is simply forgotten."""
    queue.end(cancel=False)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()
    handle.close()


class _Worker:
    """One host thread with one State and one CUDA stream: at most one frame at a time."""

    def __init__(
        self,
        index: int,
        queue: FrameQueue,
        runtime: Runtime,
        handle: Handle,
        gate: threading.BoundedSemaphore,
    ) -> None:
        self.index = index
        self.queue = queue
        self.runtime = runtime
        self.handle = handle
        self.gate = gate
        self.state: State | None = None
        self.queued = False
        """Whether work for the frame may have been queued on the GPU."""

    def run(self) -> None:
        try:
            self.runtime.bind()
            stream = self.runtime.new_stream()
            while (order := self.queue.take(self.index)) is not None:
                if isinstance(order, Surplus):
                    self._let_go()
                    self.queue.let_go(self.index)
                    continue
                if order.begun or order.future.set_running_or_notify_cancel():
                    order.begun = True
                    self._attend(order, stream)
                self.queue.finish(self.index, holds=self.state is not None)
                del order  # it would keep the frame's bytes and samples until the next one comes
        except Exception as error:  # without this thread frames would wait for ever
            self.queue.kill(DeviceError(f"{_DEAD}: {error}"))
        finally:
            self._let_go()
            self.queue.let_go(self.index)

    def _attend(self, order: Order, stream: Stream) -> None:
        """Decode one frame, or give its future the reason why not."""
        self.queued = False
        try:
            pixels = self._decode(order, stream)
        except Exception as error:
            try:
                self._failed(order, stream, error)
            except Exception as failure:
                fail(order, DeviceError(f"{_DEAD}: {failure}; seen at: {error}"))
                raise
        else:
            order.future.set_result(pixels)

    def _decode(self, order: Order, stream: Stream) -> DeviceArray:
        request, runtime = order.request, self.runtime
        codestream, level = request.codestream, request.level
        shape, kind = shape_of(codestream, level), dtype_of(codestream)
        if self.state is None:
            self.state = State(self.handle)
        with self.gate:
            self.state.parse(request.data, codestream)
        pixels = request.out
        if pixels is None:
            pixels = runtime.empty(shape, kind, order.stream)
        target = target_of(pixels, shape, kind)
        # Memory that was freed in the order of the caller's stream may still be in use there.
        stream.wait_event(order.ready or order.stream.record(runtime.new_event()))
        self.queued = True
        with self.gate:
            self.state.decode(codestream, level, target, stream.ptr)
        # Until this event the state, the frame's bytes and the target are in use.
        stream.record(runtime.new_event()).synchronize()
        return pixels

    def _failed(self, order: Order, stream: Stream, error: Exception) -> None:
        """Settle an error for the state and the frame; raises where the device itself is lost."""
        stream.synchronize()  # half a frame's work may be on the way; a lost device shows here
        if isinstance(error, (FastMammoError, *self.runtime.failures)):
            forget_frames(error)
        if self.queued or isinstance(error, DeviceMemoryError):
            self._let_go()  # nobody says what a state is good for after an error
        if isinstance(error, self.runtime.failures):
            error = DeviceError(f"CUDA failed: {error}")
        if isinstance(error, DeviceMemoryError) or (
            isinstance(error, DeviceError) and self.runtime.free_bytes() < order.need
        ):
            self.runtime.release_cached()
            if self.queue.retry(order):
                return
        if type(error) is DeviceError:  # the stream has come to its end: the device is well
            error = DecodeError(f"{error}; for this frame alone: the device goes on")
        fail(order, error)

    def _let_go(self) -> None:
        if self.state is not None:
            self.state.close()
            self.state = None
