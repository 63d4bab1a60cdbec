"""DICOM files with attributes changed, for the tests."""

from __future__ import annotations

import io

import pydicom


def patched(data: bytes, **values: object) -> bytes:
    """Return the file with attributes set."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in values.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()
