"""Resampling: weights that sum exactly, the right phase at every level, one rounding."""

from __future__ import annotations

import numpy as np
import pytest

from fastmammo.kernels import cpu
from fastmammo.preprocess.resize import Taps, fit, taps


def dense(t: Taps, samples: int) -> np.ndarray:
    """Return the weights as a matrix (out, samples) of exact integers."""
    matrix = np.zeros((len(t.starts), samples), np.int64)
    for i, (start, count) in enumerate(zip(t.starts, t.counts, strict=True)):
        matrix[i, start : start + count] = t.weights[i, :count]
    return matrix


def area_mean(samples: int, first: float, last: float, out: int) -> np.ndarray:
    """Return the exact area-mean matrix (out, samples) in float64."""
    edges = first + (last - first) * np.arange(out + 1) / out
    k = np.arange(samples)
    overlap = np.minimum(edges[1:, None], k + 1) - np.maximum(edges[:-1, None], k)
    return np.clip(overlap, 0, None) / np.diff(edges)[:, None]


CASES = [
    (300, 17, 283, 100, 0),
    (300, 0, 300, 300, 0),
    (301, 5, 207, 64, 0),
    (300, 100, 140, 97, 0),
    (150, 3, 297, 120, 1),
    (75, 0, 300, 60, 2),
    (1, 0, 1, 5, 0),
    (1, 0, 2, 3, 1),
    (4096, 0, 4096, 1, 0),
]


@pytest.mark.parametrize(("samples", "first", "last", "out", "level"), CASES)
def test_weights_sum_to_one_exactly(
    samples: int, first: int, last: int, out: int, level: int
) -> None:
    t = taps(samples, first, last, out, level)
    matrix = dense(t, samples)
    assert (matrix.sum(axis=1) == 1 << 16).all()
    assert (matrix >= 0).all()
    assert (t.starts >= 0).all()
    assert (t.starts + t.counts <= samples).all()
    assert (t.weights[np.arange(t.weights.shape[1]) >= t.counts[:, None]] == 0).all()


@pytest.mark.parametrize(
    ("samples", "first", "last", "out"), [(300, 17, 283, 100), (64, 0, 64, 64)]
)
def test_full_resolution_weights_are_the_area_mean(
    samples: int, first: int, last: int, out: int
) -> None:
    found = dense(taps(samples, first, last, out, 0), samples) / 65536
    assert np.abs(found - area_mean(samples, first, last, out)).max() < 2 / 65536


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(("first", "last"), [(0, 512), (48, 464)])
def test_a_ramp_keeps_its_place_at_every_level(level: int, first: int, last: int) -> None:
    """The centre of mass of each output pixel is its centre in full-resolution pixels."""
    samples = 512 >> level
    weights = dense(taps(samples, first, last, 40, level), samples) / 65536
    positions = np.arange(samples) * (1 << level) + 0.5  # sample k lies at pixel 2^r k's centre
    centres = first + (np.arange(40) + 0.5) * (last - first) / 40
    # At level 0 pixels count as constant squares, whose centre of mass jumps a little.
    inner = slice(2, -2)  # at the frame's edge there are no samples beyond
    assert np.abs(weights @ positions - centres)[inner].max() < 0.02


def test_enlarging_interpolates_linearly() -> None:
    weights = dense(taps(10, 0, 10, 100, 0), 10) / 65536
    ramp = weights @ (np.arange(10) + 0.5)
    centres = (np.arange(100) + 0.5) / 10
    assert np.abs(ramp - centres)[10:-10].max() < 0.01


def test_fit_keeps_the_aspect() -> None:
    assert fit((2000, 1000), (1024, 512)) == (1024, 512)
    assert fit((2000, 500), (1024, 512)) == (1024, 256)
    assert fit((500, 2000), (1024, 512)) == (128, 512)
    assert fit((1, 100000), (1024, 512)) == (1, 512)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("level", [0, 1])
def test_the_kernel_equals_exact_integer_arithmetic(
    kind: type, bits: int, mirror: bool, level: int
) -> None:
    rng = np.random.default_rng(3)
    low = -300 if kind is np.int16 else 0
    high = 255 if kind is np.uint8 else 1500
    source = rng.integers(low, high + 1, (61, 47)).astype(kind)
    first, last = low + 20, high - 30  # some values lie beyond the table
    table = rng.integers(0, 65536, last - first + 1).astype(np.uint16)
    full = 61 << level, 47 << level
    rows = taps(61, 3, full[0] - 2, 29, level)
    columns = taps(47, 1, full[1] - 4, 23, level)
    out = np.empty((29, 23), np.uint8 if bits == 8 else np.uint16)
    cpu.resample(source, first, table, rows, columns, out, mirror=mirror)
    looked = table[np.clip(source.astype(int), first, last) - first].astype(object)
    total = dense(rows, 61).astype(object) @ looked @ dense(columns, 47).T.astype(object)
    divisor = (1 << 32) * (257 if bits == 8 else 1)
    expected = np.array([[(int(v) + divisor // 2) // divisor for v in row] for row in total])
    if mirror:
        expected = expected[:, ::-1]
    assert np.array_equal(out, expected)


def test_white_stays_white_and_black_black() -> None:
    table = np.array([0, 65535], np.uint16)
    for value in (0, 1):
        source = np.full((3000, 40), value, np.uint16)
        out = np.empty((7, 13), np.uint16)
        cpu.resample(source, 0, table, taps(3000, 0, 3000, 7, 0), taps(40, 0, 40, 13, 0), out)
        assert (out == value * 65535).all()
