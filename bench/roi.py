"""Does the box hold the breast, and little else? Seeded phantoms with nuisances, scored on truth.

    python bench/roi.py [--count 1000] [--rows 640] [--workers 2] [--save] [--picture worst.png]

Image n has seed n, CC and MLO, left and right in turn, the nuisances of `draw_nuisances(n)` (the
table of severities stands in `fastmammo.testing.Nuisances`), and one of the machines of an
RSNA-shaped set, in turn: proportions of the frame, syntax, photometric interpretation, window
and padding as it writes them, declared or not. The file's bytes go through `Preprocessor` with
margin 0. At 640 rows the breast is sought on the pixels themselves, so noise is not averaged as
on a large frame: --noise 1 is several times that of a detector's there.

coverage: share of the true breast's pixels inside the box; wanted: 99.9 % in 99 % of the images.
area: of the box, over that of the tight box of the breast; wanted: at most 1.15 in 95 %. The skin
of the belly below the breast, where the box takes it in, counts as wanted, never as missed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import machine as this_machine
from common import save
from PIL import Image, ImageDraw

from fastmammo import Preprocessor
from fastmammo.report.pictures import contact_sheet
from fastmammo.testing import Phantom, draw_nuisances, phantom, write_dicom
from fastmammo.testing.machines import MACHINES, stored_by

if TYPE_CHECKING:
    from collections.abc import Iterable

COVERAGE, COVERAGE_SHARE = 0.999, 0.99
AREA, AREA_SHARE = 1.15, 0.95
WORST = 12
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Score:
    """One image: what it was, what was found, how well."""

    seed: int
    view: str
    side: str
    machine_id: int
    nuisances: tuple[str, ...]
    box: Box
    tight: Box
    coverage: float
    area: float
    laterality: str
    flags: tuple[str, ...]

    @property
    def badness(self) -> float:
        """How far from the marks, in units of the room they leave; above 1 misses one."""
        return max((1 - self.coverage) / (1 - COVERAGE), (self.area - 1) / (AREA - 1))


def drawn(seed: int, rows: int, noise: float) -> tuple[Phantom, Any]:
    """Return the phantom of a seed and the machine that it comes from."""
    made_by = MACHINES[seed // 4 % len(MACHINES)]  # each meets both views and both sides
    size = made_by.size
    image = phantom(
        rows,
        round(rows * size.columns / size.rows),
        seed=seed,
        view_position="MLO" if seed % 2 else "CC",
        laterality="R" if seed % 4 > 1 else "L",
        noise=noise,
        field_height=size.rows * size.pixel_spacing,
        nuisances=draw_nuisances(seed),
    )
    return image, made_by


def tight_box(mask: np.ndarray) -> Box:
    """Return the half-open box of a mask."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1


