"""(codestream, level) → stored values: one backend a file, one table, one place that chooses."""

from fastmammo.decoding.backends import BACKENDS, PREFERENCE, choose
from fastmammo.decoding.decoder import MAX_PIXELS, FrameDecoder, decode

__all__ = ["BACKENDS", "MAX_PIXELS", "PREFERENCE", "FrameDecoder", "choose", "decode"]
