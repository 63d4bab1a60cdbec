"""Takes a random generator and a size, gives random fields: the raw material of parenchyma."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Field = NDArray[np.float32]


def power_law(
    generator: np.random.Generator,
    shape: tuple[int, int],
    *,
    beta: float = 3.0,
    longest: float = np.inf,
    shortest: float = 0.0,
) -> Field:
    """A Gaussian field with a power spectrum of 1/f^beta, mean 0 and standard deviation 1.

    Mammograms have beta of about 3 (Burgess, Jacobson and Judy, Med Phys 28:419, 2001).

    Args:
        generator: the source of randomness.
        shape: (rows, columns).
        beta: the exponent.
        longest: wavelength in pixels above which the spectrum is flat.
        shortest: wavelength in pixels below which the spectrum falls off.
    """
    rows, columns = (_fast_length(length + 16) for length in shape)
    vertical = np.fft.fftfreq(rows).astype(np.float32)[:, np.newaxis]
    horizontal = np.fft.rfftfreq(columns).astype(np.float32)[np.newaxis]
    squared = vertical**2 + horizontal**2
    lowest = max(1 / longest, 1 / max(rows, columns)) ** 2
    amplitude = np.maximum(squared, np.float32(lowest)) ** np.float32(-beta / 4)
    amplitude *= np.exp(-squared * np.float32(shortest**2))
    amplitude[0, 0] = 0
    white = generator.standard_normal((2, *squared.shape), dtype=np.float32)
    spectrum = (white[0] + 1j * white[1]) * amplitude
    field = np.fft.irfft2(spectrum, (rows, columns))[: shape[0], : shape[1]]
    field -= field.mean()
    field /= field.std() + 1e-12
    return field.astype(np.float32)


def ridges(field: Field, width: float) -> Field:
    """Thin bright curves where a field crosses zero, 0 to 1: a web of strands."""
    curves: Field = np.exp(-np.square(field / np.float32(width)))
    return curves


def blur(field: Field) -> Field:
    """The field smoothed by 1-2-1 in rows and columns; the border keeps its values."""
    out: Field = field.copy()
    for axis in (0, 1):
        middle = np.moveaxis(out, axis, 0)
        middle[1:-1] = 0.25 * (middle[:-2] + middle[2:]) + 0.5 * middle[1:-1]
    return out


def sample(field: Field, row: Field, column: Field) -> Field:
    """The field at fractional positions, bilinear, repeated beyond its edges."""
    rows, columns = field.shape
    wrapped = np.pad(field, ((0, 1), (0, 1)), mode="wrap").ravel()
    top, left = np.floor(row), np.floor(column)
    down, right = row - top, column - left
    index = (top.astype(np.int32) % rows) * (columns + 1) + left.astype(np.int32) % columns
    upper: Field = np.take(wrapped, index)
    lower: Field = np.take(wrapped, index + (columns + 1))
    upper += (np.take(wrapped, index + 1) - upper) * right
    lower += (np.take(wrapped, index + (columns + 2)) - lower) * right
    upper += (lower - upper) * down
    return upper


def enlarge(field: Field, shape: tuple[int, int], step: int) -> Field:
    """The field on a grid `step` times finer, bilinear; sample k of the coarse one lies at k·step.

    The coarse grid must reach beyond the fine one: field.shape > (shape - 1) // step + 1.
    """
    if step == 1:
        return field[: shape[0], : shape[1]]
    for axis, length in enumerate(shape):
        position = np.arange(length)
        low = position // step
        weight = (position % step / step).astype(np.float32)
        if axis == 0:
            weight = weight[:, np.newaxis]
        before = np.take(field, low, axis=axis)
        field = before + (np.take(field, low + 1, axis=axis) - before) * weight
    return field


def _fast_length(length: int) -> int:
    """The next length with no prime factor above 5: others cost the FFT several times more."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
