"""Takes a view and a random generator, gives a breast's shape on a grid in millimetres.

All of it is drawn with the chest wall at column 0; a right breast is mirrored at the very end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastmammo.testing.texture import Field


@dataclass(frozen=True)
class Grid:
    """Positions in millimetres: `x` (1, columns) from the chest wall, `y` (rows, 1) from the top.

    height, width: of the field in mm. pitch: mm between grid points.
    """

    x: Field
    y: Field
    height: float
    width: float
    pitch: float


@dataclass(frozen=True)
class Breast:
    """The shape of one breast.

    depth_in: mm inside the skin, negative outside (rows, columns); the belly's skin counts too.
    without_belly: positive inside the breast alone; None where no belly is in the field.
    nipple: (y, x) in mm.
    axis_tilt: rows that the axis from chest wall to nipple falls, in mm a mm.
    depth: mm from chest wall to skin at the nipple. half_width: mm across, half.
    pectoral: mm inside the pectoral muscle, negative outside; None in a CC view.
    """

    depth_in: Field
    without_belly: Field | None
    nipple: tuple[float, float]
    axis_tilt: float
    depth: float
    half_width: float
    pectoral: Field | None


def make_grid(rows: int, columns: int, step: int, height: float) -> Grid:
    """A grid over (rows, columns) pixels, a point every `step` pixels and one point beyond."""
    pitch = height / rows * step
    down, across = -(-rows // step) + 1, -(-columns // step) + 1
    return Grid(
        x=(np.arange(across, dtype=np.float32) * np.float32(pitch))[np.newaxis],
        y=(np.arange(down, dtype=np.float32) * np.float32(pitch))[:, np.newaxis],
        height=height,
        width=height * columns / rows,
        pitch=pitch,
    )


def make_breast(grid: Grid, view_position: str, generator: np.random.Generator) -> Breast:
    """A breast that fills the field as positioned ones do, varied by the generator."""
    vary = generator.uniform
    oblique = view_position == "MLO"
    depth = grid.width * vary(0.50, 0.68)
    half_width = grid.height * (vary(0.27, 0.32) if oblique else vary(0.33, 0.42))
    centre = grid.height * (vary(0.52, 0.58) if oblique else vary(0.47, 0.53))
    tilt = vary(0.12, 0.28) if oblique else vary(-0.05, 0.05)
    form = vary(2.0, 2.35), vary(0.0, 0.12)
    pectoral = belly = None
    if oblique:
        top = depth * vary(0.62, 0.82)
        edge = depth * vary(0.86, 0.96)
        fold = vary(0, 1)
        if fold >= 0.6:
            # the breast hangs lower where the fold is in the field
            centre += grid.height * 0.06
            belly = _belly(grid, centre + half_width, 0.10 + (fold - 0.6))
        pectoral = _pectoral(grid, depth * vary(0.40, 0.54), centre * vary(0.80, 1.05), vary(1, 7))
    body = _body(grid, depth, half_width, centre, tilt, form)
    if oblique:
        body = _with_axilla(grid, body, centre, top, (edge - top) / centre)
    skin = _skin_at(grid, body, centre + tilt * depth)
    nipple = (centre + tilt * depth, skin)
    body = _union(body, _disc(grid, nipple[0], skin - 1.5, vary(4.5, 6.0)), 3.0)
    whole = body if belly is None else _union(body, belly, 8.0)
    return Breast(
        depth_in=_true_distance(whole, grid.pitch),
        without_belly=None if belly is None else body,
        nipple=nipple,
        axis_tilt=tilt,
        depth=skin,
        half_width=half_width,
        pectoral=pectoral,
    )


def _body(
    grid: Grid,
    depth: float,
    half_width: float,
    centre: float,
    tilt: float,
    form: tuple[float, float],
) -> Field:
    """Half a superellipse on the chest wall, fuller on one side: positive inside, roughly in mm."""
    exponent, asymmetry = form
    across = (grid.y - centre - tilt * grid.x) / half_width
    across = across * (1 + asymmetry * np.tanh(2 * across))
    radius = (np.abs(grid.x / depth) ** exponent + np.abs(across) ** exponent) ** (1 / exponent)
    return np.asarray((1 - radius) * min(depth, half_width), dtype=np.float32)


def _with_axilla(grid: Grid, body: Field, centre: float, top: float, slope: float) -> Field:
    """Adds the axillary tail of an oblique view: from `top` mm at the upper edge downwards."""
    tail = (top + slope * grid.y - grid.x) / np.float32(np.hypot(1, slope))
    above = (centre + 12 - grid.y) * np.float32(0.8)
    return _union(body, -_union(-tail, -above, 30.0), 30.0)


def _belly(grid: Grid, bottom: float, slope: float) -> Field:
    """The belly's skin below the inframammary fold, up to 17 mm wide at the lower edge.

    Two oblique views in five show it: well positioned ones take in the fold and some of what is
    below it.
    """
    belly = (slope * (grid.y - bottom) + 2.0 - grid.x) / np.float32(np.hypot(1, slope))
    return np.asarray(belly, dtype=np.float32)


def _pectoral(grid: Grid, top: float, bottom: float, bulge: float) -> Field:
    """The pectoral muscle: a triangle in the upper corner, its edge slightly convex."""
    along = grid.y / bottom
    edge = top * (1 - along) + bulge * np.sin(np.pi * np.clip(along, 0, 1))
    return np.asarray(
        (edge - grid.x) * np.float32(bottom / np.hypot(bottom, top)), dtype=np.float32
    )


def _disc(grid: Grid, y: float, x: float, radius: float) -> Field:
    """mm inside a disc."""
    return np.asarray(radius - np.hypot(grid.y - y, grid.x - x), dtype=np.float32)


def _union(a: Field, b: Field, blend: float) -> Field:
    """The union of two shapes, their crease rounded over about `blend` mm."""
    return np.asarray(
        0.5 * (a + b + np.sqrt((a - b) ** 2 + np.float32(blend**2) * 0.25)), dtype=np.float32
    )


def _skin_at(grid: Grid, body: Field, y: float) -> float:
    """The depth in mm at which a row leaves the body."""
    row = body[min(len(body) - 1, max(0, round(y / grid.pitch)))]
    inside = np.flatnonzero(row > 0)
    return float(inside[-1] + 1) * grid.pitch if len(inside) else grid.pitch


def _true_distance(body: Field, pitch: float) -> Field:
    """Implicit values made mm to the skin, to first order: divided by their slope."""
    if min(body.shape) < 2:
        return body
    down, across = np.gradient(body, np.float32(pitch))
    slope = np.sqrt(down**2 + across**2)
    return np.asarray(body / np.maximum(slope, np.float32(0.35)), dtype=np.float32)