def area_of(box: Box) -> int:
    """Return a box's pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def judge(box: Box, mask: np.ndarray, belly: np.ndarray | None) -> tuple[float, float, Box]:
    """Return coverage, area ratio, and the box that would have been tight."""
    at = slice(box[0], box[2]), slice(box[1], box[3])
    wanted = mask
    if belly is not None:
        wanted = mask.copy()
        wanted[at] |= belly[at]
    tight = tight_box(wanted)
    return float(mask[at].sum() / mask.sum()), area_of(box) / area_of(tight), tight


def score(job: tuple[int, int, float]) -> Score:
    """Return the score of one (seed, rows, noise)."""
    seed, rows, noise = job
    image, made_by = drawn(seed, rows, noise)
    pixels, facts = stored_by(made_by, image)
    file = write_dicom(
        pixels,
        transfer_syntax_uid=made_by.transfer_syntax_uid,
        laterality=image.laterality,
        view_position=image.view_position,
        seed=seed,
        **facts,
        **made_by.coding,
    )
    prepared = Preprocessor(size=(256, 256), margin=0.0, workers=1).prepare(file)
    coverage, area, tight = judge(prepared.roi.box, image.mask, image.belly)
    return Score(
        seed=seed,
        view=image.view_position,
        side=image.laterality,
        machine_id=made_by.machine_id,
        nuisances=image.nuisances.names,
        box=prepared.roi.box,
        tight=tight,
        coverage=coverage,
        area=area,
        laterality=prepared.roi.laterality,
        flags=tuple(prepared.flags),
    )


def all_scores(jobs: list[tuple[int, int, float]], workers: int) -> list[Score]:
    """Return the scores, in order, from `workers` processes."""
    if workers == 1:
        return list(map(score, jobs))
    # spawn: a fork may hang where numba's or a decoder's threads hold a lock
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(score, jobs, chunksize=8))


def summary(scores: Iterable[Score]) -> dict[str, Any]:
    """Return the row of some images: shares within the marks, tails, laterality."""
    listed = list(scores)
    coverage = np.array([each.coverage for each in listed])
    area = np.array([each.area for each in listed])
    sides = Counter(
        "undecided" if not s.laterality else "right" if s.laterality == s.side else "wrong"
        for s in listed
    )
    return {
        "images": len(listed),
        "coverage_reached": round(float((coverage >= COVERAGE).mean()), 4),
        "coverage_lowest": round(float(coverage.min()), 4),
        "area_reached": round(float((area <= AREA).mean()), 4),
        "area_median": round(float(np.median(area)), 4),
        "area_largest": round(float(area.max()), 3),
        "laterality_right": sides["right"],
        "laterality_wrong": sides["wrong"],
        "laterality_undecided": sides["undecided"],
    }


def table(scores: list[Score]) -> dict[str, dict[str, Any]]:
    """Return the summaries of all, by view, by nuisance, by machine."""
    groups: dict[str, list[Score]] = {"all": scores}
    for each in scores:
        names = each.nuisances or ("no nuisance",)
        for name in (each.view, *names, f"machine {each.machine_id}"):
            groups.setdefault(name, []).append(each)

    def order(name: str) -> tuple[int, str]:
        return ["all", "CC", "MLO"].index(name) if name in ("all", "CC", "MLO") else 3, name

    return {name: summary(groups[name]) for name in sorted(groups, key=order)}


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    heads = ("images", "coverage", "lowest", "area", "median", "largest", "side: right/wrong/?")
    print(f"{'':<16}" + "".join(f"{head:>10}" for head in heads))
    for name, r in rows.items():
        sides = f"{r['laterality_right']}/{r['laterality_wrong']}/{r['laterality_undecided']}"
        print(
            f"{name:<16}{r['images']:>10}{r['coverage_reached']:>10.1%}{r['coverage_lowest']:>10.2%}"
            f"{r['area_reached']:>10.1%}{r['area_median']:>10.3f}{r['area_largest']:>10.2f}"
            f"{sides:>16}"
        )


def picture(worst: list[Score], rows: int, noise: float, path: Path) -> None:
    """Write a contact sheet: the box found in orange, the tight one in green."""
    images, captions = [], []
    for each in worst:
        image, _ = drawn(each.seed, rows, noise)
        low = image.window_center - image.window_width / 2
        # air that is not black must be seen, so the window begins at 0
        shown = np.clip(image.pixels / (low + image.window_width) * 255, 0, 255).astype(np.uint8)
        paper = Image.fromarray(shown).convert("RGB")
        pen = ImageDraw.Draw(paper)
        for box, colour in ((each.tight, (0, 220, 90)), (each.box, (255, 160, 0))):
            r0, c0, r1, c1 = box
            pen.rectangle((c0, r0, c1 - 1, r1 - 1), outline=colour, width=max(1, rows // 320))
        images.append(np.asarray(paper))
        half = (len(each.nuisances) + 1) // 2
        captions.append(
            f"seed {each.seed} {each.side} {each.view} machine {each.machine_id}\n"
            f"coverage {each.coverage:.2%}, area {each.area:.2f}, side {each.laterality or '?'}\n"
            f"{', '.join(each.nuisances[:half]) or 'no nuisance'}\n"
            f"{', '.join(each.nuisances[half:])}\n"
            f"{', '.join(each.flags)[:52]}"
        )
    contact_sheet(images, captions, path, title="worst boxes: found orange, tight green")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="images; seeds are 0 to this")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--save", action="store_true", help="write bench/results/roi[_ROWS].json")
    parser.add_argument("--picture", type=Path, help=f"contact sheet of the worst {WORST}")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.count)
    start = time.perf_counter()
    scores = all_scores([(seed, options.rows, options.noise) for seed in seeds], options.workers)
    seconds = time.perf_counter() - start
    rows = table(scores)
    show(rows)
    total = rows["all"]
    for what, reached, share in (
        (f"coverage at least {COVERAGE:.1%}", total["coverage_reached"], COVERAGE_SHARE),
        (f"area at most {AREA}", total["area_reached"], AREA_SHARE),
    ):
        verdict = "holds" if reached >= share else "DOES NOT HOLD"
        print(f"{what} in {reached:.1%} of the images, wanted {share:.0%}: {verdict}")
    worst = sorted(scores, key=lambda each: -each.badness)[:WORST]
    print("\nworst")
    for each in worst:
        print(
            f"  seed {each.seed:>5} {each.side} {each.view:<3} coverage {each.coverage:7.2%} "
            f"area {each.area:5.2f}  {', '.join(each.nuisances)}  [{', '.join(each.flags)}]"
        )
    if options.picture:
        picture(worst, options.rows, options.noise, options.picture)
        print(options.picture)
    if options.save:
        result = {
            "machine": this_machine(),
            **{name: getattr(options, name) for name in ("count", "first", "rows", "noise")},
            "seconds": round(seconds, 1),
            "margin": 0,
            "groups": rows,
            "worst": [asdict(each) for each in worst],
        }
        print(save("roi" if options.rows == 640 else f"roi_{options.rows}", result))


if __name__ == "__main__":
    main()
