"""nvImageCodec: JPEG lossless and baseline JPEG on the GPU, JPEG 2000 as a second opinion.

Written for the interface of version 0.9, which changes from one minor version to the next. It may
fall back to a CPU decoder in silence; here only its GPU decoders are allowed. It answers a frame
that it cannot decode with None, and nvJPEG before 13.0.2 (in every wheel for CUDA 12) answers some
lossless JPEGs with zeros: the first becomes an error, the second is refused before decoding, and
an image of nothing but zeros is decoded again on the CPU before it is believed.

Not yet seen on a GPU: the same parameters were run on nvImageCodec's CPU device.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import cuda_runtime, nvidia_libraries
from fastmammo.decoding.cuda_runtime import settle
from fastmammo.decoding.nvidia_checks import (
    FORMATS,
    confirm_zeros,
    out_of_memory,
    refuse_order,
    refuses,
    samples_dtype,
)
from fastmammo.decoding.nvidia_libraries import dotted
from fastmammo.decoding.twins import with_twins
from fastmammo.errors import (
    BackendUnavailableError,
    CorruptCodestreamError,
    DecodeError,
    DeviceMemoryError,
    MismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastmammo.decoding.nvidia_checks import Frame
    from fastmammo.dicom import Codestream

NAME = "nvimgcodec"
DEVICE = "cuda"
LEVELS = False  # it passes nvJPEG2000 no number of resolution levels
CLAMPS = False  # nobody has seen whether it does

pyramid = None

_thread = threading.local()


def missing() -> str | None:
    """Return None if the backend is usable here, else what it lacks and how to get it."""
    try:
        nvidia_libraries.nvimgcodec()
    except BackendUnavailableError as error:
        return with_twins(str(error), "nvimgcodec")
    return cuda_runtime.missing()


def version() -> str:
    """Return the versions of nvImageCodec and of nvJPEG, on which its lossless JPEG depends."""
    nvjpeg = nvidia_libraries.nvjpeg_version()
    return f"nvImageCodec {nvidia_libraries.nvimgcodec().__version__}, " + (
        f"nvJPEG {dotted(nvjpeg)}" if nvjpeg else "without nvJPEG"
    )


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> Any:
    """Return the samples (rows, columns) as a CuPy array; level must be 0.

    Returns:
        cupy.ndarray (rows, columns) uint8, uint16 or int16 on the current device, in the memory of
        CuPy's current allocator, complete on its current stream.

    Raises:
        CorruptCodestreamError: the library refused the codestream's header.
        DecodeError: it gave no image, and no reason.
        DeviceError, DeviceMemoryError: CUDA failed, or had no memory left.
        UnsupportedSyntaxError: nvJPEG is known to decode it to zeros, or did.
        MismatchError: the image is not what the codestream's header says.
    """
    found = decode_batch([(data, codestream)], threads)[0]
    if isinstance(found, DecodeError):
        raise found
    return found


def decode_batch(frames: Sequence[Frame], threads: int = 1) -> list[Any]:
    """Return a CuPy array or a DecodeError for each frame, in their order; see `decode`.

    One decoder is kept for each thread and device: nvImageCodec's crash when threads share them.
    """
    import cupy

    device = int(cupy.cuda.Device().id)
    kept: dict[tuple[int, int], Decoder] = _thread.__dict__.setdefault("decoders", {})
    if (device, threads) not in kept:
        kept[device, threads] = Decoder(device, threads=threads)
    return kept[device, threads].decode(frames)


class Decoder:
    """An nvImageCodec decoder on one device, for one thread at a time.

    Args:
        device: number of the CUDA device; None for nvImageCodec's own CPU decoders, which give
            NumPy arrays and know less: unsigned JPEG 2000 of 8 to 16 bits, JPEG of 8 bits.
        threads: CPU threads that a batch is spread over.

    Raises:
        BackendUnavailableError: nvImageCodec is not installed, or is of another version.
    """

    def __init__(self, device: int | None = 0, *, threads: int = 1) -> None:
        library = self._library = nvidia_libraries.nvimgcodec()
        kinds = library.BackendKind
        # nvJPEG counts as HYBRID_CPU_GPU; with neither of these does a CPU decoder step in.
        allowed = [kinds.CPU_ONLY] if device is None else [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU]
        self._device = device
        self._decoder = library.Decoder(
            device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY if device is None else device,
            max_num_cpu_threads=threads,
            backends=[library.Backend(kind) for kind in allowed],
        )
        # GRAY and P_Y decode straight into the output; UNCHANGED would take another kernel.
        self._parameters = library.DecodeParams(
            apply_exif_orientation=False,
            color_spec=library.ColorSpec.GRAY,
            allow_any_depth=True,  # else everything is scaled to 8 bits
            sample_format=library.SampleFormat.P_Y,
        )

    def decode(self, frames: Sequence[Frame]) -> list[Any]:
        """Return the samples (rows, columns) of each frame, or a DecodeError where there are none.

        A frame that fails costs itself alone. The call returns when all are decoded.

        Raises:
            DeviceError: CUDA failed for good.
        """
        found: list[Any] = [None] * len(frames)
        streams: list[Any] = []
        indices: list[int] = []
        for index, (data, codestream) in enumerate(frames):
            try:
                streams.append(self._open(data, codestream))
            except DecodeError as error:
                found[index] = error
            else:
                indices.append(index)
        if streams:
            for index, image in zip(indices, self._images(streams), strict=True):
                found[index] = self._pixels(image, frames[index][1])
        # nvJPEG2000 may read the compressed bytes until the samples are there: this waits for them.
        return confirm_zeros(frames, found)

    def _open(self, data: bytes | memoryview, c: Codestream) -> Any:
        view = memoryview(data)[c.offset : c.offset + c.length]
        if self._device is not None:
            refuse_order(view, c)
        try:
            return self._library.CodeStream(bytes(view))
        except RuntimeError as error:
            raise CorruptCodestreamError(
                f"nvImageCodec refused the codestream ({len(view)} bytes): {error}"
            ) from error

    def _images(self, streams: list[Any]) -> list[Any]:
        try:
            images: list[Any] = self._decoder.decode(
                streams, params=self._parameters, cuda_stream=self._cuda_stream()
            )
        except (RuntimeError, ValueError, MemoryError) as error:
            # Of one frame it says so with None: this is a failure of the whole call.
            words = f"nvImageCodec failed on {len(streams)} frames: {error}"
            short = isinstance(error, MemoryError) or out_of_memory(error)
            failed = DeviceMemoryError(words) if short else DecodeError(words)
            if self._device is not None:
                settle(failed)
            return [failed] * len(streams)
        if self._device is not None and any(image is None for image in images):
            # a lost device too makes it give nothing: then no frame is at fault
            settle(DecodeError("nvImageCodec gave no image"))
        return images

    def _cuda_stream(self) -> int:
        if self._device is None:
            return 0
        import cupy

        return int(cupy.cuda.get_current_stream().ptr)

    def _pixels(self, image: Any, c: Codestream) -> Any:
        """Return an image as an array of our own memory, or the error that it is."""
        if isinstance(image, DecodeError):
            return image
        if image is None:
            return DecodeError(
                f"nvImageCodec gave no image for a {c.format} codestream ({c.length} bytes, "
                f"{c.rows} x {c.columns}, {c.precision} bits) and no reason; more is said with "
                "PYNVIMGCODEC_VERBOSITY=5 in the environment"
            )
        kinds = self._library.ImageBufferKind
        kind = kinds.STRIDED_HOST if self._device is None else kinds.STRIDED_DEVICE
        wanted = (1, c.rows, c.columns), samples_dtype(c), kind
        got = tuple(image.shape), np.dtype(image.dtype), image.buffer_kind
        if got != wanted:
            return MismatchError(
                f"nvImageCodec gave {got[1]} {got[0]} in {got[2].name}, the codestream's header "
                f"says {wanted[1]} {wanted[0]}, wanted in {wanted[2].name}"
            )
        if self._device is None:
            return np.array(image)[0]
        import cupy

        # A copy (microseconds) into CuPy's memory: nvImageCodec's lies outside every pool and
        # goes with the image.
        return cupy.array(cupy.asarray(image)[0], order="C")


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
    "version",
]
