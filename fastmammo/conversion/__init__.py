"""A folder, list or CSV of DICOMs → images, or HTJ2K; nothing half-written, nothing lost."""

from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.conversion.options import ConvertOptions, TranscodeOptions
from fastmammo.conversion.run import convert
from fastmammo.conversion.summary import Summary
from fastmammo.conversion.transcode_summary import TranscodeSummary
from fastmammo.conversion.transcoding import transcode

__all__ = [
    "ConvertOptions",
    "Input",
    "Summary",
    "TranscodeOptions",
    "TranscodeSummary",
    "convert",
    "find_inputs",
    "transcode",
]
