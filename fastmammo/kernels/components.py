"""Takes a small image, gives its histogram and the connected parts of a mask, in integers.

Labels depend on the mask alone: parts are numbered by their first pixel in row order, whatever
the order of work, so that a twin on another device gives the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def histogram(pixels: NDArray[np.generic], first: int, last: int) -> NDArray[np.int64]:
    """Count the stored values first..last.

    Args:
        pixels: integers of at most 32 bits, any shape; values outside the range count at its ends.
        first, last: the range, inclusive.

    Returns:
        int64 (last - first + 1,).
    """
    counts = np.zeros(last - first + 1, np.int64)
    _histogram(np.ascontiguousarray(pixels).reshape(-1), first, counts)
    return counts


@njit
def _histogram(values, first, counts):  # type: ignore[no-untyped-def]
    offset, top = np.int64(first), np.int64(counts.size - 1)
    for i in range(values.size):
        index = np.int64(values[i]) - offset
        counts[min(max(index, np.int64(0)), top)] += 1


def components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the 4-connected parts of a mask.

    Args:
        mask: bool (rows, columns).

    Returns:
        labels: int32 (rows, columns), 0 outside the mask, else 1, 2, ... in the order of each
            part's first pixel, row by row.
        sizes: int64 (parts + 1,), pixels by label; sizes[0] is the pixels outside the mask.

    Two passes over the rows with a union-find forest whose roots are the smallest numbers
    (Wu, Otoo and Suzuki 2009, Pattern Analysis and Applications 12, 117-135).
    """
    labels = np.zeros(mask.shape, np.int32)
    # a new number starts at most at every second pixel of a row
    parents = np.zeros(mask.shape[0] * ((mask.shape[1] + 1) // 2) + 1, np.int32)
    count = _components(mask, labels, parents)
    sizes = np.zeros(count + 1, np.int64)
    _relabel(labels, parents, sizes)
    return labels, sizes


@njit
def _root(parents, label):  # type: ignore[no-untyped-def]
    while parents[label] < label:
        label = parents[label]
    return label


@njit
def _components(mask, labels, parents):  # type: ignore[no-untyped-def]
    rows, columns = mask.shape
    used = 0
    for y in range(rows):
        for x in range(columns):
            if not mask[y, x]:
                continue
            left = labels[y, x - 1] if x > 0 else 0
            above = labels[y - 1, x] if y > 0 else 0
            if left == 0 and above == 0:
                used += 1
                parents[used] = used
                labels[y, x] = used
            elif left == 0 or above == 0 or left == above:
                labels[y, x] = max(left, above)
            else:
                a, b = _root(parents, left), _root(parents, above)
                labels[y, x] = min(a, b)
                parents[max(a, b)] = min(a, b)
    count = 0
    # parents are smaller than their children, so one rising pass flattens and renumbers
    for label in range(1, used + 1):
        if parents[label] == label:
            count += 1
            parents[label] = count
        else:
            parents[label] = parents[parents[label]]
    return count


@njit
def _relabel(labels, parents, sizes):  # type: ignore[no-untyped-def]
    rows, columns = labels.shape
    for y in range(rows):
        for x in range(columns):
            label = parents[labels[y, x]]
            labels[y, x] = label
            sizes[label] += 1
