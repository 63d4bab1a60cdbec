"""Takes a header's grey scale rules, gives a table: stored value → output value (DICOM C.11).

Modality LUT or rescale, window or VOI LUT, inversion and output range become one look-up table,
built once on the host in float64 and rounded once, so that pixels meet integers only. No exp runs
on another device, whose last bit may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.dicom.mammogram import LookupTable
from fastmammo.errors import ConfigError, PreprocessError
from fastmammo.preprocess.window import Formula, Ramp, WindowChoice, choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom.mammogram import Mammogram

__all__ = ["VoiTable", "WindowChoice", "apply_voi", "resampling_table", "voi_table"]


@dataclass(frozen=True, eq=False)
class VoiTable:
    """The output value of each stored value, and how it came about."""

    values: NDArray[np.uint16]
    """(last - first + 1,), read-only: the outputs of the stored values first..last."""
    first: int
    last: int
    bits: int
    """8 or 16: outputs are 0..2^bits - 1."""
    black: int
    """What the canvas around an image takes. From `voi_table` the lowest output there is; of a
    prepared image what lies around the breast."""
    inverted: bool
    """Whether the file is MONOCHROME1. The table has seen to it: low outputs are dark."""
    rule: str
    """Which rule gave the window: "window 0 LINEAR", "VOI LUT 0", "min-max: no window ..."."""
    notes: tuple[str, ...]
    """What had to be settled, each a sentence."""


def voi_table(
    mammogram: Mammogram,
    *,
    first: int,
    last: int,
    window: WindowChoice | str = "auto",
    bits: int = 16,
    extremes: tuple[int, int] | None = None,
) -> VoiTable:
    """Return the table from stored values to outputs.

    With y by PS3.3 C.11.2 in float64, every output is within half a step of
    (y − ymin) / (ymax − ymin) · (2^bits − 1), rounded half up; MONOCHROME1 gives the complement
    (C.7.6.3.1.2), once, whatever Presentation LUT Shape says: that only confirms (C.11.6), and a
    conflict is noted. SIGMOID approaches the ends of the range and need not reach them.

    Rules where the header leaves a choice: a Modality LUT counts before slope and intercept, of
    which a missing one is 1 or 0, and a slope of 0 voids both; a VOI LUT before the windows, as
    pydicom has it, its input rounded half up; of several windows the first that is possible; no
    VOI LUT Function, or an unknown one, is LINEAR; without any window, min-max over `extremes`, or
    over first..last.

    Args:
        mammogram: the header facts.
        first, last: the range of stored values, by Bits Stored and sign.
        window: see `WindowChoice`.
        bits: of an output: 8 or 16.
        extremes: two stored values, the darkest and brightest found in the image. minmax needs
            them; auto takes them where the file has no usable window.

    Raises:
        WindowError: the window or VOI LUT asked for is not in the file, or is impossible.
        ConfigError: `bits` or `window` is not allowed, or minmax lacks `extremes`.
        PreprocessError: first..last is empty or exceeds 16 bits.
    """
    choice = WindowChoice.parse(window)
    if bits not in (8, 16):
        raise ConfigError(f"bits: got {bits!r}, allowed are 8, 16")
    if not 1 <= last - first + 1 <= 65536:
        raise PreprocessError(
            f"no VOI table for the stored values {first} to {last}: wanted 1 to 65536 of them, "
            "in rising order; check Bits Stored (0028,0101)"
        )
    notes: list[str] = []
    modality = _modality(mammogram, first, last, notes)
    inverted = _inverted(mammogram, notes)
    rule, item = choose(choice, mammogram, found=extremes is not None, notes=notes)
    low, high = sorted(min(max(int(v), first), last) for v in extremes or (first, last))
    if isinstance(item, LookupTable):
        shades = _look_up_shades(item, modality, notes)
    elif isinstance(item, Formula):
        shades = _window_shades(item, modality)
    else:
        part = modality[low - first : high - first + 1] if item.found else modality
        shades = _ramp_shades(float(part.min()), float(part.max()), modality, inverted, notes)

    top = (1 << bits) - 1
    outputs = np.floor(shades * top + 0.5).astype(np.uint16)
    if inverted:
        outputs = np.uint16(top) - outputs
    seen = outputs[low - first : high - first + 1]
    if low < high and not isinstance(item, Ramp) and seen.min() == seen.max():
        notes.append(f"{rule} gives all stored values from {low} to {high} one output")
    outputs.setflags(write=False)
    return VoiTable(
        values=outputs,
        first=first,
        last=last,
        bits=bits,
        black=int(outputs.min()),
        inverted=inverted,
        rule=rule,
        notes=tuple(notes),
    )


def resampling_table(
    mammogram: Mammogram,
    *,
    first: int,
    last: int,
    window: WindowChoice | str = "auto",
    bits: int = 16,
    extremes: tuple[int, int] | None = None,
) -> NDArray[np.uint16]:
    """Return the table that the resampler takes: entries 0..65535 for outputs of 8 or 16 bits.

    The resampler rounds once, at its very end, to 8 bits as (entry + 128) // 257. An entry that
    float64 has put on the wrong side of that step moves by 1, so that an unscaled pixel gets
    exactly the 8-bit value of `voi_table(bits=8)`. Arguments and errors are those of `voi_table`.

    Returns:
        uint16 (last - first + 1,).
    """
    choice = WindowChoice.parse(window)

    def outputs(b: int) -> NDArray[np.uint16]:
        return voi_table(
            mammogram, first=first, last=last, window=choice, bits=b, extremes=extremes
        ).values

    if bits == 16:
        return np.array(outputs(16))
    middle = outputs(bits).astype(np.int32) * 257
    entries: NDArray[np.int32] = outputs(16).astype(np.int32)
    entries = np.clip(entries, middle - 128, middle + 128)
    return entries.astype(np.uint16)


def apply_voi(
    pixels: NDArray[np.generic],
    mammogram: Mammogram,
    *,
    window: WindowChoice | str = "auto",
    bits: int = 16,
) -> NDArray[np.generic]:
    """Return pixels as they are to be seen: windowed, low values dark, the full range of `bits`.

    Args:
        pixels: stored values of an integer type, any shape, as `decode` gives them. Values beyond
            Bits Stored take the output of the range's end.
        mammogram: the header facts; see `voi_table` for the rules.
        window: see `WindowChoice`. The extremes for minmax are those of `pixels`, padding (PS3.3
            C.7.5.1.1.2) left out.
        bits: 8 or 16.

    Returns:
        uint8 or uint16 of the shape of pixels.

    Raises:
        PreprocessError: pixels are no integers; else as `voi_table`.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype.kind not in "iu":
        raise PreprocessError(
            f"apply_voi: got {pixels.dtype} pixels, wanted stored values of an integer type, "
            "as decode gives them"
        )
    first, last = mammogram.stored_range
    table = voi_table(
        mammogram,
        first=first,
        last=last,
        window=window,
        bits=bits,
        extremes=extremes_of(pixels, mammogram),
    )
    values = table.values.astype(np.uint8 if bits == 8 else np.uint16)
    index = pixels.astype(np.intp)
    index -= first
    return values.take(index, mode="clip")


