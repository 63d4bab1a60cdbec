"""Takes many sources, gives their images as one tensor in a GPU's memory; or one, on the host.

Threads read, parse, decode and find the breast; one launch then resamples the whole batch into the
output. All of it is ordered by one stream of the batch's own, and the caller's stream waits for
that by an event: nothing waits for the device but the copies of the small levels, one an image.

The breast is found on the host, on that copy: the host has to know the box before it can choose the
level that is decoded next, so the wait would be there with kernels too. It takes one core 2.8 ms an
image (`preprocess.roi.find_breast`, median over phantoms, on two shared cores), nearly all of it in
NumPy and numba, so that threads do it beside each other.

Not yet seen on a GPU: it was run on a pretended one, with the kernels compiled for the CPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastmammo.decoding.cuda_runtime import device_errors, require_process, runtime_of
from fastmammo.decoding.frames_in_flight import Decoder
from fastmammo.errors import BackendUnavailableError, DeviceError, DeviceMemoryError, forget_frames
from fastmammo.kernels import gpu, to_device
from fastmammo.kernels.floats import FLOATS
from fastmammo.preprocess.device_memory import (
    LevelBudget,
    Output,
    OutputMemory,
    borrowed,
    current_device,
    on,
)
from fastmammo.preprocess.joint import Joint
from fastmammo.preprocess.planning import Plan, plan_image
from fastmammo.preprocess.rereadable import Rereadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.cuda_runtime import Stream
    from fastmammo.dicom import Mammogram, Source
    from fastmammo.preprocess.config import Config
    from fastmammo.preprocess.device_memory import Turn

    Kept = list[tuple[int, Plan]]
    Failed = list[tuple[int, Exception]]

STATES = 8
"""Frames that nvJPEG2000 decodes at once, at most; not measured yet."""


class DeviceBatches:
    """Makes batches on the GPU that is current where it is called; for one process's threads.

    A frame that fails costs itself. Where device memory runs out, the images that are ready are
    made, their memory is given back, and the others are tried one at a time.

    The budget is one for all threads: half of it bounds the decoder's states and outputs, half the
    levels that wait for their launch. It does not cover the batches' tensors, the launches' tables,
    what decoders other than nvJPEG2000 take, nor CUDA's own memory.
    """

    def __init__(self, config: Config, output: Output, workers: int) -> None:
        self._config = config
        self._output = output
        self._workers = workers
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fastmammo-device")
        self._lock = threading.Lock()
        self._flights: dict[int, Decoder | None] = {}
        self._joints: dict[int, Joint] = {}
        self._budget = LevelBudget(output.budget_bytes and max(1, output.budget_bytes // 2))

    def one(self, source: Source | Mammogram) -> tuple[Plan, NDArray[Any]]:
        """Return the plan of one source and its image, uint8 or uint16 (H, W) in host memory.

        Images that several threads ask for at once are decoded beside each other, and resampled in
        one launch.
        """
        require_process(self._process)
        runtime = runtime_of(current_device())
        again = Rereadable(source)
        turn: Any = self._budget.enter()
        try:
            with device_errors("making an image"), borrowed(runtime) as stream, on(stream):
                try:
                    return self._one(again, runtime, stream, turn)
                except DeviceMemoryError as error:
                    forget_frames(error)
                stream.synchronize()
                runtime.release_cached()
                return self._one(again, runtime, stream, turn)
        finally:
            turn.leave()

    def _one(
        self, again: Rereadable, runtime: Any, stream: Stream, turn: Turn
    ) -> tuple[Plan, NDArray[Any]]:
        flight = self.flight(runtime.device) if self._workers > 1 else None
        with device_errors("making an image"):
            plan = plan_image(again.take(), self._config, flight=flight)
            plan.pixels = to_device(plan.pixels)
        turn.known(plan.pixels.nbytes)
        return plan, self._joint(runtime).make(plan, stream)

    def __call__(self, sources: list[Source], *, stop: bool) -> tuple[Any, Kept, Failed]:
        """Return the images (N, 1, H, W), their plans and the failures, each with its index.

        The images may be used on the caller's current stream (torch's for torch tensors).

        Args:
            stop: raise the first failure.

        Raises:
            DeviceError: CUDA failed for good; or this is another process than the one that made it.
            DeviceMemoryError: there is no memory for the batch's output.
        """
        require_process(self._process)
        runtime = runtime_of(current_device())
        with device_errors("making a batch"), borrowed(runtime) as stream:
            memory = OutputMemory(len(sources), self._config.size, self._output, runtime)
            stream.wait_event(memory.stream.record(runtime.new_event()))
            batch = _Batch(self, runtime, stream, memory)
            try:
                batch.make(sources, stop)
            finally:
                batch.abandon()
                # also where it failed: the memory goes back to an order that knows of our work
                with contextlib.suppress(*runtime.failures):
                    memory.stream.wait_event(stream.record(runtime.new_event()))
            return memory.tensor[: len(batch.kept)], batch.kept, batch.failed

    def flight(self, device: int) -> Decoder | None:
        """Return the decoder of many frames at once, or None where nvJPEG2000 is not there."""
        from fastmammo.decoding import nvjpeg2000

        with self._lock:
            if device not in self._flights:
                usable = self._config.backend in ("auto", "nvjpeg2000") and not nvjpeg2000.missing()
                self._flights[device] = self._new_flight(device) if usable else None
            return self._flights[device]

    def _new_flight(self, device: int) -> Decoder | None:
        budget = self._output.budget_bytes
        try:
            return Decoder(
                device=device,
                states=min(STATES, self._workers),
                budget_bytes=budget and max(1, budget // 2),
            )
        except BackendUnavailableError:
            return None  # each frame that asks for it then says so, in its notes or its error

    def _joint(self, runtime: Any) -> Joint:
        with self._lock:
            if runtime.device not in self._joints:
                made = Joint(runtime, self._config.size, self._output.bits)
                self._joints[runtime.device] = made
            return self._joints[runtime.device]


@dataclass(eq=False)
class _Item:
    """One source of a batch."""

    index: int
    source: Rereadable
    turn: Turn | None = None
    plan: Plan | None = None
    tries: int = 0
    """How often device memory was short for it."""

    def let_go(self) -> None:
        """Forget the level, if there is one, and give its place in the budget to others."""
        self.plan = None
        if self.turn is not None:
            self.turn.leave()
            self.turn = None


class _Batch:
    """One batch on its way."""

    def __init__(
        self, owner: DeviceBatches, runtime: Any, stream: Stream, memory: OutputMemory
    ) -> None:
        self._config, self._output = owner._config, owner._output
        self._pool, self._window = owner._pool, owner._workers
        self._budget = owner._budget
        self._flight = owner.flight(runtime.device)
        self._runtime, self._stream, self._memory = runtime, stream, memory
        self.kept: Kept = []
        self.failed: Failed = []
        self._ready: list[_Item] = []
        self._todo: deque[_Item] = deque()
        self._waiting: deque[tuple[_Item, Future[Plan | Exception]]] = deque()

    def make(self, sources: list[Source], stop: bool) -> None:
        self._todo.extend(_Item(index, Rereadable(each)) for index, each in enumerate(sources))
        while self._todo or self._waiting:
            self._begin()
            item, future = self._waiting.popleft()
            result = future.result()
            del future  # it holds the level's memory, as `result` does
            if isinstance(result, Plan):
                item.plan = result
                self.kept.append((item.index, result))
                self._ready.append(item)
            elif not (isinstance(result, DeviceMemoryError) and self._make_room(item)):
                self._check_device(result)
                if stop:
                    raise result
                self.failed.append((item.index, result))
            del result
        self._launch()

    def _begin(self) -> None:
        """Have as many sources planned as window and budget allow, one at least."""
        while self._todo and len(self._waiting) < self._window:
            item = self._todo[0]
            if item.plan is None:
                item.turn = self._budget.enter(wait=not (self._waiting or self._ready))
                if item.turn is None:
                    if self._waiting:
                        return
                    self._launch()
                    continue
            self._waiting.append((self._todo.popleft(), self._pool.submit(self._plan, item)))

    def abandon(self) -> None:
        """Wait for what is on the way: it must not outlive the batch's turn on the stream."""
        for item, future in self._waiting:
            if not future.cancel():
                future.exception()
            item.let_go()
        self._waiting.clear()
        for item in (*self._todo, *self._ready):
            item.let_go()

    def _plan(self, item: _Item) -> Plan | Exception:
        if item.plan is not None:
            return item.plan
        turn: Any = item.turn
        try:
            self._runtime.bind()
            with device_errors("preparing an image"), on(self._stream):
                plan = plan_image(item.source.take(), self._config, flight=self._flight)
                plan.pixels = to_device(plan.pixels)
        except Exception as error:  # even a defect of ours must not cost the rest of the batch
            forget_frames(error)  # a failure that is kept must keep no level
            turn.leave()
            return error
        turn.known(plan.pixels.nbytes)
        # A batch must not hold on to the bytes of every file in it.
        plan.mammogram = plan.mammogram.without_frames()
        return plan

    def _make_room(self, item: _Item) -> bool:
        """Give back what memory there is, to try a source again; False if it had all there is.

        What others have finished meanwhile is kept at first; if that does not do, it is made again.
        """
        held = [other for other in self._todo if other.plan is not None]
        if item.tries and not held:
            return False
        for other, future in self._waiting:
            result = None if future.cancel() else future.result()
            if isinstance(result, Plan) and not item.tries:
                other.plan = result
            else:
                other.let_go()
        again = [item, *(other for other, _ in self._waiting)]
        self._waiting.clear()
        if item.tries:
            for other in held:
                other.let_go()
        item.tries += 1
        self._todo.extendleft(reversed(again))
        self._window = 1
        self._launch()
        self._stream.synchronize()
        self._runtime.release_cached()
        return True

    def _launch(self) -> None:
        """Resample the images that are ready, and let go of their levels."""
        ready, self._ready = self._ready, []
        try:
            plans = [item.plan for item in ready if item.plan is not None]
            self._resample(plans, len(self.kept) - len(plans))
            for plan in plans:
                plan.pixels = None  # its memory is reused in the stream's order
        finally:
            for item in ready:
                item.let_go()

    def _resample(self, plans: list[Plan], start: int, *, again: bool = True) -> None:
        if not plans:
            return
        o = self._output
        images = [plan.batch_image() for plan in plans]
        clock = time.perf_counter()
        try:
            with device_errors("resampling a batch"), on(self._stream):
                out = self._memory.part(start, len(plans))
                bits = o.bits if o.dtype in FLOATS else None
                gpu.resample_batch(images, out, bits=bits, scale=o.scale, offset=o.offset)
        except DeviceMemoryError:
            if len(plans) == 1 and not again:
                raise
            self._stream.synchronize()
            self._runtime.release_cached()
            middle = len(plans) // 2
            for part, at in ((plans[:middle], start), (plans[middle:], start + middle)):
                self._resample(part, at, again=len(plans) > 1)
            return
        for plan in plans:  # to queue it; nothing waits for the device here
            plan.seconds["resample"] = (time.perf_counter() - clock) / len(plans)

    def _check_device(self, error: Exception) -> None:
        """Raise the error if it is not one file's: CUDA has failed for good."""
        if not isinstance(error, DeviceError) or isinstance(error, DeviceMemoryError):
            return
        if self._flight is not None and self._flight.dead:
            raise error
        self._stream.synchronize()  # raises where the device is lost
