"""Stored values → finished image: finds the breast, chooses the level, windows and resamples."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import FrameDecoder
from fastmammo.dicom import Mammogram, read
from fastmammo.errors import ConfigError, FastMammoError
from fastmammo.kernels import cpu as kernels
from fastmammo.preprocess.config import Config
from fastmammo.preprocess.geometry import Geometry
from fastmammo.preprocess.record import make_record
from fastmammo.preprocess.resize import fit, taps
from fastmammo.preprocess.roi import Roi, find_breast, roi_level
from fastmammo.preprocess.spacing import box_at_spacing, require_spacing
from fastmammo.preprocess.voi import VoiTable, extremes_of, resampling_table, voi_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from fastmammo.dicom import Source


STAGES = ("read", "decode", "roi", "voi", "resample")
"""The keys of `Prepared.seconds`, in order."""


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """One finished image and all that is known of how it came about."""

    image: NDArray[Any]
    """uint8 or uint16 (H, W), full range; air is dark, whatever the file's interpretation."""
    geometry: Geometry
    mammogram: Mammogram
    roi: Roi
    voi: VoiTable
    flags: tuple[str, ...]
    """What a person should look at: "blank", "tiny", "laterality ...", "full frame: ..."."""
    record: dict[str, str | int | float]
    """The columns that a manifest row carries; no direct identifier of the patient."""
    seconds: dict[str, float]
    """Seconds by stage: read, decode, roi, voi, resample."""

    def __repr__(self) -> str:
        return (
            f"Prepared({self.image.dtype} {self.image.shape}, {self.mammogram!r}, "
            f"flags={self.flags})"
        )


