"""Do the phantoms look like mammograms? Statistics of both, side by side, and what a frame costs.

    python bench/phantom.py [--data ../shared/data] [--count 6] [--save] [--picture sheet.png]

First table: each real image and `count` phantoms of 2600 x 2000 at noise 1 and 2, on the 8-bit
grey scale that a reader sees. slope: of the power spectrum of the parenchyma, 1/f^slope, fitted
from 0.15 to 0.7 cycles a mm over windows of 256 pixels inside the breast (about 3 in mammograms:
Burgess, Jacobson and Judy, Med Phys 28:419, 2001). dark, middle, light: the grey levels that 5, 50
and 95 % of the breast lie below. entropy: of those grey levels, in bits. bits: lossless JPEG 2000
a breast pixel, the rest of the frame set to 0; left out for what was a JPEG before. Second table:
frames of the vendors' sizes at 12 bits: seconds on one core, and the same bits (real detectors:
6.5 to 10).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, save
from PIL import Image, ImageDraw

from fastmammo.dicom import SYNTAXES
from fastmammo.kernels.cpu import low_pass
from fastmammo.preprocess.roi import find_breast, roi_level
from fastmammo.testing import VENDOR_SIZES, Phantom, encode, phantom

JPEG2000 = "1.2.840.10008.1.2.4.90"
WINDOW = 256
BAND = (0.15, 0.70)  # cycles a mm: above the breast's own form, below the detector's blur
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def breast_mask(grey: np.ndarray) -> np.ndarray:
    """Return the breast of a real image as the package finds it, in full resolution."""
    rows, columns = grey.shape
    level = roi_level(rows, columns)
    small = grey.astype(np.int32)
    for _ in range(level):
        small = low_pass(small)
    roi = find_breast(
        np.clip(small, 0, 255).astype(np.uint8),
        level=level,
        rows=rows,
        columns=columns,
        first=0,
        last=255,
        inverted=False,
        padding=None,
        margin_pixels=0,
    )
    if roi.mask is None:
        return np.ones(grey.shape, np.bool_)
    return np.kron(roi.mask, np.ones((1 << level, 1 << level), np.bool_))[:rows, :columns]


def slope(grey: np.ndarray, mask: np.ndarray, spacing: float) -> float:
    """Return the exponent of the power spectrum inside the breast; nan where no window fits."""
    taper = np.hanning(WINDOW)[:, np.newaxis] * np.hanning(WINDOW)
    total, count = np.zeros((WINDOW, WINDOW)), 0
    for top in range(0, grey.shape[0] - WINDOW + 1, WINDOW // 2):
        for left in range(0, grey.shape[1] - WINDOW + 1, WINDOW // 2):
            at = slice(top, top + WINDOW), slice(left, left + WINDOW)
            if not mask[at].all():
                continue
            part = grey[at].astype(float)
            power = np.abs(np.fft.fft2((part - part.mean()) * taper)) ** 2
            total += power / power.sum()
            count += 1
    if not count:
        return float("nan")
    step = np.fft.fftfreq(WINDOW, spacing)
    frequency = np.hypot(step[:, np.newaxis], step)
    edges = np.geomspace(*BAND, 13)
    ring = np.digitize(frequency, edges)
    found = [
        (frequency[ring == n].mean(), total[ring == n].mean())
        for n in range(1, len(edges))
        if (ring == n).any()
    ]
    x, y = np.log(np.array(found)).T
    return float(-np.polyfit(x, y, 1)[0])


def statistics(
    grey: np.ndarray, mask: np.ndarray, spacing: float, lossy: bool = False
) -> dict[str, Any]:
    """Return the row of one image, uint8."""
    inside = grey[mask]
    shares = np.bincount(inside, minlength=256) / inside.size
    dark, middle, light = np.percentile(inside, [5, 50, 95])
    alone = np.where(mask, grey, np.uint8(0))
    bits = 8 * len(encode(alone, JPEG2000, bits_stored=8)) / mask.sum()
    return {
        "slope": round(slope(grey, mask, spacing), 2),
        "dark": int(dark),
        "middle": int(middle),
        "light": int(light),
        "entropy": round(float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()), 2),
        "bits": None if lossy else round(bits, 2),
    }


def displayed(pixels: np.ndarray, center: float, width: float) -> np.ndarray:
    """Return stored values through a linear window as 8 bits (PS3.3 C.11.2.1.2.1)."""
    scaled = ((pixels - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def real_images(data: Path) -> dict[str, tuple[np.ndarray, float, bool]]:
    """Return (grey uint8, mm a pixel, whether a JPEG before) by name.

    The pictures carry no spacing: a frame of 233 mm is taken for the patient's, and M-SYNTH's
    0.1 mm is a guess. A power law has the same slope at any scale.
    """
    import pydicom

    found = {}
    for path in sorted((data / "birads").glob("*.png")):
        grey = np.asarray(Image.open(path).convert("L"))
        found[f"birads {path.stem}"] = (grey, 233 / grey.shape[0], False)
    dicom = pydicom.dcmread(data / "fo-dicom" / "OutOfBoundsOverlay.dcm")
    center, width = (np.ravel(dicom[k].value)[0] for k in ("WindowCenter", "WindowWidth"))
    spacing = float(dicom.ImagerPixelSpacing[0]) if "ImagerPixelSpacing" in dicom else 0.07
    grey = displayed(dicom.pixel_array, float(center), float(width))
    found["fo-dicom, spot view"] = (grey, spacing, False)
    for path in sorted((data / "msynth").glob("*.jpg"))[::4]:
        found[f"M-SYNTH {' '.join(path.stem.split('_')[:2])}"] = (
            np.asarray(Image.open(path).convert("L")),
            0.1,
            True,
        )
    return found


def drawn(count: int, rows: int, columns: int, noise: float) -> list[Phantom]:
    """Return phantoms of both views and sides."""
    return [
        phantom(
            rows,
            columns,
            seed=seed,
            view_position="MLO" if seed % 2 else "CC",
            laterality="R" if seed % 4 > 1 else "L",
            noise=noise,
        )
        for seed in range(count)
    ]


def sheet(images: dict[str, np.ndarray], across: int, height: int = 640) -> Image.Image:
    """Return the images on one sheet with their names, row by row."""
    width = height * 4 // 5
    down = -(-len(images) // across)
    paper = Image.new("L", (across * width, down * (height + 16)))
    pen = ImageDraw.Draw(paper)
    for index, (name, grey) in enumerate(images.items()):
        small = Image.fromarray(grey)
        small.thumbnail((width, height), Image.Resampling.BOX)
        at = (index % across * width, index // across * (height + 16))
        paper.paste(small, at)
        pen.text((at[0] + 4, at[1] + height + 2), name, fill=160)
    return paper


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real images")
    parser.add_argument("--count", type=int, default=6, help="phantoms in the first table")
    parser.add_argument("--rows", type=int, default=2600)
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=5355, help="rows of the largest frame timed")
    parser.add_argument("--save", action="store_true", help="write bench/results/phantom.json")
    parser.add_argument("--picture", type=Path, help="where to write the side-by-side sheet")
    options = parser.parse_args(arguments)
    images, rows = {}, {}
    if options.data.is_dir():
        for name, (grey, spacing, lossy) in real_images(options.data).items():
            images[name] = grey
            rows[name] = statistics(grey, breast_mask(grey), spacing, lossy)
    for noise in (1, 2):
        for made in drawn(options.count, options.rows, options.columns, noise):
            name = f"phantom {made.seed} {made.laterality} {made.view_position} noise {noise}"
            grey = displayed(made.pixels, made.window_center, made.window_width)
            rows[name] = statistics(grey, made.mask, made.pixel_spacing)
            if noise == 2:  # the pictures show the harder case
                images[name] = grey
    print(f"{'8 bits, as displayed':<24}" + "".join(f"{k:>9}" for k in next(iter(rows.values()))))
    for name, row in rows.items():
        print(f"{name:<24}" + "".join(f"{'-' if v is None else v:>9}" for v in row.values()))
    frames = {}
    print(f"\n{'frame, 12 bits':<24}{'rows':>9}{'columns':>9}{'seconds':>9}{'bits':>9}")
    for name, (height, width, spacing) in VENDOR_SIZES.items():
        if height > options.largest:
            continue
        start = time.perf_counter()
        made = phantom(height, width, seed=1, field_height=height * spacing)
        seconds = time.perf_counter() - start
        bits = 8 * len(encode(made.pixels, JPEG2000, bits_stored=12)) / made.mask.sum()
        frames[name] = {
            "rows": height,
            "columns": width,
            "seconds": round(seconds, 2),
            "bits_per_breast_pixel": round(float(bits), 2),
        }
        print(f"{name:<24}{height:>9}{width:>9}{seconds:>9.2f}{bits:>9.2f}")
    if options.picture:
        sheet(images, across=6).save(options.picture)
        print(options.picture)
    if options.save:
        syntax = SYNTAXES[JPEG2000].name
        print(
            save(
                "phantom", {"machine": machine(), "coder": syntax, "images": rows, "frames": frames}
            )
        )


if __name__ == "__main__":
    main()
