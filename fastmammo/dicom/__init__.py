"""File or bytes → `Mammogram`: header facts and each frame's codestream; no pixel is decoded."""

from fastmammo.dicom.codestream import inspect_codestream
from fastmammo.dicom.facts import Codestream
from fastmammo.dicom.frames import Frame
from fastmammo.dicom.mammogram import LookupTable, Mammogram, Window
from fastmammo.dicom.read import read
from fastmammo.dicom.source import Source, looks_like_dicom
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
    "looks_like_dicom",
    "read",
]
