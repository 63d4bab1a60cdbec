"""Takes many sources, gives their images as one tensor in a GPU's memory.

Threads read, parse, decode and find the breast; one launch then resamples the whole batch into the
output. All of it is ordered by one stream of the batch's own, and the caller's stream waits for
that by an event: nothing waits for the device but the copies of the small levels.

Not yet seen on a GPU: it was run on a pretended one, with the kernels compiled for the CPU.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import cuda_runtime
from fastmammo.decoding.cuda_runtime import device_errors, runtime_of
from fastmammo.decoding.frames_in_flight import Decoder
from fastmammo.errors import BackendUnavailableError, ConfigError, DeviceError, DeviceMemoryError
from fastmammo.kernels import gpu, to_device, to_host
from fastmammo.kernels.batch import check_output
from fastmammo.kernels.floats import FLOATS
from fastmammo.kernels.gpu import DeviceTensor
from fastmammo.preprocess.planning import Plan, plan_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastmammo.decoding.cuda_runtime import Stream
    from fastmammo.dicom import Mammogram, Source
    from fastmammo.preprocess.config import Config

    Kept = list[tuple[int, Plan]]
    Failed = list[tuple[int, Exception]]

STATES = 8
"""Frames that nvJPEG2000 decodes at once, at most; not measured yet."""


@dataclass(frozen=True)
class Output:
    """What a batch is to be."""

    dtype: str
    bits: int
    scale: float
    offset: float
    tensors: str
    budget_bytes: int | None

    @classmethod
    def checked(
        cls,
        config: Config,
        dtype: str | None,
        normalisation: tuple[float, float],
        tensors: str,
        memory_budget_mb: int | None,
    ) -> Output:
        """Return the output that `Preprocessor` was asked for.

        Raises:
            ConfigError: a setting is not allowed.
        """
        try:
            scale, offset = map(float, normalisation)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"normalisation: got {normalisation!r}, wanted two numbers, (scale, offset)"
            ) from error
        dtype = dtype or f"uint{config.bits}"
        check_output(dtype, config.bits, scale, offset)
        if tensors not in ("auto", "torch", "cupy"):
            raise ConfigError(f"tensors: got {tensors!r}, allowed are auto, torch, cupy")
        budget = memory_budget_mb
        if budget is not None and (type(budget) is not int or budget < 1):
            raise ConfigError(f"memory_budget_mb: got {budget!r}, wanted 1 or more MiB, or None")
        return cls(dtype, config.bits, scale, offset, tensors, budget and budget << 20)

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """The NumPy type of a batch; bfloat16 is held as uint16 bit patterns."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)


class DeviceBatches:
    """Makes batches on the GPU that is current where it is called; for one process's threads.

    A frame that fails costs itself. Where device memory runs out, the images that are ready are
    made, their memory is given back, and the others are tried one at a time.
    """

    def __init__(self, config: Config, output: Output, workers: int) -> None:
        self._config = config
        self._output = output
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fastmammo-device")
        self._lock = threading.Lock()
        self._flights: dict[int, Decoder | None] = {}

    def one(self, source: Source | Mammogram) -> tuple[Plan, Any]:
        """Return the plan of one source and its image, uint8 or uint16 (H, W) in host memory."""
        runtime = runtime_of(_current_device())
        with device_errors("making an image"), _borrowed(runtime) as stream, _on(stream):
            plan = plan_image(source, self._config)
            clock = time.perf_counter()
            plan.pixels = to_device(plan.pixels)
            out = _cupy().empty((1, 1, *self._config.size), f"uint{self._output.bits}")
            gpu.resample_batch([plan.batch_image()], out)
            made = to_host(out)[0, 0]
        plan.pixels = None
        plan.seconds["resample"] = time.perf_counter() - clock
        return plan, made

    def __call__(self, sources: list[Source], *, stop: bool) -> tuple[Any, Kept, Failed]:
        """Return the images (N, 1, H, W), their plans and the failures, each with its index.

        The images may be used on the caller's current stream (torch's for torch tensors).

        Args:
            stop: raise the first failure.

        Raises:
            DeviceError: CUDA failed for good.
            DeviceMemoryError: there is no memory for the batch's output.
        """
        runtime = runtime_of(_current_device())
        with device_errors("making a batch"), _borrowed(runtime) as stream:
            memory = _Memory(len(sources), self._config.size, self._output, runtime)
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


