"""The transfer syntaxes that a mammogram comes in (PS3.5 10, PS3.6 table A-1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["native", "rle", "jpeg", "jpeg-lossless", "jpeg-ls", "jpeg2000", "htj2k"]


@dataclass(frozen=True)
class TransferSyntax:
    """One transfer syntax: its UID, its name, the codec family, and whether it must be lossless."""

    uid: str
    name: str
    family: Family
    lossless: bool
    big_endian: bool = False
    deflated: bool = False

    @property
    def encapsulated(self) -> bool:
        """Whether frames are codestreams in fragments (PS3.5 A.4), not a plain array."""
        return self.family != "native"

    def __str__(self) -> str:
        return f"{self.name} ({self.uid})"


_J = "1.2.840.10008.1.2.4"

SYNTAXES: dict[str, TransferSyntax] = {
    syntax.uid: syntax
    for syntax in (
        TransferSyntax("1.2.840.10008.1.2", "Implicit VR Little Endian", "native", True),
        TransferSyntax("1.2.840.10008.1.2.1", "Explicit VR Little Endian", "native", True),
        TransferSyntax(
            "1.2.840.10008.1.2.1.99",
            "Deflated Explicit VR Little Endian",
            "native",
            True,
            deflated=True,
        ),
        TransferSyntax(
            "1.2.840.10008.1.2.2", "Explicit VR Big Endian", "native", True, big_endian=True
        ),
        TransferSyntax("1.2.840.10008.1.2.5", "RLE Lossless", "rle", True),
        TransferSyntax(f"{_J}.50", "JPEG Baseline 8-bit", "jpeg", False),
        TransferSyntax(f"{_J}.51", "JPEG Extended 12-bit", "jpeg", False),
        TransferSyntax(f"{_J}.57", "JPEG Lossless", "jpeg-lossless", True),
        TransferSyntax(f"{_J}.70", "JPEG Lossless SV1", "jpeg-lossless", True),
        TransferSyntax(f"{_J}.80", "JPEG-LS Lossless", "jpeg-ls", True),
        TransferSyntax(f"{_J}.81", "JPEG-LS Near-Lossless", "jpeg-ls", False),
        TransferSyntax(f"{_J}.90", "JPEG 2000 Lossless", "jpeg2000", True),
        TransferSyntax(f"{_J}.91", "JPEG 2000", "jpeg2000", False),
        TransferSyntax(f"{_J}.201", "HTJ2K Lossless", "htj2k", True),
        TransferSyntax(f"{_J}.202", "HTJ2K Lossless RPCL", "htj2k", True),
        TransferSyntax(f"{_J}.203", "HTJ2K", "htj2k", False),
    )
}
