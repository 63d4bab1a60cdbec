"""DALI's image decoder as a backend: batches in flight, its stretch undone, one error a frame.

On the GPU ("mixed") DALI stretches samples to the whole range of their type: 12 bits in uint16 come
out as round(v * 65535 / 4095). `stored_values` undoes this exactly, and notices values that no
stretch makes, so that a DALI which does not stretch (as its CPU decoder does not) gives an error
and not another image. Signed samples it halves: they are refused.

A frame that DALI cannot decode ends its pipeline and every frame in it. Such a batch is decoded
again frame by frame, in new pipelines: the bad frame costs itself alone, and `Decoder.rebuilt`
counts.

"mixed" promises no more than that the samples come to lie on the GPU: what nvImageCodec's GPU
decoders do not take, it may decode on the CPU without a word, and nothing tells which it was.
`REMARK` goes into each frame's notes; who must know the decoder asks for nvjpeg2000 or nvimgcodec.

Not yet seen on a GPU: DALI's CPU pipeline was run, and the stretch read in its source.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import cuda_runtime, nvidia_checks, nvidia_libraries
from fastmammo.decoding.cuda_runtime import settle
from fastmammo.decoding.nvidia_checks import (
    FORMATS,
    confirm_zeros,
    out_of_memory,
    refuse_order,
    samples_dtype,
)
from fastmammo.decoding.twins import with_twins
from fastmammo.errors import (
    BackendUnavailableError,
    CorruptCodestreamError,
    DecodeError,
    DeviceMemoryError,
    MismatchError,
)
from fastmammo.kernels import INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fastmammo.decoding.nvidia_checks import Frame
    from fastmammo.dicom import Codestream

NAME = "dali"
DEVICE = "cuda"
LEVELS = False  # its decoder has no argument for them
CLAMPS = False  # nobody has seen whether it does

pyramid = None

REMARK = "decoded by DALI, which does not say whether it did so on the GPU or on the CPU"
"""What the notes of each frame that it decoded say."""

_INPUT = "codestreams"

_thread = threading.local()


def missing() -> str | None:
    """Return None if the backend is usable here, else what it lacks and how to get it."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # not even the package nvidia
        found = None
    if found is None:
        return with_twins(f"DALI: {INSTALL}", "dali")
    try:
        nvidia_libraries.nvimgcodec()
    except BackendUnavailableError as error:
        return with_twins(f"DALI decodes through nvImageCodec: {error}", "nvimgcodec")
    return cuda_runtime.missing()


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.signed:
        return "signed samples: DALI halves them"
    return nvidia_checks.refuses(codestream)


def version() -> str:
    """Return the version of DALI."""
    return f"DALI {importlib.import_module('nvidia.dali').__version__}"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> Any:
    """Return the samples (rows, columns) as a CuPy array; level must be 0.

    Returns:
        cupy.ndarray (rows, columns) uint8 or uint16 on the current device, in the memory of CuPy's
        current allocator, complete on its current stream.

    Raises:
        CorruptCodestreamError: DALI refused the bytes.
        DeviceError, DeviceMemoryError: CUDA failed, or had no memory left.
        UnsupportedSyntaxError: nvJPEG is known to decode it to zeros, or did.
        MismatchError: the image is not what the codestream's header says, or not stretched.
        BackendUnavailableError: DALI finds no device.
    """
    (found,) = _kept(1, threads).decode([(data, codestream)])
    if isinstance(found, DecodeError):
        raise found
    return found


def decode_batch(frames: Iterable[Frame], threads: int = 1, batch_size: int = 8) -> Iterator[Any]:
    """Yield a CuPy array or a DecodeError for each frame, in their order; see `decode`.

    Two batches of `batch_size` are in flight. Pipelines are kept for each thread and device.

    Raises:
        DeviceError: CUDA failed for good.
        BackendUnavailableError: DALI finds no device.
    """
    return _kept(batch_size, threads).decode(frames)


