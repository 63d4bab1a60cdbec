"""Takes images with what is known of them, gives them as figures of a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from fastmammo.report.html import Markup, element, escape, png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_HEIGHT = 380
"""Of a picture, in pixels: two stand beside each other in a column of a page."""
_ROI, _LESION = (86, 180, 233), (120, 220, 80)
_OPAQUE = 0.6
_AIR = 4
"""Grey levels above the darkest that still are air: what compression leaves of it."""

Edges = tuple[float, float, float, float]


@dataclass
class Case:
    """One image that is shown.

    image: uint8 (rows, columns), as the model saw it.
    heat: float32 (rows, columns) in [0, 1], or None where there is no heat map.
    roi: the part of the image that holds the breast's crop; the rest is padding.
    lesions: boxes of boxes.csv, on the image.
    """

    row: Mapping[str, Any]
    image: NDArray[np.uint8]
    heat: NDArray[np.float32] | None = None
    roi: Edges | None = None
    lesions: list[Edges] = field(default_factory=list)


def gallery(cases: Sequence[Case]) -> Markup:
    """Return the cases as figures: the image as it is, beside it heat map and lesions."""
    return element("div", *(_figure(case) for case in cases), class_="cases")


def single_gallery(cases: Sequence[Case]) -> Markup:
    """Return images without scores: one picture each, with what the table knows of it."""
    figures = []
    for case in cases:
        row = case.row
        truth = {1: "cancer", 0: "no cancer"}.get(row["cancer"], "unlabelled")
        name = f"{row['patient_id']} {row['laterality']} {row['view']}".strip()
        picture = element("div", png(_drawn(case, plain=True, height=190), name), class_="pictures")
        facts = [truth, f"machine {row['machine_id']}"] if row["machine_id"] else [truth]
        caption = element("figcaption", name, Markup("<br>"), element("span", " · ".join(facts)))
        figures.append(element("figure", picture, caption, class_="case"))
    return element("div", *figures, class_="cases single")


def _figure(case: Case) -> Markup:
    row = case.row
    name = f"{row['patient_id']} {row.get('laterality', '')} {row.get('view', '')}".strip()
    pictures = [png(_drawn(case, plain=True), f"image {row['image_id']}")]
    if case.heat is not None or case.lesions:
        what = "heat map" if case.heat is not None else "lesions"
        pictures.append(png(_drawn(case, plain=False), f"{what} of image {row['image_id']}"))
    where = [
        f"{title} {row[key]}"
        for key, title in (("site_id", "site"), ("machine_id", "machine"), ("fold", "fold"))
        if str(row.get(key, "")) not in ("", "nan")
    ]
    truth = "cancer" if row["cancer"] == 1 else "no cancer"
    known = {"True": " · called positive", "False": " · called negative"}
    called = known.get(str(row.get("called")), "")
    below = [f"image {row['image_id']}", f"its own score {row['score']:.3f}", *where]
    caption = element(
        "figcaption",
        element("b", f"breast {row.get('breast_score', row['score']):.3f}"),
        f"{called} · {truth} · {name}",
        Markup("<br>"),
        element("span", " · ".join(below)),
    )
    return element("figure", element("div", *pictures, class_="pictures"), caption, class_="case")


def _drawn(case: Case, *, plain: bool, height: int = _HEIGHT) -> Image.Image:
    """Return the picture: plain with the ROI alone, so that the eye can search by itself first."""
    rows, columns = case.image.shape
    height = min(height, max(rows, 160))
    scale = height / rows
    size = max(1, round(columns * scale)), height
    grey = Image.fromarray(case.image).resize(size, Image.Resampling.LANCZOS)
    if plain and case.roi is None:
        return grey
    picture = grey.convert("RGB")
    if not plain and case.heat is not None:
        strength = Image.fromarray(_on_breast(case)).resize(size, Image.Resampling.BILINEAR)
        share = np.asarray(strength, np.float32).clip(0, 1)
        colours = matplotlib.colormaps["inferno"](share)[..., :3].astype(np.float32) * 255
        cover = (_OPAQUE * share)[..., None]
        base = np.asarray(picture, np.float32)
        picture = Image.fromarray((base * (1 - cover) + colours * cover).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    if plain and case.roi is not None:
        draw.rectangle(_corners(case.roi, scale), outline=_ROI, width=1)
    for edges in [] if plain else case.lesions:
        draw.rectangle(_corners(edges, scale, grow=3), outline=_LESION, width=2)
    return picture


def _on_breast(case: Case) -> NDArray[np.float32]:
    """Return the heat map without what glows in the air, again with its maximum at 1.

    A map of few cells is drawn much larger than it is, and a border of the image is an edge to the
    network. The breast goes from the first to the last pixel above air of each row and column.
    """
    heat_map = case.heat if case.heat is not None else np.zeros(case.image.shape, np.float32)
    above = case.image > int(case.image.min()) + _AIR
    if case.roi is not None:
        row0, column0, row1, column1 = (round(edge) for edge in case.roi)
        inside = np.zeros_like(above)
        inside[row0:row1, column0:column1] = True
        above &= inside
    breast = _between(above, 0) & _between(above, 1)
    heat: NDArray[np.float32] = np.where(breast, heat_map, np.float32(0))
    top = float(heat.max())
    return heat / np.float32(top) if top > 0 else heat


def _between(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return what lies between the first and the last True along an axis, both included."""
    after = np.logical_or.accumulate(mask, axis)
    before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
    found: NDArray[np.bool_] = after & before
    return found


def _corners(edges: Edges, scale: float, grow: float = 0.0) -> tuple[float, float, float, float]:
    row0, column0, row1, column1 = (edge * scale for edge in edges)
    x0, y0 = max(0.0, column0 - grow), max(0.0, row0 - grow)
    return x0, y0, max(x0, column1 - 1 + grow), max(y0, row1 - 1 + grow)


def legend(cases: Mapping[str, Sequence[Case]]) -> Markup:
    """Return what the colours in the pictures mean."""
    every = [case for group in cases.values() for case in group]
    parts: list[object] = ["Left the image as the model saw it"]
    if any(case.heat is not None for case in every):
        parts.append(
            ", right with a heat map (Grad-CAM) of what spoke for cancer, each on a scale of its "
            "own: it tells where, not how much, and a map of a low score is mostly noise"
        )
    parts.append(". ")
    for there, colour, words in (
        (any(case.roi is not None for case in every), _ROI, "the crop around the breast (ROI)"),
        (any(case.lesions for case in every), _LESION, "lesion of the table of boxes"),
    ):
        if there:
            key = f'<span class="key" style="background:rgb{colour}"></span>'
            parts += [Markup(key), words]
    return Markup("".join(escape(part) for part in parts))
