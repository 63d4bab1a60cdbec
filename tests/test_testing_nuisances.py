"""Lesions and nuisances: each is where the truth says, and the truth follows what is covered."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fastmammo.testing import VENDOR_SIZES, Nuisances, Phantom, draw_nuisances, phantom
from fastmammo.testing.lesions import KINDS, Kind
from fastmammo.testing.nuisances import SIDES

SIZE = (416, 320)


def made(seed: int = 1, **options: Any) -> Phantom:
    return phantom(*SIZE, **{"seed": seed, "noise": 0.0, **options})


def outside(mask: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the mask without a box."""
    mask = mask.copy()
    mask[box[0] : box[2], box[1] : box[3]] = False
    return mask


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("view_position", ["CC", "MLO"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_lies_in_its_box_with_its_contrast(
    kind: Kind, view_position: Any, laterality: Any
) -> None:
    view = {"view_position": view_position, "laterality": laterality, "bits_stored": 16}
    for contrast in (0.2, 0.5):
        plain = made(**view)
        image = made(**view, lesions=[kind], lesion_contrast=contrast)
        assert plain.lesions == ()
        (lesion,) = image.lesions
        assert (lesion.kind, lesion.contrast) == (kind, contrast)
        r0, c0, r1, c1 = lesion.box
        added = image.pixels.astype(int) - plain.pixels
        assert added.min() >= 0
        # outside its box a lesion only fades out
        assert added[outside(added > 0, lesion.box)].max(initial=0) <= 0.15 * added.max()
        assert image.mask[r0:r1, c0:c1].mean() > 0.9
        around = plain.pixels[max(0, r0 - 4) : r1 + 4, max(0, c0 - 4) : c1 + 4].mean()
        found = added.max() / around
        if kind == "calcifications":  # smaller than these pixels: they keep their sum only
            assert 0.02 * contrast < found <= 1.3 * contrast
        else:
            assert found == pytest.approx(contrast, rel=0.2)
    np.testing.assert_array_equal(plain.mask, image.mask)


def test_several_lesions_keep_apart_and_off_the_muscle() -> None:
    for seed in range(4):
        image = made(seed, view_position="MLO", lesions=KINDS[:3])
        assert [lesion.kind for lesion in image.lesions] == list(KINDS[:3])
        middles = [
            np.array([lesion.box[0] + lesion.box[2], lesion.box[1] + lesion.box[3]]) / 2
            for lesion in image.lesions
        ]
        for index, middle in enumerate(middles):
            row, column = middle.astype(int)
            assert image.mask[row, column]
            assert row > SIZE[0] // 4  # the muscle has the upper corner
            for other in middles[:index]:
                assert np.hypot(*(middle - other)) * image.pixel_spacing > 10


def test_the_same_lesion_seed_gives_the_same_finding_in_both_views() -> None:
    def width(view_position: Any, lesion_seed: int) -> int:
        image = made(
            view_position=view_position, lesions=["round mass"], lesion_seed=lesion_seed, seed=4
        )
        (lesion,) = image.lesions
        return lesion.box[3] - lesion.box[1]

    widths = [(width("CC", seed), width("MLO", seed)) for seed in range(5)]
    assert all(abs(cc - mlo) <= 3 for cc, mlo in widths)
    assert len({cc for cc, _ in widths}) > 1


def test_density_is_heard() -> None:
    def gland(density: Any) -> float:
        shares = []
        for seed in range(3):
            image = made(seed, density=density)
            shares.append((image.pixels[image.mask] > 0.35 * 4095).mean())
        return float(np.mean(shares))

    shares = [gland(density) for density in "ABCD"]
    assert shares == sorted(shares)
    assert shares[3] > 3 * shares[0]


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("side", SIDES)
def test_borders_and_collimation_cover_their_side_and_leave_the_mask(
    side: Any, laterality: Any
) -> None:
    depth = 6  # 5 mm at 0.56 mm a pixel, less what a border varies
    mirror = {"wall": "far", "far": "wall"} if laterality == "R" else {}
    strip = {
        "top": np.s_[:depth],
        "bottom": np.s_[-depth:],
        "wall": np.s_[:, :depth],
        "far": np.s_[:, -depth:],
    }[mirror.get(side, side)]
    for view_position in ("CC", "MLO"):
        view: Any = {"view_position": view_position, "laterality": laterality}
        image = made(**view, nuisances=Nuisances(border=5, border_sides=(side,)))
        assert (image.pixels[strip] > 0.85 * 4095).all()
        assert not image.mask[strip].any()
        image = made(
            **view, nuisances=Nuisances(collimation=5, collimation_sides=(side,), padding=0.2)
        )
        assert (image.pixels[strip] == 819).all()
        assert image.padding == 819
        assert image.stored_padding("MONOCHROME1") == 4095 - 819
        assert not image.mask[strip].any()
        image = made(**view, nuisances=Nuisances(stripe=5, stripe_side=side))
        assert (image.pixels[strip] > 0.65 * 4095).all()
        assert not image.mask[strip].any()


def test_suppressed_air_is_one_value_and_other_air_is_not() -> None:
    image = made(label=False, nuisances=Nuisances(padding=0.27))
    assert set(np.unique(image.pixels[~image.mask])) == {round(0.27 * 4095)}
    image = made(label=False, noise=1.0, nuisances=Nuisances(air=0.06, air_slope=0.5))
    air = image.pixels[~image.mask]
    assert image.padding is None
    assert abs(air.mean() / 4095 - 0.06) < 0.01
    assert 5 < air.std() < 60
    top, bottom = image.pixels[:40, 200:].mean(), image.pixels[-40:, 200:].mean()
    assert bottom > 1.3 * top
    # the breast lies on the air: even its skin is brighter
    assert np.percentile(image.pixels[image.mask], 1) > np.percentile(air, 90)


def test_what_lies_in_the_beam_is_bright_and_no_breast() -> None:
    plain = made(label=False)
    for nuisances, least in (
        (Nuisances(lead_letters=True), 100),
        (Nuisances(markers=2), 4),
    ):
        image = made(label=False, nuisances=nuisances)
        white = image.pixels == 4095
        assert white.sum() - (plain.pixels == 4095).sum() >= least
        np.testing.assert_array_equal(image.mask, plain.mask)
    letters = made(label=False, nuisances=Nuisances(lead_letters=True))
    assert not (letters.pixels[letters.mask] == 4095).any()
    paddle = made(label=False, nuisances=Nuisances(paddle=1.0))
    air = paddle.pixels[~paddle.mask]
    assert abs(np.median(air) - 0.03 * 4095) < 2
    assert air.max() > 0.12 * 4095
    pacemaker = made(view_position="MLO", nuisances=Nuisances(pacemaker=True))
    area = (pacemaker.pixels == 4095).sum() * pacemaker.pixel_spacing**2
    assert 800 < area < 2000  # mm²
    bare = made(view_position="MLO")
    np.testing.assert_array_equal(pacemaker.mask, bare.mask)
    np.testing.assert_array_equal(  # none in a CC view
        made(nuisances=Nuisances(pacemaker=True)).pixels, made().pixels
    )


def test_an_implant_grows_whiter_with_its_strength() -> None:
    plain = made()
    means = []
    for strength in (0.2, 0.6, 1.0):
        image = made(nuisances=Nuisances(implant=strength))
        np.testing.assert_array_equal(image.mask, plain.mask)
        middle = np.flatnonzero(image.mask[:, 0]).mean().astype(int)
        means.append(image.pixels[middle - 20 : middle + 20, 5:60].mean() / 4095)
    assert 0.5 < means[0] < means[1] < means[2]
    assert means[2] > 0.97


def test_nuisances_leave_the_breast_as_it_was() -> None:
    plain = made(noise=1.0, lesions=KINDS[:1])
    image = made(noise=1.0, lesions=KINDS[:1], nuisances=Nuisances(lead_letters=True, border=3))
    np.testing.assert_array_equal(plain.pixels[image.mask], image.pixels[image.mask])
    assert plain.lesions == image.lesions
    assert image.label_box is not None
    assert plain.label_box is not None
    assert image.label_box[0] > plain.label_box[0]  # moved inside the border


def test_a_covered_lesion_is_left_out() -> None:
    most = {"border": 15.0, "collimation": 25.0, "collimation_sides": SIDES}
    kept = 0
    for seed in range(8):
        bare = phantom(208, 80, seed=seed, lesions=["round mass"])  # narrow: all is near a side
        image = phantom(208, 80, seed=seed, lesions=["round mass"], nuisances=Nuisances(**most))
        kept += len(image.lesions)
        for lesion in image.lesions:
            assert lesion in bare.lesions
            r0, c0, r1, c1 = lesion.box
            assert image.mask[r0:r1, c0:c1].mean() > 0.5
    assert kept < 8


def test_drawn_nuisances_hold_to_the_table() -> None:
    drawn = [draw_nuisances(seed) for seed in range(600)]
    for nuisances in drawn:
        nuisances.check()
        assert nuisances.border <= 8
        assert nuisances.collimation <= 16
    assert drawn == [draw_nuisances(seed) for seed in range(600)]
    counts = Counter(name for nuisances in drawn for name in nuisances.names)
    assert set(counts) == {
        "lead_letters",
        "markers",
        "paddle",
        "implant",
        "pacemaker",
        "air",
        "padding",
        "collimation",
        "border",
        "stripe",
    }
    assert 240 < counts["lead_letters"] < 360
    assert 50 < counts["air"] < 130
    assert 60 < sum(not nuisances.names for nuisances in drawn) < 140


def test_any_nuisances_at_any_size() -> None:
    for seed, size in enumerate([(16, 16), (67, 53), (16, 200), (200, 16), (120, 90), (233, 301)]):
        for offset in range(3):
            image = phantom(
                *size,
                seed=seed,
                view_position="MLO" if offset % 2 else "CC",
                laterality="R",
                lesions=KINDS,
                nuisances=draw_nuisances(7 * seed + offset),
            )
            assert image.pixels.shape == size
            for lesion in image.lesions:
                r0, c0, r1, c1 = lesion.box
                assert 0 <= r0 < r1 <= size[0]
                assert 0 <= c0 < c1 <= size[1]


def test_vendor_sizes() -> None:
    sizes = {(size.rows, size.columns) for size in VENDOR_SIZES.values()}
    assert sizes >= {(2294, 1914), (2776, 2082), (3328, 2560), (4096, 3328), (5355, 4915)}
    for size in VENDOR_SIZES.values():
        assert 220 < size.rows * size.pixel_spacing < 320  # mm
    size = VENDOR_SIZES["MicroDose 24x26"]
    image = phantom(105, 96, field_height=size.rows * size.pixel_spacing)
    assert image.pixel_spacing == pytest.approx(267.75 / 105)
