"""Device memory of batches: the tensor they end in, the streams, and the bound on their levels."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import cuda_runtime
from fastmammo.decoding.cuda_runtime import device_errors
from fastmammo.errors import BackendUnavailableError, ConfigError, DeviceMemoryError
from fastmammo.kernels.batch import check_output
from fastmammo.kernels.gpu import DeviceTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastmammo.decoding.cuda_runtime import Stream
    from fastmammo.preprocess.config import Config


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
        torchs = config.device == "cpu" and _wants_torch(tensors, dtype)
        if torchs and importlib.util.find_spec("torch") is None:
            field, value = ("tensors", tensors) if tensors == "torch" else ("dtype", dtype)
            raise ConfigError(
                f"{field}: got {value!r}, which on a CPU needs torch, and that is not installed. "
                "Install it (pip install torch), or give dtype='float32'; tensors='cupy' gives "
                "NumPy's arrays, with the bits of a bfloat16, which NumPy lacks, as uint16"
            )
        budget = memory_budget_mb
        if budget is not None and (type(budget) is not int or budget < 1):
            raise ConfigError(f"memory_budget_mb: got {budget!r}, wanted 1 or more MiB, or None")
        return cls(dtype, config.bits, scale, offset, tensors, budget and budget << 20)

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """The NumPy type of a batch; bfloat16 is held as uint16 bit patterns."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def from_host(self, images: NDArray[Any]) -> Any:
        """Return a batch that was made on the CPU, of `host_dtype`, as it was asked for.

        Returns:
            The array itself, or a torch tensor that shares its memory.
        """
        if not _wants_torch(self.tensors, self.dtype):
            return images
        import torch

        if self.dtype == "bfloat16":
            return torch.from_numpy(images.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(images)


def _wants_torch(tensors: str, dtype: str) -> bool:
    """Whether a batch on the CPU is torch's: where asked for, and where NumPy lacks the type."""
    return tensors == "torch" or (tensors == "auto" and dtype == "bfloat16")


class LevelBudget:
    """Bounds the device memory of levels on the way, over all batches and images of one maker.

    A level whose size is not known yet counts as the largest so far. One is always let in.
    """

    def __init__(self, bound: int | None) -> None:
        self._bound = bound
        self._changed = threading.Condition()
        self._turns: set[Turn] = set()
        self._largest = 0

    def enter(self, *, wait: bool = True) -> Turn | None:
        """Return a turn when there is room for one more level; None where it may not wait."""
        with self._changed:
            while self._turns and not self._room():
                if not wait:
                    return None
                self._changed.wait()
            turn = Turn(self)
            self._turns.add(turn)
            return turn

    def _room(self) -> bool:
        sizes = (self._largest if turn.size is None else turn.size for turn in self._turns)
        return self._bound is None or sum(sizes) + self._largest <= self._bound

    def know(self, turn: Turn, size: int) -> None:
        with self._changed:
            turn.size = size
            self._largest = max(self._largest, size)
            self._changed.notify_all()

    def leave(self, turn: Turn) -> None:
        with self._changed:
            self._turns.discard(turn)
            self._changed.notify_all()


class Turn:
    """One level's place in a `LevelBudget`."""

    def __init__(self, budget: LevelBudget) -> None:
        self._budget = budget
        self.size: int | None = None

    def known(self, size: int) -> None:
        """Say how many bytes the level takes."""
        self._budget.know(self, size)

    def leave(self) -> None:
        """Its memory is free, in the order of its stream. May be called again."""
        self._budget.leave(self)


class OutputMemory:
    """The output of a batch: torch's memory or CuPy's, and the stream in whose order it is."""

    def __init__(self, count: int, size: tuple[int, int], output: Output, runtime: Any) -> None:
        self.shape = count, 1, *size
        self.tensor: Any
        self.stream: Stream
        torch = _torch(output.tensors)
        self._dtype = output.dtype
        self._page = int(np.prod(size)) * output.host_dtype.itemsize
        if torch is None:
            try:
                self.tensor = self._empty(output)
            except DeviceMemoryError:
                runtime.release_cached()  # torch's cache too, where it is loaded
                self.tensor = self._empty(output)
            self.stream, self._pointer = runtime.stream_of(None), self.tensor.data.ptr
            return
        place = torch.device("cuda", runtime.device)
        kind = getattr(torch, output.dtype)
        try:
            self.tensor = torch.empty(self.shape, dtype=kind, device=place)
        except torch.cuda.OutOfMemoryError:
            runtime.release_cached()  # CuPy's pool may hold what torch lacks
            try:
                self.tensor = torch.empty(self.shape, dtype=kind, device=place)
            except torch.cuda.OutOfMemoryError as error:
                raise DeviceMemoryError(f"the output of a batch: {error}") from error
        self.stream = runtime.stream_of(torch.cuda.current_stream(place))
        self._pointer = self.tensor.data_ptr()

    def _empty(self, output: Output) -> Any:
        with device_errors("the output of a batch"):
            return cupy_module().empty(self.shape, output.host_dtype)

    def part(self, start: int, count: int) -> DeviceTensor:
        shape = count, *self.shape[1:]
        return DeviceTensor(self._pointer + start * self._page, self._dtype, shape)


_streams: dict[int, list[Any]] = {}
_streams_lock = threading.Lock()


@contextlib.contextmanager
def borrowed(runtime: Any) -> Iterator[Stream]:
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


def on(stream: Any) -> contextlib.AbstractContextManager[Any]:
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
    loaded: Any = sys.modules.get("torch")
    return loaded if loaded is not None and loaded.cuda.is_available() else None


def current_device() -> int:
    return int(cupy_module().cuda.runtime.getDevice())


def cupy_module() -> Any:
    cuda_runtime.require()
    import cupy

    return cupy
