"""Stored values → all that an image needs but the resampling: level, breast, table, geometry."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import FrameDecoder
from fastmammo.dicom import Mammogram, read
from fastmammo.errors import FastMammoError
from fastmammo.kernels.batch import BatchImage
from fastmammo.preprocess.geometry import Geometry
from fastmammo.preprocess.record import make_record
from fastmammo.preprocess.resize import fit, taps
from fastmammo.preprocess.roi import Roi, find_breast, roi_level
from fastmammo.preprocess.spacing import box_at_spacing, require_spacing
from fastmammo.preprocess.voi import VoiTable, extremes_of, resampling_table, voi_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.frames_in_flight import Decoder as Flight
    from fastmammo.dicom import Source
    from fastmammo.preprocess.config import Config


@dataclass(eq=False)
class Plan:
    """One image that only has to be resampled."""

    pixels: Any
    """Stored values of the level that is resampled: NumPy's, or CuPy's where `FrameDecoder` gives
    those."""
    first: int
    table: NDArray[np.uint16]
    geometry: Geometry
    mammogram: Mammogram
    roi: Roi
    voi: VoiTable
    flags: tuple[str, ...]
    record: dict[str, str | int | float]
    seconds: dict[str, float]
    """Seconds by stage: read, decode, roi, voi."""

    def batch_image(self) -> BatchImage:
        """Return what the kernels take."""
        geometry, (rows, columns) = self.geometry, self.pixels.shape
        box, level = geometry.box, geometry.level
        top, left, bottom, right = geometry.placed
        return BatchImage(
            self.pixels,
            self.first,
            self.table,
            taps(rows, box[0], box[2], bottom - top, level),
            taps(columns, box[1], box[3], right - left, level),
            top=top,
            left=left,
            mirror=geometry.mirrored,
            black=self.voi.black,
        )


def plan_image(source: Source | Mammogram, config: Config, *, flight: Flight | None = None) -> Plan:
    """Read and decode a source, find the breast and decide what becomes of its pixels.

    With config.device "cuda" on CuPy's current stream; the small level, on which the breast is
    found, is copied to the host, which waits for it: once, and for nothing else (but where the
    codestream's precision exceeds Bits Stored and level 0 is the output's).

    Args:
        flight: see `FrameDecoder`.

    Raises: see `Preprocessor.prepare`.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = seconds.get(stage, 0.0) + now - clock
        clock = now

    mammogram = source if isinstance(source, Mammogram) else read(source, frame=config.frame)
    lap("read")
    decoder = FrameDecoder(
        mammogram,
        device=config.device,
        backend=config.backend,
        frame=config.frame,
        strict=config.strict,
        flight=flight,
    )
    try:
        frame_mm = require_spacing(mammogram) if config.spacing_mm is not None else None
        small_level = roi_level(mammogram.rows, mammogram.columns)
        whole = config.scale == "full" and not decoder.incremental
        if whole or decoder.codec_levels < small_level:
            decoder.at(0)  # needed in any case: the small level is then made from it
        small = decoder.on_host(small_level)
        lap("decode")
        extremes = extremes_of(small, mammogram) or mammogram.stored_range
        voi, table = _tables(config, mammogram, decoder, extremes)
        lap("voi")
        roi = _find(config, mammogram, decoder, small, small_level, _falling(voi))
        voi = _with_air(voi, small, roi)
        side = roi.laterality or mammogram.image_laterality
        box, (height, width) = _box(config, mammogram, roi, frame_mm, side)
        level = _level(config, box, (height, width))
        lap("roi")
        pixels = decoder.at(level)
        # Level 0 tells for every syntax where it is the output's; the small level always does.
        beyond = decoder.beyond_range(small_level) or (level == 0 and decoder.beyond_range(0))
        lap("decode")
    except FastMammoError as error:
        error.path, error.frame = mammogram.path, config.frame
        raise
    geometry = _geometry(config, mammogram, box, (height, width), side, level)
    flags = _flags(mammogram, roi, beyond)
    record = make_record(decoder, roi, voi, geometry, flags, small_level)
    return Plan(
        *(pixels, decoder.first, table, geometry, mammogram, roi, voi, flags, record, seconds)
    )


