"""Takes a breast and a kind of lesion, draws it into the brightness, gives its true box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.testing.anatomy import Breast, Grid
    from fastmammo.testing.texture import Field

Kind = Literal["calcifications", "round mass", "irregular mass", "spiculated mass"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Lesion:
    """A finding and where it is.

    kind: one of `KINDS`.
    box: (row0, column0, row1, column1), half open, around all of it, spicules too.
    contrast: the peak of what it adds, over the mean brightness of the tissue around it (its box
        before it was drawn), without noise and before detector blur. A calcification smaller
        than a pixel keeps its sum, so its pixel shows less.
    """

    kind: Kind
    box: Box
    contrast: float


def add_lesion(
    brightness: Field,
    kind: Kind,
    contrast: float,
    centre: tuple[float, float],
    pixel: float,
    generator: np.random.Generator,
) -> Lesion:
    """Draws one lesion in place.

    A round mass is 7 to 16 mm wide with a sharp edge, an irregular one lobed and ill-defined, a
    spiculated one 6 to 12 mm with 14 to 26 strands to 2.5 radii from its middle; calcifications
    are 8 to 20 grains of 0.2 to 0.6 mm within 5 to 12 mm.

    Args:
        brightness: (rows, columns); only tissue (above 0) is changed.
        kind: what to draw.
        contrast: see `Lesion`.
        centre: (y, x) in mm.
        pixel: mm.
        generator: the source of randomness.
    """
    if kind == "calcifications":
        added, corner = _grains(brightness.shape, centre, pixel, generator)
    else:
        added, corner = _mass(brightness.shape, kind, centre, pixel, generator)
    rows = slice(corner[0], corner[0] + added.shape[0])
    columns = slice(corner[1], corner[1] + added.shape[1])
    patch = brightness[rows, columns]
    tissue = patch > 0
    around = float(patch[tissue].mean()) if tissue.any() else 0.0
    added = np.where(tissue, added, 0).astype(np.float32)
    patch += np.float32(contrast * around) * added
    seen = added >= 0.1 * added.max()  # all of it where nothing is: a box is never empty
    ys, xs = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    box = (
        corner[0] + int(ys[0]),
        corner[1] + int(xs[0]),
        corner[0] + int(ys[-1]) + 1,
        corner[1] + int(xs[-1]) + 1,
    )
    return Lesion(kind, box, contrast)


def find_place(
    grid: Grid,
    breast: Breast,
    taken: list[tuple[float, float]],
    depths: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[float, float]:
    """A place for a lesion, (y, x) in mm: 14 mm inside the skin, off the muscle and the others.

    Args:
        grid, breast: where there is tissue.
        taken: places of other lesions.
        depths: how far behind the nipple, as shares of the breast's depth.
        generator: the source of randomness.

    Returns:
        The first of 60 draws that fits, or else the draw deepest inside the skin.
    """
    y, x = breast.nipple
    best, deepest = (y, 0.5 * x), -np.inf
    for _ in range(60):
        behind = generator.uniform(*depths)
        across = generator.uniform(-0.6, 0.6) * np.sqrt(behind)
        place = (
            y - breast.axis_tilt * behind * breast.depth + across * breast.half_width,
            x - behind * breast.depth,
        )
        at = (
            min(max(round(place[0] / grid.pitch), 0), breast.depth_in.shape[0] - 1),
            min(max(round(place[1] / grid.pitch), 0), breast.depth_in.shape[1] - 1),
        )
        inside = float(breast.depth_in[at])
        if breast.without_belly is not None and breast.without_belly[at] <= 0:
            inside = -1.0
        if breast.pectoral is not None:
            inside = min(inside, 6.0 - float(breast.pectoral[at]))
        inside = min([inside, *(np.hypot(place[0] - t[0], place[1] - t[1]) - 10 for t in taken)])
        if inside > deepest:
            best, deepest = place, inside
        if inside > 14:
            break
    return best


def add_spot(brightness: Field, centre: NDArray[np.float64], radius: float, height: float) -> None:
    """A Gaussian spot; one smaller than a pixel keeps its sum. Only where there is tissue."""
    reach = int(np.ceil(3 * radius)) + 1
    row, column = (round(float(position)) for position in centre)
    rows = slice(max(0, row - reach), max(0, row + reach + 1))
    columns = slice(max(0, column - reach), max(0, column + reach + 1))
    patch = brightness[rows, columns]
    if patch.size == 0:
        return
    wide = max(radius, 0.5)
    down = np.arange(rows.start, rows.start + patch.shape[0])[:, np.newaxis] - centre[0]
    across = np.arange(columns.start, columns.start + patch.shape[1])[np.newaxis] - centre[1]
    spot = height * (radius / wide) ** 2 * np.exp(-(down**2 + across**2) / (2 * (wide * 0.7) ** 2))
    patch += np.where(patch > 0, spot, 0).astype(np.float32)


def _window(
    shape: tuple[int, ...], centre: tuple[float, float], reach: float, pixel: float
) -> tuple[Field, Field, tuple[int, int]]:
    """The part of the frame within `reach` mm: mm below and right of the centre, and its corner."""
    spans = []
    for middle, length in zip(centre, shape, strict=True):
        first = min(max(int((middle - reach) / pixel), 0), length - 1)
        last = min(max(int((middle + reach) / pixel) + 2, first + 1), length)
        spans.append(np.arange(first, last))
    down = (spans[0] * pixel - centre[0]).astype(np.float32)[:, np.newaxis]
    across = (spans[1] * pixel - centre[1]).astype(np.float32)[np.newaxis]
    return down, across, (int(spans[0][0]), int(spans[1][0]))


def _grains(
    shape: tuple[int, ...],
    centre: tuple[float, float],
    pixel: float,
    generator: np.random.Generator,
) -> tuple[Field, tuple[int, int]]:
    """A cluster of calcifications: what it adds at contrast 1, and the patch's corner."""
    radius = generator.uniform(2.5, 6.0)
    down, across, corner = _window(shape, centre, radius + 1.5, pixel)
    added = np.full((down.size, across.size), 1e-6, dtype=np.float32)  # spots go on tissue alone
    for _ in range(generator.integers(8, 21)):
        turn, far = generator.uniform(0, 2 * np.pi), radius * np.sqrt(generator.uniform(0, 1))
        at = np.array([centre[0] + far * np.sin(turn), centre[1] + far * np.cos(turn)])
        place = at / pixel - np.array(corner)
        add_spot(added, place, generator.uniform(0.10, 0.30) / pixel, generator.uniform(0.6, 1.0))
    return np.minimum(added, 1), corner


