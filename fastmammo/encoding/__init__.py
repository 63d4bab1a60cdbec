"""Stored values → codestreams, and the DICOM files that carry them: the way back of `decoding`."""

from fastmammo.encoding.htj2k import encode_htj2k, levels_for, missing, require_encoder
from fastmammo.encoding.rewrite import (
    HTJ2K_LOSSLESS_RPCL,
    require_counted_frames,
    rewritten,
)

__all__ = [
    "HTJ2K_LOSSLESS_RPCL",
    "encode_htj2k",
    "levels_for",
    "missing",
    "require_counted_frames",
    "require_encoder",
    "rewritten",
]
