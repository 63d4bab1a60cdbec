"""The VOI table against the standard's text, value by value, and against pydicom."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmammo.dicom import LookupTable, Mammogram, Window, read
from fastmammo.errors import ConfigError, PreprocessError, WindowError
from fastmammo.preprocess.voi import WindowChoice, apply_voi, resampling_table, voi_table
from fastmammo.testing import write_dicom

NATIVE = "1.2.840.10008.1.2.1"
BASE = dataclasses.replace(
    read(write_dicom(np.zeros((2, 2), np.uint16), transfer_syntax_uid=NATIVE)),
    path="view.dcm",
    rescale_slope=None,
    rescale_intercept=None,
    window_center=(),
    window_width=(),
    voi_lut_function="",
    presentation_lut_shape="",
    pixel_padding_value=None,
    pixel_padding_range_limit=None,
)
HALF = 0.5 + 1e-9
"""Half a step, and what two orders of float64 operations may differ by."""


def mammogram(bits_stored: int = 12, signed: bool = False, **attributes) -> Mammogram:
    return dataclasses.replace(
        BASE, bits_stored=bits_stored, pixel_representation=int(signed), **attributes
    )


def windowed(center, width, function: str = "", **attributes) -> Mammogram:
    several = lambda v: tuple(map(float, v if isinstance(v, (tuple, list)) else [v]))  # noqa: E731
    return mammogram(
        window_center=several(center),
        window_width=several(width),
        voi_lut_function=function,
        **attributes,
    )


def lut(first: int, data, bits: int = 16, explanation: str = "") -> LookupTable:
    return LookupTable(first, np.asarray(data, np.uint16), bits, explanation)


def span(m: Mammogram) -> dict[str, int]:
    n = 1 << m.bits_stored
    return {"first": -n // 2, "last": n // 2 - 1} if m.signed else {"first": 0, "last": n - 1}


def table(m: Mammogram, **options):
    return voi_table(m, **{**span(m), **options})


# The reference: PS3.3 C.11.1 and C.11.2 for one value at a time, as the standard's text has it.


def reference_lut(item: LookupTable, x: float) -> int:
    x = math.floor(x + 0.5)
    if x < item.first_value:
        return int(item.data[0])
    if x - item.first_value >= len(item.data):
        return int(item.data[-1])
    return int(item.data[x - item.first_value])


def reference_window(x: float, c: float, w: float, function: str) -> float:
    if function == "SIGMOID":
        exponent = -4 * (x - c) / w
        return 0.0 if exponent > 700 else 1 / (1 + math.exp(exponent))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return (x - (c - 0.5)) / (w - 1) + 0.5


def reference_modality(m: Mammogram, v: int) -> float:
    if m.modality_lut is not None:
        return float(reference_lut(m.modality_lut, v))
    slope = 1.0 if m.rescale_slope is None else m.rescale_slope
    return v * slope + (m.rescale_intercept or 0.0)


def assert_bound(m: Mammogram, shade, **options) -> None:
    """Hold every output of 8 and 16 bits, and the resampler's table, to shade(x) in 0..1."""
    first, last = span(m).values()
    y = np.array([shade(reference_modality(m, v)) for v in range(first, last + 1)])
    for bits in (8, 16):
        top = 2**bits - 1
        for kind in ("MONOCHROME2", "MONOCHROME1"):
            seen = dataclasses.replace(m, photometric_interpretation=kind)
            made = table(seen, bits=bits, **options)
            wanted = (1 - y if kind == "MONOCHROME1" else y) * top
            error = np.abs(made.values - wanted)
            worst = int(error.argmax())
            assert error[worst] <= HALF, (bits, kind, first + worst, made.rule)
            assert made.values.dtype == np.uint16
            assert made.black == made.values.min()
            assert made.inverted == (kind == "MONOCHROME1")
            entries = resampling_table(seen, **span(m), bits=bits, **options).astype(int)
            if bits == 16:
                np.testing.assert_array_equal(entries, made.values)
            else:
                np.testing.assert_array_equal((entries + 128) // 257, made.values)
                fine = table(seen, bits=16, **options).values
                assert np.abs(entries - fine).max() <= 1
                moved = (fine.astype(int) + 128) // 257 != made.values
                np.testing.assert_array_equal(entries[~moved], fine[~moved])


DEPTHS = [(bits, signed) for bits in (8, 10, 12, 14, 16) for signed in (False, True)]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("bits_stored", "signed"), DEPTHS)
def test_windows_at_every_depth_and_sign(bits_stored: int, signed: bool, function: str) -> None:
    n = 1 << bits_stored
    center, width = n * (0.07 if signed else 0.44) + 0.25, n / 3 + 0.7
    rescales = [(None, None), (1.0, 0.0), (-1.0, n - 1.0), (2.5, -17.25), (-0.25, 3.0)]
    for slope, intercept in rescales if bits_stored <= 12 else rescales[2:3]:
        m = windowed(
            center,
            width,
            function,
            bits_stored=bits_stored,
            signed=signed,
            rescale_slope=slope,
            rescale_intercept=intercept,
        )
        assert_bound(m, lambda x: reference_window(x, center, width, function))
        assert table(m).rule == f"window 0 {function}"


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [
        (2048, 4096, "LINEAR"),
        (2048, 2, "LINEAR"),
        (2048, 1, "LINEAR"),
        (2047.5, 1, "LINEAR"),
        (2047.75, 1.001, "LINEAR"),
        (100, 257, "LINEAR"),  # (x - 99.5) / 256 + 0.5: ties at 8 bits
        (128, 256, "LINEAR"),
        (60000, 100, "LINEAR"),
        (-3000, 10, "LINEAR"),
        (2048, 0.5, "LINEAR_EXACT"),
        (2048, 1e-9, "LINEAR_EXACT"),
        (2048, 1e-300, "LINEAR_EXACT"),
        (0, 1e-300, "LINEAR_EXACT"),
        (2048, 4096, "LINEAR_EXACT"),
        (1e9, 4e9, "LINEAR_EXACT"),
        (2048, 1e-300, "SIGMOID"),
        (2048, 0.5, "SIGMOID"),
        (1802.31, 1091.97, "SIGMOID"),
        (2048, 1e9, "SIGMOID"),
        (-1e6, 3, "SIGMOID"),
        (1e6, 3, "SIGMOID"),
    ],
)
def test_windows_at_the_edges_of_what_is_allowed(center, width, function) -> None:
    m = windowed(center, width, function)
    assert_bound(m, lambda x: reference_window(x, center, width, function))
    assert table(m).rule == f"window 0 {function}"


