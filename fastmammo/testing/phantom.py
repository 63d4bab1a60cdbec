"""Takes a seed, gives a synthetic mammogram with its true breast mask.

In this order: the breast's shape (`anatomy`), what fills it (`tissue`), calcifications, noise,
label. Brightness is relative: 0 air, 1 the most that the stored bits hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastmammo.errors import ConfigError
from fastmammo.testing import letters
from fastmammo.testing.anatomy import Breast, make_breast, make_grid
from fastmammo.testing.texture import enlarge
from fastmammo.testing.tissue import make_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.testing.texture import Field

ViewPosition = Literal["CC", "MLO"]
Laterality = Literal["L", "R"]

FIELD_HEIGHT = 233.0
"""mm from the first row to the last: 3328 rows of 0.07 mm."""

_FINEST = 1700  # rows of tissue that are computed; more are interpolated, as noise hides the rest
_NOISE = 30.0  # standard deviation in 12-bit units at mid brightness, of noise=1


@dataclass(frozen=True)
class Phantom:
    """A synthetic mammogram.

    pixels: (rows, columns) uint16, 0 to 2^bits_stored - 1, MONOCHROME2 sense: air is 0.
    mask: (rows, columns) bool, the breast with nipple and pectoral muscle, to the pixel.
    label_box: (row0, column0, row1, column1), half open, of the burnt-in label, or None.
    pixel_spacing: mm between pixels.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    label_box: tuple[int, int, int, int] | None
    view_position: ViewPosition
    laterality: Laterality
    bits_stored: int
    seed: int
    pixel_spacing: float

    @property
    def window_center(self) -> float:
        """The middle of a window that shows the tissue, in MONOCHROME2 sense."""
        return 0.37 * (1 << self.bits_stored)

    @property
    def window_width(self) -> float:
        """The width of that window: from dark fat to the densest gland."""
        return 0.60 * (1 << self.bits_stored)

    def stored(self, photometric_interpretation: str) -> NDArray[np.uint16]:
        """The stored values under a photometric interpretation: MONOCHROME1 is inverted."""
        if photometric_interpretation == "MONOCHROME1":
            inverted: NDArray[np.uint16] = np.uint16((1 << self.bits_stored) - 1) - self.pixels
            return inverted
        return self.pixels


def phantom(
    rows: int = 3328,
    columns: int = 2560,
    *,
    seed: int = 0,
    view_position: ViewPosition = "CC",
    laterality: Laterality = "L",
    bits_stored: int = 12,
    noise: float = 1.0,
    label: bool = True,
) -> Phantom:
    """A synthetic mammogram, For Presentation, with suppressed air.

    The seed decides outline, density and pattern; the outline is the same at every size of the
    same proportions, the pattern is not. The same arguments give the same pixels on one
    machine and numpy version; another processor's exponentials may differ in the last bit.

    Args:
        rows, columns: size, each at least 16. The field is always 233 mm high.
        seed: any non-negative integer.
        view_position: "CC" or "MLO"; MLO hangs lower and shows the pectoral muscle.
        laterality: "L" has its chest wall at column 0, "R" at the last column.
        bits_stored: 8 to 16; brightness and noise scale with it.
        noise: quantum noise, in units of a common detector's. It decides what the image costs in
            lossless JPEG 2000, as bits a breast pixel at 3328 × 2560 and 12 bits: noise=1 gives
            7.0, 0.5 gives 6.1, 0.2 gives 4.9, 0 gives 2.2, 3 gives 8.6 (real ones: 6.5 to 10).
        label: whether to burn "L CC" or the like into the upper corner in the air.

    Raises:
        ConfigError: a setting out of its range.
    """
    _check(rows, columns, view_position, laterality, bits_stored, noise)
    generator = np.random.default_rng([seed, int(view_position == "MLO"), int(laterality == "R")])
    step = -(-rows // _FINEST)
    grid = make_grid(rows, columns, step, FIELD_HEIGHT)
    breast = make_breast(grid, view_position, generator)
    tissue = make_tissue(grid, breast, generator)
    brightness = enlarge(tissue, (rows, columns), step)
    mask = enlarge(breast.depth_in, (rows, columns), step) > 0
    brightness = np.where(mask, brightness, np.float32(0))
    pixel = FIELD_HEIGHT / rows
    _add_calcifications(brightness, breast, pixel, generator)
    _add_noise(brightness, mask, noise, generator)
    most = (1 << bits_stored) - 1
    pixels = np.rint(np.clip(brightness, 0, 1) * most).astype(np.uint16)
    # in the breast no pixel is as black as suppressed air
    np.maximum(pixels, mask, out=pixels)
    if laterality == "R":
        pixels, mask = np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    box = _burn_label(pixels, f"{laterality} {view_position}", laterality, most) if label else None
    return Phantom(pixels, mask, box, view_position, laterality, bits_stored, seed, pixel)


def _check(
    rows: int, columns: int, view_position: str, laterality: str, bits_stored: int, noise: float
) -> None:
    """Refuses settings out of their range."""
    for name, value, good, wanted in (
        ("rows", rows, rows >= 16, "16 or more"),
        ("columns", columns, columns >= 16, "16 or more"),
        ("view_position", view_position, view_position in ("CC", "MLO"), "CC or MLO"),
        ("laterality", laterality, laterality in ("L", "R"), "L or R"),
        ("bits_stored", bits_stored, 8 <= bits_stored <= 16, "8 to 16"),
        ("noise", noise, noise >= 0, "0 or more"),
    ):
        if not good:
            raise ConfigError(f"phantom: {name} {value!r}; wanted {wanted}")


def _add_calcifications(
    brightness: Field, breast: Breast, pixel: float, generator: np.random.Generator
) -> None:
    """A cluster of micro-calcifications and a few single ones, 0.2 to 0.6 mm, in place."""
    y, x = breast.nipple
    centre = (y + generator.normal(0, 12), x - breast.depth * generator.uniform(0.3, 0.6))
    for index in range(generator.integers(8, 18)):
        spread = 3.5 if index < 10 else 25.0
        at = np.array(centre) + generator.normal(0, spread, 2)
        radius = generator.uniform(0.10, 0.28)
        _add_spot(brightness, at / pixel, radius / pixel, generator.uniform(0.12, 0.32))


def _add_spot(brightness: Field, centre: NDArray[np.float64], radius: float, height: float) -> None:
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


def _add_noise(
    brightness: Field, mask: NDArray[np.bool_], noise: float, generator: np.random.Generator
) -> None:
    """Quantum noise in place: its variance is in proportion to the signal."""
    if noise == 0:
        return
    grain = generator.standard_normal(brightness.shape, dtype=np.float32)
    grain *= np.sqrt(np.maximum(brightness, 0) / np.float32(0.5)) * np.float32(
        noise * _NOISE / 4095
    )
    grain *= mask
    brightness += grain


def _burn_label(
    pixels: NDArray[np.uint16], text: str, laterality: str, value: int
) -> tuple[int, int, int, int] | None:
    """Writes the label in place, in the upper corner away from the chest wall; gives its box."""
    rows, columns = pixels.shape
    bitmap = letters.draw(text, max(1, rows // 250))
    height, width = bitmap.shape
    top = max(1, rows // 40)
    left = columns - width - max(1, columns // 30) if laterality == "L" else max(1, columns // 30)
    if left < 0 or top + height > rows or left + width > columns:
        return None
    patch = pixels[top : top + height, left : left + width]
    if patch.any():
        return None
    patch[bitmap] = value
    return top, left, top + height, left + width
