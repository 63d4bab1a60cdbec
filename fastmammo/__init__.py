"""fastmammo: mammography DICOMs to model-ready images.

    DICOM file ─► dicom ─► decoding ─► preprocess ─► conversion  (a folder of images, an array)
                  header    stored     model-ready
                  + codestream pixels  image

One direction only: a stage imports from the stages to its left. Names load on first use, so that
importing the package costs nothing. (`decode` and `convert` are functions, hence the folders'
names: Python binds a subpackage to its parent's attribute of the same name.)

    mammogram = fastmammo.read("view.dcm")               # header facts + codestream
    pixels = fastmammo.decode(mammogram)                 # stored values (rows, columns)
    prepare = fastmammo.Preprocessor(size=(1024, 512))
    batch = prepare(["view.dcm"])                        # .images (N, 1, 1024, 512), .geometry
    fastmammo.convert("src", "dst")                      # what `fastmammo convert` runs
    fastmammo.transcode("src", "dst")                    # the same files, as HTJ2K
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmammo.conversion import (
        ConvertOptions,
        Summary,
        TranscodeOptions,
        TranscodeSummary,
        convert,
        transcode,
    )
    from fastmammo.decoding import decode
    from fastmammo.dicom import Codestream, LookupTable, Mammogram, Window, read
    from fastmammo.errors import FastMammoError, FastMammoWarning
    from fastmammo.preprocess import (
        Batch,
        Config,
        Failure,
        Geometry,
        Prepared,
        Preprocessor,
        apply_voi,
        find_breast,
    )

__version__ = "0.1.0"

_HOMES = {
    "Batch": "preprocess",
    "Codestream": "dicom",
    "Config": "preprocess",
    "ConvertOptions": "conversion",
    "Failure": "preprocess",
    "FastMammoError": "errors",
    "FastMammoWarning": "errors",
    "Geometry": "preprocess",
    "LookupTable": "dicom",
    "Mammogram": "dicom",
    "Prepared": "preprocess",
    "Preprocessor": "preprocess",
    "Summary": "conversion",
    "TranscodeOptions": "conversion",
    "TranscodeSummary": "conversion",
    "Window": "dicom",
    "apply_voi": "preprocess",
    "convert": "conversion",
    "decode": "decoding",
    "find_breast": "preprocess",
    "read": "dicom",
    "transcode": "conversion",
}

__all__ = [
    "Batch",
    "Codestream",
    "Config",
    "ConvertOptions",
    "Failure",
    "FastMammoError",
    "FastMammoWarning",
    "Geometry",
    "LookupTable",
    "Mammogram",
    "Prepared",
    "Preprocessor",
    "Summary",
    "TranscodeOptions",
    "TranscodeSummary",
    "Window",
    "__version__",
    "apply_voi",
    "convert",
    "decode",
    "find_breast",
    "read",
    "transcode",
]


def __getattr__(name: str) -> Any:
    if name == "dali":  # a module that no other needs; it asks for DALI only when it is used
        return importlib.import_module("fastmammo.dali")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmammo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastmammo.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