def _modality(m: Mammogram, first: int, last: int, notes: list[str]) -> NDArray[np.float64]:
    """Return the modality step's output for first..last (PS3.3 C.11.1)."""
    stored = np.arange(first, last + 1, dtype=np.float64)
    slope, intercept = m.rescale_slope, m.rescale_intercept
    if m.modality_lut is not None:
        if (slope or 1.0, intercept or 0.0) != (1.0, 0.0):
            notes.append(
                f"Modality LUT Sequence (0028,3000) counts, slope {slope} and intercept "
                f"{intercept} beside it do not: PS3.3 C.11.1 allows one of them"
            )
        return _look_up(m.modality_lut, m.modality_lut.first_value, stored)
    if (slope is None) != (intercept is None):
        absent = "Rescale Slope (0028,1053)" if slope is None else "Rescale Intercept (0028,1052)"
        notes.append(f"{absent} is absent: {1 if slope is None else 0} taken for it")
    slope = 1.0 if slope is None else slope
    intercept = 0.0 if intercept is None else intercept
    if slope == 0 or not (abs(slope) < 1e100 and abs(intercept) < 1e100):
        # A slope of 0 makes the image one grey; the absurdly large or nan, a picture of nothing.
        notes.append(f"Rescale Slope is {slope}, Rescale Intercept {intercept}: both ignored")
        return stored
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def _inverted(m: Mammogram, notes: list[str]) -> bool:
    """Whether low values are bright: Photometric Interpretation says so, and nothing else.

    In mammograms for presentation MONOCHROME1 comes with the Presentation LUT Shape INVERSE,
    MONOCHROME2 with IDENTITY (PS3.3 C.8.11.3, C.11.6): the two are one statement, and to obey
    both would invert twice.
    """
    kind, shape = m.photometric_interpretation, m.presentation_lut_shape
    inverted = kind == "MONOCHROME1"
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        notes.append(
            f"Photometric Interpretation (0028,0004) is {kind or 'absent'}: taken as MONOCHROME2"
        )
    confirming = "INVERSE" if inverted else "IDENTITY"
    if shape not in ("", confirming):
        notes.append(
            f"Presentation LUT Shape (2050,0020) is {shape}, {kind or 'MONOCHROME2'} wants "
            f"{confirming}: Photometric Interpretation counts"
        )
    return inverted


