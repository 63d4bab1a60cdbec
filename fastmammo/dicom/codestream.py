"""Reading a codestream's header: takes one frame's bytes, gives a `Codestream`, decodes nothing.

What the codestream says of itself (size, precision, sign, tiles, levels, styles) decides the
backend and refuses a size bomb before any decoder sees the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastmammo.errors import CorruptCodestreamError, UnsupportedImageError

Format = Literal["raw", "rle", "jpeg", "jpeg-lossless", "jpeg-ls", "jpeg2000", "htj2k"]

JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"

STYLES = {
    0x01: "bypass",
    0x02: "reset",
    0x04: "restart",
    0x08: "vertically causal",
    0x10: "predictable termination",
    0x20: "segmentation symbols",
    0x40: "high throughput",
}


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

    # JPEG family (ITU-T T.81, T.87)
    process: str = ""
    predictor: int = 0
    point_transform: int = 0
    near: int = 0
    restart_interval: int = 0

    notes: tuple[str, ...] = field(default=())

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


def inspect_codestream(data: bytes | memoryview, family: str) -> Codestream:
    """Return the header facts of one frame's codestream.

    Args:
        data: the frame's bytes: a bare codestream or a JP2 file.
        family: the codec family of the transfer syntax ("jpeg2000", "jpeg-lossless", ...); the
            format that the bytes themselves show is taken where they differ, with a note.

    Raises:
        CorruptCodestreamError: no codestream of a known kind, or its header breaks off.
        UnsupportedImageError: a JP2 palette, or more than one component.
    """
    view = memoryview(data)
    head = bytes(view[:12])
    if head.startswith(b"\xff\x4f\xff\x51") or head == JP2_SIGNATURE:
        found = _jpeg2000(view)
    elif head.startswith(b"\xff\xd8"):
        found = _jpeg(view)
    else:
        raise CorruptCodestreamError(
            f"no {family} codestream: the frame's {len(view)} bytes begin with "
            f"{head[:8].hex(' ')!r}, wanted FF 4F FF 51 (JPEG 2000), a JP2 box or FF D8 (JPEG); "
            "the frame may be damaged or its offset table wrong"
        )
    if found.components != 1:
        raise UnsupportedImageError(
            f"the codestream has {found.components} components; fastmammo decodes greyscale images "
            "(one component)"
        )
    return found


# ---------------------------------------------------------------- JPEG 2000


def _jpeg2000(view: memoryview) -> Codestream:
    start, end, boxed = 0, len(view), False
    if bytes(view[:12]) == JP2_SIGNATURE:
        start, end = _codestream_box(view)
        boxed = True
    try:
        return _main_header(view[start:end], start, boxed)
    except IndexError:
        raise CorruptCodestreamError(
            f"the JPEG 2000 main header breaks off: {end - start} bytes; the file may be truncated"
        ) from None


def _codestream_box(view: memoryview) -> tuple[int, int]:
    """Return (start, end) of the contiguous codestream box, refusing palettes (15444-1 I.5)."""
    for kind, start, end in _boxes(view, 0, len(view)):
        if kind == b"jp2h":
            for inner, _, _ in _boxes(view, start, end):
                if inner == b"pclr":
                    raise UnsupportedImageError(
                        "the JP2 file has a palette box (pclr): its samples are colour indices, "
                        "not grey values; fastmammo decodes greyscale images"
                    )
        elif kind == b"jp2c":
            return start, end
    raise CorruptCodestreamError(
        f"a JP2 file of {len(view)} bytes without a codestream box (jp2c); it may be truncated"
    )


def _boxes(view: memoryview, position: int, end: int) -> list[tuple[bytes, int, int]]:
    boxes = []
    while position + 8 <= end:
        length = _u32(view, position)
        header = 8
        if length == 1 and position + 16 <= end:
            length = int.from_bytes(view[position + 8 : position + 16], "big")
            header = 16
        stop = end if length == 0 else min(position + length, end)
        boxes.append((bytes(view[position + 4 : position + 8]), position + header, stop))
        if length != 0 and length < header:
            break  # a box shorter than its own header would loop for ever
        position = stop
    return boxes


def _main_header(view: memoryview, offset: int, boxed: bool) -> Codestream:
    if bytes(view[:4]) != b"\xff\x4f\xff\x51":
        raise CorruptCodestreamError(
            f"no SOC and SIZ marker where the codestream should begin: {bytes(view[:4]).hex(' ')!r}"
        )
    (rows, columns, row0, column0, tile_rows, tile_columns, tile_row0, tile_column0) = (
        _u32(view, 12) - _u32(view, 20),
        _u32(view, 8) - _u32(view, 16),
        _u32(view, 20),
        _u32(view, 16),
        _u32(view, 28),
        _u32(view, 24),
        _u32(view, 36),
        _u32(view, 32),
    )
    capabilities = _u16(view, 6)
    components = _u16(view, 40)
    depth, step_x, step_y = view[42], view[43], view[44]
    if rows <= 0 or columns <= 0 or tile_rows == 0 or tile_columns == 0 or not step_x or not step_y:
        raise CorruptCodestreamError(
            f"impossible SIZ marker: image {rows} x {columns}, tile {tile_rows} x {tile_columns}, "
            f"sample steps {step_y} x {step_x}"
        )
    tiles_down = -(-(row0 + rows - tile_row0) // tile_rows)
    tiles_across = -(-(column0 + columns - tile_column0) // tile_columns)
    tiles = tiles_down * tiles_across
    if tiles > 65535 or tiles < 1:
        raise CorruptCodestreamError(
            f"impossible SIZ marker: {tiles} tiles, allowed are 1 to 65535"
        )

    levels, style, wavelet, progression, layers = -1, 0, 0, 0, 1
    block_rows = block_columns = 0
    high_throughput, region = bool(capabilities & 0x4000), False
    position = 2
    while True:
        marker, length = _u16(view, position), _u16(view, position + 2)
        if marker in (0xFF90, 0xFFD9):  # SOT: the main header is over; EOC: no tile at all
            break
        if marker < 0xFF00 or length < 2:
            raise CorruptCodestreamError(
                f"no marker at byte {offset + position} of the JPEG 2000 main header: {marker:04X}"
            )
        if marker == 0xFF52:  # COD
            progression, layers = view[position + 5], _u16(view, position + 6)
            levels, style, wavelet = view[position + 9], view[position + 12], view[position + 13]
            block_columns = 1 << ((view[position + 10] & 15) + 2)
            block_rows = 1 << ((view[position + 11] & 15) + 2)
        elif marker == 0xFF53 and components == 1:  # COC overrides COD for its component
            levels, style, wavelet = view[position + 6], view[position + 9], view[position + 10]
        elif marker == 0xFF50:  # CAP: bit 15 of Pcap is Part 15, HTJ2K
            high_throughput |= bool(_u32(view, position + 4) & (1 << 17))
        elif marker == 0xFF5E:
            region = True
        position += 2 + length
    if levels < 0 or levels > 32:
        raise CorruptCodestreamError(
            "the JPEG 2000 main header has no COD marker"
            if levels < 0
            else f"impossible COD marker: {levels} decomposition levels, allowed are 0 to 32"
        )
    if style & 0x40:
        high_throughput = True
    return Codestream(
        format="htj2k" if high_throughput else "jpeg2000",
        complete=_tile_parts_complete(view, position),
        rows=-(-(row0 + rows) // step_y) - -(-row0 // step_y),
        columns=-(-(column0 + columns) // step_x) - -(-column0 // step_x),
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        components=components,
        offset=offset,
        length=len(view),
        boxed=boxed,
        tiles=tiles,
        origin=(row0, column0),
        subsampling=(step_y, step_x),
        levels=levels,
        wavelet="5/3" if wavelet == 1 else "9/7",
        progression=("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")[min(progression, 4)],
        layers=layers,
        codeblock=(block_rows, block_columns),
        styles=tuple(name for bit, name in STYLES.items() if style & bit),
        region_of_interest=region,
    )


def _tile_parts_complete(view: memoryview, position: int) -> bool:
    """Whether every tile-part from `position` on lies within the bytes (15444-1 A.4.2)."""
    end, parts = len(view), 0
    while position + 12 <= end and _u16(view, position) == 0xFF90:
        length = _u32(view, position + 6)
        if length == 0:  # the last tile-part: up to EOC
            return bytes(view[-64:]).rstrip(b"\0").endswith(b"\xff\xd9")
        if length < 14:
            return False
        position += length
        parts += 1
    return parts > 0 and position <= end


# ---------------------------------------------------------------- JPEG and JPEG-LS

_PROCESSES = {
    0xC0: "baseline",
    0xC1: "extended sequential",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC9: "extended sequential, arithmetic",
    0xCA: "progressive, arithmetic",
    0xCB: "lossless, arithmetic",
    0xF7: "JPEG-LS",
}


def _jpeg(view: memoryview) -> Codestream:
    """Read SOF, DRI and the first SOS (ITU-T T.81 B.2, T.87 C.2)."""
    position, end = 2, len(view)
    frame: dict[str, int] | None = None
    process, restart = 0, 0
    try:
        while True:
            if view[position] != 0xFF:
                raise CorruptCodestreamError(
                    f"no marker at byte {position} of the JPEG header: {view[position]:02X}"
                )
            while view[position + 1] == 0xFF:  # fill bytes (T.81 B.1.1.2)
                position += 1
            marker = view[position + 1]
            position += 2
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:
                continue
            if marker == 0xD9:
                raise CorruptCodestreamError("the JPEG ends (EOI) before its scan begins")
            length = _u16(view, position)
            if length < 2:
                raise CorruptCodestreamError(f"JPEG marker FF{marker:02X} with length {length}")
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                process = marker
                frame = {
                    "precision": view[position + 2],
                    "rows": _u16(view, position + 3),
                    "columns": _u16(view, position + 5),
                    "components": view[position + 7],
                }
            elif marker == 0xDD:
                restart = _u16(view, position + 2)
            elif marker == 0xDA:
                break
            position += length
        if frame is None:
            raise CorruptCodestreamError("the JPEG has a scan (SOS) but no frame header (SOF)")
        scan = position + 3 + 2 * view[position + 2]
        first, last, shift = view[scan], view[scan + 1], view[scan + 2] & 15
    except IndexError:
        raise CorruptCodestreamError(
            f"the JPEG header breaks off: {end} bytes; the file may be truncated"
        ) from None
    del last
    if process == 0xF7:
        kind: Format = "jpeg-ls"
    else:
        kind = "jpeg-lossless" if process in (0xC3, 0xCB) else "jpeg"
    return Codestream(
        format=kind,
        rows=frame["rows"],
        columns=frame["columns"],
        precision=frame["precision"],
        signed=False,
        components=frame["components"],
        length=end,
        # Entropy-coded data never holds FF D9: after FF comes 00 (T.81 F.1.2.3) or a 0 bit (T.87).
        complete=bytes(view[position:]).rfind(b"\xff\xd9") >= 0,
        process=_PROCESSES.get(process, f"SOF{process - 0xC0}"),
        predictor=first if kind == "jpeg-lossless" else 0,
        point_transform=shift if kind == "jpeg-lossless" else 0,
        near=first if kind == "jpeg-ls" else 0,
        restart_interval=restart,
    )


def _u16(view: memoryview, position: int) -> int:
    return view[position] << 8 | view[position + 1]


def _u32(view: memoryview, position: int) -> int:
    return _u16(view, position) << 16 | _u16(view, position + 2)
