"""Finding the breast: phantoms with every nuisance, the real images, and frames with no breast."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from fastmammo.kernels.components import components, dilated, histogram, opened
from fastmammo.kernels.cpu import low_pass
from fastmammo.preprocess.otsu import otsu
from fastmammo.preprocess.roi import Roi, find_breast, roi_level
from fastmammo.testing import phantom

if TYPE_CHECKING:
    from pathlib import Path

WHITE = 4095
Box = tuple[int, int, int, int]


def find(
    pixels: np.ndarray,
    *,
    first: int = 0,
    last: int = WHITE,
    inverted: bool = False,
    padding: tuple[int, int] | None = None,
    margin: int = 0,
    level: int | None = None,
) -> Roi:
    """Reduce full-resolution stored values to the ROI level as the pipeline does, and find."""
    rows, columns = pixels.shape
    level = roi_level(rows, columns) if level is None else level
    small = np.asarray(pixels, np.int32)
    for _ in range(level):
        small = low_pass(small)
    return find_breast(
        np.clip(small, first, last).astype(np.int16 if first < 0 else np.uint16),
        level=level,
        rows=rows,
        columns=columns,
        first=first,
        last=last,
        inverted=inverted,
        padding=padding,
        margin_pixels=margin,
    )


def tight(mask: np.ndarray) -> Box:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def judge(roi: Roi, mask: np.ndarray) -> tuple[float, float]:
    """Return the share of breast pixels inside the box, and the box's area over the tight one's."""
    r0, c0, r1, c1 = roi.box
    return mask[r0:r1, c0:c1].sum() / mask.sum(), area(roi.box) / area(tight(mask))


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(7).normal(0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, WHITE).astype(np.int32)


# Each takes (pixels, mask) of a phantom with its chest wall on the left and gives
# (stored values, true mask, arguments of `find`).
Case = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, dict[str, object]]]


def plain(a, m):
    return a, m, {}


def inverted(a, m):
    return WHITE - a, m, {"inverted": True}


def signed(a, m):
    return a - 2048, m, {"first": -2048, "last": 2047}


def dark_of_16_bits(a, m):
    return a // 16, m, {"last": 65535}


def noisy_air(a, m):
    return noisy(a + 200 * ~m, 15), m, {}


def uneven_air(a, m):
    return noisy(a + np.linspace(200, 350, len(a))[:, None] * ~m, 10), m, {}


def padding_of_monochrome1(a, m):
    return np.where(m | (a > 0), WHITE - a, 3000), m, {"inverted": True, "padding": (3000, 3000)}


def padding_range(a, m):
    values = np.random.default_rng(3).integers(3044, 3205, a.shape)
    stored = np.where(m | (a > 0), 3000 - a * 7 // 10, values)
    return stored, m, {"inverted": True, "padding": (3044, 3204)}


def undeclared_padding(a, m):
    return np.where(m | (a > 0), WHITE - a, 3000), m, {"inverted": True}


def undeclared_padding_as_bright_as_gland(a, m):
    return np.where(m | (a > 0), a, int(np.quantile(a[m], 0.82))), m, {}


def collimated(a, m):
    a, m = noisy(np.where(m, a, np.maximum(a, 300)), 5), m.copy()
    edge = len(a) // 12
    for mine, nothing in ((a, 0), (m, False)):
        mine[:edge] = mine[-edge:] = mine[:, -edge:] = nothing
    return a, m, {}


def collimated_with_padding(a, m):
    a, m, _ = collimated(a, m)
    return a, m, {"padding": (0, 0)}


def film_border(a, m):
    a, m = a.copy(), m.copy()
    edge = len(a) // 50
    for mine, there in ((a, WHITE), (m, False)):
        mine[:edge] = mine[-edge:] = there
        mine[:, :edge] = mine[:, -edge:] = there
    return a, m, {}


def stripe_at_the_wall(a, m):
    a, m = a.copy(), m.copy()
    a[:, :20], m[:, :20] = 3500, False
    return a, m, {}


def uneven_stripe_beside_breast_and_paddle(a, m):
    a, m, _ = paddle(a, m)
    m = m.copy()
    a[:, :8], m[:, :8] = np.where(np.arange(len(a)) % 100 < 40, 3500, 4000)[:, None], False
    a[len(a) // 6 : -len(a) // 6, 8:20] = 1200  # breast along more than 60 % of the wall
    return a, m, {}


def stripe_on_top(a, m):
    a, m = a.copy(), m.copy()
    a[:12], m[:12] = 3800, False
    return a, m, {}


def paddle(a, m):
    a = a.astype(np.int32)
    rows, columns = a.shape
    top, bottom, side = rows // 30, rows - rows // 30, columns * 19 // 20
    a[top:bottom, :side] += 120
    for line in (slice(top, top + 3), slice(bottom, bottom + 3)):
        a[line, :side] += 700
    a[top:bottom, side - 3 : side + 3] += 700
    return noisy(a, 10), m, {}


def implant(a, m):
    y, x = (int(v.mean()) for v in np.nonzero(m))
    down, across = np.ogrid[: a.shape[0], : a.shape[1]]
    inside = ((down - y) / (0.2 * len(a))) ** 2 + ((across - x) / (0.2 * a.shape[1])) ** 2 < 1
    return np.where(inside & m, 3900, a), m, {}


def for_processing(a, m):
    exposure = 12000 * np.exp(-a / 1100)
    noise = np.random.default_rng(9).normal(0, 0.9, a.shape) * np.sqrt(exposure)
    return np.rint(exposure + noise).astype(np.int32), m, {"inverted": True, "last": 16383}


CASES: list[Case] = [
    plain,
    inverted,
    signed,
    dark_of_16_bits,
    noisy_air,
    uneven_air,
    padding_of_monochrome1,
    padding_range,
    undeclared_padding,
    undeclared_padding_as_bright_as_gland,
    collimated,
    collimated_with_padding,
    film_border,
    stripe_at_the_wall,
    uneven_stripe_beside_breast_and_paddle,
    stripe_on_top,
    paddle,
    implant,
    for_processing,
]


@pytest.fixture(scope="module")
def breasts() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels and masks of phantoms, CC, chest wall on the left."""
    sizes = [(832, 640), (1147, 957), (600, 480)]
    made = [phantom(*size, seed=seed, view_position="CC") for seed, size in enumerate(sizes)]
    return [(p.pixels.astype(np.int32), p.mask) for p in made]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("side", ["L", "R"])
