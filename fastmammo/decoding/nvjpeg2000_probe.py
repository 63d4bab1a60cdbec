"""Takes the library and a device, tells whether both work together, and whether levels are right.

`nvjpeg2kDecodeTile` is asked for a number of resolutions. Its header calls this the number "to
decode"; a reader who takes it for the number to leave out would write another level, maybe a larger
one, beyond the caller's memory. So two levels of a small codestream, with known values, are decoded
into more memory than any reading can fill, before a level is ever decoded into memory of its size.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastmammo.decoding.cuda_runtime import Target, target_of
from fastmammo.decoding.nvjpeg2000_state import Handle, State, dtype_of, shape_of
from fastmammo.errors import DecodeError, DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastmammo.decoding.cuda_runtime import Runtime
    from fastmammo.decoding.nvjpeg2000_library import Library
    from fastmammo.dicom import Codestream

PATTERN = 0xABCD
"""What fills the memory beforehand: beyond the 12 bits of the codestream."""

CODESTREAM = base64.b64decode(
    "/0//UQApAAAAAABQAAAAYAAAAAAAAAAAAAAAUAAAAGAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/XAATQGBo"
    "aHBoaHBoaHBoaHBoaHD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAADrAAH/"
    "k8/kPAgshG2mTx/EEckrMR5mDsA+oGh+wUAI6xBN8g8MvRyivADkzhZ/wPwD4PzDwCc92boLBU0LP8JzbbbG7zEm"
    "tWMvZ8Ji3X3rlVga+8B9opA/AaBA4/a5Ag8FU6rZ4nFy3qcjPjL4N3syMJVnh0A4U5Os6N5meakjJkhIS/mSdIS/"
    "wD6huA+0dHQt4JvvAnoAYRlYcdvOk9aM7nQTWCeTYFhDIsVHSnUFbv4AwgPVwhpCilZ6QTB/nOgRc9A6a3JawB84"
    "2AfUDpPmAb64alQ0gAAYSEvvlGKogxNj/9k="
)
"""`drawn`, 12 bits, as lossless JPEG 2000 of one tile and 5 levels, by OpenJPEG."""


_LACKS = "an nvJPEG2000 that works with this GPU and its driver"


class Probed(NamedTuple):
    """What became of the probe of one device."""

    reason: str | None = None
    """Why the library cannot be used there, or None."""
    fault: str = ""
    """What it did wrong at a level, or ""."""
    passing: bool = False
    """Whether the reason may be gone at the next attempt."""


def drawn() -> NDArray[np.uint16]:
    """Return the values that `CODESTREAM` holds: uint16 (96, 80), a bowl of 500 to 3536."""
    y, x = np.mgrid[:96, :80]
    values: NDArray[np.uint16] = (500 + ((x * x + 2 * y * y) >> 3)).astype(np.uint16)
    return values


def probe(library: Library, runtime: Runtime) -> Probed:
    """Make a decode state on the device, decode two levels there, and give all of it back."""
    from fastmammo.decoding import openjpeg
    from fastmammo.dicom import inspect_codestream

    codestream = inspect_codestream(CODESTREAM, "jpeg2000")
    try:
        handle = Handle(library)
        try:
            state = State(handle)
            try:
                fault = levels_fault(
                    state,
                    runtime,
                    CODESTREAM,
                    codestream,
                    lambda level: openjpeg.decode(CODESTREAM, codestream, level),
                )
            finally:
                state.close()
        finally:
            handle.close()
    except DeviceMemoryError as error:
        return Probed(f"device memory to start nvJPEG2000: {error}", passing=True)
    except DecodeError as error:
        return Probed(f"{_LACKS}: {error}")
    except runtime.failures as error:
        return Probed(f"{_LACKS}: {error}")
    return Probed(fault=fault)


def levels_fault(
    state: State,
    runtime: Runtime,
    data: bytes,
    codestream: Codestream,
    expected: Callable[[int], NDArray[np.generic]],
) -> str:
    """Return what is wrong with the library's levels of a codestream, or "".

    Level 1 and the top level are decoded into memory as large as the frame.

    Args:
        expected: gives the samples of a level.

    Raises:
        DeviceMemoryError: there is no memory for it.
        whatever is in `runtime.failures`: CUDA failed.
    """
    kind, full = dtype_of(codestream), (codestream.rows, codestream.columns)
    stream = runtime.new_stream()
    for level in (1, codestream.levels):
        canvas = runtime.upload(np.full(full, PATTERN, kind), stream)
        pitch = shape_of(codestream, level)[1] * kind.itemsize
        state.parse(data, codestream)
        try:
            target = Target(target_of(canvas, full, kind).pointer, pitch)
            state.decode(codestream, level, target, stream.ptr)
        except DeviceMemoryError:
            raise
        except DecodeError as error:
            stream.synchronize()  # a lost device shows here
            return f"nvJPEG2000 refuses level {level} of a small codestream: {error}"
        found = runtime.download(canvas, stream).ravel()
        samples = np.ascontiguousarray(expected(level)).ravel()
        wanted = np.full(found.size, PATTERN, kind)
        wanted[: samples.size] = samples
        if not np.array_equal(found, wanted):
            written = int(np.flatnonzero(found != PATTERN).max(initial=-1)) + 1
            return (
                f"nvJPEG2000 gives other samples at level {level} of a small codestream "
                f"({samples.size} samples wanted, memory written up to sample {written})"
            )
    return ""
