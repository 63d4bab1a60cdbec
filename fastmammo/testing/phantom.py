"""Takes a seed, gives a synthetic mammogram with its true breast mask and lesions.

In this order: the breast's shape (`anatomy`), what fills it (`tissue`), `lesions`, what else
lies in the beam and on the frame (`nuisances`, `overlays`), noise, label. Brightness is relative:
0 air, 1 the most that the stored bits hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastmammo.errors import ConfigError
from fastmammo.testing import letters, overlays
from fastmammo.testing.anatomy import make_breast, make_grid
from fastmammo.testing.lesions import KINDS, add_lesion, add_spot, find_place
from fastmammo.testing.nuisances import NONE, Nuisances
from fastmammo.testing.texture import enlarge
from fastmammo.testing.tissue import DENSITIES, make_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastmammo.testing.anatomy import Breast, Grid
    from fastmammo.testing.lesions import Box, Kind, Lesion
    from fastmammo.testing.texture import Field

ViewPosition = Literal["CC", "MLO"]
Laterality = Literal["L", "R"]
Density = Literal["A", "B", "C", "D"]

FIELD_HEIGHT = 233.0
"""mm from the first row to the last: 3328 rows of 0.07 mm."""

_FINEST = 1700  # rows of tissue that are computed; more are interpolated, as noise hides the rest
_NOISE = 30.0  # standard deviation in 12-bit units at mid brightness, of noise=1


@dataclass(frozen=True)
class Phantom:
    """A synthetic mammogram and the truth about it.

    pixels: (rows, columns) uint16, 0 to 2^bits_stored - 1, MONOCHROME2 sense: air is dark.
    mask: (rows, columns) bool, the breast with nipple, axillary tail and pectoral muscle, to the
        pixel. The belly's skin below the inframammary fold is not breast, as a radiologist would
        say; what collimator, stripe or border cover is not there either.
    label_box: (row0, column0, row1, column1), half open, of the burnt-in label, or None.
    pixel_spacing: mm between pixels.
    belly: (rows, columns) bool, the belly's skin in two oblique views of five; None where there is
        none. A box that takes it in is no worse for a reader: score it as "do not care".
    lesions: what was put in, in the order asked; those that something covers are left out.
    padding: the value of suppressed air and of what the collimator hides, MONOCHROME2 sense, for
        PixelPaddingValue; None where there is neither.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    label_box: Box | None
    view_position: ViewPosition
    laterality: Laterality
    bits_stored: int
    seed: int
    pixel_spacing: float
    belly: NDArray[np.bool_] | None = None
    lesions: tuple[Lesion, ...] = ()
    padding: int | None = 0
    nuisances: Nuisances = NONE

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

    def stored_padding(self, photometric_interpretation: str) -> int | None:
        """`padding` as `stored` has it."""
        if self.padding is None or photometric_interpretation != "MONOCHROME1":
            return self.padding
        return (1 << self.bits_stored) - 1 - self.padding


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
    field_height: float = FIELD_HEIGHT,
    density: Density | None = None,
    lesions: Sequence[Kind] = (),
    lesion_contrast: float = 0.3,
    lesion_seed: int | None = None,
    nuisances: Nuisances = NONE,
) -> Phantom:
    """A synthetic mammogram, For Presentation, with suppressed air.

    The seed decides outline, density and pattern; the outline is the same at every size of the
    same proportions, the pattern is not. The same arguments give the same pixels on one
    machine and numpy version; another processor's exponentials may differ in the last bit.
    Lesions and nuisances have seeds of their own: the breast is the same with and without them.
    On one core 3328 × 2560 takes about 2 s, 5355 × 4915 about 3 s and 0.7 GB, 416 × 320 0.1 s.

    Args:
        rows, columns: size, each at least 16; `VENDOR_SIZES` has those of detectors.
        seed: any non-negative integer.
        view_position: "CC" or "MLO"; MLO hangs lower and shows the pectoral muscle.
        laterality: "L" has its chest wall at column 0, "R" at the last column.
        bits_stored: 8 to 16; brightness and noise scale with it.
        noise: quantum noise, in units of a common detector's. It decides what the image costs in
            lossless JPEG 2000, as bits a breast pixel at 3328 × 2560 and 12 bits: noise=0 gives
            2.2, 0.2 gives 5.0, 0.5 gives 6.1, 1 gives 7.1, 2 gives 8.0, 3 gives 8.6, 5 gives 9.4;
            other sizes of `VENDOR_SIZES` are within 0.2 of it. Real ones cost 6.5 to 10. Small
            tests may like 0.2: files are a third smaller, and pictures clean.
        label: whether to burn "L CC" or the like into the upper corner in the air.
        field_height: mm from the first row to the last; the breast grows with it.
        density: BI-RADS "A" (fatty) to "D" (extremely dense); None draws any.
        lesions: kinds of lesion to put in, of `lesions.KINDS`.
        lesion_contrast: brightness they add, over that of the tissue around; above 0, to 5.
            0.1 is subtle, 0.3 plain, 0.6 glaring; calcifications need twice as much.
        lesion_seed: place and form; by default `seed`. The same one in CC and MLO gives the same
            finding in both, at about the same depth behind the nipple.
        nuisances: what else lies in the image: see `Nuisances`, and `draw_nuisances`.

    Returns:
        The image with its true mask and lesion boxes.

    Raises:
        ConfigError: a setting out of its range.
    """
    _check(rows, columns, view_position, laterality, bits_stored, noise)
    _check_content(field_height, density, lesions, lesion_contrast)
    nuisances.check()
    generator = np.random.default_rng([seed, int(view_position == "MLO"), int(laterality == "R")])
    extra = np.random.default_rng([seed, int(view_position == "MLO"), int(laterality == "R"), 1])
    step = -(-rows // _FINEST)
    grid = make_grid(rows, columns, step, field_height)
    breast = make_breast(grid, view_position, generator)
    tissue = make_tissue(grid, breast, generator, density)
    if nuisances.implant:
        tissue = overlays.add_implant(tissue, grid, breast, nuisances.implant, extra)
    brightness = enlarge(tissue, (rows, columns), step)
    mask = enlarge(breast.depth_in, (rows, columns), step) > 0
    brightness = np.where(mask, brightness, np.float32(0))
    belly = None
    if breast.without_belly is not None:
        belly = mask & (enlarge(breast.without_belly, (rows, columns), step) <= 0)
        mask = mask & ~belly
    pixel = field_height / rows
    _add_benign(brightness, breast, pixel, generator)
    drawn = np.random.default_rng([seed if lesion_seed is None else lesion_seed, 2])
    depths = (0.12, 0.34) if nuisances.implant else (0.25, 0.70)
    found = _add_lesions(brightness, grid, breast, lesions, lesion_contrast, depths, pixel, drawn)
    text = f"{laterality} {view_position}"
    beam = overlays.make_beam(grid, nuisances, extra)
    if beam is not None:
        # what lies in the beam beside the breast darkens the detector in front of it too
        wide = enlarge(beam, (rows, columns), step)
        brightness = wide + (1 - wide) * brightness
    metal = overlays.make_metal(grid, breast, nuisances, text, extra)
    if metal is not None:
        brightness = np.maximum(brightness, enlarge(metal, (rows, columns), step))
    _add_noise(brightness, noise, generator)
    most = (1 << bits_stored) - 1
    pixels = np.rint(np.clip(brightness, 0, 1) * most).astype(np.uint16)
    # in the breast no pixel is as black as suppressed air
    body = mask if belly is None else mask | belly
    np.maximum(pixels, body, out=pixels)
    padding = round(nuisances.padding * most)
    if padding and not nuisances.air:
        pixels[(pixels == 0) & ~body] = padding
    masks = [mask] if belly is None else [mask, belly]
    free = overlays.cover_frame(
        pixels, masks, nuisances, pixel=pixel, most=most, padding=padding, generator=extra
    )
    if laterality == "R":
        pixels, mask = np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        belly = None if belly is None else np.ascontiguousarray(belly[:, ::-1])
        free = _mirrored(free, columns)
        found = [replace(lesion, box=_mirrored(lesion.box, columns)) for lesion in found]
    return Phantom(
        pixels=pixels,
        mask=mask,
        label_box=_burn_label(pixels, mask, free, text, most) if label else None,
        view_position=view_position,
        laterality=laterality,
        bits_stored=bits_stored,
        seed=seed,
        pixel_spacing=pixel,
        belly=belly,
        lesions=tuple(lesion for lesion in found if _inside(lesion.box, mask)),
        padding=None if nuisances.air and not nuisances.collimation else padding,
        nuisances=nuisances,
    )


def _check_content(
    field_height: float, density: str | None, lesions: Sequence[str], lesion_contrast: float
) -> None:
    """Refuses what cannot be put into a breast."""
    unknown = [kind for kind in lesions if kind not in KINDS]
    for name, value, good, wanted in (
        ("field_height", field_height, 50 <= field_height <= 500, "50 to 500 mm"),
        ("density", density, density is None or density in DENSITIES, "A, B, C, D or None"),
        ("lesions", unknown, not unknown, f"of {list(KINDS)}"),
        ("lesion_contrast", lesion_contrast, 0 < lesion_contrast <= 5, "above 0, to 5"),
    ):
        if not good:
            raise ConfigError(f"phantom: {name} {value!r}; wanted {wanted}")


def _add_lesions(
    brightness: Field,
    grid: Grid,
    breast: Breast,
    kinds: Sequence[Kind],
    contrast: float,
    depths: tuple[float, float],
    pixel: float,
    generator: np.random.Generator,
) -> list[Lesion]:
    """Draws the lesions in place, each where there is room for it."""
    found: list[Lesion] = []
    taken: list[tuple[float, float]] = []
    for kind in kinds:
        place = find_place(grid, breast, taken, depths, generator)
        taken.append(place)
        found.append(add_lesion(brightness, kind, contrast, place, pixel, generator))
    return found


def _inside(box: Box, mask: NDArray[np.bool_]) -> bool:
    """Whether most of a box is breast that nothing covers."""
    part = mask[box[0] : box[2], box[1] : box[3]]
    return bool(part.size) and bool(2 * part.sum() > part.size)


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


def _add_benign(
    brightness: Field, breast: Breast, pixel: float, generator: np.random.Generator
) -> None:
    """Single calcifications, 0.2 to 0.6 mm, far apart, in place: benign, as many breasts have."""
    y, x = breast.nipple
    centre = (y + generator.normal(0, 12), x - breast.depth * generator.uniform(0.3, 0.6))
    for _ in range(generator.integers(8, 18)):
        at = np.array(centre) + generator.normal(0, 25.0, 2)
        radius = generator.uniform(0.10, 0.28)
        add_spot(brightness, at / pixel, radius / pixel, generator.uniform(0.12, 0.32))


def _add_noise(brightness: Field, noise: float, generator: np.random.Generator) -> None:
    """Quantum noise in place: its variance is in proportion to the signal, 0 in suppressed air."""
    if noise == 0:
        return
    grain = generator.standard_normal(brightness.shape, dtype=np.float32)
    grain *= np.sqrt(np.maximum(brightness, 0) / np.float32(0.5)) * np.float32(
        noise * _NOISE / 4095
    )
    brightness += grain


def _mirrored(box: Box, columns: int) -> Box:
    """A box after left and right have changed places."""
    return box[0], columns - box[3], box[2], columns - box[1]


def _burn_label(
    pixels: NDArray[np.uint16], mask: NDArray[np.bool_], free: Box, text: str, value: int
) -> Box | None:
    """Writes the label in place, in the upper corner away from the chest wall; gives its box."""
    rows, columns = pixels.shape
    bitmap = letters.draw(text, max(1, rows // 250))
    height, width = bitmap.shape
    aside = max(1, columns // 30)
    top = free[0] + max(1, rows // 40)
    left = free[3] - width - aside if text[0] == "L" else free[1] + aside
    if left < free[1] or top + height > free[2] or left + width > free[3]:
        return None
    box = top, left, top + height, left + width
    if mask[top : box[2], left : box[3]].any():
        return None
    pixels[top : box[2], left : box[3]][bitmap] = value
    return box
