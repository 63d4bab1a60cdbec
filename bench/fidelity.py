"""How far are `scale="auto"` and `"full"` from the exact area mean, and from one another?

    python bench/fidelity.py [--count 4] [--scale 1.0] [--sizes NAME ...] [--save]
        [--oversample 1.0] [--markdown]

Phantoms of the vendors' sizes at noise 1 and 2 (about 7 and 8 bits a breast pixel in lossless
JPEG 2000), CC and MLO, left and right, to 1024 x 512 and 512 x 256. Reference: the stored values
through the window in float64 (PS3.3 C.11.2.1.2.1) and the mean over each output pixel's area, over
the same box and output size. Beside auto and full stand, on the same window in float32 and the
same box: Pillow's antialiased bilinear (torchvision's too), OpenCV's INTER_LINEAR and INTER_AREA.

factor: pixels of the frame an output pixel; level: the wavelet level auto decodes; remaining:
factor / 2^level, what is left to the resampler. PSNR in dB on the 16-bit scale, over output
pixels at least half of which are breast. shift: what aligns auto with full best, by least
squares, in output pixels. equal, within 1, most: 8-bit levels between auto and full, same pixels.
Files are uncompressed: every lossless syntax gives the same bits (tests hold it). Where level is 0
auto is full; the medians and the verdict are over the other cases. --oversample asks auto to keep
more pixels than the output needs, as the setting of that name does.
"""

from __future__ import annotations

import argparse
import statistics
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from common import machine, save
from PIL import Image

from fastmammo import Preprocessor
from fastmammo.testing import VENDOR_SIZES, Phantom, phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Sequence

UNCOMPRESSED = "1.2.840.10008.1.2.1"
OUTPUTS = ((1024, 512), (512, 256))
NOISES = (1.0, 2.0)
WAYS = ("auto", "full", "pillow", "cv2_linear", "cv2_area")
NAMES = {
    "auto": "auto",
    "full": "full",
    "pillow": "PIL bilinear",
    "cv2_linear": "cv2 LINEAR",
    "cv2_area": "cv2 AREA",
}
FURTHER, SHIFT = 2.0, 0.05  # the marks: dB beyond antialiased bilinear, output pixels
BINS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 4.0)


def windowed(image: Phantom) -> np.ndarray:
    """Return the phantom through its LINEAR window, float64 on the scale 0 to 65535."""
    center, width = image.window_center - 0.5, image.window_width - 1
    shades = (np.arange(1 << image.bits_stored) - center) / width + 0.5
    return (np.clip(shades, 0, 1) * 65535)[image.pixels]