def _mass(
    shape: tuple[int, ...],
    kind: Kind,
    centre: tuple[float, float],
    pixel: float,
    generator: np.random.Generator,
) -> tuple[Field, tuple[int, int]]:
    """A mass: what it adds at contrast 1, 0 to 1, and the patch's corner."""
    spiculated = kind == "spiculated mass"
    radius = generator.uniform(3.0, 6.0) if spiculated else generator.uniform(3.5, 8.0)
    lobes, edge = {
        "round mass": (0.03, 0.5),
        "irregular mass": (0.16, 1.6),
        "spiculated mass": (0.13, 1.2),
    }[kind]
    reach = 2.6 * radius if spiculated else 1.5 * radius + 2 * edge
    down, across, corner = _window(shape, centre, reach, pixel)
    far, angle = np.hypot(down, across), np.arctan2(down, across)
    rim = np.ones_like(far)
    for order in range(2, 8):
        swing = generator.normal(0, lobes / np.sqrt(order - 1))
        rim += swing * np.cos(order * angle + generator.uniform(0, 2 * np.pi))
    rim = radius * np.maximum(rim, 0.4)
    # a ball's projection, flattened: masses are densest in the middle
    ball = np.sqrt(np.clip(1 - (far / (rim + edge)) ** 2, 0, 1))
    added = (0.35 * ball + 0.65 * 0.5 * (1 + np.tanh((rim - far) / edge))) * (far < reach)
    if spiculated:
        spicules = np.zeros_like(far)
        for _ in range(generator.integers(14, 27)):
            turn, length = generator.uniform(-np.pi, np.pi), radius * generator.uniform(1.4, 2.5)
            bend = generator.normal(0, 0.02)
            along = down * np.sin(turn) + across * np.cos(turn)
            aside = across * np.sin(turn) - down * np.cos(turn) + bend * along**2
            taper = np.clip(1 - along / length, 0, 1) * (along > 0)
            width = np.float32(0.24 + 0.36 * generator.uniform(0.4, 1)) * (0.35 + taper)
            line = 0.75 * np.exp(-np.square(aside / width)) * np.sqrt(taper)
            spicules = np.maximum(spicules, line)
        added = np.maximum(added, spicules)
    top = float(added.max())
    return np.asarray(added / max(top, 1e-6), dtype=np.float32), corner