def _find(
    config: Config,
    m: Mammogram,
    decoder: FrameDecoder,
    small: NDArray[Any],
    level: int,
    falling: bool,
) -> Roi:
    return find_breast(
        np.clip(small, decoder.first, decoder.last) if level == 0 else small,
        level=level,
        rows=m.rows,
        columns=m.columns,
        first=decoder.first,
        last=decoder.last,
        inverted=falling,
        padding=m.padding_range,
        margin_pixels=round(config.margin * max(m.rows, m.columns)),
    )


def _tables(
    config: Config, m: Mammogram, decoder: FrameDecoder, extremes: tuple[int, int]
) -> tuple[VoiTable, NDArray[np.uint16]]:
    """Return the table of outputs, and the 16-bit one that the resampler takes."""
    facts: dict[str, Any] = {
        "first": decoder.first,
        "last": decoder.last,
        "window": config.window,
        "bits": config.bits,
        "extremes": extremes,
    }
    return voi_table(m, **facts), resampling_table(m, **facts)


def _box(
    config: Config, m: Mammogram, roi: Roi, frame_mm: tuple[float, float] | None, side: str
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Return the part of the frame that is kept, and its (rows, columns) in the output."""
    box = roi.box if config.crop == "breast" else (0, 0, m.rows, m.columns)
    if frame_mm is None or config.spacing_mm is None:
        return box, fit((box[2] - box[0], box[3] - box[1]), config.size)
    frame = m.rows, m.columns
    return box_at_spacing(box, frame, frame_mm, config.spacing_mm, config.size, side)


def _level(config: Config, box: tuple[float, float, float, float], size: tuple[int, int]) -> int:
    """Return the largest level at which the crop is still `oversample` times the output."""
    if config.scale == "full":
        return 0
    factor = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    factor /= config.oversample
    return min(max(0, math.floor(math.log2(factor))), 8) if factor > 1 else 0


def _geometry(
    config: Config,
    m: Mammogram,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    side: str,
    level: int,
) -> Geometry:
    """Place the image: chest wall against its edge, centred along the other axis."""
    wanted = {"left": "L", "right": "R"}.get(config.flip, side)
    mirrored = side in ("L", "R") and wanted != side
    spare = config.size[1] - size[1]
    left = {"L": 0, "R": spare}.get(wanted if side in ("L", "R") else "", spare // 2)
    top = (config.size[0] - size[0]) // 2
    return Geometry(
        rows=m.rows,
        columns=m.columns,
        box=box,
        size=config.size,
        placed=(top, left, top + size[0], left + size[1]),
        mirrored=mirrored,
        level=level,
        spacing_mm=m.spacing_mm,
    )


def _with_air(voi: VoiTable, small: NDArray[Any], roi: Roi) -> VoiTable:
    """Let `black` be what lies around the breast, so that the canvas shows no edge against it.

    Of the small level's samples outside of the breast the one that a quarter of them are darker
    than: labels and borders do not count, nor does noise.
    """
    outside = small[~roi.mask][::7] if roi.mask is not None else small[:0]
    if not outside.size:
        return voi
    quarter = outside.size // 4
    if _falling(voi):
        quarter = outside.size - 1 - quarter
    air = int(np.partition(outside, quarter)[quarter])
    shade = int(voi.values[min(max(air, voi.first), voi.last) - voi.first])
    return dataclasses.replace(voi, black=shade)


def _falling(voi: VoiTable) -> bool:
    """Whether low stored values are bright: by MONOCHROME1, a negative slope or a falling LUT."""
    ends = int(voi.values[0]), int(voi.values[-1])
    return ends[0] > ends[1] if ends[0] != ends[1] else voi.inverted


def _flags(m: Mammogram, roi: Roi, beyond: bool) -> tuple[str, ...]:
    flags = list(roi.flags)
    header = m.image_laterality
    if header in ("L", "R") and roi.laterality in ("L", "R") and header != roi.laterality:
        flags.append(f"laterality: header {header}, content {roi.laterality}")
    if m.modality not in ("MG", ""):
        flags.append(f"modality {m.modality}, not MG")
    if beyond:
        flags.append(f"values beyond {m.bits_stored} bits stored")
    if len(m.frames) > 1:
        flags.append(f"one of {len(m.frames)} frames")
    return tuple(flags)