@dataclass(frozen=True)
class Failure:
    """A source that did not become an image."""

    index: int
    source: str
    error: Exception


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The images of several sources, in the sources' order; failed sources are left out."""

    images: NDArray[Any]
    """uint8 or uint16 (N, 1, H, W)."""
    indices: tuple[int, ...]
    """For each image, the position of its source."""
    geometry: tuple[Geometry, ...]
    attributes: tuple[Mammogram, ...]
    """The header facts of each image; the frames' bytes are dropped."""
    records: tuple[dict[str, str | int | float], ...]
    failures: tuple[Failure, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Batch({self.images.dtype} {self.images.shape}, failures={len(self.failures)})"


class Preprocessor:
    """Turns DICOM files into model-ready images, the same bits on every run and device.

    Args:
        config: the settings; or give them as keywords: Preprocessor(size=(1024, 512), bits=16).
        workers: threads for a batch; None for as many as there are cores. Decoders and kernels
            let go of the GIL.
        on_error: "raise" the first failure, or "collect" failures in `Batch.failures`.

    Raises:
        ConfigError: a setting is not allowed.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        workers: int | None = None,
        on_error: str = "raise",
        **fields: Any,
    ) -> None:
        if on_error not in ("raise", "collect"):
            raise ConfigError(f"on_error: got {on_error!r}, allowed are raise, collect")
        unknown = set(fields) - {field.name for field in dataclasses.fields(Config)}
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(Config))
            raise ConfigError(f"{', '.join(sorted(unknown))}: no such setting; there are {names}")
        self.config = dataclasses.replace(config or Config(), **fields)
        self.workers = workers if workers is not None else _cores()
        self.on_error = on_error
        if self.workers < 1:
            raise ConfigError(f"workers: got {workers!r}, wanted 1 or more")

    def __call__(self, sources: Iterable[Source]) -> Batch:
        """Return the images of `sources` (paths, bytes or file objects) as one batch.

        Raises:
            FastMammoError, OSError: with on_error="raise", the first failure in the sources' order.
        """
        if isinstance(sources, (str, bytes, os.PathLike)):
            raise TypeError("sources: got one source, wanted several; use prepare() for one")
        listed = list(sources)
        height, width = self.config.size
        kind = np.uint8 if self.config.bits == 8 else np.uint16
        images = np.empty((len(listed), 1, height, width), kind)
        kept: list[tuple[int, Prepared]] = []
        failures = []
        for index, result in enumerate(_in_threads(self._attempt, listed, self.workers)):
            if isinstance(result, Prepared):
                images[len(kept), 0] = result.image
                kept.append((index, result))
            elif self.on_error == "raise":
                raise result
            else:
                failures.append(Failure(index, _name(listed[index]), result))
        return Batch(
            images=images[: len(kept)],
            indices=tuple(index for index, _ in kept),
            geometry=tuple(p.geometry for _, p in kept),
            attributes=tuple(p.mammogram for _, p in kept),
            records=tuple(p.record for _, p in kept),
            failures=tuple(failures),
        )

    def _attempt(self, source: Source) -> Prepared | Exception:
        try:
            prepared = self.prepare(source)
        except Exception as error:  # even a defect of ours must not cost the rest of the batch
            return error
        # A batch must not hold on to the bytes of every file in it.
        return dataclasses.replace(prepared, mammogram=prepared.mammogram.without_frames())

    def prepare(self, source: Source | Mammogram) -> Prepared:
        """Return one source's image.

        Raises:
            ReadError, DecodeError, PreprocessError: see `read`, `decode` and `apply_voi`.
            OSError: the file cannot be opened or read.
        """
        config = self.config
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
            mammogram, device=config.device, backend=config.backend, frame=config.frame
        )
        try:
            frame_mm = require_spacing(mammogram) if config.spacing_mm is not None else None
            small_level = roi_level(mammogram.rows, mammogram.columns)
            whole = config.scale == "full" and not decoder.incremental
            if whole or decoder.codec_levels < small_level:
                decoder.at(0)  # needed in any case: the small level is then made from it
            small = decoder.at(small_level)
            lap("decode")
            extremes = extremes_of(small, mammogram) or mammogram.stored_range
            voi, table = self._tables(mammogram, decoder, extremes)
            lap("voi")
            roi = self._find(mammogram, decoder, small, small_level, _falling(voi))
            side = roi.laterality or mammogram.image_laterality
            box, (height, width) = self._box(mammogram, roi, frame_mm, side)
            level = self._level(box, (height, width))
            lap("roi")
            pixels = decoder.at(level)
            lap("decode")
        except FastMammoError as error:
            error.path, error.frame = mammogram.path, config.frame
            raise
        geometry = self._geometry(mammogram, box, (height, width), side, level)
        image = np.full(config.size, voi.black, np.uint8 if config.bits == 8 else np.uint16)
        top, left, bottom, right = geometry.placed
        kernels.resample(
            pixels,
            decoder.first,
            table,
            taps(pixels.shape[0], box[0], box[2], bottom - top, level),
            taps(pixels.shape[1], box[1], box[3], right - left, level),
            image[top:bottom, left:right],
            mirror=geometry.mirrored,
        )
        lap("resample")
        # Level 0 tells for every syntax where it is the output's; the small level always does.
        beyond = decoder.beyond_range(small_level) or (level == 0 and decoder.beyond_range(0))
        flags = _flags(mammogram, roi, beyond)
        record = make_record(decoder, roi, voi, geometry, flags, small_level)
        return Prepared(image, geometry, mammogram, roi, voi, flags, record, seconds)

    def _find(
        self,
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
            margin_pixels=round(self.config.margin * max(m.rows, m.columns)),
        )

    def _tables(
        self, m: Mammogram, decoder: FrameDecoder, extremes: tuple[int, int]
    ) -> tuple[VoiTable, NDArray[np.uint16]]:
        """Return the table of outputs, and the 16-bit one that the resampler takes."""
        facts: dict[str, Any] = {
            "first": decoder.first,
            "last": decoder.last,
            "window": self.config.window,
            "bits": self.config.bits,
            "extremes": extremes,
        }
        return voi_table(m, **facts), resampling_table(m, **facts)

    def _box(
        self, m: Mammogram, roi: Roi, frame_mm: tuple[float, float] | None, side: str
    ) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """Return the part of the frame that is kept, and its (rows, columns) in the output."""
        config = self.config
        box = roi.box if config.crop == "breast" else (0, 0, m.rows, m.columns)
        if frame_mm is None or config.spacing_mm is None:
            return box, fit((box[2] - box[0], box[3] - box[1]), config.size)
        frame = m.rows, m.columns
        return box_at_spacing(box, frame, frame_mm, config.spacing_mm, config.size, side)

    def _level(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> int:
        """Return the largest level at which the crop is still `oversample` times the output."""
        if self.config.scale == "full":
            return 0
        factor = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        factor /= self.config.oversample
        return min(max(0, math.floor(math.log2(factor))), 8) if factor > 1 else 0

    def _geometry(
        self,
        m: Mammogram,
        box: tuple[float, float, float, float],
        size: tuple[int, int],
        side: str,
        level: int,
    ) -> Geometry:
        """Place the image: chest wall against its edge, centred along the other axis."""
        config = self.config
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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_threads(
    function: Callable[[Any], Prepared | Exception], items: list[Any], workers: int
) -> Iterator[Prepared | Exception]:
    """Yield the results in order; whoever stops early does not wait for what has not begun."""
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", type(source).__name__))


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
