"""Takes a file's header facts, gives the samples that its HTJ2K codestreams are to hold."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import FrameDecoder
from fastmammo.decoding.stored import sign_bits, stored_values
from fastmammo.errors import BackendUnavailableError, UnsupportedSyntaxError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream, Mammogram

    Pixels = NDArray[Any]


ESTABLISHED = {"jpeg2000": "openjpeg", "jpeg-lossless": "imagecodecs"}
"""Who decodes a source whose format this package has a decoder of its own for. What that one got
wrong would be written, and compared with itself. (`imagecodecs`: libjpeg-turbo.)"""


class OtherFile(Exception):
    """A file that is not transcoded: (reason, message)."""


def refuse_others(m: Mammogram) -> None:
    """Leave alone what needs no transcoding, and what decoders do not agree on."""
    if m.transfer_syntax.family == "htj2k":
        raise OtherFile("already htj2k", f"its transfer syntax is {m.transfer_syntax}")
    coding = [m.codestream(index) for index in range(len(m.frames))]
    if not m.transfer_syntax.lossless or not all(c.reversible for c in coding):
        lost = "has lost" if not all(c.reversible for c in coding) else "may have lost"
        message = (
            f"its transfer syntax is {m.transfer_syntax}, its coding {lost} something: decoders "
            "differ in such pixels, and lossless they would only be larger"
        )
        raise OtherFile("lossy coding", message)


def samples_of(m: Mammogram, index: int) -> tuple[Pixels, str]:
    """Return the samples that a frame's new codestream is to hold, and what decoded them.

    The decoder is an established library (`ESTABLISHED`), the usual choice only where that refuses
    the codestream's style or is not installed. Samples are the source's own: the cells of Pixel
    Data (Bits Allocated, two's complement where Pixel Representation says so), or what its
    codestream holds. The JPEG and JPEG-LS families know no sign: there signed values are what their
    patterns stand for.

    Raises:
        UnsupportedImageError, DecodeError: see `decode`.
        OtherFile: its cells hold more than the stored values, an old overlay say. Encapsulated
            they would be taken for values (PS3.5 8.1.2 has none there).
    """
    c = m.codestream(index)
    plain = c.format in ("raw", "rle")
    decoder = _decoder(bare(m, m.pixel_representation if plain else 0), index, c)
    samples: Pixels = decoder.at(0)
    name = "+".join(decoder.used)
    if c.format == "jpeg2000":
        return samples, name
    values: Pixels = stored_values(samples, m, c)
    if plain:
        implied = np.array_equal(values, samples) and not _beyond(values, m)
    elif m.signed:
        bits = c.precision, sign_bits(m, c)
        implied = any(_pattern_is(samples, values, count) for count in bits)
    else:
        implied = c.format != "jpeg-lossless" or not _beyond(values, m)
    if not implied:
        raise OtherFile(
            "bits beyond the stored values",
            f"frame {index}: its pixels' cells of {m.bits_allocated} bits hold more than the "
            f"{m.bits_stored} bits of High Bit {m.high_bit}, an old overlay say: compressed, "
            "readers would take all of it for values",
        )
    return values, name


def _decoder(m: Mammogram, index: int, c: Codestream) -> FrameDecoder:
    if c.format in ESTABLISHED:
        # what it refuses, it refuses here: once begun, its word is final
        with contextlib.suppress(UnsupportedSyntaxError, BackendUnavailableError):
            return FrameDecoder(m, backend=ESTABLISHED[c.format], frame=index)
    return FrameDecoder(m, frame=index)


def _beyond(values: Pixels, m: Mammogram) -> bool:
    """Whether unsigned values need more than Bits Stored.

    pydicom, whose word most readers take, masks them where they are uncompressed, RLE or lossless
    JPEG, and in no other syntax, HTJ2K among these: the pixels would not be the same to it.
    """
    return not m.signed and int(values.max()) >> m.bits_stored > 0


def _pattern_is(samples: Pixels, values: Pixels, bits: int) -> bool:
    """Whether samples are the two's complement of values in so many bits."""
    return np.array_equal(samples.astype(np.int32), values.astype(np.int32) & ((1 << bits) - 1))


def bare(m: Mammogram, representation: int) -> Mammogram:
    """Return the facts under which `decode` gives samples as they are."""
    return replace(
        m,
        bits_stored=m.bits_allocated,
        high_bit=m.bits_allocated - 1,
        overlay_bits=False,
        pixel_representation=representation,
    )


def precision_of(pixels: Pixels | None, m: Mammogram, c: Codestream) -> int:
    """Return Bits Stored, or the bits that the values need where that is more."""
    if c.format == "jpeg2000" and c.signed != m.signed:
        return c.precision  # readers settle this by the precision: it must not change
    if pixels is None:
        return m.bits_stored
    low, high = int(pixels.min()), int(pixels.max())
    needed = max(high.bit_length(), (~low).bit_length() if low < 0 else 0)
    return max(m.bits_stored, needed + (pixels.dtype.kind == "i"))
