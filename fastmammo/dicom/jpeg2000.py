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

_MARKERS = {
    0xFF50: "CAP",
    0xFF53: "COC",
    0xFF55: "TLM",
    0xFF56: "PRF",
    0xFF57: "PLM",
    0xFF58: "PLT",
    0xFF59: "CPF",
    0xFF5D: "QCC",
    0xFF5E: "RGN",
    0xFF5F: "POC",
    0xFF60: "PPM",
    0xFF61: "PPT",
    0xFF63: "CRG",
}
_IN_TILE_PARTS = frozenset({0xFF52, 0xFF53, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF58, 0xFF61, 0xFF64})
_COMMON = (0xFF51, 0xFF52, 0xFF5C, 0xFF64)
"""SIZ, COD, QCD and COM, which Codestream.markers leaves out."""


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
    kinds, markers = 0, set()
    cod, qcd = view[:0], view[:0]
    misplaced: list[str] = []
    position = 2
    while True:
        marker, length = u16(view, position), u16(view, position + 2)
        if marker in (0xFF90, 0xFFD9):  # SOT: the main header is over; EOC: no tile at all
            break
        if marker < 0xFF00 or length < 2:
            raise CorruptCodestreamError(
                f"no marker at byte {offset + position} of the JPEG 2000 main header: {marker:04X}"
            )
        if marker in (0xFF58, 0xFF61) or (marker == 0xFF51) != (position == 2):
            misplaced.append(f"marker {marker:04X} in the main header")
        markers.add(marker)
        if marker == 0xFF52:  # COD
            cod = view[position : position + 2 + length]
            progression, layers = view[position + 5], u16(view, position + 6)
            levels, style, wavelet = view[position + 9], view[position + 12], view[position + 13]
            block_columns = 1 << ((view[position + 10] & 15) + 2)
            block_rows = 1 << ((view[position + 11] & 15) + 2)
            if view[position + 4] & 1:  # one byte a resolution: PPx below, PPy above (A.6.1)
                sizes = view[position + 14 : position + 2 + length]
                precincts = tuple((1 << (size >> 4), 1 << (size & 15)) for size in sizes)
        elif marker == 0xFF53 and components == 1:  # COC overrides COD for its component
            levels, style, wavelet = view[position + 6], view[position + 9], view[position + 10]
            block_columns = 1 << ((view[position + 7] & 15) + 2)
            block_rows = 1 << ((view[position + 8] & 15) + 2)
        elif marker == 0xFF50:  # CAP: bit 15 of Pcap is Part 15, HTJ2K
            pcap = u32(view, position + 4)
            high_throughput |= bool(pcap & (1 << 17))
            if length != 6 + 2 * bin(pcap).count("1"):  # a Ccap word for each bit, in their order
                misplaced.append(f"a CAP marker of {length} bytes for {pcap:08X}")
            elif pcap & (1 << 17):
                kinds = u16(view, position + 8 + 2 * bin(pcap >> 18).count("1"))
        elif marker == 0xFF5C:
            qcd = view[position : position + 2 + length]
        elif marker == 0xFF5E:
            region = True
        position += 2 + length
    if levels < 0 or levels > 32:
        raise CorruptCodestreamError(
            "the JPEG 2000 main header has no COD marker"
            if levels < 0
            else f"impossible COD marker: {levels} decomposition levels, allowed are 0 to 32"
        )
    defects = [*misplaced, *_defects(cod, qcd, levels, wavelet)]
    if style & 0x40:
        high_throughput = True
        if not capabilities & 0x4000 or 0xFF50 not in markers:
            defects.append("HT code-blocks that Rsiz and CAP do not announce")
    if tile_row0 > row0 or tile_column0 > column0:
        defects.append("a tile grid that begins within the image")
    tile = min(tile_rows, rows), min(tile_columns, columns)
    whole_tiles = max(1, (rows // tile[0]) * (columns // tile[1]))
    complete, overrides = _tile_parts(view, position, tiles, markers, defects)
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
        markers=tuple(sorted(_MARKERS.get(m, f"{m:04X}") for m in markers.difference(_COMMON))),
        high_throughput=kinds,
        defects=tuple(defects[:5]),  # one tells enough, and a hostile file has 100,000
    )


def _defects(cod: memoryview, qcd: memoryview, levels: int, wavelet: int) -> list[str]:
    """Return what COD and QCD say against 15444-1 A.6.1 and A.6.4 for one component."""
    found = []
    sizes = levels + 1 if cod[4] & 1 else 0
    if len(cod) != 14 + sizes:
        found.append(f"a COD marker of {len(cod)} bytes for {levels} levels")
    if not u16(cod, 6):
        found.append("0 layers")
    if cod[5] > 4:
        found.append(f"progression order {cod[5]}")
    if cod[8]:
        found.append("a component transform of one component")
    if cod[10] > 8 or cod[11] > 8 or cod[10] + cod[11] > 8:
        found.append(f"code-block exponents {cod[10]} and {cod[11]}")
    if cod[12] & 0x80:
        found.append("code-block style 0x80")
    if wavelet > 1:
        found.append(f"wavelet {wavelet}")
    # Sqcd: 0 no quantization (5/3), 1 one step for all, 2 a step a sub-band (A.6.4)
    kind = qcd[4] & 31 if len(qcd) > 4 else 3
    wanted = {0: 6 + 3 * levels, 1: 7, 2: 7 + 6 * levels}.get(kind, -1)
    if len(qcd) != wanted or (kind == 0) != (wavelet == 1):
        found.append(f"a QCD marker of kind {kind} and {len(qcd)} bytes for {levels} levels")
    return found


def _precincts(tile: tuple[int, int], levels: int, sizes: tuple[tuple[int, int], ...]) -> int:
    """Return the fewest precincts of a tile over all its resolutions (15444-1 B.6)."""
    total = 0
    for resolution in range(levels + 1):
        scale = 1 << (levels - resolution)
        down, across = sizes[resolution] if resolution < len(sizes) else (1 << 15, 1 << 15)
        total += max(1, tile[0] // scale // down) * max(1, tile[1] // scale // across)
    return total


def _tile_parts(
    view: memoryview, position: int, tiles: int, markers: set[int], defects: list[str]
) -> tuple[bool, bool]:
    """Walk the tile-parts (15444-1 A.4.2) from `position` on, adding to `markers` and `defects`.

    Returns:
        Whether every tile is there with all its parts, each within the bytes; and whether a part's
        header changes coding parameters.
    """
    end, overrides, closed = len(view), False, False
    parts: dict[int, int] = {}
    announced: dict[int, int] = {}
    while position + 12 <= end and u16(view, position) == 0xFF90:
        tile, length = u16(view, position + 4), u32(view, position + 6)
        stop = position + length if length else end
        overrides |= _overrides(view[:stop], position + 12, markers, defects)
        if length == 0:  # the last tile-part: up to EOC
            if not bytes(view[-64:]).rstrip(b"\0").endswith(b"\xff\xd9"):
                return False, overrides
            length, closed = end - position, True
        if length < 14 or position + length > end:
            return False, overrides
        if view[position + 10] != parts.get(tile, 0) or u16(view, position + 2) != 10:
            defects.append(f"tile-part {view[position + 10]} of tile {tile} where it is not due")
        parts[tile] = parts.get(tile, 0) + 1
        announced[tile] = max(announced.get(tile, 0), view[position + 11])
        position += length
    if not closed and bytes(view[position : position + 2]) != b"\xff\xd9":
        defects.append("no EOC marker after the last tile-part")
    whole = all(announced[tile] in (0, count) for tile, count in parts.items())
    return whole and parts.keys() == set(range(tiles)), overrides


def _overrides(view: memoryview, position: int, markers: set[int], defects: list[str]) -> bool:
    """Whether a tile-part header holds COD, COC, RGN, QCD, QCC or POC; adds all to `markers`."""
    found = False
    while position + 4 <= len(view) or bytes(view[position : position + 2]) == b"\xff\x93":
        marker = u16(view, position)
        if marker == 0xFF93:
            break
        if marker not in _IN_TILE_PARTS:
            defects.append(f"{marker:04X} in a tile-part header")
        if marker < 0xFF00:
            break
        markers.add(marker)
        found |= marker in (0xFF52, 0xFF53, 0xFF5E, 0xFF5C, 0xFF5D, 0xFF5F)
        position += 2 + max(2, u16(view, position + 2))
    else:
        defects.append("a tile-part header that breaks off")
    return found
