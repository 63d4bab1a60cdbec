"""The main header of JPEG 2000 and HTJ2K codestreams, raw or JP2-boxed (ISO/IEC 15444-1)."""

from __future__ import annotations

from fastmammo.dicom.facts import Codestream, u16, u32
from fastmammo.errors import CorruptCodestreamError, UnsupportedImageError

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


def read_jpeg2000(view: memoryview) -> Codestream:
    """Return the header facts of a JP2 file or a bare codestream.

    Raises:
        CorruptCodestreamError: no main header, or it breaks off.
        UnsupportedImageError: a JP2 palette.
    """
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
        length = u32(view, position)
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
        u32(view, 12) - u32(view, 20),
        u32(view, 8) - u32(view, 16),
        u32(view, 20),
        u32(view, 16),
        u32(view, 28),
        u32(view, 24),
        u32(view, 36),
        u32(view, 32),
    )
    capabilities = u16(view, 6)
    components = u16(view, 40)
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
    block_rows = block_columns = 1
    precincts: tuple[tuple[int, int], ...] = ()
    high_throughput, region = bool(capabilities & 0x4000), False
    position = 2
    while True:
        marker, length = u16(view, position), u16(view, position + 2)
        if marker in (0xFF90, 0xFFD9):  # SOT: the main header is over; EOC: no tile at all
            break
        if marker < 0xFF00 or length < 2:
            raise CorruptCodestreamError(
                f"no marker at byte {offset + position} of the JPEG 2000 main header: {marker:04X}"
            )
        if marker == 0xFF52:  # COD
            progression, layers = view[position + 5], u16(view, position + 6)
            levels, style, wavelet = view[position + 9], view[position + 12], view[position + 13]
            block_columns = 1 << ((view[position + 10] & 15) + 2)
            block_rows = 1 << ((view[position + 11] & 15) + 2)
            if view[position + 4] & 1:  # one byte a resolution: PPx below, PPy above (A.6.1)
                sizes = view[position + 14 : position + 2 + length]
                precincts = tuple((1 << (size >> 4), 1 << (size & 15)) for size in sizes)
        elif marker == 0xFF53 and components == 1:  # COC overrides COD for its component
            levels, style, wavelet = view[position + 6], view[position + 9], view[position + 10]
        elif marker == 0xFF50:  # CAP: bit 15 of Pcap is Part 15, HTJ2K
            high_throughput |= bool(u32(view, position + 4) & (1 << 17))
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
    tile = min(tile_rows, rows), min(tile_columns, columns)
    whole_tiles = max(1, (rows // tile[0]) * (columns // tile[1]))
    complete, overrides = _tile_parts(view, position, tiles)
    return Codestream(
        format="htj2k" if high_throughput else "jpeg2000",
        complete=complete,
        tile_overrides=overrides,
        packets=whole_tiles * layers * _precincts(tile, levels, precincts),
        codeblocks=-(-rows // block_rows) * -(-columns // block_columns),
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


def _precincts(tile: tuple[int, int], levels: int, sizes: tuple[tuple[int, int], ...]) -> int:
    """Return the fewest precincts of a tile over all its resolutions (15444-1 B.6)."""
    total = 0
    for resolution in range(levels + 1):
        scale = 1 << (levels - resolution)
        down, across = sizes[resolution] if resolution < len(sizes) else (1 << 15, 1 << 15)
        total += max(1, tile[0] // scale // down) * max(1, tile[1] // scale // across)
    return total


def _tile_parts(view: memoryview, position: int, tiles: int) -> tuple[bool, bool]:
    """Walk the tile-parts (15444-1 A.4.2) from `position` on.

    Returns:
        Whether every tile is there with all its parts, each within the bytes; and whether the
        first part's header changes coding parameters.
    """
    end, overrides = len(view), False
    parts: dict[int, int] = {}
    announced: dict[int, int] = {}
    while position + 12 <= end and u16(view, position) == 0xFF90:
        tile, length = u16(view, position + 4), u32(view, position + 6)
        if not parts:
            overrides = _overrides(view, position + 12)
        if length == 0:  # the last tile-part: up to EOC
            if not bytes(view[-64:]).rstrip(b"\0").endswith(b"\xff\xd9"):
                return False, overrides
            length = end - position
        if length < 14 or position + length > end:
            return False, overrides
        parts[tile] = parts.get(tile, 0) + 1
        announced[tile] = max(announced.get(tile, 0), view[position + 11])
        position += length
    whole = all(announced[tile] in (0, count) for tile, count in parts.items())
    return whole and parts.keys() == set(range(tiles)), overrides


def _overrides(view: memoryview, position: int) -> bool:
    """Whether a tile-part header holds COD, COC, RGN, QCD, QCC or POC before its data."""
    while position + 4 <= len(view):
        marker = u16(view, position)
        if marker in (0xFF52, 0xFF53, 0xFF5E, 0xFF5C, 0xFF5D, 0xFF5F):
            return True
        if marker == 0xFF93 or marker < 0xFF00:
            return False
        position += 2 + max(2, u16(view, position + 2))
    return False