def area_mean(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the exact mean over each of size's output pixels, float64."""
    for axis, out in enumerate(size):
        moved = np.moveaxis(values, axis, 0)
        length = moved.shape[0]
        whole = np.concatenate([np.zeros((1, moved.shape[1])), np.cumsum(moved, 0, np.float64)])
        edges = length * np.arange(out + 1) / out
        below = np.minimum(edges.astype(int), length - 1)
        upto = whole[below] + (edges - below)[:, np.newaxis] * moved[below]
        values = np.moveaxis(np.diff(upto, axis=0) * (out / length), 0, axis)
    return values


def psnr(found: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> float:
    """Return dB on the 16-bit scale."""
    error = (found.astype(np.float64) - wanted)[where]
    return float(20 * np.log10(65535 / np.sqrt(np.mean(error**2))))


def smooth(values: np.ndarray) -> np.ndarray:
    """Return values through a 5-tap binomial filter along both axes."""
    for axis in (0, 1):
        for _ in range(2):
            ahead, behind = np.roll(values, 1, axis), np.roll(values, -1, axis)
            values = (ahead + 2 * values + behind) / 4
    return values


def aligning_shift(moved: np.ndarray, still: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Return (rows, columns) by which `moved` lies further down and right, in pixels.

    Least squares on moved = still - shift * gradient, both smoothed first, as a central
    difference knows the gradient of low frequencies alone.
    """
    a, b = smooth(moved.astype(np.float64)), smooth(still.astype(np.float64))
    inside = where.copy()
    inside[:3], inside[-3:], inside[:, :3], inside[:, -3:] = False, False, False, False
    # the gradient of both, so that neither is taken for the truth
    slopes = np.stack([g[inside] for g in np.gradient((a + b) / 2)], axis=1)
    found = np.linalg.lstsq(slopes, (b - a)[inside], rcond=None)[0]
    return float(found[0]), float(found[1])


def case(
    image: Phantom, file: bytes, shades: np.ndarray, size: tuple[int, int], oversample: float
) -> dict[str, Any]:
    """Return the figures of one phantom at one output size."""
    made = {
        (scale, bits): Preprocessor(
            size=size, scale=scale, bits=bits, oversample=oversample, workers=1
        ).prepare(file)
        for scale in ("auto", "full")
        for bits in (8, 16)
    }
    geometry = made["auto", 16].geometry
    if any(p.geometry.box != geometry.box or p.geometry.mirrored for p in made.values()):
        raise SystemExit("auto and full differ in their box: nothing to compare")
    (r0, c0, r1, c1), (top, left, bottom, right) = geometry.box, geometry.placed
    out = bottom - top, right - left
    exact = area_mean(shades[r0:r1, c0:c1], out)
    breast = area_mean(image.mask[r0:r1, c0:c1].astype(np.float32), out) >= 0.5
    single = shades[r0:r1, c0:c1].astype(np.float32)
    across = out[::-1]  # Pillow and OpenCV have columns first
    ways = {
        **{s: made[s, 16].image[top:bottom, left:right] for s in ("auto", "full")},
        "pillow": np.asarray(
            Image.fromarray(single).resize(across, Image.Resampling.BILINEAR), np.float32
        ),
        "cv2_linear": cv2.resize(single, across, interpolation=cv2.INTER_LINEAR),
        "cv2_area": cv2.resize(single, across, interpolation=cv2.INTER_AREA),
    }
    eight = [made[s, 8].image[top:bottom, left:right][breast].astype(int) for s in ("auto", "full")]
    apart = np.abs(eight[0] - eight[1])
    factor = min((r1 - r0) / out[0], (c1 - c0) / out[1])
    shift = aligning_shift(ways["auto"], ways["full"], breast)
    return {
        "size": f"{size[0]}x{size[1]}",
        "factor": round(factor, 3),
        "level": geometry.level,
        "remaining": round(factor / 2**geometry.level, 3),
        **{way: round(psnr(ways[way], exact, breast), 2) for way in WAYS},
        "auto_to_full": None
        if np.array_equal(ways["auto"], ways["full"])
        else round(psnr(ways["auto"], ways["full"].astype(np.float64), breast), 2),
        "shift_rows": round(shift[0], 4),
        "shift_columns": round(shift[1], 4),
        "equal": round(float((apart == 0).mean()), 4),
        "within_1": round(float((apart <= 1).mean()), 5),
        "most": int(apart.max()),
    }


def cases(
    names: Sequence[str], count: int, scale: float, oversample: float
) -> list[dict[str, Any]]:
    """Return the figures of all, printing each."""
    found = []
    head = ("factor", "level", "remaining", *WAYS, "shift_rows", "shift_columns", "equal", "most")
    print(f"{'frame, noise, seed, output':<42}" + "".join(f"{name[:9]:>10}" for name in head))
    for name in names:
        rows, columns, spacing = VENDOR_SIZES[name]
        for noise in NOISES:
            for seed in range(count):
                image = phantom(
                    max(16, round(rows * scale)),
                    max(16, round(columns * scale)),
                    seed=seed,
                    view_position="MLO" if seed % 2 else "CC",
                    laterality="R" if seed % 4 > 1 else "L",
                    noise=noise,
                    field_height=rows * spacing,
                )
                file = write_dicom(
                    image.pixels,
                    transfer_syntax_uid=UNCOMPRESSED,
                    window_center=image.window_center,
                    window_width=image.window_width,
                    laterality=image.laterality,
                    view_position=image.view_position,
                    attributes={"PixelPaddingValue": image.padding},
                )
                shades = windowed(image)
                for size in OUTPUTS:
                    size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
                    row = case(image, file, shades, size, oversample)
                    found.append({"frame": name, "noise": noise, "seed": seed, **row})
                    what = f"{name}, {noise:g}, {seed}, {row['size']}"
                    cells = "".join(f"{row[key]:>10}" for key in head)
                    print(f"{what:<42}{cells}", flush=True)
    return found


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of some cases, the worst shift and the largest 8-bit difference."""
    found: dict[str, Any] = {"cases": len(rows)}
    for key in ("remaining", *WAYS, "equal", "within_1"):
        found[key] = round(statistics.median(row[key] for row in rows), 4)
    further = [row["pillow"] - row["auto"] for row in rows]
    found["further"] = round(statistics.median(further), 2)
    found["furthest"] = round(max(further), 2)
    found["shift_largest"] = max(
        abs(row[key]) for row in rows for key in ("shift_rows", "shift_columns")
    )
    found["most"] = max(row["most"] for row in rows)
    return found


def groups(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the medians of the cases that decode a level: all, by noise, by what remains."""
    reduced = [row for row in rows if row["level"]]
    made = {"all": reduced}
    for size in dict.fromkeys(row["size"] for row in reduced):
        for noise in NOISES:
            made[f"noise {noise:g}, to {size}"] = [
                r for r in reduced if (r["noise"], r["size"]) == (noise, size)
            ]
    made |= {
        f"remaining {low:g} to {high:g}": [r for r in reduced if low <= r["remaining"] < high]
        for low, high in pairwise(BINS)
    }
    sizes = dict.fromkeys((row["frame"], row["size"]) for row in reduced)
    made |= {
        f"{frame} to {size}": [r for r in reduced if (r["frame"], r["size"]) == (frame, size)]
        for frame, size in sizes
    }
    return {name: middle(listed) for name, listed in made.items() if listed}


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return the README's table."""
    lines = [
        "| | cases | remaining | "
        + " | ".join(NAMES[way] for way in WAYS)
        + " | auto beyond PIL | shift, px | 8 bits: equal | within 1 | most |",
        "|---" * (8 + len(WAYS)) + "|",
    ]
    lines += [
        f"| {name} | {r['cases']} | {r['remaining']:.2f} | "
        + " | ".join(f"{r[way]:.1f}" for way in WAYS)
        + f" | {r['further']:.1f} | {r['shift_largest']:.3f}"
        + f" | {r['equal']:.1%} | {r['within_1']:.2%} | {r['most']} |"
        for name, r in found.items()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4, help="phantoms of each size and noise")
    parser.add_argument("--scale", type=float, default=1.0, help="of frames and outputs")
    parser.add_argument("--sizes", nargs="+", default=list(VENDOR_SIZES), choices=VENDOR_SIZES)
    parser.add_argument("--oversample", type=float, default=1.0, help="see fastmammo.Config")
    parser.add_argument("--save", action="store_true", help="write bench/results/fidelity.json")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    options = parser.parse_args(arguments)
    rows = cases(options.sizes, options.count, options.scale, options.oversample)
    same = [row for row in rows if not row["level"]]
    print(f"\n{len(same)} of {len(rows)} cases decode level 0: there auto is full", end="")
    lowest = min((row["full"] for row in rows), default=0)
    print(f". full lies {lowest:.1f} dB or more from the exact area mean")
    found = groups(rows)
    if not found:
        return
    print(f"\n{'medians, dB, level 1 or more':<32}{'cases':>6}{'remains':>8}", end="")
    print(
        "".join(f"{NAMES[way]:>13}" for way in WAYS), " further (most)  shift  equal within1 most"
    )
    for name, r in found.items():
        print(
            f"{name:<32}{r['cases']:>6}{r['remaining']:>8.2f}"
            + "".join(f"{r[way]:>13.1f}" for way in WAYS)
            + f"{r['further']:>8.1f} ({r['furthest']:>4.1f}){r['shift_largest']:>9.4f}"
            + f"{r['equal']:>7.1%}{r['within_1']:>8.2%}{r['most']:>5}"
        )
    print()
    further, shift = found["all"]["further"], found["all"]["shift_largest"]
    for what, holds in (
        (f"auto {further} dB further than antialiased bilinear, median", further <= FURTHER),
        (f"auto against full shifted by at most {shift} output pixels", shift < SHIFT),
    ):
        print(f"{what}: {'holds' if holds else 'DOES NOT HOLD'}")
    print(f"(wanted: at most {FURTHER:g} dB; under {SHIFT:g} pixels)")
    beyond = [name for name, r in found.items() if r["further"] > FURTHER]
    print(f"further than {FURTHER:g} dB in the median: {', '.join(beyond) or 'nowhere'}")
    if options.markdown:
        print("\n" + markdown(found))
    if options.save:
        others = {name: version(name) for name in ("pillow", "opencv-python-headless")}
        result = {"machine": machine(), "others": others}
        result |= {name: getattr(options, name) for name in ("count", "scale", "oversample")}
        name = "fidelity" + (
            f"_oversample_{options.oversample:g}" if options.oversample != 1 else ""
        )
        print(save(name, {**result, "groups": found, "cases": rows}))


if __name__ == "__main__":
    main()
