"""Takes a mammogram and its nuisances, draws them: in the beam (a grid) and on the frame (pixels).

All of it has the chest wall at column 0, as everything before the last mirroring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.testing import letters
from fastmammo.testing.texture import blur

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.testing.anatomy import Breast, Grid
    from fastmammo.testing.nuisances import Nuisances, Side
    from fastmammo.testing.texture import Field

_METAL = 1.4  # beyond the range, so that noise does not show in it


def add_implant(
    tissue: Field, grid: Grid, breast: Breast, strength: float, generator: np.random.Generator
) -> Field:
    """The tissue with an implant in it, brightness 0.45 + 0.55 strength: silicone is white."""
    middle = breast.nipple[0] - breast.axis_tilt * breast.depth
    y, half = middle + generator.normal(0, 4), breast.half_width * generator.uniform(0.62, 0.78)
    deep = breast.depth * generator.uniform(0.50, 0.62)
    lean = grid.y - np.float32(y) - np.float32(breast.axis_tilt) * grid.x
    far = np.hypot(lean / np.float32(half), grid.x / np.float32(deep))
    inside = (1 - far) * np.float32(min(half, deep))
    level = 0.45 + 0.55 * strength
    shell = 0.06 * np.exp(-np.square((inside - 1.0) / 0.8))
    soft = 0.5 * (1 + np.tanh(inside / np.float32(0.8)))
    within = np.clip(breast.depth_in / 6, 0, 1)
    share = (soft * within).astype(np.float32)
    body = np.float32(level) * (1 + 0.04 * np.clip(inside / 30, 0, 1)) + shell + 0.12 * tissue
    return np.asarray(tissue * (1 - share) + body * share, dtype=np.float32)


def make_beam(grid: Grid, nuisances: Nuisances, generator: np.random.Generator) -> Field | None:
    """What air and paddle add, 0 to about 0.3, on the grid; None where there is neither."""
    if not nuisances.air and not nuisances.paddle:
        return None
    rise = 1 + np.float32(nuisances.air_slope) * (grid.y / np.float32(grid.height) - 0.5)
    beam = np.float32(nuisances.air) * rise + np.zeros_like(grid.x)
    if nuisances.paddle:
        top = grid.height * generator.uniform(0.02, 0.06)
        bottom = grid.height * generator.uniform(0.94, 0.98)
        side = grid.width * generator.uniform(0.88, 0.96)
        # a rounded rectangle, open at the chest wall: mm inside its edge
        inside = np.minimum(np.minimum(grid.y - top, bottom - grid.y), side - grid.x)
        within = np.clip(inside / np.float32(grid.pitch) + 0.5, 0, 1)
        edge = np.exp(-np.square(inside / np.float32(max(0.7, grid.pitch))))
        beam += np.float32(nuisances.paddle) * (np.float32(0.03) * within + np.float32(0.17) * edge)
    return np.asarray(beam, dtype=np.float32)


def make_metal(
    grid: Grid, breast: Breast, nuisances: Nuisances, text: str, generator: np.random.Generator
) -> Field | None:
    """Lead and devices, brightness on the grid (0 where there is none); None for none at all."""
    if not (nuisances.lead_letters or nuisances.markers or nuisances.pacemaker):
        return None
    metal = np.zeros(breast.depth_in.shape, dtype=np.float32)
    skin = _skin_points(breast)
    y, x = breast.nipple
    for index in range(nuisances.markers):
        if index and len(skin):
            row, column = skin[int(generator.integers(len(skin)))]
            y, x = float(row) * grid.pitch, float(column) * grid.pitch
        ball = 1.0 - np.hypot(grid.y - np.float32(y), grid.x - np.float32(x))
        metal = np.maximum(metal, np.float32(_METAL) * np.clip(ball / 0.3 + 0.5, 0, 1))
    if nuisances.pacemaker and breast.pectoral is not None:
        metal = np.maximum(metal, _pacemaker(grid, generator))
    if nuisances.lead_letters:
        _add_lead_letters(metal, grid, breast, text, generator)
    return blur(metal)


def _skin_points(breast: Breast) -> NDArray[np.int64]:
    """Grid points just inside the skin, (n, 2)."""
    return np.argwhere((breast.depth_in > 0) & (breast.depth_in < 3))


def _pacemaker(grid: Grid, generator: np.random.Generator) -> Field:
    """A device of about 45 by 38 mm below the collar bone: can, connector block and lead."""
    y, x = generator.uniform(14, 30), generator.uniform(20, 32)
    turn = generator.uniform(-0.5, 0.5)
    down, across = grid.y - np.float32(y), grid.x - np.float32(x)
    along = down * np.float32(np.cos(turn)) + across * np.float32(np.sin(turn))
    aside = across * np.float32(np.cos(turn)) - down * np.float32(np.sin(turn))
    far = (np.abs(along / 19) ** 2.6 + np.abs(aside / 22) ** 2.6) ** np.float32(1 / 2.6)
    can = np.clip((1 - far) * 40, 0, 1)
    battery = np.clip((1 - np.hypot((along - 5) / 11, aside / 16)) * 20, 0, 1)
    block = (along < -10) * can
    device = can * (1.0 - 0.2 * block + 0.4 * battery)
    lead = np.abs(across + 6 * np.sin(down / 16)) - 0.9
    wire = np.clip(0.5 - lead / 0.4, 0, 1) * (down < -12)
    return np.asarray(np.maximum(device, wire), dtype=np.float32)


def _add_lead_letters(
    metal: Field, grid: Grid, breast: Breast, text: str, generator: np.random.Generator
) -> None:
    """Letters of about 8 mm on a clip's frame, in place, where the air has room for them."""
    bitmap = letters.draw(text, max(1, round(8 / 7 / grid.pitch)))
    pad = max(1, round(2.5 / grid.pitch))
    sign = np.pad(bitmap, pad).astype(np.float32) * np.float32(_METAL)
    # the clip's frame shows at its corners
    for corner in (np.s_[:pad, : 1 + pad // 5], np.s_[: 1 + pad // 5, :pad]):
        for view in (sign, sign[::-1], sign[:, ::-1], sign[::-1, ::-1]):
            view[corner] = 0.8
    if text.startswith("R"):
        sign = sign[:, ::-1]  # the whole is mirrored at the end
    height, width = sign.shape
    room_down, room_across = metal.shape[0] - height, metal.shape[1] - width
    gap = max(1, round(4 / grid.pitch))
    if room_down < 1 or room_across < 1:
        return
    for _ in range(12):
        top = int(room_down * generator.uniform(0.12, 0.92))
        left = int(room_across - generator.uniform(0.02, 0.10) * metal.shape[1])
        if left < 0:
            continue
        around = (
            slice(max(0, top - gap), top + height + gap),
            slice(max(0, left - gap), left + width + gap),
        )
        if (breast.depth_in[around] <= 0).all():
            metal[top : top + height, left : left + width] = np.maximum(
                metal[top : top + height, left : left + width], sign
            )
            return


def cover_frame(
    pixels: NDArray[np.uint16],
    masks: list[NDArray[np.bool_]],
    nuisances: Nuisances,
    *,
    pixel: float,
    most: int,
    padding: int,
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws collimation, stripe and border in place; what they cover leaves the masks.

    Args:
        pixels: (rows, columns), wall at column 0.
        masks: of the same shape.
        nuisances: what to draw.
        pixel: mm.
        most: the value of white.
        padding: the value of what the collimator hides.
        generator: the source of randomness.

    Returns:
        The box (row0, column0, row1, column1) that nothing covers.
    """
    free = [0, 0, *pixels.shape]

    def wide(millimetres: float) -> int:
        return max(1, round(millimetres / pixel)) if millimetres else 0

    def take(side: Side, width: int) -> Any:
        """The strip along a side; the free box shrinks."""
        for mask in masks:
            mask[_strip(side, width)] = False
        index = {"top": 0, "wall": 1, "bottom": 2, "far": 3}[side]
        edge = (width, width, pixels.shape[0] - width, pixels.shape[1] - width)[index]
        free[index] = max(free[index], edge) if index < 2 else min(free[index], edge)
        return pixels[_strip(side, width)]

    for side in nuisances.collimation_sides if nuisances.collimation else ():
        take(side, wide(nuisances.collimation))[...] = padding
    if nuisances.stripe:
        strip = take(nuisances.stripe_side, wide(nuisances.stripe))
        axis = 1 if nuisances.stripe_side in ("wall", "far") else 0
        fall = np.linspace(0.95, 0.75, strip.shape[axis])
        shape = (1, -1) if axis == 1 else (-1, 1)
        grain = generator.normal(0, 0.01, strip.shape)
        strip[...] = np.rint(np.clip(fall.reshape(shape) + grain, 0, 1) * most)
    for side in nuisances.border_sides if nuisances.border else ():
        strip = take(side, wide(nuisances.border * generator.uniform(0.7, 1.0)))
        grain = np.abs(generator.normal(0, 0.02, strip.shape))
        strip[...] = np.rint(np.clip(1 - grain, 0, 1) * most)
    return free[0], free[1], free[2], free[3]


def _strip(side: Side, width: int) -> tuple[slice, slice]:
    """The index of `width` lines along a side."""
    everything = slice(None)
    return {
        "top": (slice(0, width), everything),
        "bottom": (slice(-width, None), everything),
        "wall": (everything, slice(0, width)),
        "far": (everything, slice(-width, None)),
    }[side]
