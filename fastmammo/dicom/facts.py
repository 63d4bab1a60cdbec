"""What a codestream says of itself: size, precision, sign, tiles, levels, styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["raw", "rle", "jpeg", "jpeg-lossless", "jpeg-ls", "jpeg2000", "htj2k"]


@dataclass(frozen=True)
class Codestream:
    """The header facts of one frame's codestream.

    rows, columns: the size of the image area in pixels.
    precision: bits a sample, 1 to 38 by the standards; this package decodes up to 16.
    signed: whether samples are two's complement. Only the JPEG 2000 family can say so.
    offset, length: where the bare codestream lies in the frame's bytes (a JP2 box is skipped).
    """

    format: Format
    rows: int
    columns: int
    precision: int
    signed: bool
    components: int = 1
    offset: int = 0
    length: int = 0
    big_endian: bool = False
    """Of raw samples only."""

    # JPEG 2000 family (ISO/IEC 15444-1 Annex A)
    complete: bool = True
    """Whether the codestream reaches its own end: all announced tile-parts, or an EOI marker. Some
    decoders fill what a truncated stream lacks with grey and call it decoded."""
    boxed: bool = False
    tiles: int = 1
    origin: tuple[int, int] = (0, 0)
    """(row, column) of the image area on the reference grid."""
    subsampling: tuple[int, int] = (1, 1)
    levels: int = 0
    """Wavelet decomposition levels: the image is held at 1/2^r for r = 0 ... levels."""
    wavelet: Literal["", "5/3", "9/7"] = ""
    progression: str = ""
    layers: int = 1
    codeblock: tuple[int, int] = (0, 0)
    """(rows, columns) of a code-block."""
    styles: tuple[str, ...] = ()
    region_of_interest: bool = False
    packets: int = 0
    """The fewest packets that these tiles, levels, precincts and layers make: a byte each."""
    codeblocks: int = 0
    tile_overrides: bool = False
    """Whether a tile-part's header changes coding parameters of the main header."""
    markers: tuple[str, ...] = ()
    """The marker segments of all headers beside SIZ, COD, QCD and COM, sorted: "CAP", "TLM", "PPM",
    or "FF6F" where 15444-1 and -15 know no name."""
    high_throughput: int = 0
    """Ccap15 of an HTJ2K codestream (15444-15 A.3): which kinds of HT code-blocks it may hold."""
    defects: tuple[str, ...] = ()
    """What its headers say against the standard. Some decoders go on, others refuse."""

    # JPEG family (ITU-T T.81, T.87)
    process: str = ""
    predictor: int = 0
    point_transform: int = 0
    near: int = 0
    restart_interval: int = 0

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def reversible(self) -> bool:
        """Whether the codestream's own coding loses nothing, as far as its header tells."""
        if self.format in ("jpeg2000", "htj2k"):
            return self.wavelet == "5/3"
        if self.format == "jpeg-lossless":
            return self.point_transform == 0
        if self.format == "jpeg-ls":
            return self.near == 0
        return self.format != "jpeg"


def u16(view: memoryview, position: int) -> int:
    """Return the big-endian 16-bit number at `position`."""
    return view[position] << 8 | view[position + 1]


def u32(view: memoryview, position: int) -> int:
    """Return the big-endian 32-bit number at `position`."""
    return u16(view, position) << 16 | u16(view, position + 2)
