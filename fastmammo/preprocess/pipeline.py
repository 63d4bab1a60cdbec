"""Stored values → finished image: finds the breast, chooses the level, windows and resamples."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import cuda_runtime
from fastmammo.errors import ConfigError, forget_frames
from fastmammo.kernels import cpu
from fastmammo.kernels.floats import FLOATS, to_float
from fastmammo.preprocess.config import Config
from fastmammo.preprocess.device import DeviceBatches
from fastmammo.preprocess.device_memory import Output
from fastmammo.preprocess.planning import Plan, plan_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from fastmammo.dicom import Mammogram, Source
    from fastmammo.preprocess.geometry import Geometry
    from fastmammo.preprocess.roi import Roi
    from fastmammo.preprocess.voi import VoiTable


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """One finished image and all that is known of how it came about."""

    image: NDArray[Any]
    """uint8 or uint16 (H, W), full range; air is dark, whatever the file's interpretation."""
    geometry: Geometry
    mammogram: Mammogram
    roi: Roi
    voi: VoiTable
    flags: tuple[str, ...]
    """What a person should look at: "blank", "tiny", "laterality ...", "full frame: ..."."""
    record: dict[str, str | int | float]
    """The columns that a manifest row carries; no direct identifier of the patient."""
    seconds: dict[str, float]
    """Seconds by stage: read, decode, roi, voi, resample."""

    def __repr__(self) -> str:
        return (
            f"Prepared({self.image.dtype} {self.image.shape}, {self.mammogram!r}, "
            f"flags={self.flags})"
        )


