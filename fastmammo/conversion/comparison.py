"""The proof of a transcoded file: what was written is read back, and compared."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.conversion.samples import bare, samples_of
from fastmammo.decoding import FrameDecoder
from fastmammo.decoding.backends import BACKENDS
from fastmammo.decoding.stored import stored_values
from fastmammo.encoding import HTJ2K_LOSSLESS_RPCL
from fastmammo.errors import NotExactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Mammogram

    Bytes = bytes | memoryview
    Pixels = NDArray[Any]

VERIFIERS = ("openjpeg", "pylibjpeg", "imagecodecs")
"""Backends that check, the first that is there: OpenJPEG both, then the encoder's own library."""

_ELSEWHERE = frozenset({"path", "transfer_syntax", "frames", "notes"})
"""What of a `Mammogram` may differ between a source and its transcoded file."""


def compare(m: Mammogram, source: Mammogram, frames: list[Pixels | None]) -> str:
    """Compare a written file with its source; return the name of the decoder that did.

    Raises:
        NotExactError: what differs, and where.
        FastMammoError: the file cannot be read.
    """
    if m.transfer_syntax_uid != HTJ2K_LOSSLESS_RPCL or len(m.frames) != len(frames):
        raise NotExactError(
            f"the written file is {m.transfer_syntax} with {len(m.frames)} frame(s), wanted "
            f"{HTJ2K_LOSSLESS_RPCL} with {len(frames)}"
        )
    facts = _facts(m)
    for name, value in _facts(source).items():
        if facts[name] != value:
            raise NotExactError(
                f"the written file's header says {name} {facts[name]}, the source's {value}"
            )
    backend = next(name for name in VERIFIERS if BACKENDS[name].missing() is None)
    for index, frame in enumerate(frames):
        c = m.codestream(index)
        base = -(-max(c.rows, c.columns) // (1 << c.levels))
        if (
            c.defects
            or (c.format, c.wavelet, c.progression, c.tiles) != ("htj2k", "5/3", "RPCL", 1)
            or "TLM" not in c.markers
            or base > 64
        ):
            raise NotExactError(
                f"frame {index}: not what PS3.5 10.18 asks of HTJ2K Lossless RPCL: {c}"
            )
        wanted = samples_of(source, index)[0] if frame is None else frame
        got = FrameDecoder(bare(m, 0), backend=backend, frame=index).at(0)
        _require_equal(got, wanted, f"frame {index}, decoded by {backend}")
        old = source.codestream(index)
        if old.format == "jpeg2000" and old.signed != m.signed:
            values = stored_values(wanted, source, old)
            _require_equal(stored_values(got, m, c), values, f"frame {index}'s stored values")
    return backend


def _require_equal(got: Pixels, wanted: Pixels, what: str) -> None:
    if got.shape != wanted.shape:
        raise NotExactError(f"{what}: got {got.shape} samples, wanted {wanted.shape}")
    if np.array_equal(got, wanted):
        return
    places = np.argwhere(got.astype(np.int32) != wanted.astype(np.int32))
    row, column = (int(each) for each in places[0])
    raise NotExactError(
        f"{what}: {len(places)} of {wanted.size} pixels differ, the first at row {row}, column "
        f"{column}: got {got[row, column]}, wanted {wanted[row, column]}; no output was written"
    )


def _facts(m: Mammogram) -> dict[str, str]:
    """Return what the header says, as text that can be compared: NaN, too, and look-up tables."""
    found = {}
    for each in fields(m):
        if each.name in _ELSEWHERE:
            continue
        value = getattr(m, each.name)
        luts = (value,) if each.name == "modality_lut" else value
        if each.name in ("modality_lut", "voi_luts"):
            value = [lut and (lut.first_value, lut.bits, lut.data.tolist()) for lut in luts]
        found[each.name] = repr(value)
    return found


def uncached(path: str) -> str:
    """Ask the system to drop a file from its cache, and return the path: the disk is read then.

    The file must have reached the disk (fsync): only such pages can go. It is a request: a file
    system in memory has nothing else to read from, and the disk's own cache is not reached.
    """
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def require_same_bytes(path: str, chunks: list[Bytes]) -> None:
    """Compare a copy with what it is a copy of."""
    with open(path, "rb") as file:
        for chunk in chunks:
            if file.read(len(chunk)) != chunk:
                raise NotExactError("the copy differs from the file; no output was written")
        if file.read(1):
            raise NotExactError("the copy is longer than the file; no output was written")
