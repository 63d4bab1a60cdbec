"""Reading a codestream's header: takes one frame's bytes, gives a `Codestream`, decodes nothing.

What the codestream says of itself (size, precision, sign, tiles, levels, styles) decides the
backend and refuses a size bomb before any decoder sees the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.dicom.jpeg import read_jpeg
from fastmammo.dicom.jpeg2000 import JP2_SIGNATURE, read_jpeg2000
from fastmammo.errors import CorruptCodestreamError, UnsupportedImageError

if TYPE_CHECKING:
    from fastmammo.dicom.facts import Codestream


def inspect_codestream(data: bytes | memoryview, family: str) -> Codestream:
    """Return the header facts of one frame's codestream.

    Args:
        data: the frame's bytes: a bare codestream or a JP2 file.
        family: the codec family of the transfer syntax, for the message; what the bytes
            themselves show is what is read.

    Raises:
        CorruptCodestreamError: no codestream of a known kind, or its header breaks off.
        UnsupportedImageError: a JP2 palette, or more than one component.
    """
    view = memoryview(data)
    head = bytes(view[:12])
    if head.startswith(b"\xff\x4f\xff\x51") or head == JP2_SIGNATURE:
        found = read_jpeg2000(view)
    elif head.startswith(b"\xff\xd8"):
        found = read_jpeg(view)
    else:
        raise CorruptCodestreamError(
            f"no {family} codestream: the frame's {len(view)} bytes begin with "
            f"{head[:8].hex(' ')!r}, wanted FF 4F FF 51 (JPEG 2000), a JP2 box or FF D8 (JPEG); "
            "the frame may be damaged or its offset table wrong"
        )
    if found.components != 1:
        raise UnsupportedImageError(
            f"the codestream has {found.components} components; fastmammo decodes greyscale images "
            "(one component)"
        )
    return found
