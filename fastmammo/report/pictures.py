"""Pictures for people: takes finished images and what is known of them, gives annotated PNGs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmammo.decoding import FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fastmammo.preprocess import Prepared

_BACKGROUND = (24, 26, 30)
_INK = (228, 230, 235)
_MUTED = (150, 156, 166)
_MASK = np.array((70, 150, 255), np.float32)
_BOX = (255, 176, 0)
_GAP = 16


def contact_sheet(
    images: Sequence[NDArray[np.generic]],
    captions: Sequence[str],
    path: Path | str,
    *,
    columns: int = 4,
    height: int = 420,
    title: str = "",
) -> None:
    """Write a PNG with the images (uint8 or uint16, 2-D) in rows, a caption under each."""
    font, small = ImageFont.load_default(size=22), ImageFont.load_default(size=13)
    thumbs = [_to_height(_grey(image), height) for image in images]
    columns = max(1, min(columns, len(thumbs)))
    width = max((thumb.width for thumb in thumbs), default=height)
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    cell = height + 8 + 17 * lines
    rows = -(-len(thumbs) // columns)
    head = 44 if title else 0
    sheet = Image.new(
        "RGB",
        (_GAP + columns * (width + _GAP), head + _GAP + rows * (cell + _GAP)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP), title, _INK, font)
    for i, (thumb, caption) in enumerate(zip(thumbs, captions, strict=True)):
        x = _GAP + i % columns * (width + _GAP)
        y = head + _GAP + i // columns * (cell + _GAP)
        sheet.paste(thumb, (x + (width - thumb.width) // 2, y))
        draw.text((x, y + height + 6), caption, _INK, small)
    sheet.save(path)


def explain(prepared: Prepared, path: Path | str, *, frame: int = 0, height: int = 720) -> None:
    """Write a PNG: the original, the breast mask, the crop box and the result, side by side.

    `prepared` must still hold the frames' bytes, as `Preprocessor.prepare` gives it.
    """
    decoder = FrameDecoder(prepared.mammogram, frame=frame)
    level = int(prepared.record["roi_level"])
    small = decoder.at(level)
    voi = prepared.voi
    shown = voi.values[np.clip(small.astype(np.int32), voi.first, voi.last) - voi.first]
    if voi.bits == 16:
        shown = (shown.astype(np.uint32) // 257).astype(np.uint8)
    original = _to_height(Image.fromarray(shown.astype(np.uint8)), height)
    panels = [
        (original, "original"),
        (_masked(shown, prepared, height), "breast mask"),
        (_boxed(original, prepared), "crop box"),
        (_to_height(_grey(prepared.image), height), "result"),
    ]
    _side_by_side(panels, _facts(prepared), path)


def _masked(shown: NDArray[np.generic], prepared: Prepared, height: int) -> Image.Image:
    colour = np.repeat(shown.astype(np.float32)[..., None], 3, axis=2)
    mask = prepared.roi.mask
    if mask is not None and mask.shape == shown.shape:
        colour[mask] = 0.6 * colour[mask] + 0.4 * _MASK
    return _to_height(Image.fromarray(colour.astype(np.uint8)), height)


def _boxed(original: Image.Image, prepared: Prepared) -> Image.Image:
    image = original.convert("RGB")
    g = prepared.geometry
    y, x = image.height / g.rows, image.width / g.columns
    r0, c0, r1, c1 = g.box
    edges = (c0 * x, r0 * y, max(c1 * x - 1, c0 * x), max(r1 * y - 1, r0 * y))
    ImageDraw.Draw(image).rectangle(edges, outline=_BOX, width=3)
    return image


def _facts(prepared: Prepared) -> list[str]:
    m, g, r = prepared.mammogram, prepared.geometry, prepared.record
    return [
        f"{m.image_laterality or '?'} {m.view_position or '?'} · {m.rows} x {m.columns} · "
        f"{m.bits_stored} of {m.bits_allocated} bit · {m.photometric_interpretation} · "
        f"{m.transfer_syntax.name}",
        f"decoder {r['decoder']} · level {g.level} · window: {prepared.voi.rule} · "
        f"Otsu threshold {prepared.roi.threshold} · breast {prepared.roi.area_share:.1%} of frame",
        f"box {tuple(round(edge, 1) for edge in g.box)} to {g.placed} of {g.size[0]} x {g.size[1]}"
        f"{', mirrored' if g.mirrored else ''} · flags: {', '.join(prepared.flags) or 'none'}",
    ]


def _side_by_side(
    panels: list[tuple[Image.Image, str]], facts: list[str], path: Path | str
) -> None:
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    top = _GAP + 24
    height = max(panel.height for panel, _ in panels)
    width = max(sum(panel.width + _GAP for panel, _ in panels) + _GAP, 900)
    sheet = Image.new("RGB", (width, top + height + 14 + 22 * len(facts) + _GAP), _BACKGROUND)
    draw, x = ImageDraw.Draw(sheet), _GAP
    for panel, title in panels:
        draw.text((x, _GAP - 4), title, _INK, font)
        sheet.paste(panel, (x, top))
        x += panel.width + _GAP
    for i, line in enumerate(facts):
        draw.text((_GAP, top + height + 12 + 22 * i), line, _MUTED, small)
    sheet.save(path)


def _grey(image: NDArray[np.generic]) -> Image.Image:
    if image.dtype == np.uint16:
        image = (image.astype(np.uint32) // 257).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(image))


def _to_height(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    kind = Image.Resampling.LANCZOS if image.height > height else Image.Resampling.BILINEAR
    return image.resize((width, height), kind)
