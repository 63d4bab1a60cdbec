"""(codestream, level) → stored values: one backend a file, one table, one place that chooses."""

from fastmammo.decode.backends import BACKENDS, PREFERENCE, choose
from fastmammo.decode.decoder import MAX_PIXELS, FrameDecoder, decode

__all__ = ["BACKENDS", "MAX_PIXELS", "PREFERENCE", "FrameDecoder", "choose", "decode"]
