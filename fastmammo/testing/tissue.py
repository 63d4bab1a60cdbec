"""Takes a breast's shape, gives the brightness of what fills it: fat, gland, muscle, skin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.testing.texture import blur, power_law, ridges, sample

if TYPE_CHECKING:
    from fastmammo.testing.anatomy import Breast, Grid
    from fastmammo.testing.texture import Field


DENSITIES: dict[str, tuple[float, float]] = {
    "A": (-1.15, -0.85),
    "B": (-0.80, -0.40),
    "C": (-0.35, 0.05),
    "D": (0.10, 0.50),
}
"""The share of gland by BI-RADS density (fatty to extremely dense), in the units of `_gland`."""

_NETS = (
    (26.0, 0.30, 0.045, 0.75, 0.5),
    (10.0, 0.35, 0.110, 0.60, 1.2),
    (6.0, 0.45, 0.150, 0.50, 2.0),
    (4.0, 0.60, 0.200, 0.40, 2.0),
)
"""Vessels and ligaments, and the fine mesh of septa in fat: a net's longest wave in mm, how much
it is drawn out (1: not at all), its strands' width relative to the fields, weight, and how softly
the gaps begin."""


def make_tissue(
    grid: Grid, breast: Breast, generator: np.random.Generator, density: str | None = None
) -> Field:
    """The brightness of everything inside the skin, on the grid, before noise.

    Args:
        grid: where.
        breast: the shape to fill.
        generator: the source of randomness.
        density: one of `DENSITIES`; None for any.

    Returns:
        Relative brightness, 0 to about 0.8; outside the skin it means nothing.
    """
    shape = breast.depth_in.shape
    mm = 1 / grid.pitch
    broad = power_law(generator, shape, beta=3.0, longest=60 * mm, shortest=0.3 * mm)
    mesh = power_law(generator, shape, beta=2.2, longest=5 * mm, shortest=0.4 * mm)
    fan = _fan(grid, breast)
    strands = _strands(grid, fan, generator) * (1 + 0.3 * mesh)
    gland = _gland(grid, breast, fan, strands, generator, density)
    fat = 0.19 + 0.024 * broad + 0.006 * mesh
    brightness = fat + gland * (0.27 + 0.060 * broad + 0.015 * mesh)
    brightness += strands * generator.uniform(0.08, 0.14)
    if breast.pectoral is not None:
        muscle = _soft_step(breast.pectoral, 1.5)
        brightness = brightness * (1 - 0.75 * muscle) + muscle * _muscle(grid, breast, generator)
    # the detector's own blur is of this order: 0.1 mm
    return blur(brightness * _thickness(breast.depth_in) + _skin(breast.depth_in))


def _gland(
    grid: Grid,
    breast: Breast,
    fan: tuple[Field, Field],
    strands: Field,
    generator: np.random.Generator,
    density: str | None,
) -> Field:
    """Fibroglandular tissue, 0 to 1: a cone behind the nipple, ragged and drawn out to strands.

    Two layers are laid over each other, as the projection does with what lies above and below.
    """
    shape = breast.depth_in.shape
    mm = 1 / grid.pitch
    y, x = breast.nipple
    share = generator.uniform(-1.1, 0.45)
    if density is not None:
        share = np.interp(share, (-1.1, 0.45), DENSITIES[density])
    behind = (x - grid.x) / breast.depth  # 0 at the nipple, 1 at the chest wall
    across = (grid.y - y + breast.axis_tilt * (x - grid.x)) / breast.half_width
    width = 0.12 + 0.72 * np.sqrt(np.clip(behind, 0.0, 1.0))
    cone = 1 - (across / width) ** 2 - 7 * np.clip(behind - 0.6, 0, 1) ** 2
    under_skin = np.clip((breast.depth_in - 5) / 14, 0, 1)
    at_nipple = np.exp(-np.square(np.hypot(grid.y - y, grid.x - x) / 13))
    prior = np.maximum(cone, -3) - 1.8 * (1 - np.maximum(under_skin, at_nipple))
    prior += 0.45 * strands + share - 0.35
    total = np.zeros(shape, dtype=np.float32)
    for weight in (0.6, 0.4):
        lumps = power_law(generator, shape, beta=3.6, longest=40 * mm, shortest=0.6 * mm)
        lumps = sample(lumps, fan[0], fan[1] * np.float32(0.6))
        total += weight * _soft_step(prior + 0.7 * lumps, 0.6)
    return total


def _strands(grid: Grid, fan: tuple[Field, Field], generator: np.random.Generator) -> Field:
    """Ligaments, ducts and vessels: nets whose meshes are drawn out towards the nipple.

    A net is where the two largest of three smooth fields are equal: its strands meet in threes,
    as septa do. Level curves of one field would be loops, which no breast has. Nets of several
    sizes lie over each other, as in a projection.
    """
    shape = fan[0].shape
    mm = 1 / grid.pitch
    half = shape[0] // 2 + 1, shape[1] // 2 + 1  # smooth fields need no more points
    present = power_law(generator, shape, beta=3.0, longest=25 * mm, shortest=2 * mm)
    total = np.zeros(shape, dtype=np.float32)
    for size, stretch, width, weight, gaps in _NETS:
        first, second, third = (
            sample(
                power_law(generator, half, beta=4.0, longest=size * mm / 2, shortest=size * mm / 8),
                fan[0] * np.float32(0.5),
                fan[1] * np.float32(stretch / 2),
            )
            for _ in range(3)
        )
        high, low = np.maximum(first, second), np.minimum(first, second)
        ahead = np.maximum(high, third) - np.maximum(low, np.minimum(high, third))
        present = np.roll(present, shape[0] // 3, axis=0)  # other gaps for each net
        total += weight * ridges(ahead, width) * _soft_step(present, gaps)
    # strands thinner than a grid point would come out dotted
    return blur(blur(total))


def _fan(grid: Grid, breast: Breast) -> tuple[Field, Field]:
    """Polar coordinates in grid points: a field sampled there fans out from the nipple.

    The angle counts from a point 35 mm before the nipple; 65 mm of field a radian keep the half
    circle inside the field, whose ends do not meet.
    """
    mm = 1 / grid.pitch
    y, x = breast.nipple
    down, across = grid.y - np.float32(y), np.float32(x + 35) - grid.x
    angle = np.arctan2(down, across) * np.float32(65 * mm) + np.float32(len(grid.y) / 2)
    return angle, np.hypot(down, across) * np.float32(mm)


def _muscle(grid: Grid, breast: Breast, generator: np.random.Generator) -> Field:
    """The pectoral muscle: thicker upwards, striped faintly along its fibres."""
    shape = breast.depth_in.shape
    mm = 1 / grid.pitch
    stripes = power_law(generator, shape, beta=2.6, longest=25 * mm, shortest=0.5 * mm)
    along, across = grid.y * 0.80 - grid.x * 0.60, grid.y * 0.60 + grid.x * 0.80
    stripes = sample(stripes, along * np.float32(0.2 * mm), across * np.float32(mm))
    inside = np.clip(breast.pectoral, 0, 60) if breast.pectoral is not None else 0.0
    return np.asarray(0.36 + 0.0035 * inside + 0.012 * stripes, dtype=np.float32)


def _thickness(depth_in: Field) -> Field:
    """Brightness by compressed thickness: the last 13 mm towards the skin round off and darken."""
    inwards = np.clip(depth_in / np.float32(13.0), 0, 1)
    falloff: Field = (1 - (1 - inwards) ** 2) ** np.float32(0.4)
    return falloff


def _skin(depth_in: Field) -> Field:
    """The skin: about 1.5 mm, denser than the fat beneath it."""
    line: Field = 0.11 * np.exp(-np.square((depth_in - np.float32(0.9)) / np.float32(0.7)))
    return line


def _soft_step(value: Field, width: float) -> Field:
    """0 to 1 around 0, over about `width`."""
    return np.asarray(0.5 * (1 + np.tanh(value / np.float32(width))), dtype=np.float32)
