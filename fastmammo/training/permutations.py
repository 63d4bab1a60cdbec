"""Takes the labels of rows, gives where each kind stands, and random orders of rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import TableError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def draw(
    random: np.random.Generator, rows: NDArray[np.int64], steps: int, size: int
) -> NDArray[np.int64]:
    """Fill (steps, size) from permutations of `rows`, drawn anew when one is used up.

    Where there are `size` rows or more, no row stands twice in a line: what the end of one
    permutation has put there stands last in the next.
    """
    needed, count = steps * size, len(rows)
    if count < size:
        repeated = np.tile(rows, (math.ceil(needed / count), 1))
        return random.permuted(repeated, axis=1).reshape(-1)[:needed].reshape(steps, size)
    parts = [random.permutation(rows)]
    for done in range(count, needed, count):
        begun = done % size
        drawn = random.permutation(rows)
        if begun:
            late = np.isin(drawn, parts[-1][-begun:])
            drawn = np.concatenate((drawn[~late], drawn[late]))
        parts.append(drawn)
    return np.concatenate(parts)[:needed].reshape(steps, size)


def occurrences(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row how often it stands further in front."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    place = np.arange(len(rows))
    starts = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]], place, 0))
    found = np.empty(len(rows), np.int64)
    found[order] = place - starts
    return found


def by_label(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the positions of the positives and of the negatives."""
    values = np.asarray(labels)
    if values.ndim != 1:
        raise TableError(f"labels: got shape {values.shape}, wanted (N,)")
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        raise TableError(
            f"labels: got {values[bad[0]]} at {bad[0]}, wanted 0 or 1: leave unlabelled rows out"
        )
    return np.flatnonzero(values == 1), np.flatnonzero(values == 0)


def need_both(positives: NDArray[np.int64], negatives: NDArray[np.int64], what: str) -> None:
    for name, found in (("positive", positives), ("negative", negatives)):
        if not len(found):
            raise TableError(
                f"{what}: none of the {len(positives) + len(negatives)} training rows is {name}. "
                "Give rows of both kinds, or take balance none"
            )
