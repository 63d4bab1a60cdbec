"""Codestream and level → stored values: checks, the choice of route, the integer reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import checks, cuda_runtime, dali, nvjpeg2000
from fastmammo.decoding.backends import BACKENDS, Backend, choose, resolve_device
from fastmammo.decoding.checks import MAX_PIXELS
from fastmammo.decoding.stored import stored_values
from fastmammo.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptCodestreamError,
    DecodeError,
    DeviceError,
    FastMammoError,
    MismatchError,
    UnsupportedSyntaxError,
)
from fastmammo.kernels import ends, kernels_of, on_device, to_device, to_host_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.backends import Pyramid
    from fastmammo.decoding.frames_in_flight import Decoder as Flight
    from fastmammo.dicom import Mammogram

MAX_LEVEL = 12


class FrameDecoder:
    """One frame's stored values at any level, each decoded at most once.

    `at(0)` are the stored values as the codestream holds them. `at(r)` for r > 0 is the low-pass
    band of the integer 5/3 transform after r levels, clipped once at the end to `first`..`last`:
    the same integers for every lossless transfer syntax, whether the codec's own levels served
    (`codec_levels`) or the whole frame was reduced.

    On device "cuda" the arrays are CuPy's where the GPU decoded, on CuPy's current stream, and
    NumPy's where the CPU did: for what no GPU backend takes, and where one failed on the frame.
    `notes` then says why; with `strict` it is an error. Uncompressed frames need no decoder, and a
    backend asked for by name is never replaced. What the CPU has decoded in full is uploaded for
    its levels: the GPU makes them, and `notes` says that too.
    """

    def __init__(
        self,
        mammogram: Mammogram,
        *,
        device: str = "cpu",
        backend: str = "auto",
        frame: int = 0,
        threads: int = 1,
        max_pixels: int = MAX_PIXELS,
        strict: bool = False,
        flight: Flight | None = None,
    ) -> None:
        """Check the frame's codestream against the header and choose the backend.

        Args:
            flight: decodes for nvJPEG2000, beside the frames of others; None to decode alone.

        Others, Raises: see `decode`.
        """
        device, _ = resolve_device(device, backend)
        if device == "cuda":
            cuda_runtime.require()
        self.device = device
        self._flight = flight
        self._wanted = backend
        self._may_fall_back = device == "cuda" and backend == "auto" and not strict
        self.mammogram = mammogram
        self.frame = frame
        self.threads = threads
        try:
            checks.require_grey(mammogram)
            self.codestream = mammogram.codestream(frame)
            self.data = mammogram.frame(frame).data
            checks.check(mammogram, self.codestream, len(self.data), max_pixels)
            self.first, self.last = mammogram.stored_range
            self.notes = checks.disagreements(mammogram, self.codestream)
            self.backend: Backend
            self._level_backend: Backend
            try:
                self._choose("cpu" if self.codestream.format == "raw" else device)
            except (UnsupportedSyntaxError, BackendUnavailableError) as error:
                self._fall_back(error)
        except FastMammoError as error:
            error.path, error.frame = mammogram.path, frame
            raise
        self._reduced: dict[int, Any] = {}
        self._levels: dict[int, NDArray[Any]] = {}
        self._far: dict[int, Any] = {}
        self._pyramid: Pyramid | None = None
        self.used: list[str] = []
        """Names of the backends that decoded something, in order."""

    def _choose(self, device: str) -> None:
        """Choose the backends for level 0 and for the others."""
        c, wanted = self.codestream, self._wanted
        # Lossy HTJ2K goes to OpenJPEG at level 0 too: OpenJPH's reader does not clamp.
        lossy = c.format == "htj2k" and not self.mammogram.transfer_syntax.lossless
        self.backend = choose(c, device=device, backend=wanted, levels=lossy)
        self._level_backend = choose(c, device=device, backend=wanted, levels=True)
        self.codec_levels = self._codec_levels()
        if self._level_backend.NAME == nvjpeg2000.NAME and (fault := nvjpeg2000.levels_fault()):
            self.notes.append(f"levels made from the whole frame: {fault}")

    def _fall_back(self, error: DecodeError) -> None:
        """Choose the CPU's backends where the GPU's cannot do it, or raise the reason why not."""
        if not self._may_fall_back:
            raise error
        self._may_fall_back = False
        self.notes.append(f"decoded on the CPU: {' '.join(str(error).split())}")
        self._choose("cpu")

    @property
    def incremental(self) -> bool:
        """Whether a level costs little more after a coarser one than alone."""
        return self._level_backend.pyramid is not None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The smallest type that holds first..last: of every level above 0."""
        sign = "int" if self.first < 0 else "uint"
        bits = 8 if self.first >= -128 and self.last <= (127 if self.first < 0 else 255) else 16
        return np.dtype(f"{sign}{bits}")

    def at(self, level: int) -> Any:
        """Return the stored values (ceil(rows / 2^level), ceil(columns / 2^level)).

        NumPy's, or CuPy's where the GPU decoded, or made the level.

        Raises: see `decode`.
        """
        if not isinstance(level, int) or not 0 <= level <= MAX_LEVEL:
            raise ConfigError(f"level {level}: allowed are whole numbers 0 to {MAX_LEVEL}")
        if level not in self._levels:
            try:
                self._levels[level] = self._attempt(level)
            except FastMammoError as error:
                error.path, error.frame = self.mammogram.path, self.frame
                raise
        return self._levels[level]

    def on_host(self, level: int) -> NDArray[Any]:
        """Return what `at` does as NumPy's, waiting once: `beyond_range` then has its count too.

        Raises: see `decode`.
        """
        pixels = self.at(level)
        if not on_device(pixels) or not level:
            return cuda_runtime.host_copy(pixels)
        with cuda_runtime.errors_of(pixels, "copying from the device"):
            host, self._far[level] = to_host_with(pixels, self._far[level])
        return host

    def _attempt(self, level: int) -> Any:
        if self.device == "cpu":
            return self._make(level)
        try:
            with cuda_runtime.device_errors("decoding"):
                return self._make(level)
        except DeviceError:
            raise  # no fault of the frame: the CPU would hide that the GPU is lost
        except DecodeError as error:
            self._fall_back(error)
        return self._make(level)

    def _make(self, level: int) -> Any:
        if level == 0:
            pixels = self._decode(self.backend, 0)
            return stored_values(pixels, self.mammogram, self.codestream)
        if level <= self.codec_levels and 0 not in self._levels:
            values: NDArray[Any] = self._decode(self._level_backend, level)
        else:
            values = self._reduce(level)
        in_range = self._in_range(level)
        if in_range and self._level_backend.CLAMPS and values.dtype == self.dtype:
            self._far[level] = 0
            return values
        slack = (self.last - self.first) // 8
        kernels = kernels_of(values)
        clipped, far = kernels.clip_to(values, self.first, self.last, slack, self.dtype)
        # a decoder that clamps would have left nothing beyond the range: one answer for all
        self._far[level] = 0 if in_range else far
        return clipped

    def _in_range(self, level: int) -> bool:
        """Whether a level is the codec's own, of the range that the header says."""
        c, m = self.codestream, self.mammogram
        return (
            0 < level <= self.codec_levels
            and 0 not in self._levels
            and (c.precision, c.signed) == (m.bits_stored, m.signed)
        )

    def beyond_range(self, level: int) -> bool:
        """Return whether values lie beyond Bits Stored, as level `level` shows it.

        At level 0 one value is enough. A low-pass overshoots at saturated letters, so at higher
        levels 0.5 % of the samples must lie beyond by an eighth of the range.
        """
        pixels = self.at(level)
        if level:
            far = int(cuda_runtime.host_copy(self._far[level]))
            return far * 200 > int(pixels.size)
        if self.codestream.precision <= self.mammogram.bits_stored:
            return False
        with cuda_runtime.errors_of(pixels, "reading the range of values"):
            lowest, highest = ends(pixels)
        return bool(lowest < self.first or highest > self.last)

    def _decode(self, backend: Backend, level: int) -> Any:
        pixels = self._samples(backend, level)
        scale = 1 << level
        wanted = -(-self.codestream.rows // scale), -(-self.codestream.columns // scale)
        if pixels.shape != wanted:
            raise MismatchError(
                f"{backend.NAME} gave {pixels.shape} samples, the codestream's header says {wanted}"
            )
        pixels = self._within_precision(pixels, backend, level)
        if backend.NAME not in self.used:
            self.used.append(backend.NAME)
            if backend.NAME == dali.NAME:
                self.notes.append(dali.REMARK)
        return pixels

    def _samples(self, backend: Backend, level: int) -> Any:
        if backend.NAME == "nvjpeg2000" and self._flight is not None:
            from fastmammo.decoding.frame_queue import Request

            place = self.mammogram.path, self.frame
            request = Request(self.data, self.codestream, level, None, *place)
            return self._flight.submit(request).result()
        if backend.pyramid is None:
            return backend.decode(self.data, self.codestream, level, self.threads)
        if self._pyramid is None:
            self._pyramid = backend.pyramid(self.data, self.codestream)
        return self._pyramid.decode(level)

    def _within_precision(self, pixels: Any, backend: Backend, level: int) -> Any:
        """Return the samples; refuse those that a codestream of this precision cannot hold.

        JPEG, JPEG-LS and JPEG 2000 have no checksum. Where the decoder does not clamp (lossless
        JPEG, JPEG-LS, OpenJPH's HTJ2K), a value out of range is the one sign of damage there is.
        """
        c = self.codestream
        if backend.CLAMPS or c.format == "rle" or c.precision >= 8 * pixels.dtype.itemsize:
            return pixels
        kind, coded = pixels.dtype, pixels
        if on_device(pixels) and kind == np.uint16 and c.precision <= 14:
            # Nobody has seen what nvJPEG2000 makes of a sum below 0: 0, or the bits of a negative
            # number. Read as signed it is clipped to 0 in both cases, and no sum of 14 bits is
            # too large to be read so. With 15 and 16 bits, and in 8 that are full, there is no
            # telling: an open question, which a test on a GPU asks.
            coded = pixels.view(np.int16)
        if on_device(pixels) and level:
            return coded  # clipped to the header's range next, as a level is anyway
        first, last = 0, (1 << c.precision) - 1
        if c.signed:
            first, last = -(1 << (c.precision - 1)), (1 << (c.precision - 1)) - 1
        if on_device(pixels) and c.format == "jpeg2000":
            # what the CPU's decoders of JPEG 2000 do; and asking would be to wait for the device
            clipped, _ = kernels_of(coded).clip_to(coded, first, last, 0, kind)
            return clipped
        lowest, highest = ends(pixels)
        if lowest < first or highest > last:
            raise CorruptCodestreamError(
                f"{backend.NAME} decoded values {lowest} to {highest} from a codestream of "
                f"{c.precision} bits ({first} to {last}): it is damaged"
            )
        return pixels

    def _reduce(self, level: int) -> Any:
        if level not in self._reduced:
            finer = self._whole() if level == 1 else self._reduce(level - 1)
            self._reduced[level] = kernels_of(finer).low_pass(finer)
        return self._reduced[level]

    def _whole(self) -> Any:
        """Return level 0 where its levels are made: on the device, if there is one."""
        stored = self.at(0)
        if self.device == "cuda" and not on_device(stored):
            stored = self._levels[0] = to_device(stored)
            self.notes.append("levels made on the GPU")
        return stored

    def _codec_levels(self) -> int:
        """Return how many of the codec's own levels equal the integer transform of the frame.

        They do for one tile at origin 0, 5/3 with all passes, the header's sign and at least its
        precision (the codec clips to its precision, the header's range is clipped to afterwards).
        """
        c, m = self.codestream, self.mammogram
        serve = (
            self._level_backend.LEVELS
            and m.transfer_syntax.lossless
            and c.wavelet == "5/3"
            and c.tiles == 1
            and c.origin == (0, 0)
            and c.subsampling == (1, 1)
            and not c.region_of_interest
            and not c.tile_overrides
            and c.signed == m.signed
            and c.precision >= m.bits_stored
        )
        return c.levels if serve else 0


def decode(
    mammogram: Mammogram,
    *,
    device: str = "cpu",
    backend: str = "auto",
    frame: int = 0,
    level: int = 0,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
) -> Any:
    """Return one frame's stored values at 1/2^level.

    Args:
        mammogram: from `read`.
        device: "cpu"; "cuda", where the GPU decodes what it can and the CPU the rest; or "auto",
            "cuda" where GPU, CuPy and nvJPEG2000 are there, else "cpu".
        backend: "auto" chooses by the codestream; or a name of `BACKENDS`.
        frame: index of the frame, from 0.
        level: 0 for every pixel; r for the low-pass band of the integer 5/3 wavelet transform
            after r levels, whose sample k lies at pixel 2^r k.
        threads: how many the codec may use for this frame, where it can.
        max_pixels: refuse frames with more pixels.
        strict: raise instead of decoding on the CPU what the GPU cannot.

    Returns:
        (ceil(rows / 2^level), ceil(columns / 2^level)) uint8, int8, uint16 or int16, a NumPy array;
        a CuPy array, on CuPy's current stream, where the GPU decoded, or made the level. Sign and
        precision are the codestream's where it disagrees with the header. At level 0 values are
        never masked or clipped to Bits Stored; at higher levels, where a low-pass overshoots, they
        are clipped once to the range of Bits Stored.

    Raises:
        UnsupportedImageError: colour, palette, or more than 16 bits.
        SizeBombError: more pixels than `max_pixels`, or than the bytes can hold.
        MismatchError: codestream and header disagree on the size, or the precision exceeds
            Bits Allocated.
        CorruptCodestreamError: the codec refused the bytes.
        UnsupportedSyntaxError, BackendUnavailableError: no backend for it.
            With device="cuda" also: no CuPy, or no GPU.
        DeviceError, DeviceMemoryError: CUDA failed, or had no memory left.
        ConfigError: no such backend, device or level.
    """
    pixels = FrameDecoder(
        mammogram,
        device=device,
        backend=backend,
        frame=frame,
        threads=threads,
        max_pixels=max_pixels,
        strict=strict,
    ).at(level)
    # Uncompressed pixels are a view of the file's bytes until here.
    return pixels if on_device(pixels) or pixels.flags.writeable else pixels.copy()


__all__ = ["BACKENDS", "MAX_PIXELS", "FrameDecoder", "decode"]