class _Batch:
    """One batch on its way."""

    def __init__(self, owner: DeviceBatches, runtime: Any, stream: Stream, memory: _Memory) -> None:
        self._config, self._output = owner._config, owner._output
        self._pool, self._workers = owner._pool, owner._workers
        self._flight = owner.flight(runtime.device)
        self._runtime, self._stream, self._memory = runtime, stream, memory
        self.kept: Kept = []
        self.failed: Failed = []
        self._ready: list[Plan] = []
        self._bytes = 0
        self._window = self._workers
        self._waiting: deque[tuple[int, Source, Future[Plan | Exception]]] = deque()

    def make(self, sources: list[Source], stop: bool) -> None:
        todo: deque[tuple[int, Source]] = deque(enumerate(sources))
        tried: set[int] = set()
        while todo or self._waiting:
            while todo and len(self._waiting) < self._window:
                index, source = todo.popleft()
                self._waiting.append((index, source, self._pool.submit(self._plan, source)))
            index, source, future = self._waiting.popleft()
            result = future.result()
            if isinstance(result, DeviceMemoryError) and index not in tried:
                tried.add(index)
                todo.extendleft(reversed([(index, source), *self._make_room()]))
            elif isinstance(result, Plan):
                self._take(index, result)
            else:
                self._check_device(result)
                if stop:
                    raise result
                self.failed.append((index, result))
            del future, result  # they hold the level's memory
        self._launch()

    def abandon(self) -> None:
        """Wait for what is on the way: it must not outlive the batch's turn on the stream."""
        for _, _, future in self._waiting:
            if not future.cancel():
                future.exception()
        self._waiting.clear()

    def _plan(self, source: Source) -> Plan | Exception:
        try:
            self._runtime.bind()
            with device_errors("preparing an image"), _on(self._stream):
                plan = plan_image(source, self._config, flight=self._flight)
                plan.pixels = to_device(plan.pixels)
        except Exception as error:  # even a defect of ours must not cost the rest of the batch
            return error
        # A batch must not hold on to the bytes of every file in it.
        plan.mammogram = plan.mammogram.without_frames()
        return plan

    def _take(self, index: int, plan: Plan) -> None:
        self.kept.append((index, plan))
        self._ready.append(plan)
        size = plan.pixels.nbytes
        self._bytes += size
        if self._output.budget_bytes is not None:
            half = self._output.budget_bytes // 2
            self._window = max(1, min(self._window, half // max(size, 1)))
            if self._bytes + self._window * size > half:
                self._launch()

    def _make_room(self) -> list[tuple[int, Source]]:
        """Give back what memory there is; return the sources that have to be done again."""
        later = [(index, source) for index, source, _ in self._waiting]
        self.abandon()
        self._window = 1
        self._launch()
        self._stream.synchronize()
        self._runtime.release_cached()
        return later

    def _launch(self) -> None:
        """Resample the images that are ready, and let go of their levels."""
        ready, self._ready, self._bytes = self._ready, [], 0
        self._resample(ready, len(self.kept) - len(ready))
        for plan in ready:
            plan.pixels = None  # its memory is reused in the stream's order

    def _resample(self, plans: list[Plan], start: int, *, again: bool = True) -> None:
        if not plans:
            return
        o = self._output
        images = [plan.batch_image() for plan in plans]
        clock = time.perf_counter()
        try:
            with device_errors("resampling a batch"), _on(self._stream):
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


class _Memory:
    """The output of a batch: torch's memory or CuPy's, and the stream in whose order it is."""

    def __init__(self, count: int, size: tuple[int, int], output: Output, runtime: Any) -> None:
        self.shape = count, 1, *size
        self.tensor: Any
        self.stream: Stream
        torch = _torch(output.tensors)
        self._dtype = output.dtype
        self._page = int(np.prod(size)) * output.host_dtype.itemsize
        if torch is None:
            with device_errors("the output of a batch"):
                self.tensor = _cupy().empty(self.shape, output.host_dtype)
            self.stream, self._pointer = runtime.stream_of(None), self.tensor.data.ptr
            return
        place = torch.device("cuda", runtime.device)
        try:
            self.tensor = torch.empty(self.shape, dtype=getattr(torch, output.dtype), device=place)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(f"the output of a batch: {error}") from error
        self.stream = runtime.stream_of(torch.cuda.current_stream(place))
        self._pointer = self.tensor.data_ptr()

    def part(self, start: int, count: int) -> DeviceTensor:
        shape = count, *self.shape[1:]
        return DeviceTensor(self._pointer + start * self._page, self._dtype, shape)


_streams: dict[int, list[Any]] = {}
_streams_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed(runtime: Any) -> Iterator[Stream]:
    """Lend a stream: few are made, as CuPy keeps the memory that was used on each for itself."""
    with _streams_lock:
        idle = _streams.setdefault(runtime.device, [])
        stream = idle.pop() if idle else None
    stream = stream or runtime.new_stream()
    try:
        yield stream
    finally:
        with _streams_lock:
            idle.append(stream)


def _on(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """Make a stream the current one of this thread."""
    current: contextlib.AbstractContextManager[Any] = stream
    return current


def _torch(tensors: str) -> Any:
    """Return torch where the output is to be its, else None."""
    if tensors == "cupy":
        return None
    if tensors == "torch":
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                "tensors='torch': this torch sees no CUDA device; tensors='cupy' needs no torch"
            )
        return torch
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def _current_device() -> int:
    return int(_cupy().cuda.runtime.getDevice())


def _cupy() -> Any:
    cuda_runtime.require()
    import cupy

    return cupy
