"""Stored values → model-ready image, all in integers: VOI LUT, Otsu crop, flip, resampling."""

from fastmammo.preprocess.config import Config
from fastmammo.preprocess.geometry import Geometry
from fastmammo.preprocess.pipeline import (
    STAGES,
    Batch,
    Failure,
    Prepared,
    Preprocessor,
)
from fastmammo.preprocess.record import RECORD_COLUMNS
from fastmammo.preprocess.roi import Roi, find_breast, roi_level
from fastmammo.preprocess.voi import VoiTable, WindowChoice, apply_voi, voi_table

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
