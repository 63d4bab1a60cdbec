"""Takes the key of an image (seed, epoch, row, repeat), gives its random numbers, always the same.

A generator that is kept between the images would make an image depend on all that came before it:
on the batch, the number of processes, where a run was resumed. Numbers that are a function of the
key alone do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def integers(
    seed: int,
    epoch: int,
    rows: NDArray[np.int64],
    count: int,
    repeats: NDArray[np.int64] | int = 0,
) -> NDArray[np.uint64]:
    """Return `count` random integers for each row, uniform over 64 bits.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), its
    state seeded for each row by the same function of seed, epoch, row and repeat, one after the
    other.

    Args:
        rows: (n,) the images, from 0.
        repeats: (n,) or one for all: tells apart the showings of an image within an epoch.

    Returns:
        (n, count) uint64.
    """
    state = _mix(np.array([seed & _MASK], np.uint64))
    for part in (epoch, rows, repeats):
        # the addition wraps modulo 2^64, as it is meant to
        state = _mix(state ^ (np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64)))
    steps = np.arange(count, dtype=np.uint64) * np.uint64(_GAMMA)
    return _mix(np.broadcast_to(state, (len(rows),))[:, None] + steps)


def uniforms(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the integers as numbers from 0 to 1, 1 not included, on 53 bits."""
    return np.asarray((values >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Advance SplitMix64's state once, and return what it gives."""
    z = state + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
