"""Takes a data set's bytes in any uncompressed coding, gives them in Explicit VR Little Endian.

Values are never interpreted: their bytes are copied, or swapped by the unit of their VR (PS3.5
7.3). So text in any character set, private elements and values against the standard stay what they
are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from fastmammo.errors import ReadError

LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with a length of 32 bits (PS3.5 7.1.2)."""
VRS = LONG | frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNITS = {
    **dict.fromkeys((b"AT", b"OW", b"SS", b"US"), 2),
    **dict.fromkeys((b"FL", b"OF", b"OL", b"SL", b"UL"), 4),
    **dict.fromkeys((b"FD", b"OD", b"OV", b"SV", b"UV"), 8),
}
"""Bytes that are one number (for AT: one of two), by VR; of all others bytes are bytes."""
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_PIXEL_GROUP = 0x7FE0
_DEEPEST = 64


@dataclass
class Coding:
    """How a data set's bytes are coded.

    signed: Pixel Representation, which decides between US and SS where the VR is implicit.
    """

    implicit: bool
    big_endian: bool
    signed: bool = False
    order: str = field(init=False)

    def __post_init__(self) -> None:
        self.order = ">" if self.big_endian else "<"


def explicit_little_endian(
    body: memoryview, start: int, end: int, coding: Coding, *, pixels: bool = False
) -> bytes:
    """Return the elements from `start` to `end` in Explicit VR Little Endian (PS3.5 A.2).

    Group lengths (gggg,0000) are left out: they are retired, and would be wrong. So are zeros up
    to the end behind the last element, with which some writers fill a file up.

    Args:
        pixels: whether elements of the pixel data's group 7FE0 are taken along at the top level.

    Raises:
        ReadError: the bytes are no data set.
    """
    walk = _Walk(body, coding)
    try:
        out, _ = walk.elements(start, end, 0, pixels)
    except struct.error as error:
        raise ReadError(f"the data set breaks off in the middle of an element: {error}") from error
    return out


