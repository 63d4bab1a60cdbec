"""Codestream and level → stored values: checks, the choice of route, the integer reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding.backends import BACKENDS, Backend, choose
from fastmammo.errors import (
    ConfigError,
    CorruptCodestreamError,
    FastMammoError,
    MismatchError,
    SizeBombError,
    UnsupportedImageError,
)
from fastmammo.kernels import cpu as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.backends import Pyramid
    from fastmammo.dicom import Codestream, Mammogram

MAX_PIXELS = 1 << 27
"""134 million: four times the largest detector known (5355 x 4915). Beyond it is an attack."""

MAX_CODEBLOCKS = 1 << 21
"""Even blocks of 4 x 4 give no more on the largest detector; a decoder keeps a record of each."""

MAX_LEVEL = 12


class FrameDecoder:
    """One frame's stored values at any level, each decoded at most once.

    `at(0)` are the stored values as the codestream holds them. `at(r)` for r > 0 is the low-pass
    band of the integer 5/3 transform after r levels, clipped once at the end to `first`..`last`:
    the same integers for every lossless transfer syntax, whether the codec's own levels served
    (`codec_levels`) or the whole frame was reduced.
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
    ) -> None:
        """Check the frame's codestream against the header and choose the backend.

        Raises: see `decode`.
        """
        if device != "cpu":
            raise ConfigError(f"device {device!r}: this version decodes on 'cpu'")
        self.mammogram = mammogram
        self.frame = frame
        self.threads = threads
        try:
            _require_grey(mammogram)
            self.codestream = mammogram.codestream(frame)
            self.data = mammogram.frame(frame).data
            _check(mammogram, self.codestream, len(self.data), max_pixels)
            self.notes: list[str] = []
            self.first, self.last = mammogram.stored_range
            self._compare()
            # Lossy HTJ2K goes to OpenJPEG at level 0 too: OpenJPH's reader does not clamp.
            self.backend: Backend = choose(
                self.codestream,
                device=device,
                backend=backend,
                levels=self.codestream.format == "htj2k" and not mammogram.transfer_syntax.lossless,
            )
            self._level_backend = choose(
                self.codestream, device=device, backend=backend, levels=True
            )
        except FastMammoError as error:
            error.path, error.frame = mammogram.path, frame
            raise
        self.codec_levels = self._codec_levels()
        self._reduced: dict[int, NDArray[np.int32]] = {}
        self._levels: dict[int, NDArray[Any]] = {}
        self._far: dict[int, int] = {}
        self._pyramid: Pyramid | None = None
        self.used: list[str] = []
        """Names of the backends that decoded something, in order."""

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

    def at(self, level: int) -> NDArray[Any]:
        """Return the stored values (ceil(rows / 2^level), ceil(columns / 2^level)).

        Raises: see `decode`.
        """
        if not isinstance(level, int) or not 0 <= level <= MAX_LEVEL:
            raise ConfigError(f"level {level}: allowed are whole numbers 0 to {MAX_LEVEL}")
        if level not in self._levels:
            try:
                self._levels[level] = self._make(level)
            except FastMammoError as error:
                error.path, error.frame = self.mammogram.path, self.frame
                raise
        return self._levels[level]

    def _make(self, level: int) -> NDArray[Any]:
        if level == 0:
            return self._interpret(self._decode(self.backend, 0))
        if level <= self.codec_levels and 0 not in self._levels:
            values: NDArray[Any] = self._decode(self._level_backend, level)
        else:
            values = self._reduce(level)
        if values.dtype == self.dtype and self._clamped():
            self._far[level] = 0
            return values
        slack = (self.last - self.first) // 8
        clipped, far = kernels.clip_to(values, self.first, self.last, slack, self.dtype)
        self._far[level] = far
        return clipped

    def _clamped(self) -> bool:
        """Whether the codec's own levels come clamped to the range that the header says."""
        c, m = self.codestream, self.mammogram
        return (
            self._level_backend.CLAMPS
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
            return self._far[level] * 200 > pixels.size
        if self.codestream.precision <= self.mammogram.bits_stored:
            return False
        return int(pixels.min()) < self.first or int(pixels.max()) > self.last

    def _decode(self, backend: Backend, level: int) -> NDArray[Any]:
        pixels = self._samples(backend, level)
        scale = 1 << level
        wanted = -(-self.codestream.rows // scale), -(-self.codestream.columns // scale)
        if pixels.shape != wanted:
            raise MismatchError(
                f"{backend.NAME} gave {pixels.shape} samples, the codestream's header says {wanted}"
            )
        self._within_precision(pixels, backend)
        if backend.NAME not in self.used:
            self.used.append(backend.NAME)
        return pixels

    def _samples(self, backend: Backend, level: int) -> NDArray[Any]:
        if backend.pyramid is None:
            return backend.decode(self.data, self.codestream, level, self.threads)
        if self._pyramid is None:
            self._pyramid = backend.pyramid(self.data, self.codestream)
        return self._pyramid.decode(level)

    def _within_precision(self, pixels: NDArray[Any], backend: Backend) -> None:
        """Refuse values that a codestream of this precision cannot hold: it is damaged.

        JPEG, JPEG-LS and JPEG 2000 have no checksum. Where the decoder does not clamp (lossless
        JPEG, JPEG-LS, OpenJPH's HTJ2K), a value out of range is the one sign of damage there is.
        """
        c = self.codestream
        if backend.CLAMPS or c.format == "rle" or c.precision >= 8 * pixels.dtype.itemsize:
            return
        first, last = 0, (1 << c.precision) - 1
        if c.signed:
            first, last = -(1 << (c.precision - 1)), (1 << (c.precision - 1)) - 1
        lowest, highest = int(pixels.min()), int(pixels.max())
        if lowest < first or highest > last:
            raise CorruptCodestreamError(
                f"{backend.NAME} decoded values {lowest} to {highest} from a codestream of "
                f"{c.precision} bits ({first} to {last}): it is damaged"
            )

    def _reduce(self, level: int) -> NDArray[np.int32]:
        if level not in self._reduced:
            finer = self.at(0) if level == 1 else self._reduce(level - 1)
            self._reduced[level] = kernels.low_pass(finer)
        return self._reduced[level]

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

    def _compare(self) -> None:
        """Note where the codestream and the header disagree, and what counts."""
        m, c = self.mammogram, self.codestream
        if c.format in ("raw", "rle"):
            return
        if c.format != m.transfer_syntax.family:
            self.notes.append(
                f"the transfer syntax is {m.transfer_syntax}, the frame is {c.format}"
            )
        elif m.transfer_syntax.lossless and not c.reversible:
            self.notes.append(f"the transfer syntax is {m.transfer_syntax}, its coding is lossy")
        if c.signed and not m.signed:
            self.notes.append(
                f"the codestream is signed, Pixel Representation (0028,0103) is 0: the "
                f"codestream's sign and {c.precision} bits count"
            )
        if c.precision not in (m.bits_stored, m.bits_allocated):
            self.notes.append(
                f"the codestream has {c.precision} bits, Bits Stored (0028,0101) is {m.bits_stored}"
            )
        if m.signed and not c.signed and c.format in ("jpeg2000", "htj2k"):
            self.notes.append(
                f"Pixel Representation (0028,0103) is 1, the codestream is unsigned: read as "
                f"two's complement of {_sign_bits(m, c)} bits"
            )

    def _interpret(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return decoded samples as stored values: byte order, shift, sign, type."""
        m, c = self.mammogram, self.codestream
        if not pixels.dtype.isnative:
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        if c.format in ("raw", "rle"):
            return _native_values(pixels, m)
        if m.signed and not c.signed:
            # JPEG, JPEG-LS and some J2K writers code two's complement patterns as unsigned
            # numbers, with or without copies of the sign above Bits Stored.
            shift = 8 * pixels.dtype.itemsize - _sign_bits(m, c)
            signed = pixels.astype(f"uint{8 * pixels.dtype.itemsize}", copy=False)
            return (signed << shift).view(f"int{8 * pixels.dtype.itemsize}") >> shift
        return pixels


def decode(
    mammogram: Mammogram,
    *,
    device: str = "cpu",
    backend: str = "auto",
    frame: int = 0,
    level: int = 0,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[Any]:
    """Return one frame's stored values at 1/2^level.

    Args:
        mammogram: from `read`.
        device: "cpu".
        backend: "auto" chooses by the codestream; or a name of `BACKENDS`.
        frame: index of the frame, from 0.
        level: 0 for every pixel; r for the low-pass band of the integer 5/3 wavelet transform
            after r levels, whose sample k lies at pixel 2^r k.
        threads: how many the codec may use for this frame, where it can.
        max_pixels: refuse frames with more pixels.

    Returns:
        (ceil(rows / 2^level), ceil(columns / 2^level)) uint8, int8, uint16 or int16. Sign and
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
        ConfigError: no such backend, device or level.
    """
    pixels = FrameDecoder(
        mammogram,
        device=device,
        backend=backend,
        frame=frame,
        threads=threads,
        max_pixels=max_pixels,
    ).at(level)
    # Uncompressed pixels are a view of the file's bytes until here.
    return pixels if pixels.flags.writeable else pixels.copy()


def _require_grey(m: Mammogram) -> None:
    kind = m.photometric_interpretation
    if m.samples_per_pixel != 1 or kind not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise UnsupportedImageError(
            f"Photometric Interpretation (0028,0004) is {kind or 'absent'} with "
            f"{m.samples_per_pixel} sample(s) a pixel: fastmammo decodes greyscale images, "
            "MONOCHROME1 or MONOCHROME2 with one sample"
        )
    if m.bits_allocated not in (8, 16):
        raise UnsupportedImageError(
            f"Bits Allocated (0028,0100) is {m.bits_allocated}: 8 and 16 are decoded"
        )


def _check(m: Mammogram, c: Codestream, length: int, max_pixels: int) -> None:
    """Refuse, before any decoder sees the bytes, what they cannot or must not hold."""
    for what, rows, columns in (
        ("the DICOM header", m.rows, m.columns),
        ("the codestream", c.rows, c.columns),
    ):
        if rows * columns > max_pixels:
            raise SizeBombError(
                f"{what} claims {rows} x {columns} = {rows * columns} pixels in {length} bytes; "
                f"the limit is {max_pixels} (max_pixels)"
            )
    if (c.rows, c.columns) != (m.rows, m.columns):
        raise MismatchError(
            f"the codestream is {c.rows} x {c.columns} pixels, Rows and Columns (0028,0010/0011) "
            f"say {m.rows} x {m.columns}: one of them is damaged"
        )
    if not c.complete:
        raise CorruptCodestreamError(
            f"the codestream ends too early ({c.length} bytes): "
            + (
                "its tile-parts are longer than what is there"
                if c.format in ("jpeg2000", "htj2k")
                else "it has no EOI marker (FF D9)"
            )
            + "; the frame is truncated"
        )
    if c.precision > m.bits_allocated:
        raise MismatchError(
            f"the codestream has {c.precision} bits a sample, Bits Allocated (0028,0100) is "
            f"{m.bits_allocated}: one of them is damaged"
        )
    if c.packets > c.length or c.codeblocks > MAX_CODEBLOCKS:
        raise SizeBombError(
            f"the codestream claims {c.packets} packets and {c.codeblocks} code-blocks in "
            f"{c.length} bytes; a packet needs a byte at least, and {MAX_CODEBLOCKS} code-blocks "
            "are the limit: its precincts, layers or code-blocks are an attack, or damaged"
        )
    # The fewest bits that a pixel can cost: one Huffman code (T.81 H), two codes a block of 64
    # pixels (T.81 F), two bytes of PackBits for 128. JPEG-LS has no such floor; that of JPEG 2000
    # is the number of packets, above.
    floors = {"jpeg-lossless": 1.0, "jpeg": 2 / 64, "rle": 2 / 128 * c.precision}
    least = int(c.pixels * floors.get(c.format, 0.0) / 8)
    if length < least:
        raise SizeBombError(
            f"the codestream claims {c.rows} x {c.columns} pixels in {length} bytes; "
            f"{c.format} needs at least {least}: it is truncated, or an attack"
        )


def _sign_bits(m: Mammogram, c: Codestream) -> int:
    """Return how many low bits of an unsigned codestream's samples are the signed value."""
    return min(c.precision, m.bits_stored)


def _native_values(pixels: NDArray[Any], m: Mammogram) -> NDArray[Any]:
    """Return uncompressed or RLE samples with High Bit and sign applied (PS3.5 8.1.1)."""
    width = 8 * pixels.dtype.itemsize
    below = max(m.high_bit + 1 - m.bits_stored, 0)
    above = width - m.bits_stored - below
    if (m.signed and above > 0) or (m.overlay_bits and above > 0):
        # Bits above High Bit are the sign, copies of it, or an old overlay: never the value.
        kind = f"uint{width}"
        moved = pixels.view(kind) << above
        pixels = (moved.view(f"int{width}") if m.signed else moved) >> (above + below)
    elif below:
        pixels = pixels >> below
    return pixels


__all__ = ["BACKENDS", "MAX_PIXELS", "FrameDecoder", "decode"]
