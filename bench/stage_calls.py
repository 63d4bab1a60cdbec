"""One phantom's files → the stages of `convert` for it, each a call and the bytes that it moves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import fastmammo
from fastmammo.conversion.writers import encode_png, write_atomic
from fastmammo.decoding import FrameDecoder
from fastmammo.kernels import cpu
from fastmammo.preprocess.resize import fit, taps
from fastmammo.preprocess.roi import find_breast, roi_level
from fastmammo.preprocess.voi import resampling_table, voi_table
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastmammo.dicom import Mammogram

FILES = {"uncompressed": "1.2.840.10008.1.2.1", "JPEG 2000": "1.2.840.10008.1.2.4.90"}
COPY = "copy"
LEVELS = (1, 2, 3)
RESAMPLED = (0, 1, 2)


@dataclass(frozen=True)
class Stage:
    """What is timed; bytes: of its input and output, each once."""

    run: Callable[[], object]
    read: int
    written: int


def stages(folder: Path, size: tuple[int, int], copy_bytes: int) -> dict[str, Stage]:
    """Return the stages of one image by name, the copy first."""
    block, copied = np.ones(copy_bytes, np.uint8), np.zeros(copy_bytes, np.uint8)
    found = {COPY: Stage(lambda: np.copyto(copied, block), block.nbytes, block.nbytes)}
    m = fastmammo.read(folder / "uncompressed.dcm")
    decoder = FrameDecoder(m)
    levels = {0: decoder.at(0)}
    found |= _levels(levels, decoder.first, decoder.last)
    small = roi_level(m.rows, m.columns)
    sought = decoder.at(small)
    facts: dict[str, Any] = {
        "level": small,
        "rows": m.rows,
        "columns": m.columns,
        "first": decoder.first,
        "last": decoder.last,
        "inverted": False,
        "padding": m.padding_range,
        "margin_pixels": round(0.01 * max(m.rows, m.columns)),
    }
    box = find_breast(sought, **facts).box
    found["find_breast"] = Stage(lambda: find_breast(sought, **facts), sought.nbytes, sought.size)
    for bits in (8, 16):
        found |= _outputs(m, levels, decoder.first, decoder.last, box, size, bits, folder)
    for name in FILES:
        path = folder / f"{name}.dcm"
        found[f"read, {name}"] = Stage(
            lambda path=path: fastmammo.read(path), path.stat().st_size, path.stat().st_size
        )
    return found


def _levels(levels: dict[int, np.ndarray], first: int, last: int) -> dict[str, Stage]:
    """Return the stages of the integer wavelet, and fill in the levels above 0."""
    found = {}
    values, kind = levels[0], np.dtype(np.uint16)
    for level in LEVELS:
        low = cpu.low_pass(values)
        levels[level], _ = cpu.clip_to(low, first, last, 0, kind)
        found[f"low_pass, level {level}"] = Stage(
            lambda values=values: cpu.low_pass(values), values.nbytes, low.nbytes
        )
        found[f"clip_to, level {level}"] = Stage(
            lambda low=low: cpu.clip_to(low, first, last, 0, kind), low.nbytes, levels[level].nbytes
        )
        values = low
    return found


def _outputs(
    m: Mammogram,
    levels: dict[int, np.ndarray],
    first: int,
    last: int,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    bits: int,
    folder: Path,
) -> dict[str, Stage]:
    """Return the stages from the tables to the file, for one depth of output."""
    wanted: dict[str, Any] = {"first": first, "last": last, "bits": bits}
    table, shades = resampling_table(m, **wanted), voi_table(m, **wanted).values
    found = {
        f"voi_table, {bits} bits": Stage(lambda: voi_table(m, **wanted), 0, shades.nbytes),
        f"resampling_table, {bits} bits": Stage(
            lambda: resampling_table(m, **wanted), 0, table.nbytes
        ),
    }
    image = np.zeros(size, f"uint{bits}")
    height, width = fit((box[2] - box[0], box[3] - box[1]), size)
    for level in RESAMPLED:
        made = _resampling(levels[level], first, table, box, level, image[:height, :width])
        found[f"resample, level {level}, {bits} bits"] = made
        made.run()
    png = b"".join(map(bytes, encode_png(image)))
    out, partial = (str(folder / f"{os.getpid()}-{bits}{end}") for end in (".png", ".partial"))
    found[f"encode PNG, {bits} bits"] = Stage(lambda: encode_png(image), image.nbytes, len(png))
    found[f"write PNG, {bits} bits"] = Stage(
        lambda: write_atomic(out, [png], partial), len(png), len(png)
    )
    return found


def _resampling(
    pixels: np.ndarray,
    first: int,
    table: np.ndarray,
    box: tuple[int, int, int, int],
    level: int,
    out: np.ndarray,
) -> Stage:
    """Return the resampling of a breast's box from one level."""
    row_taps = taps(pixels.shape[0], box[0], box[2], out.shape[0], level)
    column_taps = taps(pixels.shape[1], box[1], box[3], out.shape[1], level)
    covered = [int((t.starts + t.counts).max() - t.starts.min()) for t in (row_taps, column_taps)]
    return Stage(
        lambda: cpu.resample(pixels, first, table, row_taps, column_taps, out),
        covered[0] * covered[1] * pixels.itemsize + table.nbytes,
        out.nbytes,
    )


def write_files(folder: Path, rows: int, columns: int) -> None:
    """Write one phantom in each syntax that is read."""
    made = phantom(rows, columns, seed=1)
    for name, uid in FILES.items():
        write_dicom(made.pixels, path=folder / f"{name}.dcm", transfer_syntax_uid=uid)
