"""Seeded cases for the kernels: odd sizes, every type, mirrors, padding, tables of every length."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.kernels import batch
from fastmammo.kernels.batch import PIXELS, BatchImage
from fastmammo.preprocess.resize import taps

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = (*PIXELS, "int32")
SHAPES = ((1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (17, 301), (40, 257), (33, 254), (62, 1000))
OUTPUTS = (
    ("uint8", None, 1.0, 0.0),
    ("uint16", None, 1.0, 0.0),
    ("float16", 16, 1 / 65535, -0.4),
    ("bfloat16", None, 1 / 16383.75, -2.1),
    ("float32", 8, 1 / 55.5, -1 / 3),
)
"""dtype, bits, scale, offset."""


def noise(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return values of a type's whole range, up to 2^29."""
    ends = np.iinfo(kind)
    low, high = max(ends.min, 1 - 2**29), min(ends.max, 2**29 - 1)
    return rng.integers(low, high, shape, endpoint=True).astype(kind)


def table(rng: np.random.Generator, entries: int) -> np.ndarray:
    """Return outputs that saturate at both ends, as a window does, or jump about."""
    if rng.random() < 0.3:
        return rng.integers(0, 65536, entries).astype(np.uint16)
    ramp = np.linspace(rng.uniform(-1, 0.5), rng.uniform(0.5, 2), entries) * 65535
    return np.clip(ramp, 0, 65535).astype(np.uint16)[:: rng.choice([-1, 1])]


def image(
    rng: np.random.Generator,
    place: tuple[int, int],
    bits: int,
    *,
    samples: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    kind: str | None = None,
) -> BatchImage:
    """Return a random image that fits into `place`."""
    kind = kind or str(rng.choice(PIXELS))
    rows, columns = samples or (int(n) for n in rng.integers(1, 400, 2))
    height, width = size or (int(rng.integers(1, n + 1)) for n in place)
    level = int(rng.integers(0, 3))
    entries = int(rng.choice([1, 2, 9, 256, 4096, 16384, 65536]))
    ends = np.iinfo(kind)
    edges = []
    for count in (rows, columns):
        first, last = np.sort(rng.uniform(0, count << level, 2))
        edges.append((first, max(last, first + 0.5)) if rng.random() < 0.7 else (0, count << level))
    return BatchImage(
        noise(rng, (rows, columns), kind),
        int(rng.integers(ends.min, ends.max, endpoint=True)),
        table(rng, entries),
        taps(rows, *edges[0], height, level),
        taps(columns, *edges[1], width, level),
        top=int(rng.integers(0, place[0] - height + 1)),
        left=int(rng.integers(0, place[1] - width + 1)),
        mirror=bool(rng.random() < 0.5),
        black=int(rng.integers(0, 1 << bits)),
    )


def batches() -> Iterator[
    tuple[list[BatchImage], np.ndarray, tuple[str, int | None, float, float]]
]:
    """Yield images, the batch that the CPU makes of them, and what it is made as."""
    rng = np.random.default_rng(20)
    places = ((1, 1), (16, 64), (17, 65), (50, 131), (5, 200))
    for number, place in enumerate(places):
        for meant in OUTPUTS:
            bits = meant[1] or (8 if meant[0] == "uint8" else 16)
            images = [image(rng, place, bits) for _ in range(3)]
            if number == 3:  # much larger than a chunk of the kernel along either axis
                images.append(image(rng, place, bits, samples=(1500, 40), size=(3, 20)))
                images.append(image(rng, place, bits, samples=(40, 1500), size=(20, 3)))
                whole = image(rng, place, bits, samples=(50, 131), size=place)
                images.append(dataclasses.replace(whole, row_taps=taps(50, 0, 50, 50, 0)))
            yield images, on_cpu(images, place, meant), meant


def on_cpu(
    images: list[BatchImage], place: tuple[int, int], meant: tuple[str, int | None, float, float]
) -> np.ndarray:
    """Return the batch as the CPU makes it; bfloat16 as uint16 patterns."""
    dtype, bits, scale, offset = meant
    kind = "uint16" if dtype == "bfloat16" else dtype
    out = np.full((len(images), 1, *place), 77, kind)
    batch.resample_batch(images, out, dtype=dtype, bits=bits, scale=scale, offset=offset)
    return out
