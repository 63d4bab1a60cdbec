"""Takes a JPEG 2000 codestream, gives the parameters that decoding needs (15444-1 Annex A)."""

from __future__ import annotations

from dataclasses import dataclass

from fastmammo.errors import CorruptCodestreamError

SIZ, COD, COC, QCD, QCC, RGN, POC = 0xFF51, 0xFF52, 0xFF53, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F
PPM, PPT, PLT, COM, SOT, SOD = 0xFF60, 0xFF61, 0xFF58, 0xFF64, 0xFF90, 0xFF93


@dataclass(frozen=True)
class Header:
    """The coding parameters of a one-tile, one-component codestream with the 5/3 wavelet.

    precincts: (log2 rows, log2 columns) for each resolution, the lowest first.
    planes: magnitude bit planes of each band (E-2): LL, then HL, LH, HH for each resolution.
    parts: (start, end) of each tile-part's packets, in bytes of the codestream.
    """

    rows: int
    columns: int
    precision: int
    signed: bool
    levels: int
    layers: int
    progression: int
    block_rows: int
    block_columns: int
    precincts: tuple[tuple[int, int], ...]
    planes: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]

    def size(self, resolution: int) -> tuple[int, int]:
        """Return (rows, columns) of the image at a resolution, 0 to `levels` (B-14)."""
        scale = 1 << (self.levels - resolution)
        return -(-self.rows // scale), -(-self.columns // scale)


def corrupt(what: str) -> CorruptCodestreamError:
    """Return the error that every part of this decoder raises."""
    return CorruptCodestreamError(
        f"JPEG 2000 codestream: {what}; the file may be damaged, or backend='openjpeg' reads it"
    )


def read_header(view: memoryview) -> Header:
    """Return the parameters of a bare codestream (SOC first).

    Raises:
        CorruptCodestreamError: a header breaks off, contradicts itself, or holds what
            `fastmammo.decoding.numba` does not decode.
    """
    try:
        return _read_header(view)
    except IndexError:
        raise corrupt(f"the headers break off in {len(view)} bytes") from None


def _read_header(view: memoryview) -> Header:
    if _u16(view, 2) != SIZ:
        raise corrupt(f"no SIZ marker after SOC but {_u16(view, 2):04X}")
    at, cod, qcd = 2, -1, -1
    while (marker := _u16(view, at)) != SOT:
        if marker == COD:
            cod = at
        elif marker == QCD:
            qcd = at
        elif marker in (COC, QCC, RGN, POC, PPM) or marker < 0xFF00:
            raise corrupt(f"marker {marker:04X} at byte {at} of the main header is not decoded")
        at += 2 + _u16(view, at + 2)
    if cod < 0 or qcd < 0:
        raise corrupt("the main header has no COD or no QCD marker")
    size = tuple(_u32(view, at) for at in range(8, 40, 4))
    whole = size[4] >= size[0] and size[5] >= size[1] and not any((*size[2:4], *size[6:8]))
    if not whole or _u16(view, 40) != 1 or (view[43], view[44]) != (1, 1):
        raise corrupt("more than one tile or component, or an offset")
    if view[42] & 0x7F > 15:
        raise corrupt(f"{(view[42] & 0x7F) + 1} bits a sample, 16 at most")
    if (view[cod + 12], view[cod + 13]) != (0, 1):
        raise corrupt(f"code-block style {view[cod + 12]} or wavelet {view[cod + 13]}: not decoded")
    levels, layers = view[cod + 9], _u16(view, cod + 6)
    block_rows, block_columns = (4 << (view[cod + 11] & 15)), (4 << (view[cod + 10] & 15))
    sizes_fit = max(block_rows, block_columns) <= 1024 and block_rows * block_columns <= 4096
    if levels > 32 or layers == 0 or not sizes_fit:
        raise corrupt(
            f"impossible COD marker: {levels} levels, {layers} layers, "
            f"code-blocks {block_rows} x {block_columns}"
        )
    precincts = ((15, 15),) * (levels + 1)
    if view[cod + 4] & 1:
        sizes = [view[cod + 14 + r] for r in range(levels + 1)]
        precincts = tuple((size >> 4, size & 15) for size in sizes)
        if any(min(size) == 0 for size in precincts[1:]):
            raise corrupt("a precinct of one sample above the lowest resolution")
    style, bands = view[qcd + 4], 3 * levels + 1
    if style & 31 or _u16(view, qcd + 2) < 3 + bands:
        raise corrupt(f"the QCD marker (style {style & 31}) does not fit {bands} reversible bands")
    return Header(
        rows=_u32(view, 12),
        columns=_u32(view, 8),
        precision=(view[42] & 0x7F) + 1,
        signed=bool(view[42] & 0x80),
        levels=levels,
        layers=layers,
        progression=view[cod + 5],
        block_rows=block_rows,
        block_columns=block_columns,
        precincts=precincts,
        planes=tuple((style >> 5) + (view[qcd + 5 + band] >> 3) - 1 for band in range(bands)),
        parts=_tile_parts(view, at),
    )


def _tile_parts(view: memoryview, at: int) -> tuple[tuple[int, int], ...]:
    parts = []
    while at + 12 <= len(view) and _u16(view, at) == SOT:
        tile, length = _u16(view, at + 4), _u32(view, at + 6)
        end = at + length if length else len(view)
        if tile or end > len(view) or (length and length < 14):
            raise corrupt(f"tile-part of tile {tile} at byte {at}: {length} of {len(view)} bytes")
        start = at + 12
        while (marker := _u16(view, start)) != SOD:
            if marker not in (COM, PLT) or start >= end:
                raise corrupt(f"marker {marker:04X} in a tile-part header is not decoded")
            start += 2 + _u16(view, start + 2)
        if start + 2 > end:
            raise corrupt("a tile-part header longer than its tile-part")
        parts.append((start + 2, end))
        at = end
    return tuple(parts)


def _u16(view: memoryview, at: int) -> int:
    return view[at] << 8 | view[at + 1]


def _u32(view: memoryview, at: int) -> int:
    return _u16(view, at) << 16 | _u16(view, at + 2)
