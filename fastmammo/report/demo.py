"""`fastmammo demo`: phantom DICOMs → convert → a contact sheet, to see the whole way work."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fastmammo.conversion import ConvertOptions
from fastmammo.dicom import SYNTAXES
from fastmammo.preprocess import Config, Preprocessor
from fastmammo.report.pictures import contact_sheet, explain
from fastmammo.testing import write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable


def demo(
    folder: str | Path,
    *,
    count: int = 12,
    size: tuple[int, int] = (1664, 1280),
    seed: int = 0,
    quiet: bool = False,
    run: Callable[..., Any],
) -> int:
    """Make phantoms under folder/dicom, convert them to folder/images, draw the contact sheet.

    Args:
        run: runs the conversion: (src, dst, config, options, quiet=...) → Summary.

    Returns:
        The exit code of the conversion.
    """
    root = Path(folder)
    start = time.perf_counter()
    paths = write_dataset(root / "dicom", count=count, rows=size[0], columns=size[1], seed=seed)
    print(f"made {len(paths)} phantom mammograms of {size[0]} x {size[1]} in {root / 'dicom'}")
    config = Config(flip="left")
    summary = run(str(root / "dicom"), str(root / "images"), config, ConvertOptions(), quiet=quiet)
    print(summary.text())
    with open(root / "images" / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    images = [_pixels(root / "images" / row["output"]) for row in rows]
    captions = [
        f"{row['laterality']} {row['view_position']}, {row['photometric_interpretation']}\n"
        f"{row['window_rule']}\n{SYNTAXES[row['transfer_syntax_uid']].name}"
        for row in rows
    ]
    sheet, picture = root / "contact-sheet.png", root / "explained.png"
    contact_sheet(images, captions, sheet, columns=6, title="fastmammo demo: converted phantoms")
    explain(Preprocessor(config, workers=1).prepare(paths[0]), picture)
    print(f"contact sheet: {sheet}\none image explained: {picture}")
    print(f"done in {time.perf_counter() - start:.1f} s")
    return int(summary.exit_code)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