def test_linear_of_width_1_is_a_step_at_center_minus_a_half() -> None:
    values = table(windowed(100, 1)).values
    assert values[99] == 0  # 99 <= 99.5
    assert values[100] == 65535
    assert values[:100].max() == 0
    assert values[100:].min() == 65535


def test_sigmoid_of_a_wide_window_reaches_neither_end() -> None:
    made = table(windowed(2048, 4096, "SIGMOID"), bits=8)
    assert (made.values[0], made.values[-1]) == (30, 225)  # 255 / (1 + e^±2)
    assert made.black == 30


@settings(max_examples=60, deadline=None)
@given(
    center=st.floats(-5000, 9000),
    width=st.floats(1, 20000) | st.integers(1, 4096).map(float),
    function=st.sampled_from(["", "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    slope=st.sampled_from([None, 1.0, -1.0, 0.37, -2.0]),
    signed=st.booleans(),
)
def test_any_window(center, width, function, slope, signed) -> None:
    m = windowed(
        center,
        width,
        function,
        bits_stored=10,
        signed=signed,
        rescale_slope=slope,
        rescale_intercept=None if slope is None else 12.5,
    )
    assert_bound(m, lambda x: reference_window(x, center, width, function or "LINEAR"))
    steps = np.diff(table(m).values.astype(int)) * (-1 if (slope or 1) < 0 else 1)
    assert steps.min() >= 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("first", [-700, 0, 300, 5000])
def test_voi_luts(bits: int, first: int) -> None:
    data = np.random.default_rng(bits).integers(0, 1 << bits, 1500)
    m = mammogram(signed=first < 0, voi_luts=(lut(first, data, bits),))
    assert_bound(m, lambda x: reference_lut(m.voi_luts[0], x) / (2**bits - 1))
    assert table(m).rule == "VOI LUT 0"


def test_voi_lut_takes_the_modality_output_rounded_half_up() -> None:
    m = mammogram(
        rescale_slope=0.5, rescale_intercept=-3.0, voi_luts=(lut(-2, np.arange(200) ** 2, 16),)
    )
    assert_bound(m, lambda x: reference_lut(m.voi_luts[0], x) / 65535)
    values = table(m).values
    assert values[3] == 1  # 3 / 2 - 3 = -1.5, rounded to -1: entry 1
    assert values[4] == 1
    assert values[5] == 4


def test_modality_lut_feeds_the_window_and_replaces_the_rescale() -> None:
    data = (np.arange(3000) * 7919) % 4096
    for function in ("LINEAR", "SIGMOID"):
        m = windowed(
            2000, 1500, function, signed=True, modality_lut=lut(-1000, data, 12), rescale_slope=3.0
        )
        assert_bound(m, lambda x, f=function: reference_window(x, 2000, 1500, f))
        assert "PS3.3 C.11.1 allows one of them" in table(m).notes[0]
    m = mammogram(modality_lut=lut(0, data, 12), voi_luts=(lut(7, data[::-1], 12),))
    assert_bound(m, lambda x: reference_lut(m.voi_luts[0], x) / 4095)
    assert table(m).notes == ()


def test_a_voi_lut_on_negative_input_begins_at_a_signed_value() -> None:
    data = np.arange(4096)
    signed = mammogram(signed=True, voi_luts=(lut(-2048, data, 12),))
    unsigned = mammogram(signed=True, voi_luts=(lut(65536 - 2048, data, 12),))
    np.testing.assert_array_equal(table(signed).values, table(unsigned).values)
    assert table(unsigned).notes == ("the VOI LUT begins at 63488: read as signed, -2048",)
    positive = mammogram(bits_stored=16, voi_luts=(lut(63488, data[:2048], 12),))
    assert_bound(positive, lambda x: reference_lut(positive.voi_luts[0], x) / 4095)


@pytest.mark.parametrize(
    ("slope", "intercept", "factor", "offset", "note"),
    [
        (2.0, None, 2.0, 0.0, "Rescale Intercept (0028,1052) is absent: 0 taken for it"),
        (None, 50.0, 1.0, 50.0, "Rescale Slope (0028,1053) is absent: 1 taken for it"),
        (0.0, 50.0, 1.0, 0.0, "Rescale Slope is 0.0, Rescale Intercept 50.0: both ignored"),
        (math.nan, 0.0, 1.0, 0.0, "Rescale Slope is nan, Rescale Intercept 0.0: both ignored"),
        (1e200, 0.0, 1.0, 0.0, "Rescale Slope is 1e+200, Rescale Intercept 0.0: both ignored"),
    ],
)
def test_odd_rescales_follow_a_stated_rule(slope, intercept, factor, offset, note) -> None:
    m = windowed(900, 700, rescale_slope=slope, rescale_intercept=intercept)
    plain = windowed(900, 700, rescale_slope=factor, rescale_intercept=offset)
    np.testing.assert_array_equal(table(m).values, table(plain).values)
    assert table(m).notes == (note,)


def test_none_maps_the_whole_range_and_the_modality_output_decides_what_is_bright() -> None:
    for signed in (False, True):
        m = windowed(10, 20, "SIGMOID", signed=signed)
        low = span(m)["first"]
        assert_bound(m, lambda x, low=low: (x - low) / 4095, window="none")
        made = table(m, window="none")
        assert (made.values[0], made.values[-1], made.rule) == (0, 65535, "none")
        known = table(m, window="none", extremes=(100, 200))
        np.testing.assert_array_equal(known.values, made.values)
    falling = mammogram(rescale_slope=-2.0, rescale_intercept=8190.0)
    assert_bound(falling, lambda x: x / 8190, window="none")
    assert table(falling, window="none").values[0] == 65535


def test_minmax_maps_the_extremes_and_clamps_beyond_them() -> None:
    m = windowed(10, 20)
    options = {"window": "minmax", "extremes": (100, 1100)}
    assert_bound(m, lambda x: min(max((x - 100) / 1000, 0), 1), **options)
    assert table(m, **options).rule == "min-max"
    for extremes in ((1100, 100), (np.int16(100), np.uint16(1100))):
        np.testing.assert_array_equal(
            table(m, window="minmax", extremes=extremes).values, table(m, **options).values
        )
    falling = mammogram(rescale_slope=-1.0, rescale_intercept=0.0)
    assert_bound(falling, lambda x: min(max((x + 1100) / 1000, 0), 1), **options)
    beyond = table(m, window="minmax", extremes=(-5, 70000)).values
    np.testing.assert_array_equal(beyond, table(m, window="none").values)


def test_minmax_with_a_modality_lut_that_goes_up_and_down_clips_nothing_between() -> None:
    m = mammogram(modality_lut=lut(0, [5, 100, 5, 0, 50], 8))
    values = table(m, window="minmax", extremes=(0, 2), bits=8).values
    assert values[:5].tolist() == [0, 255, 0, 0, 121]


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_blank_image_becomes_black(kind: str) -> None:
    m = mammogram(photometric_interpretation=kind)
    made = table(m, extremes=(700, 700))
    assert made.values[700] == 0
    assert made.values.max() == 65535
    assert made.notes == ("the image holds one value only: black",)


@pytest.mark.parametrize(
    ("header", "rule", "note"),
    [
        (windowed((100, 200), (50, 60)), "window 0 LINEAR", ""),
        (
            windowed((100, 200), (0, 60)),
            "window 1 LINEAR: window 0 impossible (width 0)",
            "window 0 is impossible for LINEAR: width 0",
        ),
        (
            windowed((100, 200, 300), (-4, 0.5, 9.5)),
            "window 2 LINEAR: window 0 impossible (width -4); window 1 impossible (width 0.5)",
            "window 1 is impossible for LINEAR: width 0.5",
        ),
        (windowed(100, 0.5, "SIGMOID"), "window 0 SIGMOID", ""),
        (windowed(100, 0.5, "LINEAR_EXACT"), "window 0 LINEAR_EXACT", ""),
        (windowed(100, 50, "sigmoid"), "window 0 SIGMOID", ""),
        (
            windowed((100, 200), (0, 50), "SIGMOID"),
            "window 1 SIGMOID: window 0 impossible (width 0)",
            "window 0 is impossible for SIGMOID: width 0",
        ),
        (windowed(100, 50, ""), "window 0 LINEAR", ""),
        (
            windowed(100, 50, "LOG"),
            "window 0 LINEAR",
            "VOI LUT Function (0028,1056) is 'LOG', none of LINEAR, LINEAR_EXACT, SIGMOID: LINEAR",
        ),
        (
            windowed((100, math.nan), (math.nan, 50)),
            "none: window 0 impossible (center 100, width nan); "
            "window 1 impossible (center nan, width 50)",
            "window 0 is impossible for LINEAR: center 100, width nan",
        ),
        (
            windowed((100, 200), 50),
            "window 0 LINEAR",
            "Window Center (0028,1050) has 2 value(s), Window Width (0028,1051) has 1: "
            "2 window(s) made of them",
        ),
        (
            windowed((100, 200, 300), (50, 60)),
            "window 0 LINEAR",
            "Window Center (0028,1050) has 3 value(s), Window Width (0028,1051) has 2: "
            "2 window(s) made of them",
        ),
        (
            windowed(100, ()),
            "none: no window in the file",
            "Window Center (0028,1050) has 1 value(s), Window Width (0028,1051) has 0: "
            "0 window(s) made of them",
        ),
        (mammogram(), "none: no window in the file", ""),
        (
            windowed(100, 50, voi_luts=(lut(0, [0, 9], 8),)),
            "VOI LUT 0: preferred to the windows",
            "",
        ),
        (
            windowed(9000, 50),
            "window 0 LINEAR",
            "window 0 LINEAR gives all stored values from 0 to 4095 one output",
        ),
    ],
)
def test_rules_of_auto(header: Mammogram, rule: str, note: str) -> None:
    made = table(header)
    assert made.rule == rule
    assert note in made.notes if note else made.notes == ()


def test_without_a_usable_window_the_extremes_serve_where_they_are_known() -> None:
    for header, why in (
        (mammogram(), "no window in the file"),
        (windowed(5, 0), "window 0 impossible (width 0)"),
    ):
        made = table(header, extremes=(100, 1100))
        assert made.rule == f"min-max: {why}"
        minmax = table(header, window="minmax", extremes=(100, 1100))
        np.testing.assert_array_equal(made.values, minmax.values)
        assert table(header).rule == f"none: {why}"
        np.testing.assert_array_equal(table(header).values, table(header, window="none").values)


def test_a_window_beside_the_values_found_is_noted() -> None:
    m = windowed(3000, 100)
    assert table(m).notes == ()
    assert table(m, extremes=(7, 7)).notes == ()  # a blank image has one output in any case
    made = table(m, extremes=(0, 255))  # 8-bit pixels under another depth's window
    assert made.notes == ("window 0 LINEAR gives all stored values from 0 to 255 one output",)


ITEMS = dataclasses.replace(
    windowed((100, 200), (50, 60), "SIGMOID"),
    window_center_width_explanation=("Normal", "Harder"),
    voi_luts=(lut(0, range(4096), 12, "HARDER"), lut(0, range(4095, -1, -1), 12, "SOFTER")),
)


@pytest.mark.parametrize(
    ("window", "rule", "same_as"),
    [
        ("window:1", "window 1 SIGMOID", "200,60,SIGMOID"),
        ("WINDOW: 0", "window 0 SIGMOID", "100,50,SIGMOID"),
        ("lut:1", "VOI LUT 1", None),
        ("explanation:softer", "VOI LUT 1", "lut:1"),
        ("explanation:harder", "VOI LUT 0", "none"),
        ("explanation: NORMAL ", "window 0 SIGMOID", "window:0"),
        (" 100.5, 50 ,linear_exact", "given 100.5,50,LINEAR_EXACT", None),
        ("1e2,50", "given 100,50", None),
    ],
)
def test_a_window_can_be_chosen(window: str, rule: str, same_as: str | None) -> None:
    made = table(ITEMS, window=window)
    assert made.rule == rule
    if same_as:
        np.testing.assert_array_equal(made.values, table(ITEMS, window=same_as).values)
    else:
        assert not np.array_equal(made.values, table(ITEMS).values)
    choice = WindowChoice.parse(window)
    assert WindowChoice.parse(str(choice)) == choice
    np.testing.assert_array_equal(table(ITEMS, window=choice).values, made.values)


def test_an_explicit_window_is_in_modality_units_and_linear_unless_said() -> None:
    m = windowed(5, 6, "SIGMOID", rescale_slope=2.0, rescale_intercept=-1000.0)
    assert_bound(m, lambda x: reference_window(x, 500.5, 900, "LINEAR"), window="500.5,900")
    assert_bound(m, lambda x: reference_window(x, 5, 90, "SIGMOID"), window="5,90,SIGMOID")


@given(
    st.sampled_from(["auto", "none", "minmax", "window:3", "lut:0", "explanation:A: b,C"])
    | st.builds(
        lambda c, w, f: f"{c!r},{w!r},{f}",
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(1, 1e300),
        st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    )
)
def test_choices_come_back_from_their_text(text: str) -> None:
    choice = WindowChoice.parse(text)
    assert WindowChoice.parse(str(choice)) == choice
    assert str(WindowChoice.parse(str(choice))) == str(choice)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "got ''; allowed are auto, none, minmax"),
        ("automatic", "got 'automatic'; allowed are"),
        ("100", "got '100'; allowed are"),
        ("window:", "got 'window:'; allowed are"),
        ("window:-1", "got 'window:-1'; allowed are"),
        ("lut:x", "got 'lut:x'; allowed are"),
        ("explanation: ", "got 'explanation: '; allowed are"),
        ("100,50,LOG", "got '100,50,LOG', no such function; allowed are"),
        ("100,50,SIGMOID,1", "got '100,50,SIGMOID,1', no such function; allowed are"),
        ("100,0.5", "got '100,0.5', width 0.5; allowed are"),
        ("100,-1,SIGMOID", "got '100,-1,SIGMOID', width -1; allowed are"),
        ("nan,50", "got 'nan,50', center nan, width 50; allowed are"),
        ("1,inf", "got '1,inf', center 1, width inf; allowed are"),
        (None, "got None, wanted a string; allowed are"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(text, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WindowChoice.parse(text)
    assert str(caught.value).startswith(f"window: {reason}")
    assert "explanation:TEXT (FUNCTION is one of LINEAR, LINEAR_EXACT" in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": "best"},
        {"kind": "given"},
        {"kind": "auto", "window": Window(5, 6)},
        {"kind": "given", "window": Window(5, 0)},
        {"kind": "given", "window": Window(5, 6), "function": "LOG"},
    ],
)
def test_a_choice_cannot_be_built_of_parts_that_do_not_fit(parts) -> None:
    with pytest.raises(ConfigError, match=r"got kind .* with .*; allowed are auto"):
        WindowChoice(**parts)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("window:2", "window:2 is not in view.dcm: it has 2 window(s) and 2 VOI LUT(s), counted"),
        ("lut:7", "lut:7 is not in view.dcm: it has 2 window(s) and 2 VOI LUT(s), counted"),
        (
            "explanation:best",
            "explanation:best is not in view.dcm: its VOI LUTs are explained as "
            "['HARDER', 'SOFTER'], its windows as ['Normal', 'Harder']; ask for one of these",
        ),
    ],
)
def test_what_is_not_in_the_file_is_an_error(window: str, message: str) -> None:
    with pytest.raises(WindowError) as caught:
        table(ITEMS, window=window)
    assert str(caught.value).startswith(message)


