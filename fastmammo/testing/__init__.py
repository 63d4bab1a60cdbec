"""Synthetic mammograms with a known breast mask, written as real DICOM files in every syntax."""

from __future__ import annotations

from fastmammo.testing.dataset import write_dataset
from fastmammo.testing.encode import encode
from fastmammo.testing.phantom import Phantom, phantom
from fastmammo.testing.write import write_dicom

__all__ = ["Phantom", "encode", "phantom", "write_dataset", "write_dicom"]
