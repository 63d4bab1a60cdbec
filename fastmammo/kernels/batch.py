"""Takes images of different sizes, each with its own table and weights, gives one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import ConfigError
from fastmammo.kernels import cpu
from fastmammo.kernels.floats import FLOATS, check_scale, to_float

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Taps = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]

PIXELS = ("uint8", "int8", "uint16", "int16")
OUTPUTS = ("uint8", "uint16", *FLOATS)


@dataclass(frozen=True, eq=False)
class BatchImage:
    """One image of a batch: the arguments of `cpu.resample`, and where the result lies."""

    pixels: Any
    """(rows, columns) uint8, int8, uint16 or int16, of NumPy or on the device."""
    first: int
    """The stored value of table[0]; values outside the table take its ends."""
    table: NDArray[np.uint16]
    """uint16 (n,), 1 <= n <= 65536, on the host."""
    row_taps: Taps
    """(start, count, weights) of each of the image's rows, from `preprocess.resize.taps`."""
    column_taps: Taps
    top: int = 0
    """The output row of the image's first row."""
    left: int = 0
    mirror: bool = False
    """Whether columns run from right to left, within the same place."""
    black: int = 0
    """The value around the image, on the scale of the output's bits, before normalisation."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that the image takes in the output."""
        return len(self.row_taps[0]), len(self.column_taps[0])


def resample_batch(
    images: Sequence[BatchImage],
    out: NDArray[Any],
    *,
    dtype: str | None = None,
    bits: int | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> None:
    """Look up, crop, flip, resample, pad and normalise images into one batch, on the CPU.

    Args:
        images: N images.
        out: (N, 1, H, W), written in place, padding too: uint8, uint16, float16, float32, or
            uint16 bit patterns of bfloat16.
        dtype: the type meant, where `out` cannot say it: "bfloat16". None for that of `out`.
        bits: for float types, whether values are made as 8 or as 16 (None) bits before they are
            normalised. Integer types have their own.
        scale, offset: see `to_float`; only for float types.

    Raises:
        ConfigError: an argument is not allowed, or an image does not fit.
    """
    dtype = meant_dtype(out.dtype.name, dtype)
    bits = check_output(dtype, bits, scale, offset)
    check_images(images, out.shape, bits)
    whole = dtype not in FLOATS
    for image, page in zip(images, out[:, 0], strict=True):
        made = page if whole else np.empty(page.shape, np.uint8 if bits == 8 else np.uint16)
        made[:] = image.black
        height, width = image.size
        cpu.resample(
            image.pixels,
            image.first,
            image.table,
            image.row_taps,
            image.column_taps,
            made[image.top : image.top + height, image.left : image.left + width],
            mirror=image.mirror,
        )
        if not whole:
            to_float(made, dtype, scale=scale, offset=offset, out=page)


def meant_dtype(own: str, dtype: str | None) -> str:
    """Return the type that an output of type `own` is to hold.

    Raises:
        ConfigError: it cannot hold `dtype`.
    """
    if dtype in (None, own) or (dtype == "bfloat16" and own == "uint16"):
        return dtype or own
    raise ConfigError(f"out: got {own}, wanted {'uint16' if dtype == 'bfloat16' else dtype}")


def check_output(dtype: str, bits: int | None, scale: float, offset: float) -> int:
    """Return the bits of the values before normalisation.

    Raises:
        ConfigError: an argument is not allowed.
    """
    if dtype not in OUTPUTS:
        raise ConfigError(f"dtype: got {dtype!r}, allowed are {', '.join(OUTPUTS)}")
    if dtype in FLOATS:
        if bits not in (None, 8, 16):
            raise ConfigError(f"bits: got {bits!r}, allowed are 8, 16")
        check_scale(dtype, bits or 16, scale, offset)
        return bits or 16
    own = 8 if dtype == "uint8" else 16
    if bits not in (None, own) or (scale, offset) != (1.0, 0.0):
        raise ConfigError(
            f"bits {bits!r}, scale {scale!r}, offset {offset!r}: {dtype} holds {own}-bit values "
            "as they are; to normalise them ask for a float type"
        )
    return own


def check_images(images: Sequence[BatchImage], shape: tuple[int, ...], bits: int) -> None:
    """Refuse images that do not fit together: on a device nothing else stops a stray access.

    Raises:
        ConfigError: says which image and what of it.
    """
    if len(shape) != 4 or shape[0] != len(images) or shape[1] != 1 or 0 in shape:
        raise ConfigError(f"out: got the shape {shape}, wanted ({len(images)}, 1, height, width)")
    for number, image in enumerate(images):
        wrong = _wrong(image, shape[2:], bits)
        if wrong:
            raise ConfigError(f"image {number} of {len(images)}: {wrong}")


def _wrong(image: BatchImage, place: tuple[int, ...], bits: int) -> str:
    """Return what is wrong with an image, or ""."""
    pixels, table = image.pixels, image.table
    if pixels.ndim != 2 or pixels.dtype.name not in PIXELS:
        return f"pixels are {pixels.dtype} {pixels.shape}, wanted 2 axes of {', '.join(PIXELS)}"
    if table.dtype != np.uint16 or table.ndim != 1 or not 1 <= table.size <= 65536:
        return f"the table is {table.dtype} {table.shape}, wanted uint16 (n,), 1 <= n <= 65536"
    if not -(2**17) <= image.first <= 2**17:
        return f"first is {image.first}, no stored value of 16 bits"
    for name, taps, samples in (
        ("row", image.row_taps, pixels.shape[0]),
        ("column", image.column_taps, pixels.shape[1]),
    ):
        starts, counts, weights = taps
        if any(part.dtype != np.int32 for part in taps) or not (
            1 <= len(starts) == len(counts) == len(weights)
        ):
            return f"{name}_taps are no three int32 arrays of one length, 1 or more"
        if not (starts.min() >= 0 and counts.min() >= 1 and counts.max() <= weights.shape[1]):
            return f"{name}_taps start before sample 0, or have no weights"
        if (starts + counts).max() > samples:
            return f"{name}_taps reach sample {(starts + counts).max() - 1}, there are {samples}"
    bottom, right = image.top + image.size[0], image.left + image.size[1]
    if min(image.top, image.left) < 0 or bottom > place[0] or right > place[1]:
        return (
            f"its place is rows {image.top} to {bottom}, columns {image.left} to {right}, "
            f"the output has {place[0]} x {place[1]} pixels"
        )
    if not 0 <= image.black < 1 << bits:
        return f"black is {image.black}, wanted 0 to {(1 << bits) - 1}"
    return ""