def test_asking_for_an_impossible_window_is_an_error() -> None:
    with pytest.raises(WindowError) as caught:
        table(windowed((1, 2), (0.5, 60)), window="window:0")
    assert str(caught.value) == (
        "window:0 of view.dcm is impossible for LINEAR: width 0.5 (WIDTH is at least 1 for LINEAR, "
        "above 0 for the others); ask for another window, or auto"
    )


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits: got 12, allowed are 8, 16"):
        table(mammogram(), bits=12)
    with pytest.raises(ConfigError, match="window: got minmax without extremes, wanted the darkes"):
        table(mammogram(), window="minmax")
    for first, last in ((1, 0), (0, 65536)):
        with pytest.raises(
            PreprocessError, match=f"no VOI table for the stored values {first} to {last}: wanted 1"
        ):
            table(mammogram(), first=first, last=last)
    with pytest.raises(PreprocessError, match="apply_voi: got float32 pixels, wanted stored value"):
        apply_voi(np.zeros((2, 2), np.float32), mammogram())


@pytest.mark.parametrize(
    ("kind", "shape", "inverted", "note"),
    [
        ("MONOCHROME1", "INVERSE", True, ""),
        ("MONOCHROME1", "", True, ""),
        ("MONOCHROME2", "IDENTITY", False, ""),
        ("MONOCHROME2", "", False, ""),
        ("MONOCHROME1", "IDENTITY", True, "is IDENTITY, MONOCHROME1 wants INVERSE: Photometric"),
        ("MONOCHROME2", "INVERSE", False, "is INVERSE, MONOCHROME2 wants IDENTITY: Photometric"),
        ("", "", False, "Interpretation (0028,0004) is absent: taken as MONOCHROME2"),
    ],
)
def test_inverted_once_and_only_for_monochrome1(kind, shape, inverted, note) -> None:
    plain = table(windowed(2000, 1000)).values
    header = {"photometric_interpretation": kind, "presentation_lut_shape": shape}
    made = table(windowed(2000, 1000, **header))
    assert made.inverted is inverted
    np.testing.assert_array_equal(made.values, 65535 - plain if inverted else plain)
    assert (made.values[0], made.values[-1]) == ((65535, 0) if inverted else (0, 65535))
    assert made.black == 0
    assert note in "".join(made.notes) if note else made.notes == ()
    pixels = np.array([[0, 4095]], np.uint16)
    assert apply_voi(pixels, windowed(2000, 1000, **header), bits=8).tolist() == (
        [[255, 0]] if inverted else [[0, 255]]
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("dtype", "signed"),
    [(np.uint8, False), (np.int8, True), (np.uint16, False), (np.int16, True), (np.int32, True)],
)
def test_apply_voi_looks_every_pixel_up_and_clamps_beyond_bits_stored(dtype, signed, bits) -> None:
    m = windowed(300, 3000, "SIGMOID", signed=signed)
    ends = np.iinfo(dtype)
    pixels = np.linspace(max(ends.min, -40000), min(ends.max, 40000), 256).astype(dtype)
    pixels = pixels.reshape(2, 16, 8)
    out = apply_voi(pixels, m, bits=bits)
    made = table(m, bits=bits)
    assert out.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert out.shape == pixels.shape
    assert out.flags.writeable
    wanted = [
        made.values[min(max(int(v), made.first), made.last) - made.first] for v in pixels.flat
    ]
    assert out.ravel().tolist() == wanted


