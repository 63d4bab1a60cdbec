"""A spacing in mm: the output has it, along both axes, or the file fails and says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fastmammo.dicom import read
from fastmammo.errors import ConfigError, DoesNotFitError, NoPixelSpacingError
from fastmammo.preprocess import Config, Geometry, Preprocessor
from fastmammo.preprocess.spacing import box_at_spacing
from fastmammo.testing import phantom, write_dicom

PLAIN = "1.2.840.10008.1.2.1"
DOTS = [(100, 60), (100, 340), (500, 60), (500, 340), (301, 203)]


def dots(row_mm: float, column_mm: float, **settings: Any) -> bytes:
    """A frame of 600 x 400 with smooth bright spots about known places: no level loses them."""
    rows, columns = np.arange(600)[:, None] + 0.5, np.arange(400) + 0.5
    spots = [np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * 6**2)) for r, c in DOTS]
    pixels = np.rint(4000 * sum(spots)).astype(np.uint16)
    spacing = {"PixelSpacing": [row_mm, column_mm], "ImagerPixelSpacing": [row_mm, column_mm]}
    return write_dicom(pixels, transfer_syntax_uid=settings.pop("uid", PLAIN), attributes=spacing)


def centre(image: np.ndarray, near: tuple[float, float]) -> tuple[float, float]:
    """Return the centre of mass of the spot near a place, in pixels from the outer corner."""
    row, column = (round(v) for v in near)
    top, left = max(0, row - 20), max(0, column - 20)
    part = image[top : row + 20, left : column + 20].astype(float)
    part -= part.min()
    rows, columns = np.indices(part.shape)
    total = part.sum()
    return (
        float((part * rows).sum() / total) + top + 0.5,
        float((part * columns).sum() / total) + left + 0.5,
    )


@pytest.mark.parametrize(
    ("row_mm", "column_mm", "wanted"),
    [(0.1, 0.1, 0.17), (0.1, 0.1, 0.47), (0.07, 0.14, 0.2), (0.2, 0.05, 0.21), (0.1, 0.1, 0.08)],
)
@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize("flip", ["left", "right"])
def test_distances_between_known_places_are_true(
    row_mm: float, column_mm: float, wanted: float, scale: str, flip: str
) -> None:
    config = Config(
        size=(1600, 900), bits=16, spacing_mm=wanted, crop="none", scale=scale, flip=flip
    )
    prepared = Preprocessor(config, workers=1).prepare(dots(row_mm, column_mm))
    g, found = prepared.geometry, []
    assert g.output_spacing_mm == pytest.approx((wanted, wanted), rel=1e-9)
    assert prepared.record["row_spacing_mm"] == prepared.record["column_spacing_mm"] == wanted
    for row, column in DOTS:
        r0, c0, r1, c1 = g.to_output((row - 4, column - 4, row + 4, column + 4))
        told = (r0 + r1) / 2, (c0 + c1) / 2
        found.append(centre(prepared.image, told))
        assert found[-1] == pytest.approx(told, abs=0.03)
    for (r, c), source in zip(found, DOTS, strict=True):
        # from the first dot, measured on the output and on the detector
        got = abs(r - found[0][0]) * wanted, abs(c - found[0][1]) * wanted
        meant = (source[0] - DOTS[0][0]) * row_mm, (source[1] - DOTS[0][1]) * column_mm
        assert got == pytest.approx(meant, abs=0.05 * wanted)
        row, column = g.to_mm((r, c, r, c))[:2]
        assert (row, column) == pytest.approx(
            (source[0] * row_mm, source[1] * column_mm), abs=0.05 * wanted
        )


@pytest.mark.parametrize("side", ["L", "R"])
def test_a_breast_keeps_its_size_and_lies_at_its_wall(side: Any) -> None:
    made = phantom(832, 640, seed=3, laterality=side)
    data = write_dicom(made.pixels, laterality=side, pixel_spacing=made.pixel_spacing)
    config = Config(size=(600, 400), spacing_mm=0.6)
    prepared = Preprocessor(config, workers=1).prepare(data)
    g, roi = prepared.geometry, prepared.roi.box
    assert g.box[0] <= roi[0]
    assert g.box[1] <= roi[1]
    assert g.box[2] >= roi[2]
    assert g.box[3] >= roi[3]
    # widened by less than one output pixel, and not at the chest wall
    assert g.box[2] - g.box[0] - (roi[2] - roi[0]) < 0.6 / made.pixel_spacing
    wall = 1 if side == "L" else 3
    assert g.box[wall] == roi[wall]
    assert g.placed[wall] == (0 if side == "L" else 400)
    shown = prepared.image > prepared.voi.black + 2
    height = (np.flatnonzero(shown.any(axis=1))[[0, -1]] @ [-1, 1] + 1) * 0.6
    rows = np.flatnonzero(made.mask.any(axis=1))
    assert height == pytest.approx((np.ptp(rows) + 1) * made.pixel_spacing, abs=3)


def test_every_lossless_syntax_gives_the_same_bytes() -> None:
    made = phantom(1303, 1001, seed=2)
    for scale in ("auto", "full"):
        prepare = Preprocessor(size=(256, 200), spacing_mm=1, scale=scale, workers=1).prepare
        images = [
            prepare(write_dicom(made.pixels, transfer_syntax_uid=uid, pixel_spacing=0.179))
            for uid in (PLAIN, "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70")
        ]
        assert len({each.image.tobytes() for each in images}) == 1
        assert images[0].geometry.level == (2 if scale == "auto" else 0)


def test_where_it_lies_can_be_told_from_the_record() -> None:
    for spacing in (None, 0.5):
        made = phantom(640, 512, seed=1, laterality="R")
        data = write_dicom(made.pixels, laterality="R", pixel_spacing=made.pixel_spacing)
        config = Config(size=(700, 400), flip="left", spacing_mm=spacing)
        prepared = Preprocessor(config, workers=1).prepare(data)
        for record in (prepared.record, {k: str(v) for k, v in prepared.record.items()}):
            again = Geometry.from_record(record, config.size)
            assert again.box == pytest.approx(prepared.geometry.box, abs=1e-6)
            assert again.spacing_mm == pytest.approx(prepared.geometry.spacing_mm, abs=1e-5)
            same = dataclasses.replace(
                prepared.geometry, box=again.box, spacing_mm=again.spacing_mm
            )
            assert again == same
        bare = Geometry.from_record({**prepared.record, "row_spacing_mm": ""}, config.size)
        assert bare.spacing_mm is None


# ---------------------------------------------------------------- the box


def test_the_box_is_widened_to_whole_pixels() -> None:
    def found(
        box: tuple[int, int, int, int], side: str, mm: tuple[float, float] = (0.1, 0.1)
    ) -> tuple[float, ...]:
        wanted = 0.3 if mm[0] == mm[1] else 0.07
        edges, size = box_at_spacing(box, (1000, 800), mm, wanted, (600, 600), side)
        assert (edges[2] - edges[0]) * mm[0] == pytest.approx(size[0] * wanted)
        assert (edges[3] - edges[1]) * mm[1] == pytest.approx(size[1] * wanted)
        return (*(round(edge, 9) for edge in edges), *size)

    # 203 rows are 67.7 pixels of 0.3 mm: 68, 204 rows, half a row more at either end
    assert found((100, 0, 303, 151), "L") == (99.5, 0, 303.5, 153, 68, 51)
    assert found((100, 649, 303, 800), "R") == (99.5, 647, 303.5, 800, 68, 51)
    assert found((100, 300, 303, 451), "") == (99.5, 299, 303.5, 452, 68, 51)
    # at the frame's edge it is shifted inward
    assert found((0, 649, 203, 800), "") == (0, 647, 204, 800, 68, 51)
    # a whole frame has no room: its last, incomplete pixel is left out
    assert found((0, 0, 1000, 800), "R") == (0.5, 2, 999.5, 800, 333, 266)
    # a spacing that fits exactly leaves the box as it is
    assert found((5, 0, 305, 150), "L") == (5, 0, 305, 150, 100, 50)
    assert found((5, 0, 305, 150), "L", (0.07, 0.14)) == (5, 0, 305, 150, 300, 300)


def test_what_does_not_fit() -> None:
    data = dots(0.1, 0.1)
    prepare = Preprocessor(size=(250, 250), spacing_mm=0.2, crop="none", workers=1).prepare
    with pytest.raises(DoesNotFitError) as caught:
        prepare(data)
    assert str(caught.value) == (
        "at 0.2 mm a pixel the image needs 300x200 pixels, size is 250x250: choose a larger size, "
        "a coarser spacing_mm (from 0.24 for this image), or crop to the breast with a smaller "
        "margin"
    )
    assert caught.value.reason == "does not fit"
    fits = Preprocessor(size=(250, 250), spacing_mm=0.24, crop="none", workers=1).prepare(data)
    assert fits.geometry.placed[0::2] == (0, 250)
    with pytest.raises(DoesNotFitError, match="the frame is 40 mm wide or high, less than one"):
        Preprocessor(size=(250, 250), spacing_mm=50, crop="none", workers=1).prepare(data)


def test_no_spacing_in_the_header() -> None:
    without = {"PixelSpacing": None, "ImagerPixelSpacing": None}
    data = write_dicom(phantom(64, 48).pixels, attributes=without)
    with pytest.raises(NoPixelSpacingError, match=r"no pixel spacing: .* leave spacing_mm out"):
        Preprocessor(size=(64, 48), spacing_mm=5, workers=1).prepare(data)
    assert NoPixelSpacingError("").reason == "no pixel spacing"
    assert Preprocessor(size=(64, 48), workers=1).prepare(data).record["row_spacing_mm"] == ""


@pytest.mark.parametrize(
    ("pixel", "imager", "factor", "expected"),
    [
        ([0.1, 0.1], [0.1, 0.1], None, 0.1),
        ([0.1, 0.1], [0.1, 0.1], 1.0, 0.1),
        # the same as the detector's: not corrected (PS3.3 10.7.1.1), so the factor counts
        ([0.1, 0.1], [0.1, 0.1], 1.8, 0.1 / 1.8),
        ([0.1, 0.1], [0.10000001, 0.1], 1.8, 0.1 / 1.8),
        # another one: corrected or calibrated already
        ([0.055, 0.055], [0.1, 0.1], 1.8, 0.055),
        (None, [0.1, 0.1], 1.8, 0.1 / 1.8),
        ([0.1, 0.1], None, 1.8, 0.1),
        # impossible factors: the source is nearer to the breast than to the detector
        (None, [0.1, 0.1], 0.5, 0.1),
        (None, [0.1, 0.1], -1.0, 0.1),
        (None, [0.1, 0.1], 180.0, 0.1),
        (None, None, 1.8, None),
    ],
)
def test_which_spacing_is_that_of_the_breast(
    pixel: Any, imager: Any, factor: Any, expected: float | None
) -> None:
    values = {"PixelSpacing": pixel, "ImagerPixelSpacing": imager}
    values["EstimatedRadiographicMagnificationFactor"] = factor
    found = read(write_dicom(phantom(32, 24).pixels, attributes=values)).spacing_mm
    assert found is None if expected is None else found == pytest.approx((expected, expected))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("value", [0, -1, True, "0.2", float("nan"), 1000])
def test_the_setting_is_checked(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"spacing_mm: got {value!r}, wanted 0.001 to 100 mm"):
        Config(spacing_mm=value)


def test_settings_that_are_not_given_do_not_count() -> None:
    assert Config().digest() == "154a362781336931"  # of PIXEL_VERSION 3
    assert Config(spacing_mm=1).digest() == Config(spacing_mm=1.0).digest() != Config().digest()
