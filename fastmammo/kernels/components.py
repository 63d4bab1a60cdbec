"""Takes a small image or mask, gives histograms, opened masks and connected parts, in integers.

Labels depend on the mask alone: parts are numbered by their first pixel in row order, whatever
the order of work, so that a twin on another device gives the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.kernels._jit import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def histogram(
    pixels: NDArray[np.generic], first: int, last: int, where: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Count the stored values first..last under a mask.

    Args:
        pixels: (rows, columns), integers of at most 32 bits; values outside the range count at
            its ends.
        first, last: the range, inclusive.
        where: bool (rows, columns), the pixels to count.

    Returns:
        int64 (last - first + 1,).
    """
    counts = np.zeros(last - first + 1, np.int64)
    _histogram(np.ascontiguousarray(pixels), first, np.ascontiguousarray(where), counts)
    return counts


@njit
def _histogram(pixels, first, where, counts):  # type: ignore[no-untyped-def]
    rows, columns = pixels.shape
    offset, top = np.int64(first), np.int64(counts.size - 1)
    # a run of one value is counted at once: in air each count would wait for the one before
    value, run = np.int64(0), np.int64(0)
    for y in range(rows):
        for x in range(columns):
            if where[y, x]:
                index = min(max(np.int64(pixels[y, x]) - offset, np.int64(0)), top)
                if index != value:
                    counts[value] += run
                    value, run = index, np.int64(0)
                run += 1
    counts[value] += run


def dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the pixels at most `radius` rows and `radius` columns from the mask."""
    window = 2 * radius + 1
    out: NDArray[np.bool_] = np.pad(mask, radius)
    for axis in (0, 1):
        joined = 1  # each sample stands for itself and those after it, so many in all
        while joined < window:
            step = min(joined, window - joined)
            if axis == 0:
                out = out[:-step] | out[step:]
            else:
                out = out[:, :-step] | out[:, step:]
            joined += step
    return out


def opened(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the union of all squares of side 2 radius + 1 that fit into mask and frame."""
    if radius == 0:
        return mask
    core = ~dilated(~mask, radius)
    core[:radius] = core[-radius:] = False
    core[:, :radius] = core[:, -radius:] = False
    return dilated(core, radius)


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the largest 4-connected part, the first of equals; None if the mask is empty."""
    labels, sizes = components(mask)
    if sizes.size < 2:
        return None
    found: NDArray[np.bool_] = labels == 1 + int(np.argmax(sizes[1:]))
    return found


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
    mask = np.ascontiguousarray(mask)
    labels = np.zeros(mask.shape, np.int32)
    # a new number starts at most at every second pixel of a row
    parents = np.zeros(mask.shape[0] * ((mask.shape[1] + 1) // 2) + 1, np.int32)
    count = _components(mask, labels, parents)
    sizes = np.zeros(count + 1, np.int64)
    _relabel(labels, parents, sizes)
    sizes[0] = mask.size - sizes.sum()
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
            label = labels[y, x]
            if label:
                label = parents[label]
                labels[y, x] = label
                sizes[label] += 1