def test_apply_voi_takes_minmax_from_the_pixels_but_not_from_padding() -> None:
    pixels = np.array([[0, 5, 1000, 3000]], np.uint16)
    assert apply_voi(pixels, mammogram(), window="minmax", bits=8).tolist() == [[0, 0, 85, 255]]
    padded = mammogram(pixel_padding_value=0, pixel_padding_range_limit=5)
    assert apply_voi(pixels, padded, window="minmax", bits=8).tolist() == [[0, 0, 0, 255]]
    assert apply_voi(pixels, padded, bits=8).tolist() == [[0, 0, 0, 255]]
    only = mammogram(pixel_padding_value=5)
    assert apply_voi(pixels[:, 1:2], only, window="minmax").tolist() == [[0]]
    assert apply_voi(pixels[:0], windowed(5, 6)).shape == (0, 4)


def test_apply_voi_takes_the_sign_of_the_codestream() -> None:
    pixels = np.array([[-2048, 0, 2047, 5]] * 4, np.int16)
    m = dataclasses.replace(
        read(write_dicom(pixels, precision=12)),
        pixel_representation=0,
    )
    out = apply_voi(pixels, m, window="none")
    assert out[0].tolist() == [0, round(65535 * 2048 / 4095), 65535, round(65535 * 2053 / 4095)]
    bare = dataclasses.replace(m, frames=())  # as in a batch, whose bytes are dropped
    assert apply_voi(pixels, bare, window="none")[0, :2].tolist() == [0, 0]


