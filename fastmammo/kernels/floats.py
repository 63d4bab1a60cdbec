"""Takes finished integer images, gives normalised floats: float32(v) * scale + offset, rounded."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOATS = ("float16", "bfloat16", "float32")

_LEAST = 2.0**-102
"""CuPy compiles with -ftz=true: what is below 2^-126 becomes 0. Products of this size or more, and
numbers of this size, are multiples of 2^-126 and more, and so is their sum, unless it is 0."""


def to_float(
    images: NDArray[Any],
    dtype: str,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Normalise finished images.

    Each value v becomes float32(v) * scale + offset in float32, product and sum rounded each by
    itself (no fused multiply-add), then rounded to nearest even for the 16-bit types: the same
    bits on every device.

    Args:
        images: uint8 or uint16, any shape.
        dtype: "float16", "bfloat16" or "float32".
        scale, offset: taken as float32. For (v / 65535 - mean) / std: scale = 1 / (65535 std),
            offset = -mean / std.
        out: an array of images' shape and of the result's type to write to, else a new one.

    Returns:
        float16 or float32 of images' shape; bfloat16, which NumPy lacks, as uint16 bit patterns.

    Raises:
        ConfigError: `dtype`, or a scale and offset whose results the type cannot hold.
    """
    if images.dtype not in (np.uint8, np.uint16):
        raise ConfigError(f"images: got {images.dtype}, allowed are uint8, uint16")
    bits = 8 * images.dtype.itemsize
    values = _every_float(dtype, bits, float(np.float32(scale)), float(np.float32(offset)))
    if out is None:
        out = np.empty(images.shape, values.dtype)
    np.take(values, images, out=out, mode="clip")  # no index needs clipping: it saves a copy
    return out


def check_scale(dtype: str, bits: int, scale: float, offset: float) -> None:
    """Refuse a normalisation that gives infinities, or that a GPU would round otherwise.

    Raises:
        ConfigError: no such dtype; the darkest or brightest value becomes infinite or NaN; or a
            scale or offset so small that CuPy's kernels take results for 0 (-ftz=true).
    """
    if dtype not in FLOATS:
        raise ConfigError(f"dtype: got {dtype!r}, allowed are {', '.join(FLOATS)}")
    for name, value in (("scale", scale), ("offset", offset)):
        if value and abs(value) < _LEAST:
            raise ConfigError(
                f"{name}: got {value!r}, allowed are 0 and sizes from {_LEAST:.3g}: GPUs may "
                "take the results of less for 0"
            )
    ends = _normalised(np.array([0, (1 << bits) - 1]), dtype, scale, offset)
    finite = np.isfinite(_widened(ends, dtype))
    if not finite.all():
        raise ConfigError(
            f"scale {scale!r}, offset {offset!r}: {bits}-bit values become infinite in {dtype}; "
            f"for the range 0 to 1 give scale 1 / {(1 << bits) - 1}"
        )


@functools.lru_cache(maxsize=8)
def _every_float(dtype: str, bits: int, scale: float, offset: float) -> NDArray[Any]:
    """Return what every value of `bits` bits becomes."""
    check_scale(dtype, bits, scale, offset)
    values = _normalised(np.arange(1 << bits), dtype, scale, offset)
    values.setflags(write=False)
    return values


def _normalised(values: NDArray[Any], dtype: str, scale: float, offset: float) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # check_scale looks at what came out
        result: NDArray[Any] = values.astype(np.float32) * np.float32(scale)
        result += np.float32(offset)
        if dtype == "bfloat16":
            patterns = result.view(np.uint32)
            result = ((patterns + 0x7FFF + ((patterns >> 16) & 1)) >> 16).astype(np.uint16)
        else:
            result = result.astype(dtype)
    return result


def _widened(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