class _Walk:
    def __init__(self, body: memoryview, coding: Coding) -> None:
        self.body = body
        self.coding = coding

    def tag(self, position: int) -> tuple[int, int]:
        group, element = struct.unpack_from(self.coding.order + "HH", self.body, position)
        return group, element

    def length(self, position: int) -> int:
        value: int = struct.unpack_from(self.coding.order + "I", self.body, position)[0]
        return value

    def elements(
        self, position: int, end: int, depth: int, pixels: bool = True
    ) -> tuple[bytes, int]:
        """Return the elements up to `end` or an item's delimiter, and where they end."""
        if depth > _DEEPEST:
            raise ReadError(f"sequences within sequences, more than {_DEEPEST} deep: damaged")
        out: list[bytes] = []
        creators: dict[tuple[int, int], str] = {}
        while position < end:
            if not depth and not any(self.body[position : min(position + 8, end)]):
                if any(self.body[position:end]):
                    raise ReadError(
                        f"zeros at byte {position} where an element should be, and others behind "
                        "them: the data set is damaged"
                    )
                break
            tag = self.tag(position)
            if tag == _ITEM_END:
                return b"".join(out), position
            vr, length, at = self.header(position, tag, creators)
            if length == _UNDEFINED:
                element, position = self.undefined(tag, vr, at, end, depth)
            else:
                if at + length > end:
                    raise ReadError(
                        f"({tag[0]:04X},{tag[1]:04X}) at byte {position} has {length} bytes, "
                        f"{end - at} are left: the data set is damaged or truncated"
                    )
                element, position = self.defined(tag, vr, at, length, depth), at + length
            if tag[0] % 2 and 0x10 <= tag[1] <= 0xFF:
                creators[tag] = bytes(self.body[at : at + length]).decode("latin-1").strip(" \0")
            if tag[1] and (pixels or tag[0] != _PIXEL_GROUP):
                out.append(element)
        return b"".join(out), position

    def header(
        self, position: int, tag: tuple[int, int], creators: dict[tuple[int, int], str]
    ) -> tuple[bytes, int, int]:
        """Return (VR, length, where the value begins) of an element."""
        if tag[0] == 0xFFFE:
            raise ReadError(
                f"({tag[0]:04X},{tag[1]:04X}) at byte {position} where an element should be: the "
                "data set is damaged"
            )
        if self.coding.implicit:
            length = self.length(position + 4)
            return _vr_of(tag, creators, length, self.coding.signed), length, position + 8
        vr = bytes(self.body[position + 4 : position + 6])
        if vr not in VRS:
            raise ReadError(
                f"({tag[0]:04X},{tag[1]:04X}) at byte {position} has no VR but {vr!r}: the data "
                "set is damaged, or not coded as its transfer syntax says"
            )
        if vr in LONG:
            return vr, self.length(position + 8), position + 12
        short: int = struct.unpack_from(self.coding.order + "H", self.body, position + 6)[0]
        return vr, short, position + 8

    def defined(self, tag: tuple[int, int], vr: bytes, at: int, length: int, depth: int) -> bytes:
        if vr == b"SQ":
            items, _ = self.items(at, at + length, depth, delimited=False)
            return _element(tag, vr, items)
        value = bytes(self.body[at : at + length])
        unit = _UNITS.get(vr, 1)
        if self.coding.big_endian and unit > 1:
            if length % unit:
                raise ReadError(
                    f"({tag[0]:04X},{tag[1]:04X}) has {length} bytes, its VR {vr.decode()} wants a "
                    f"multiple of {unit}: its byte order cannot be changed"
                )
            value = np.frombuffer(value, f"<u{unit}").byteswap().tobytes()
        return _element(tag, vr, value)

    def undefined(
        self, tag: tuple[int, int], vr: bytes, at: int, end: int, depth: int
    ) -> tuple[bytes, int]:
        if vr == b"UN" and not self.coding.implicit:
            # its content is Implicit VR Little Endian, whatever is around it (PS3.5 6.2.2)
            inner = _Walk(self.body, Coding(True, False, self.coding.signed))
            _, stop = inner.items(at, end, depth, delimited=True)
            value = bytes(self.body[at:stop])
        elif vr in (b"SQ", b"UN"):
            vr = b"SQ"
            value, stop = self.items(at, end, depth, delimited=True)
        else:
            raise ReadError(
                f"({tag[0]:04X},{tag[1]:04X}) of VR {vr.decode()} has an undefined length in an "
                "uncompressed data set: it is damaged"
            )
        return struct.pack("<HH2sHI", *tag, vr, 0, _UNDEFINED) + value, stop

    def items(self, position: int, end: int, depth: int, *, delimited: bool) -> tuple[bytes, int]:
        """Return a sequence's items, its delimiter included, and where they end (PS3.5 7.5)."""
        out: list[bytes] = []
        while delimited or position < end:
            tag, length = self.tag(position), self.length(position + 4)
            position += 8
            if tag == _SEQUENCE_END and delimited:
                out.append(struct.pack("<HHI", *tag, 0))
                break
            if tag != _ITEM:
                raise ReadError(
                    f"({tag[0]:04X},{tag[1]:04X}) at byte {position - 8} where an item of a "
                    "sequence should be: the data set is damaged"
                )
            if length == _UNDEFINED:
                value, position = self.elements(position, end, depth + 1)
                if self.tag(position) != _ITEM_END:
                    raise ReadError("an item without its delimiter: the data set is damaged")
                position += 8
                out += [struct.pack("<HHI", *tag, _UNDEFINED), value]
                out.append(struct.pack("<HHI", *_ITEM_END, 0))
            else:
                if position + length > end:
                    raise ReadError(
                        f"an item at byte {position - 8} is longer than what is around it: the "
                        "data set is damaged"
                    )
                value, position = self.elements(position, position + length, depth + 1)
                out += [struct.pack("<HHI", *tag, len(value)), value]
        return b"".join(out), position


def _element(tag: tuple[int, int], vr: bytes, value: bytes) -> bytes:
    if vr not in LONG:
        if len(value) <= 0xFFFF:
            return struct.pack("<HH2sH", *tag, vr, len(value)) + value
        vr = b"UN"  # too long for its own VR: PS3.5 6.2.2, note 2
    return struct.pack("<HH2sHI", *tag, vr, 0, len(value)) + value


def _vr_of(
    tag: tuple[int, int], creators: dict[tuple[int, int], str], length: int, signed: bool
) -> bytes:
    """Return the VR that the dictionaries give an element, UN if they know none (PS3.5 A.1)."""
    from pydicom.datadict import dictionary_VR, private_dictionary_VR

    group, element = tag
    if element == 0:
        return b"UL"
    number = group << 16 | element
    try:
        if group % 2 == 0:
            vr = dictionary_VR(number)
        elif 0x10 <= element <= 0xFF:
            return b"LO"
        else:
            vr = private_dictionary_VR(number, creators[group, element >> 8])
    except KeyError:
        return b"UN"
    if vr == "US or SS":
        return b"SS" if signed else b"US"
    if " or " in vr:  # with OW: look-up tables, overlays, icons, waveforms
        return b"US" if "US" in vr and length == 2 else b"OW"
    return vr.encode() if len(vr) == 2 else b"UN"