def test_tables_cannot_be_written_to() -> None:
    made = table(mammogram())
    with pytest.raises(ValueError, match="read-only"):
        made.values[0] = 1
    assert resampling_table(mammogram(), first=0, last=9).flags.writeable


def test_the_resampling_table_at_every_depth_of_input() -> None:
    for first, last in ((0, 255), (-512, 511), (0, 65535)):
        for window in ("none", "40,80,SIGMOID", "17,300.3", "99,1"):
            for kind in ("MONOCHROME1", "MONOCHROME2"):
                m = mammogram(photometric_interpretation=kind)
                options = {"first": first, "last": last, "window": window}
                entries = resampling_table(m, **options, bits=8).astype(int)
                np.testing.assert_array_equal(
                    (entries + 128) // 257, voi_table(m, **options, bits=8).values
                )


def test_the_resampling_table_moves_an_entry_that_float64_put_across_the_step() -> None:
    m = windowed(383.5, 766)
    fine = table(m).values.astype(int)
    entries = resampling_table(m, **span(m), bits=8).astype(int)
    coarse = table(m, bits=8).values
    assert np.count_nonzero((fine + 128) // 257 != coarse) == 1  # rounded at 16 bits, then at 8
    assert np.count_nonzero(entries != fine) == 1
    np.testing.assert_array_equal((entries + 128) // 257, coarse)


# pydicom, another implementation of the same clauses


def pydicom_shades(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """pydicom's windowing of `values`, on the scale 0..1."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    out = apply_windowing(apply_modality_lut(values, dataset), dataset)
    ends = np.array([values.min(), values.max()]) * dataset.RescaleSlope + dataset.RescaleIntercept
    return (out - ends[0]) / (ends[1] - ends[0])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (-1.5, 300), (0.25, -40)])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_as_pydicom_makes_them(function: str, slope, intercept, signed: bool) -> None:
    pixels = np.zeros((2, 2), np.int16 if signed else np.uint16)
    source = write_dicom(
        pixels,
        transfer_syntax_uid=NATIVE,
        window_center=[311.5, 20],
        window_width=[777, 30],
        voi_lut_function=function,
        attributes={"RescaleSlope": slope, "RescaleIntercept": intercept},
    )
    m = read(source)
    values = np.arange(*((-2048, 2048) if signed else (0, 4096)), dtype=pixels.dtype)
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(source))
    wanted = pydicom_shades(dataset, values) * 65535
    assert table(m).rule == f"window 0 {function}"
    assert np.abs(apply_voi(values, m) - wanted).max() <= HALF


def test_the_voi_lut_of_a_real_file_as_pydicom_applies_it(data) -> None:
    path = data / "pydicom-data" / "vlut_04.dcm"
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = pydicom.pixels.apply_voi_lut(pixels, dataset)
    m = read(path)
    top = 2 ** m.voi_luts[0].bits - 1
    assert table(m).rule == "VOI LUT 0"
    assert np.ptp(wanted) > 0
    assert np.abs(apply_voi(pixels, m) - wanted / top * 65535).max() <= HALF
    first, last = span(m).values()
    ramp = np.arange(first, last + 1).astype(pixels.dtype)
    ideal = pydicom.pixels.apply_voi_lut(ramp, dataset) / top * 255
    assert np.abs(table(m, bits=8).values - ideal).max() <= HALF


def test_the_modality_lut_of_a_real_file_as_pydicom_applies_it(data) -> None:
    path = data / "pydicom-data" / "mlut_18.dcm"
    dataset = pydicom.dcmread(path)
    m = read(path)
    values = np.arange(-2048, 2048, dtype=np.int16)
    modality = pydicom.pixels.apply_modality_lut(values, dataset).astype(float)
    wanted = (modality - modality.min()) / np.ptp(modality) * 65535
    assert np.abs(table(m, window="none").values - wanted).max() <= HALF
    center, width = float(np.median(modality)), float(np.ptp(modality) / 3)
    shades = [reference_window(x, center, width, "LINEAR") for x in modality]
    made = table(m, window=f"{center},{width}")
    assert np.abs(made.values - np.array(shades) * 65535).max() <= HALF
    pixels = dataset.pixel_array
    out = apply_voi(pixels, m)
    assert (out.min(), out.max()) == (0, 65535)  # no window in the file: min-max
