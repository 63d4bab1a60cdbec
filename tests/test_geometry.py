"""Geometry: boxes forward and back, mirrored or not, in pixels and millimetres."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmammo.preprocess import Geometry

PLAIN = Geometry(
    rows=4000,
    columns=3000,
    box=(500, 0, 3500, 1500),
    size=(1024, 512),
    placed=(0, 0, 1024, 512),
    mirrored=False,
    level=1,
    spacing_mm=(0.07, 0.07),
)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    def span(limit: int) -> tuple[int, int]:
        a = draw(st.integers(0, limit - 1))
        return a, draw(st.integers(a + 1, limit))

    rows, columns = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    size = draw(st.integers(1, 1024)), draw(st.integers(1, 1024))
    (r0, r1), (c0, c1) = span(rows), span(columns)
    (p0, p1), (q0, q1) = span(size[0]), span(size[1])
    box, placed = (r0, c0, r1, c1), (p0, q0, p1, q1)
    return Geometry(rows, columns, box, size, placed, draw(st.booleans()), draw(st.integers(0, 4)))


@given(geometries(), st.lists(st.floats(0, 5000), min_size=4, max_size=4))
def test_there_and_back(geometry: Geometry, box: list[float]) -> None:
    there = geometry.to_output(box)
    assert np.allclose(geometry.to_source(there), box, atol=1e-6)


@given(geometries())
def test_the_crop_box_is_where_the_image_is_placed(geometry: Geometry) -> None:
    assert np.allclose(geometry.to_output(geometry.box), geometry.placed)
    assert np.allclose(geometry.to_source(geometry.placed), geometry.box)


def test_known_boxes() -> None:
    assert PLAIN.scale == (1024 / 3000, 512 / 1500)
    assert PLAIN.to_output((500, 0, 2000, 750)).tolist() == [0, 0, 512, 256]
    mirrored = Geometry(**{**PLAIN.__dict__, "mirrored": True})
    assert mirrored.to_output((500, 0, 2000, 750)).tolist() == [0, 256, 512, 512]
    several = mirrored.to_output([[500, 0, 2000, 750], [500, 750, 2000, 1500]])
    assert several[1].tolist() == [0, 0, 512, 256]
    assert PLAIN.to_output((0, 0, 600, 10), clip=True)[0] == 0
    assert PLAIN.to_output((0, 0, 100, 10), clip=True).tolist()[0::2] == [0, 0]  # empty
    assert PLAIN.to_source((0, 0, 9999, 9999), clip=True).tolist() == [500, 0, 4000, 3000]


def test_millimetres() -> None:
    assert np.allclose(PLAIN.to_mm((0, 0, 1024, 512)), (35, 0, 245, 105))
    assert np.allclose(PLAIN.output_spacing_mm, (0.07 * 3000 / 1024, 0.07 * 1500 / 512))
    bare = Geometry(**{**PLAIN.__dict__, "spacing_mm": None})
    assert bare.output_spacing_mm is None
    with pytest.raises(ValueError, match="the header has neither Pixel Spacing"):
        bare.to_mm((0, 0, 1, 1))


def test_it_survives_json() -> None:
    assert Geometry.from_dict(json.loads(json.dumps(PLAIN.to_dict()))) == PLAIN


def test_impossible_geometries() -> None:
    with pytest.raises(ValueError, match=r"self\.box = \(0, 0, 5000, 1\) lies outside 4000 x 3000"):
        Geometry(**{**PLAIN.__dict__, "box": (0, 0, 5000, 1)})
    with pytest.raises(ValueError, match=r"self\.placed = "):
        Geometry(**{**PLAIN.__dict__, "placed": (0, 0, 1025, 1)})
    with pytest.raises(ValueError, match=r"got shape \(3,\), wanted \(..., 4\)"):
        PLAIN.to_output((1, 2, 3))
