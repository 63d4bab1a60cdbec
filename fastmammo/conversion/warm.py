"""Gives made-up mammograms as DICOM bytes, to run once before the first file is timed."""

from __future__ import annotations

import glob
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPLICIT_LITTLE = b"1.2.840.10008.1.2.1"
_JPEG2000_LOSSLESS = b"1.2.840.10008.1.2.4.90"
_LONGER, _SHORTER = 1300, 64
"""Long enough for a search two levels down (`preprocess.roi.roi_level`), as in real mammograms."""


def never_compiled() -> bool:
    """Whether the kernels are surely not compiled yet, as after an installation.

    Numba keeps what it compiles beside the sources, where they can be written to; elsewhere there
    is no telling, and the answer is no.
    """
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "decoding", "ebcot")
    if "NUMBA_CACHE_DIR" in os.environ or not os.access(folder, os.W_OK):
        return False
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    kept = os.path.join(glob.escape(folder), "__pycache__", f"codeblock.*.{version}.nbi")
    return not glob.glob(kept)


def warm_up_files() -> Iterator[bytes]:
    """Yield a bright half-ellipse on air, 12 of 16 bits: tall and wide, uncompressed and not.

    They take the kernels through the array types that nearly every file has, so that imports and
    compilation (seconds, in a first run) are not counted as the first files' time.
    """
    for rows, columns in ((_LONGER, _SHORTER), (_SHORTER, _LONGER)):
        y, x = np.ogrid[-rows // 2 : rows - rows // 2, :columns]
        inside = (y * columns) ** 2 * 9 + (x * rows) ** 2 * 2 < (rows * columns) ** 2
        pixels = np.where(inside, 1500 + (x + y) % 64, y % 8).astype("<u2")
        yield _file(_EXPLICIT_LITTLE, rows, columns, pixels.nbytes, pixels.tobytes())
        import imagecodecs

        # with the codec's own levels one decoder is asked for, without them another
        for resolutions in (1, 4):
            codestream = imagecodecs.jpeg2k_encode(
                pixels,
                codecformat="j2k",
                reversible=True,
                bitspersample=12,
                resolutions=resolutions,
            )
            codestream = bytes(codestream) + b"\0" * (len(codestream) % 2)
            # PS3.5 A.4: an empty offset table, one fragment, the sequence delimiter
            fragments = _item(0xE000, b"") + _item(0xE000, codestream) + _item(0xE0DD, b"")
            yield _file(_JPEG2000_LOSSLESS, rows, columns, 0xFFFFFFFF, fragments)


def _file(syntax_uid: bytes, rows: int, columns: int, length: int, value: bytes) -> bytes:
    """Return a DICOM file (PS3.10 7.1) of no patient: what the image needs and no more."""
    syntax = _element(0x0002, 0x0010, b"UI", syntax_uid)
    numbers = {
        0x0002: 1,  # Samples per Pixel
        0x0010: rows,
        0x0011: columns,
        0x0100: 16,  # Bits Allocated
        0x0101: 12,  # Bits Stored
        0x0102: 11,  # High Bit
        0x0103: 0,  # Pixel Representation
    }
    header = [
        _element(0x0028, number, b"US", value.to_bytes(2, "little"))
        for number, value in numbers.items()
    ]
    header.insert(1, _element(0x0028, 0x0004, b"CS", b"MONOCHROME2"))
    length_of_meta = _element(0x0002, 0x0000, b"UL", len(syntax).to_bytes(4, "little"))
    pixel_data = b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little") + value
    return bytes(128) + b"DICM" + length_of_meta + syntax + b"".join(header) + pixel_data


def _element(group: int, number: int, representation: bytes, value: bytes) -> bytes:
    """Return an element of explicit VR, little endian (PS3.5 7.1.2), padded to an even length."""
    value += (b"\0" if representation == b"UI" else b" ") * (len(value) % 2)
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    return tag + representation + len(value).to_bytes(2, "little") + value


def _item(number: int, value: bytes) -> bytes:
    return b"\xfe\xff" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