def _look_up(
    lut: LookupTable, first_value: int, inputs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a table's outputs; inputs beyond it take its ends, halves round up."""
    entries = np.clip(np.floor(inputs + 0.5) - first_value, 0, lut.data.size - 1)
    outputs: NDArray[np.float64] = lut.data[entries.astype(np.intp)].astype(np.float64)
    return outputs


def _look_up_shades(
    lut: LookupTable, modality: NDArray[np.float64], notes: list[str]
) -> NDArray[np.float64]:
    """Return the shades 0..1 of a VOI LUT, whose range is that of its bits (PS3.3 C.11.2.1.1)."""
    first_value = lut.first_value
    if first_value > 32767 and modality.min() < 0:
        # Signed input makes the descriptor's second value SS; read as US, the table would lie
        # above every pixel and the image would be one grey.
        first_value -= 65536
        notes.append(f"the VOI LUT begins at {lut.first_value}: read as signed, {first_value}")
    return _look_up(lut, first_value, modality) / ((1 << lut.bits) - 1)


def _window_shades(formula: Formula, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shades 0..1 of a window, as PS3.3 C.11.2.1.2.1, .3.1 and .3.2 put it."""
    center, width = formula.window.center, formula.window.width
    # The narrowest windows overflow, and LINEAR of width 1 divides by 0, where no value is taken.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if formula.function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (x - center) / width))
        if formula.function == "LINEAR":
            center, width = center - 0.5, width - 1
        shades = (x - center) / width + 0.5
    np.clip(shades, 0, 1, out=shades)
    shades[x <= center - width / 2] = 0
    shades[x > center + width / 2] = 1
    return shades


def _ramp_shades(
    low: float, high: float, x: NDArray[np.float64], inverted: bool, notes: list[str]
) -> NDArray[np.float64]:
    """Return the shades 0..1 of a straight line; a blank image becomes black, not white."""
    if low == high:
        notes.append("the image holds one value only: black")
        return ((x >= high) if inverted else (x > high)).astype(np.float64)
    return np.clip((x - low) / (high - low), 0, 1)


def extremes_of(pixels: NDArray[Any], m: Mammogram) -> tuple[int, int] | None:
    """Return the lowest and highest pixel, padding left out unless there is nothing else."""
    if m.padding_range is not None:
        low, high = m.padding_range
        kept = pixels[(pixels < low) | (pixels > high)]
        pixels = kept if kept.size else pixels
    return (int(pixels.min()), int(pixels.max())) if pixels.size else None
