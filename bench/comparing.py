"""Contenders → what their outputs have in common, before any is timed; the wrong ones drop out.

Stored values of a lossless syntax must equal ours bit for bit. `convert` must give the same images
with every decoder, and `auto` images near those of `full`; a peer's image must be near the ordinary
pipeline's. How near is stated as PSNR at 8 bits.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from contenders import YARDSTICK
from contenders.dali import Dali
from contenders.ours import Ours
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from contenders import Contender
    from contenders.turns import Job, Turn, Way

    Images = dict[str, np.ndarray[Any, Any]]

LEAST_DB = 28.0
"""What is further from its reference than this is another image, not another filter."""
LEAST_HALVED_DB = 20.0
"""For half the height, whose reference, means of 2 x 2 finished pixels, is none of its filters."""

LEAST_OTHER_DB = 18.0
"""For another pipeline, with a box and a resampler of its own."""
LIKE_SHAPE = 0.03
"""How far another box of the same breast may make sides differ; the image is then resized."""


@dataclass
class Compared:
    """What was found.

    turns: of those that may be timed, their first turn, one file a source.
    facts: of each contender that ran, what its outputs are like.
    wrong: why the others are not timed.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


class WrongOutput(Exception):
    """A contender's output is not what it should be."""


def compare(chosen: dict[str, Contender], job: Job, *, lossless: bool) -> Compared:
    """Run every contender once on one file a source, and compare what it gives."""
    return _Comparison(job, lossless).all(chosen)


class _Comparison:
    def __init__(self, job: Job, lossless: bool) -> None:
        self.job = job
        self.found = Compared()
        self.stored = Ours("full").digests(job) if lossless else None
        self._kept: dict[Way, tuple[Turn, Images]] = {}

    def all(self, chosen: dict[str, Contender]) -> Compared:
        # the yardstick first: its images are what the others' are held against
        names = sorted(chosen, key=lambda name: name != YARDSTICK)
        for name in names:
            way = chosen[name].way
            try:
                facts = self._stored_values(way)
                turn, images = self._run(way)
                other, limit, wanted = self._reference(way, chosen)
                if wanted is not None:
                    facts |= near(images, wanted(), other, limit)
            except Exception as error:  # whatever a peer raises costs that peer
                text = " ".join(str(error).split())
                kind = "" if isinstance(error, WrongOutput) else f"{type(error).__name__}: "
                self.found.wrong[name] = f"{kind}{text}"[:300]
                continue
            self.found.facts[name] = facts
            self.found.turns[name] = turn
        return self.found

    def _stored_values(self, way: Way) -> dict[str, Any]:
        if self.stored is None:
            return {"stored_values": "not compared: the syntax is lossy"}
        digests = way.digests(self.job)
        if digests is None:
            return {"stored_values": "not to be had"}
        differ = sum(a != b for a, b in zip(digests, self.stored, strict=True))
        if differ:
            raise WrongOutput(
                f"stored values of {differ} of {len(digests)} files differ from fastmammo's"
            )
        return {"stored_values": "equal"}

    def _run(self, way: Way) -> tuple[Turn, Images]:
        """Return a turn's times and images; those of one way are made once."""
        if way not in self._kept:
            out = self.job.out
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            turn = way.turn(self.job)
            self._kept[way] = turn, _images(out, self.job.files)
        return self._kept[way]

    def _reference(
        self, way: Way, chosen: dict[str, Contender]
    ) -> tuple[str, float, Callable[[], Images] | None]:
        """Return what a way's images are held against: its name, least dB, a call that makes it."""
        if not isinstance(way, Ours):
            yardstick = chosen.get(YARDSTICK)
            if yardstick is None or yardstick.way == way or YARDSTICK in self.found.wrong:
                return "", 0.0, None
            reference = yardstick.way
            limit = LEAST_OTHER_DB if isinstance(way, Dali) else LEAST_DB
            return YARDSTICK, limit, lambda: self._run(reference)[1]
        if way.backend != "auto":  # the same bits, whoever decodes
            same = replace(way, backend="auto", device="cpu")
            return f"fastmammo {way.scale}", math.inf, lambda: self._run(same)[1]
        full = Ours("full")
        if way == full:
            return "", 0.0, None
        if way.share == 0.5:
            halved = "fastmammo full, halved"
            return halved, LEAST_HALVED_DB, lambda: _halved(self._run(full)[1])
        return "fastmammo full", LEAST_DB, lambda: self._run(replace(full, share=way.share))[1]


def _images(out: Path, files: list[Path]) -> Images:
    found = {}
    for path in files:
        with Image.open(out / f"{path.stem}.png") as image:
            found[path.stem] = np.asarray(image)
    return found


def _halved(images: Images) -> Images:
    """Return the means of 2 x 2 pixels."""
    return {
        name: image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((1, 3))
        for name, image in images.items()
    }


def near(images: Images, wanted: Images, other: str, limit: float) -> dict[str, Any]:
    """Return how near images are to those wanted.

    Args:
        limit: dB that the farthest must have at least; infinity: they must be equal.

    Raises:
        WrongOutput: they are not near enough, or of another size.
    """
    least = math.inf
    for name, image in images.items():
        shape = wanted[name].shape
        if image.shape != shape:
            far = max(abs(a / b - 1) for a, b in zip(image.shape, shape, strict=True))
            if math.isinf(limit) or far > LIKE_SHAPE:
                raise WrongOutput(f"image {name}: {image.shape}, that of {other} {shape}")
            image = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BICUBIC))
        error = float(np.mean(np.square(image.astype(np.float64) - wanted[name])))
        least = min(least, 10 * math.log10(255**2 / error) if error else math.inf)
    if least < limit:
        raise WrongOutput(
            f"images differ from those of {other}: {least:.1f} dB, wanted "
            + ("equality" if math.isinf(limit) else f"{limit:.0f} dB")
        )
    equal = math.isinf(least)
    return {"image_like": other, "equal": equal, "psnr_db": None if equal else round(least, 1)}
