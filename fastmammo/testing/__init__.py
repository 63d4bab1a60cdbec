"""Synthetic mammograms with a known breast mask, written as real DICOM files in every syntax."""

from __future__ import annotations

from fastmammo.testing.archive import make_dataset
from fastmammo.testing.dataset import write_dataset
from fastmammo.testing.encode import can_encode, encode
from fastmammo.testing.lesions import Lesion
from fastmammo.testing.nuisances import Nuisances, draw_nuisances
from fastmammo.testing.phantom import Phantom, phantom
from fastmammo.testing.sizes import VENDOR_SIZES
from fastmammo.testing.write import write_dicom

__all__ = [
    "VENDOR_SIZES",
    "Lesion",
    "Nuisances",
    "Phantom",
    "can_encode",
    "draw_nuisances",
    "encode",
    "make_dataset",
    "phantom",
    "write_dataset",
    "write_dicom",
]