def test_breast_is_found_beside_every_nuisance(
    breasts: list[tuple[np.ndarray, np.ndarray]], case: Case, side: str
) -> None:
    for pixels, whole in breasts:
        stored, mask, arguments = case(pixels, whole)
        if side == "R":
            stored, mask = stored[:, ::-1], mask[:, ::-1]
        roi = find(stored, **arguments)  # type: ignore[arg-type]
        inside, ratio = judge(roi, mask)
        assert inside >= 0.999
        assert ratio <= 1.15
        assert roi.laterality == side
        assert roi.mask is not None
        assert abs(roi.area_share - mask.mean()) < 0.05
        assert abs(roi.area_share - roi.mask.mean()) < 1e-9
        assert not any(flag.startswith("full frame") for flag in roi.flags)


@pytest.mark.parametrize(("view_position", "laterality"), [("MLO", "L"), ("MLO", "R"), ("CC", "R")])
def test_views(view_position: str, laterality: str) -> None:
    for seed in range(4):
        made = phantom(
            900,
            701,
            seed=seed,
            view_position=view_position,  # type: ignore[arg-type]
            laterality=laterality,  # type: ignore[arg-type]
        )
        roi = find(made.pixels)
        inside, ratio = judge(roi, made.mask)
        assert inside >= 0.999
        assert ratio <= 1.15
        assert roi.laterality == laterality
        assert roi.flags == ()


