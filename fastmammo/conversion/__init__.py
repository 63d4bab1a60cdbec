"""A folder, list or CSV of DICOMs → images and a manifest; nothing half-written, nothing lost."""

from fastmammo.conversion.inputs import Input, find_inputs
from fastmammo.conversion.options import ConvertOptions
from fastmammo.conversion.run import convert
from fastmammo.conversion.summary import Summary

__all__ = ["ConvertOptions", "Input", "Summary", "convert", "find_inputs"]