@dataclass(frozen=True)
class Failure:
    """A source that did not become an image."""

    index: int
    source: str
    error: Exception


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The images of several sources, in the sources' order; failed sources are left out."""

    images: Any
    """(N, 1, H, W) of the Preprocessor's `dtype`.

    On the CPU NumPy's, or a torch tensor: see `tensors` of `Preprocessor`. On a GPU a torch tensor
    or a CuPy array; it may be used at once on the stream that was current at the call. NumPy and
    CuPy lack bfloat16: theirs are its bit patterns, as uint16."""
    indices: tuple[int, ...]
    """For each image, the position of its source."""
    geometry: tuple[Geometry, ...]
    attributes: tuple[Mammogram, ...]
    """The header facts of each image; the frames' bytes are dropped."""
    records: tuple[dict[str, str | int | float], ...]
    failures: tuple[Failure, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Batch({self.images.dtype} {self.images.shape}, failures={len(self.failures)})"


class Preprocessor:
    """Turns DICOM files into model-ready images, the same bits on every run and device.

    Threads may share one; so may processes, each with a copy (it is pickled without its threads).
    On a GPU they must not be forked from the process that made it, as CUDA does not survive that:
    with a torch DataLoader set multiprocessing_context="spawn".

    Args:
        config: the settings; or give them as keywords: Preprocessor(size=(1024, 512), bits=16).
        workers: threads for a batch; None for as many as there are cores. Decoders and kernels
            let go of the GIL.
        on_error: "raise" the first failure, or "collect" failures in `Batch.failures`.
        dtype: of a batch: None for uint8 or uint16 by `bits`; or "float16", "bfloat16", "float32".
        normalisation: (scale, offset) for float types: v becomes float32(v) * scale + offset, where
            v is the value of the 8- or 16-bit image, 0 to 2^bits - 1. For values of 0 to 1, less a
            mean, by a standard deviation: scale = 1 / ((2^bits - 1) * deviation), offset =
            -mean / deviation. See `kernels.floats.to_float` on its rounding.
        tensors: of a batch on a GPU: "torch", "cupy", or "auto" for torch's where torch is loaded
            and has CUDA. Both speak DLPack. On a CPU: "torch", "cupy" for NumPy's, or "auto" for
            NumPy's, but for bfloat16, which NumPy lacks, torch's (torch.bfloat16).
        memory_budget_mb: device memory, in MiB, that decoding and levels may take, by estimate,
            in all threads together; where it is short, fewer images are on the way and a batch is
            made in several parts. The batches' tensors come on top. None for no bound but the
            device's own.

    Raises:
        ConfigError: a setting is not allowed; or on a CPU torch's tensors, without torch.
        BackendUnavailableError: device "cuda", and CuPy or a GPU is not there.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        workers: int | None = None,
        on_error: str = "raise",
        dtype: str | None = None,
        normalisation: tuple[float, float] = (1.0, 0.0),
        tensors: str = "auto",
        memory_budget_mb: int | None = None,
        **fields: Any,
    ) -> None:
        if on_error not in ("raise", "collect"):
            raise ConfigError(f"on_error: got {on_error!r}, allowed are raise, collect")
        unknown = set(fields) - {field.name for field in dataclasses.fields(Config)}
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(Config))
            raise ConfigError(f"{', '.join(sorted(unknown))}: no such setting; there are {names}")
        self.config = dataclasses.replace(config or Config(), **fields).resolved()
        self.workers = workers if workers is not None else _cores()
        if self.workers < 1:
            raise ConfigError(f"workers: got {workers!r}, wanted 1 or more")
        self.output = Output.checked(self.config, dtype, normalisation, tensors, memory_budget_mb)
        if self.config.device == "cuda":
            cuda_runtime.require()
        self.on_error = on_error
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._device: DeviceBatches | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # threads and device memory stay where they are
        own = ("_process", "_device", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __call__(self, sources: Iterable[Source]) -> Batch:
        """Return the images of `sources` (paths, bytes or file objects) as one batch.

        Raises:
            FastMammoError, OSError: with on_error="raise", the first failure in the sources' order.
            DeviceError: CUDA failed for good, or this process was forked from the one that made it.
        """
        if isinstance(sources, (str, bytes, os.PathLike)):
            raise TypeError("sources: got one source, wanted several; use prepare() for one")
        listed = list(sources)
        if self.config.device == "cuda":
            kept: Sequence[tuple[int, Plan | Prepared]]
            images, kept, failed = self._on_device()(listed, stop=self.on_error == "raise")
            failures = [Failure(index, _name(listed[index]), error) for index, error in failed]
        else:
            images, kept, failures = self._on_cpu(listed)
        return Batch(
            images=images,
            indices=tuple(index for index, _ in kept),
            geometry=tuple(p.geometry for _, p in kept),
            attributes=tuple(p.mammogram for _, p in kept),
            records=tuple(p.record for _, p in kept),
            failures=tuple(failures),
        )

    def _on_cpu(
        self, listed: list[Source]
    ) -> tuple[Any, list[tuple[int, Prepared]], list[Failure]]:
        output = self.output
        images = np.empty((len(listed), 1, *self.config.size), output.host_dtype)
        kept: list[tuple[int, Prepared]] = []
        failures = []
        for index, result in enumerate(_in_threads(self._attempt, listed, self.workers)):
            if isinstance(result, Prepared):
                page = images[len(kept), 0]
                if output.dtype in FLOATS:
                    normal = {"scale": output.scale, "offset": output.offset}
                    to_float(result.image, output.dtype, out=page, **normal)
                else:
                    page[:] = result.image
                kept.append((index, result))
            elif self.on_error == "raise":
                raise result
            else:
                failures.append(Failure(index, _name(listed[index]), result))
        return output.from_host(images[: len(kept)]), kept, failures

    def _attempt(self, source: Source) -> Prepared | Exception:
        try:
            prepared = self.prepare(source)
        except Exception as error:  # even a defect of ours must not cost the rest of the batch
            forget_frames(error)  # a failure that is kept must keep no pixels
            return error
        # A batch must not hold on to the bytes of every file in it.
        return dataclasses.replace(prepared, mammogram=prepared.mammogram.without_frames())

    def _on_device(self) -> DeviceBatches:
        cuda_runtime.require_process(self._process)
        with self._lock:
            if self._device is None:
                self._device = DeviceBatches(self.config, self.output, self.workers)
            return self._device

    def prepare(self, source: Source | Mammogram) -> Prepared:
        """Return one source's image, in host memory whatever the device.

        Raises:
            ReadError, DecodeError, PreprocessError: see `read`, `decode` and `apply_voi`.
            OSError: the file cannot be opened or read.
        """
        if self.config.device == "cuda":
            plan, image = self._on_device().one(source)
        else:
            plan = plan_image(source, self.config)
            clock = time.perf_counter()
            image = _resampled(plan, self.config)
            plan.seconds["resample"] = time.perf_counter() - clock
        return Prepared(
            image=image,
            geometry=plan.geometry,
            mammogram=plan.mammogram,
            roi=plan.roi,
            voi=plan.voi,
            flags=plan.flags,
            record=plan.record,
            seconds=plan.seconds,
        )


def _resampled(plan: Plan, config: Config) -> NDArray[Any]:
    made = plan.batch_image()
    image = np.full(config.size, made.black, np.uint8 if config.bits == 8 else np.uint16)
    top, left, bottom, right = plan.geometry.placed
    cpu.resample(
        plan.pixels,
        made.first,
        made.table,
        made.row_taps,
        made.column_taps,
        image[top:bottom, left:right],
        mirror=made.mirror,
    )
    return image


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_threads(
    function: Callable[[Any], Prepared | Exception], items: list[Any], workers: int
) -> Iterator[Prepared | Exception]:
    """Yield the results in order; whoever stops early does not wait for what has not begun."""
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", type(source).__name__))