def test_flags_say_what_was_met(breasts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    pixels, mask = breasts[0]
    assert find(pixels).flags == ()
    assert find(film_border(pixels, mask)[0]).flags == ("bright border",)
    stored, _, arguments = undeclared_padding(pixels, mask)
    assert find(stored, **arguments).flags == ("constant background 3000",)


def test_otsu_is_redone_without_padding_only_where_the_breast_touches_three_edges() -> None:
    made = phantom(520, 416, seed=4)
    ramp = np.linspace(700, 900, 416).astype(int)
    pixels = noisy(np.where(made.mask, made.pixels.astype(int), 0) + ramp, 20)
    pixels[:40] = 0
    roi = find(pixels, padding=(0, 0))
    assert roi.flags == ("otsu without padding",)
    inside, ratio = judge(roi, made.mask)
    assert inside >= 0.999
    assert ratio <= 1.15


def test_padding_is_never_breast(breasts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    pixels, mask = breasts[0]
    pixels = pixels.copy()
    pixels[:, 500:] = 3000  # as bright as gland, and as large as the breast
    roi = find(pixels, padding=(3000, 3000))
    inside, ratio = judge(roi, mask)
    assert inside >= 0.999
    assert ratio <= 1.15


def test_inverting_or_shifting_the_values_changes_nothing(
    breasts: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    small = breasts[0][0][::2, ::2].astype(np.uint16)
    facts = {"level": 0, "rows": 416, "columns": 320, "padding": None, "margin_pixels": 3}
    roi = find_breast(small, first=0, last=WHITE, inverted=False, **facts)
    other = find_breast(WHITE - small, first=0, last=WHITE, inverted=True, **facts)
    moved = find_breast(
        (small.astype(np.int32) - 2048).astype(np.int16),
        first=-2048,
        last=2047,
        inverted=False,
        **facts,
    )
    assert roi.box == other.box == moved.box
    assert roi.threshold == other.threshold == moved.threshold + 2048
    assert (roi.mask == other.mask).all()  # type: ignore[union-attr]
    assert (roi.mask == moved.mask).all()  # type: ignore[union-attr]


def test_mirroring_mirrors(breasts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for case in (plain, film_border, collimated):
        stored = case(*breasts[0])[0][::2, ::2]
        roi, mirrored = find(stored, level=0), find(stored[:, ::-1], level=0)
        r0, c0, r1, c1 = roi.box
        assert mirrored.box == (r0, 320 - c1, r1, 320 - c0)
        assert (roi.laterality, mirrored.laterality) == ("L", "R")


def test_margin_stays_inside_the_frame(breasts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    pixels, _ = breasts[0]
    box, wide = find(pixels).box, find(pixels, margin=40).box
    assert wide == (max(0, box[0] - 40), 0, min(832, box[2] + 40), box[3] + 40)
    assert find(pixels, margin=10_000).box == (0, 0, 832, 640)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_level_box_covers_the_pixels_its_samples_stand_for(level: int) -> None:
    pixels = np.zeros((256, 203), np.int32)
    pixels[80:176, :117] = 2000
    (r0, c0, r1, c1), step = find(pixels, level=level).box, 1 << level
    assert c0 == 0
    assert 80 - 2 * step < r0 <= 80
    assert 176 <= r1 < 176 + 2 * step
    assert 117 <= c1 < 117 + 2 * step


def test_the_last_sample_reaches_the_end_of_an_odd_frame() -> None:
    pixels = np.zeros((255, 203), np.int32)
    pixels[100:, 90:] = 2000
    assert find(pixels, level=3).box[2:] == (255, 203)


BLANK = ("blank", "full frame: blank")
TINY = ("tiny", "full frame: tiny")


def frame_with_label(air: np.ndarray) -> np.ndarray:
    air[20:40, 300:360] = WHITE
    return air


NO_BREAST = {
    "zero": (np.zeros((520, 416)), {}, BLANK),
    "constant": (np.full((520, 416), 1234), {}, BLANK),
    "all white": (np.full((520, 416), WHITE), {}, BLANK),
    "all padding": (np.full((520, 416), 7), {"padding": (0, 100)}, BLANK),
    "label on zero": (frame_with_label(np.zeros((520, 416))), {}, TINY),
    "label on noise": (frame_with_label(noisy(np.full((520, 416), 200), 10)), {}, TINY),
    "noise": (noisy(np.full((520, 416), 500), 30), {}, TINY),
    "dark noise": (np.random.default_rng(1).poisson(3, (520, 416)), {}, TINY),
    "one pixel": (np.zeros((1, 1)), {}, BLANK),
    "few pixels": (np.zeros((3, 5)), {}, BLANK),
}


@pytest.mark.parametrize("name", NO_BREAST)
def test_no_breast_gives_the_full_frame_and_says_so(name: str) -> None:
    pixels, arguments, flags = NO_BREAST[name]
    roi = find(pixels, **arguments)
    assert roi.box == (0, 0, *pixels.shape)
    assert roi.flags == flags
    assert roi.mask is None
    assert roi.laterality == ""


def test_a_frame_full_of_breast_is_kept_whole() -> None:
    for seed in range(4):
        made = phantom(1000, 800, seed=seed, label=False)
        y, x = (int(v.mean()) for v in np.nonzero(made.mask))
        roi = find(made.pixels[y - 220 : y + 220, x - 150 : x + 150])
        assert roi.box == (0, 0, 440, 300)
        assert set(roi.flags) & {"full frame: no air", "touches all edges"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 5), (2, 2), (64, 3), (70, 50)])
def test_small_frames_always_give_a_box_inside(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(5)
    half = np.zeros(shape)
    half[:, : shape[1] // 2] = 2000
    for pixels in (half, generator.integers(0, 4096, shape)):
        for arguments in ({}, {"padding": (0, 0)}, {"inverted": True}):
            r0, c0, r1, c1 = find(pixels, margin=2, **arguments).box
            assert 0 <= r0 < r1 <= shape[0]
            assert 0 <= c0 < c1 <= shape[1]


def test_roi_level_depends_on_size_alone() -> None:
    sizes = {(1, 1): 0, (640, 640): 0, (641, 3): 1, (1280, 9): 1, (1281, 9): 2}
    vendors = {(2294, 1914): 2, (3328, 2560): 3, (4096, 3328): 3, (5355, 4915): 4}
    for (rows, columns), level in {**sizes, **vendors}.items():
        assert roi_level(rows, columns) == roi_level(columns, rows) == level


# Read off the pictures by eye, to a few pixels: (row0, column0, row1, column1), chest wall.
REAL = {
    "birads/L-CC.png": ((0, 0, 2600, 1350), "L"),
    "birads/R-MLO.png": ((0, 5, 2600, 1260), "L"),  # shown mirrored, as hung
    "msynth/P152_Dfatty_L9.0_X1.78e10.jpg": ((0, 130, 1400, 1875), ""),
    "msynth/P169_Ddense_L7.0_X3.47e09.jpg": ((0, 415, 715, 1600), ""),
    "fo-dicom/OutOfBoundsOverlay.dcm": ((225, 0, 788, 1310), "L"),  # a spot view with its paddle
}


@pytest.mark.parametrize("name", REAL)
def test_real_images(data: Path, name: str) -> None:
    if name.endswith(".dcm"):
        import pydicom

        header = pydicom.dcmread(data / name)
        roi = find(header.pixel_array, inverted=header.PhotometricInterpretation == "MONOCHROME1")
    else:
        roi = find(np.asarray(Image.open(data / name).convert("L")), last=255)
    box, laterality = REAL[name]
    assert np.abs(np.subtract(roi.box, box)).max() <= 16
    assert roi.laterality == laterality
    if name == "birads/L-CC.png":  # its chest wall glows from end to end, and is no border
        assert roi.flags == ()


def test_components_are_numbered_by_their_first_pixel() -> None:
    generator = np.random.default_rng(11)
    for shape, density in (((1, 1), 1.0), ((7, 1), 0.5), ((40, 31), 0.45), ((60, 60), 0.6)):
        mask = generator.random(shape) < density
        labels, sizes = components(mask)
        assert (labels == by_flooding(mask)).all()
        assert (sizes == np.bincount(labels.ravel())).all()
    spiral = np.zeros((9, 9), bool)
    spiral[0], spiral[:, 8], spiral[8], spiral[2:, 0], spiral[2, :7] = True, True, True, True, True
    assert components(spiral)[1].tolist() == [81 - spiral.sum(), spiral.sum()]


def by_flooding(mask: np.ndarray) -> np.ndarray:
    """Number 4-connected parts the slow way."""
    labels = np.zeros(mask.shape, int)
    count = 0
    for seed in np.argwhere(mask):
        if labels[tuple(seed)]:
            continue
        count += 1
        todo = [tuple(seed)]
        while todo:
            y, x = todo.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                todo += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 14, 20])
def test_dilation_and_opening_by_their_definitions(radius: int) -> None:
    mask = np.random.default_rng(13).random((23, 31)) < 0.85
    mask[5:18, 3:20] = True
    sparse = np.random.default_rng(17).random((23, 31)) < 0.01
    sparse[0, 0] = sparse[22, 4] = True  # what lies at an edge reaches as far as the rest
    near = np.zeros_like(sparse)
    for y, x in np.argwhere(sparse):
        near[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    assert (dilated(sparse, radius) == near).all()
    side = 2 * radius + 1
    squares = np.zeros_like(mask)
    for y in range(23 - side + 1):
        for x in range(31 - side + 1):
            if mask[y : y + side, x : x + side].all():
                squares[y : y + side, x : x + side] = True
    assert (opened(mask, radius) == squares).all()


def test_histogram_counts_under_the_mask() -> None:
    pixels = np.random.default_rng(19).integers(-20, 20, (31, 17)).astype(np.int16)
    where = pixels % 3 == 0
    wanted = [(pixels[where] == v).sum() for v in range(-20, 20)]
    assert histogram(pixels[::-1], -20, 19, where[::-1]).tolist() == wanted


def test_otsu_puts_a_large_breast_s_fat_with_its_gland() -> None:
    """On a linear scale the split of these counts falls between fat (800) and gland (2200)."""
    counts = np.zeros(4096, np.int64)
    for mean, share in ((60, 8_000), (800, 50_000), (2200, 42_000)):
        spread = np.exp(-(((np.arange(4096) - mean) / (0.12 * mean + 10)) ** 2) / 2)
        counts += (share * spread / spread.sum()).astype(np.int64)
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * np.arange(4096))
    weight = np.maximum(below * (counts.sum() - below), 1)
    between = (sums[-1] * below / counts.sum() - sums[:-1]) ** 2 / weight
    assert np.argmax(between) > 1000
    split = otsu(counts, 0)
    assert split is not None
    assert 80 < split.threshold < 500
    assert split.even
