"""(codestream, level) → stored values: one backend a file, one table, one place that chooses."""

from fastmammo.decoding.backends import BACKENDS, PREFERENCE, choose
from fastmammo.decoding.checks import MAX_PIXELS
from fastmammo.decoding.decoder import FrameDecoder, decode

__all__ = ["BACKENDS", "MAX_PIXELS", "PREFERENCE", "FrameDecoder", "choose", "decode"]
