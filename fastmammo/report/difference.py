"""Takes two arrays that should be equal, says how far they are not, and draws where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.report.pictures import contact_sheet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_HEIGHT = 420
_CLOSE_UP = 32


@dataclass(frozen=True)
class Difference:
    """How two arrays of integers differ."""

    count: int
    """Pixels that differ; all of them where the shapes do."""
    maximum: int
    """The largest absolute difference of values, 0 where the shapes differ."""
    at: tuple[int, int] | None
    """(row, column) of the first pixel that differs the most."""
    shapes: str = ""
    """Both shapes, where they differ."""


def difference(reference: NDArray[Any], other: NDArray[Any]) -> Difference:
    """Return how `other` differs from `reference`, both 2-D and of at most 16 bits, as numbers.

    The types may differ: 8 bits in a container of 16 are the same values.
    """
    if reference.shape != other.shape:
        text = f"{_size(other)} pixels, the reference has {_size(reference)}"
        return Difference(other.size, 0, None, text)
    if np.array_equal(reference, other):
        return Difference(0, 0, None)
    apart = _apart(reference, other)
    worst = int(apart.argmax())
    row, column = divmod(worst, apart.shape[1])
    return Difference(int(np.count_nonzero(apart)), int(apart.flat[worst]), (row, column))


def draw_difference(
    reference: NDArray[Any], other: NDArray[Any], path: Path | str, title: str
) -> None:
    """Write a PNG: reference, other and amplified difference, whole and close to the worst pixel.

    In the difference of the whole image a point shows the largest difference of the pixels under
    it: one wrong pixel in ten million stays visible.

    Args:
        reference, other: 2-D, of one shape, different somewhere.
    """
    apart = _apart(reference, other)
    row, column = divmod(int(apart.argmax()), apart.shape[1])
    top = max(0, min(row - _CLOSE_UP // 2, apart.shape[0] - _CLOSE_UP))
    left = max(0, min(column - _CLOSE_UP // 2, apart.shape[1] - _CLOSE_UP))
    near = np.s_[top : top + _CLOSE_UP, left : left + _CLOSE_UP]
    gain = 255 / int(apart.max())
    low, high = int(reference.min()), int(reference.max())
    nearby = np.stack((reference[near], other[near]))
    near_low, near_high = int(nearby.min()), int(nearby.max())
    images = [
        _grey(reference, low, high),
        _grey(other, low, high),
        _block_maximum(np.uint8(apart * gain)),
        _enlarged(_grey(reference[near], near_low, near_high)),
        _enlarged(_grey(other[near], near_low, near_high)),
        _enlarged(np.uint8(apart[near] * gain)),
    ]
    where = f"around row {row}, column {column}"
    values = f"{int(reference[row, column])}, {int(other[row, column])}"
    captions = [
        f"reference: {low} to {high}",
        "other",
        f"difference x {gain:.3g}",
        f"reference {where}",
        f"other: at that pixel {values} (reference, other)",
        f"difference, largest {int(apart.max())}",
    ]
    contact_sheet(images, captions, path, columns=3, height=_HEIGHT, title=title)


def _apart(reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int32]:
    # 32 bits: the difference of two 16-bit values would wrap around in their own type
    apart: NDArray[np.int32] = np.abs(reference.astype(np.int32) - other.astype(np.int32))
    return apart


def _grey(pixels: NDArray[Any], low: int, high: int) -> NDArray[np.uint8]:
    scaled = (np.clip(pixels.astype(np.int32), low, high) - low) * 255 // max(high - low, 1)
    return scaled.astype(np.uint8)


def _block_maximum(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce to about the height of the picture, keeping the largest value of every block."""
    step = max(1, -(-max(pixels.shape) // _HEIGHT))
    rows, columns = (np.arange(0, length, step) for length in pixels.shape)
    reduced: NDArray[np.uint8] = np.maximum.reduceat(
        np.maximum.reduceat(pixels, rows, axis=0), columns, axis=1
    )
    return reduced


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = -(-_HEIGHT // pixels.shape[0])
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _size(pixels: NDArray[Any]) -> str:
    return " x ".join(map(str, pixels.shape))
