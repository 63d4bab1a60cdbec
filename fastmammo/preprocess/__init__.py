"""Stored values → model-ready image, all in integers: VOI LUT, Otsu crop, flip, resampling.

Names load on first use: who needs the settings alone does not wait for numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmammo.preprocess.config import Config
    from fastmammo.preprocess.geometry import Geometry
    from fastmammo.preprocess.pipeline import Batch, Failure, Prepared, Preprocessor
    from fastmammo.preprocess.record import RECORD_COLUMNS, STAGES
    from fastmammo.preprocess.roi import Roi, find_breast, roi_level
    from fastmammo.preprocess.voi import VoiTable, WindowChoice, apply_voi, voi_table

_HOMES = {
    "Batch": "pipeline",
    "Config": "config",
    "Failure": "pipeline",
    "Geometry": "geometry",
    "Prepared": "pipeline",
    "Preprocessor": "pipeline",
    "RECORD_COLUMNS": "record",
    "Roi": "roi",
    "STAGES": "record",
    "VoiTable": "voi",
    "WindowChoice": "voi",
    "apply_voi": "voi",
    "find_breast": "roi",
    "roi_level": "roi",
    "voi_table": "voi",
}

__all__ = [
    "RECORD_COLUMNS",
    "STAGES",
    "Batch",
    "Config",
    "Failure",
    "Geometry",
    "Prepared",
    "Preprocessor",
    "Roi",
    "VoiTable",
    "WindowChoice",
    "apply_voi",
    "find_breast",
    "roi_level",
    "voi_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmammo.preprocess' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastmammo.preprocess.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
