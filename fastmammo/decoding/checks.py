"""Refuses, before a decoder sees the bytes, what they cannot hold; notes what does not agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.decoding.stored import sign_bits
from fastmammo.errors import (
    CorruptCodestreamError,
    MismatchError,
    SizeBombError,
    UnsupportedImageError,
)

if TYPE_CHECKING:
    from fastmammo.dicom import Codestream, Mammogram

MAX_PIXELS = 1 << 27
"""134 million: four times the largest detector known (5355 x 4915). Beyond it is an attack."""

MAX_CODEBLOCKS = 1 << 21
"""Even blocks of 4 x 4 give no more on the largest detector; a decoder keeps a record of each."""


def require_grey(m: Mammogram) -> None:
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


def check(m: Mammogram, c: Codestream, length: int, max_pixels: int) -> None:
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


def disagreements(m: Mammogram, c: Codestream) -> list[str]:
    """Return where the codestream and the header disagree, and what counts."""
    notes: list[str] = []
    if c.format in ("raw", "rle"):
        return notes
    if c.format != m.transfer_syntax.family:
        notes.append(f"the transfer syntax is {m.transfer_syntax}, the frame is {c.format}")
    elif m.transfer_syntax.lossless and not c.reversible:
        notes.append(f"the transfer syntax is {m.transfer_syntax}, its coding is lossy")
    if c.signed and not m.signed:
        notes.append(
            f"the codestream is signed, Pixel Representation (0028,0103) is 0: the "
            f"codestream's sign and {c.precision} bits count"
        )
    if c.precision not in (m.bits_stored, m.bits_allocated):
        notes.append(
            f"the codestream has {c.precision} bits, Bits Stored (0028,0101) is {m.bits_stored}"
        )
    if m.signed and not c.signed and c.format in ("jpeg2000", "htj2k"):
        notes.append(
            f"Pixel Representation (0028,0103) is 1, the codestream is unsigned: read as "
            f"two's complement of {sign_bits(m, c)} bits"
        )
    return notes