def _kept(batch_size: int, threads: int) -> Decoder:
    import cupy

    device = int(cupy.cuda.Device().id)
    kept: dict[tuple[int, int, int], Decoder] = _thread.__dict__.setdefault("decoders", {})
    key = device, batch_size, threads
    if key not in kept:
        kept[key] = Decoder(device, batch_size=batch_size, threads=threads)
    return kept[key]


class Decoder:
    """DALI pipelines that decode batches of frames on one device, for one thread at a time.

    Args:
        device: number of the CUDA device; None for DALI's CPU decoder, which gives NumPy arrays
            and knows less: unsigned JPEG 2000 of 8 to 16 bits, JPEG of 8 bits.
        batch_size: frames decoded together.
        in_flight: batches under way at a time, each in a pipeline of its own, so that a frame that
            fails does not take the batches behind it along.
        threads: CPU threads of a pipeline.
    """

    def __init__(
        self, device: int | None = 0, *, batch_size: int = 8, in_flight: int = 2, threads: int = 1
    ) -> None:
        self._device = device
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._threads = threads
        self._idle: dict[np.dtype[Any], list[Any]] = {}
        self._tables: dict[tuple[int, int], Any] = {}
        self.rebuilt = 0
        """Pipelines that a failed frame has cost."""

    def decode(self, frames: Iterable[Frame]) -> Iterator[Any]:
        """Yield the samples (rows, columns) of each frame, or a DecodeError, in their order.

        Raises:
            BackendUnavailableError: DALI finds no device.
        """
        under_way: deque[tuple[Any, list[Frame]]] = deque()
        for batch in self._batches(frames):
            if len(under_way) == self._in_flight:
                yield from self._collect(*under_way.popleft())
            under_way.append((self._start(batch), batch))
        while under_way:
            yield from self._collect(*under_way.popleft())

    def _batches(self, frames: Iterable[Frame]) -> Iterator[list[Frame]]:
        """Yield frames in batches of one sample type, which a pipeline has once and for all."""
        batch: list[Frame] = []
        for frame in frames:
            full = len(batch) == self._batch_size
            if batch and (full or samples_dtype(frame[1]) != samples_dtype(batch[0][1])):
                yield batch
                batch = []
            batch.append(frame)
        if batch:
            yield batch

    def _start(self, batch: list[Frame]) -> Any:
        """Return a pipeline that is at work on the batch, or why it cannot be."""
        try:
            arrays = [self._bytes(*frame) for frame in batch]
        except DecodeError as error:
            return error
        idle = self._idle.setdefault(samples_dtype(batch[0][1]), [])
        pipeline = idle.pop() if idle else self._build(samples_dtype(batch[0][1]))
        try:
            pipeline.feed_input(_INPUT, arrays)
            pipeline.schedule_run()
        except RuntimeError as error:
            return error
        return pipeline

    def _bytes(self, data: bytes | memoryview, c: Codestream) -> NDArray[np.uint8]:
        view = memoryview(data)[c.offset : c.offset + c.length]
        if self._device is not None:
            refuse_order(view, c)
        return np.frombuffer(view, np.uint8)

    def _collect(self, pipeline: Any, batch: list[Frame]) -> list[Any]:
        """Return the batch's samples; where it failed, each frame's own samples or error."""
        error = pipeline if isinstance(pipeline, Exception) else None
        if error is None:
            try:
                (output,) = pipeline.share_outputs()
            except RuntimeError as caught:
                error = caught
        if error is None:
            found = [self._stored(output[i], c) for i, (_, c) in enumerate(batch)]
            # This waits for the device; only then may DALI have its memory back.
            found = confirm_zeros(batch, found)
            pipeline.release_outputs()
            self._idle[samples_dtype(batch[0][1])].append(pipeline)
            return found
        if self._device is not None and not isinstance(error, DecodeError):
            settle(_refusal(error, *batch[0]))
        # The pipeline is no longer valid (DALI says so itself) and is dropped.
        self.rebuilt += not isinstance(error, DecodeError)
        if len(batch) > 1:
            return [self._collect(self._start([frame]), [frame])[0] for frame in batch]
        return [error if isinstance(error, DecodeError) else _refusal(error, *batch[0])]

    def _build(self, dtype: np.dtype[Any]) -> Any:
        dali = importlib.import_module("nvidia.dali")
        on_gpu = self._device is not None
        pipeline = dali.Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=self._device,
            prefetch_queue_depth=1,  # batches in flight have pipelines of their own
        )
        # hw_decoder_load=0: the same JPEG decoder, and pixels, on GPUs with and without that unit
        options = {"device": "mixed", "hw_decoder_load": 0.0} if on_gpu else {"device": "cpu"}
        with pipeline:
            codestreams = dali.fn.external_source(name=_INPUT, dtype=dali.types.UINT8, ndim=1)
            pipeline.set_outputs(
                dali.fn.decoders.image(
                    codestreams,
                    output_type=dali.types.ANY_DATA,
                    dtype=dali.types.UINT8 if dtype == np.uint8 else dali.types.UINT16,
                    adjust_orientation=False,
                    **options,
                )
            )
        try:
            pipeline.build()
        except RuntimeError as error:
            raise BackendUnavailableError(
                f"DALI cannot build a pipeline on device {self._device}: {_words(error)}"
            ) from error
        return pipeline

    def _stored(self, tensor: Any, c: Codestream) -> Any:
        """Return one tensor of DALI's as an array of our own memory, or the error that it is."""
        array: Any
        if self._device is None:
            array = np.asarray(tensor)
        else:
            import cupy

            array = cupy.asarray(tensor)
        if array.shape != (c.rows, c.columns, 1) or array.dtype != samples_dtype(c):
            return MismatchError(
                f"DALI gave {array.dtype} {array.shape}, the codestream's header says "
                f"{samples_dtype(c)} {(c.rows, c.columns, 1)}"
            )
        array = array[..., 0]
        full = (1 << 8 * array.dtype.itemsize) - 1
        if self._device is None or full == (1 << c.precision) - 1:
            return array.copy()
        if (c.precision, full) not in self._tables:
            self._tables[c.precision, full] = cupy.asarray(stored_values(c.precision, full))
        values = self._tables[c.precision, full].take(array)
        if bool((values == full).any()):
            return MismatchError(
                f"DALI gave values that no stretch of {c.precision} bits to 0..{full} makes: this "
                "version does not stretch them as version 2 does; use another backend, or "
                f"{INSTALL}"
            )
        return values


