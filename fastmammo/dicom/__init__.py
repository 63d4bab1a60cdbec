"""File or bytes → `Mammogram`: header facts and each frame's codestream; no pixel is decoded."""

from fastmammo.dicom.codestream import Codestream, inspect_codestream
from fastmammo.dicom.frames import Frame
from fastmammo.dicom.mammogram import LookupTable, Mammogram, Window
from fastmammo.dicom.read import Source, read
from fastmammo.dicom.syntax import SYNTAXES, TransferSyntax

__all__ = [
    "SYNTAXES",
    "Codestream",
    "Frame",
    "LookupTable",
    "Mammogram",
    "Source",
    "TransferSyntax",
    "Window",
    "inspect_codestream",
    "read",
]