@functools.cache
def stored_values(precision: int, full: int) -> NDArray[Any]:
    """Return the table that undoes DALI's stretch of `precision` bits to 0..full.

    Args:
        precision: bits of the codestream's samples, fewer than those of `full`.
        full: 255 or 65535.

    Returns:
        uint8 or uint16 (full + 1,): for x the only v with round(v * full / (2^precision - 1)) = x,
        computed in integers; and `full`, which no v is, where there is none.
    """
    most = (1 << precision) - 1
    stretched = np.arange(full + 1, dtype=np.int64)
    # full is odd: there are no halves to round
    values = (stretched * most + full // 2) // full
    # DALI multiplies in float32 and rounds: 0.5 off at most, and a little for the float32
    distance = np.abs(stretched * most - values * full) * 100
    values[distance > 55 * most] = full
    table = values.astype(np.uint8 if full == 255 else np.uint16)
    table.setflags(write=False)  # it is kept
    return table


def _refusal(error: Exception, data: bytes | memoryview, c: Codestream) -> DecodeError:
    kind = DeviceMemoryError if out_of_memory(error) else CorruptCodestreamError
    return kind(f"DALI refused the codestream ({c.format}, {c.length} bytes): {_words(error)}")


def _words(error: Exception) -> str:
    """Return what DALI says went wrong, without the traceback of the pipeline's definition."""
    text = str(error).rpartition("encountered:")[2].replace("Critical error in pipeline:", "")
    text = text.replace("Current pipeline object is no longer valid.", "")
    return " ".join(text.split()) or "no reason given"


__all__ = [
    "CLAMPS",
    "DEVICE",
    "FORMATS",
    "LEVELS",
    "NAME",
    "Decoder",
    "decode",
    "decode_batch",
    "missing",
    "pyramid",
    "refuses",
    "stored_values",
    "version",
]
