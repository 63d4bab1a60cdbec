"""A file in any lossless syntax → the same file in HTJ2K Lossless RPCL, and the proof that it is.

What a worker of `transcode` runs. The proof is of the written file: it is read back, decoded by
another library than the one that encoded it, and compared with what an established library decodes
from the source; no decoder of this package has a part in it (`samples.ESTABLISHED`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.comparison import compare, require_same_bytes, uncached
from fastmammo.conversion.samples import OtherFile, precision_of, refuse_others, samples_of
from fastmammo.dicom import read
from fastmammo.dicom.source import load, parse_header
from fastmammo.encoding import (
    HTJ2K_LOSSLESS_RPCL,
    encode_htj2k,
    levels_for,
    require_counted_frames,
    rewritten,
)
from fastmammo.errors import (
    FastMammoError,
    NotExactError,
    NotImageError,
    UnsupportedImageError,
    UnsupportedSyntaxError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastmammo.dicom import Mammogram

    Bytes = bytes | memoryview
    Pixels = NDArray[Any]

_UNREAD = {kind().reason for kind in (UnsupportedImageError, UnsupportedSyntaxError, NotImageError)}
"""Why a file that was an image once may be none now that it is damaged."""

KEPT_BYTES = 256 << 20
"""Of frames that are kept for the comparison; those beyond are decoded once more for it."""


@dataclass
class Transcoded:
    """One file's output."""

    image: list[Bytes]
    """The output's bytes, in pieces; none where the file is skipped."""
    record: dict[str, Any]
    outcome: dict[str, str]
    """Status, and where it is not "ok" reason and message."""
    seconds: dict[str, float] = field(default_factory=dict)
    source: Mammogram | None = None
    frames: list[Pixels | None] = field(default_factory=list)
    """The samples as they were encoded; None for those that were not kept."""


class Transcoder:
    """Has what `one_file.process` asks for: `prepare`, `encode`, `check` and `may_replace`.

    Args:
        others: what becomes of files that are not transcoded: "copy" or "skip".
    """

    encoder: Callable[..., bytes] = staticmethod(encode_htj2k)

    def __init__(self, others: str) -> None:
        self.others = others

    def prepare(self, source: Any) -> Transcoded:
        """Return the finished file's bytes; see `read` and `decode` for what it raises."""
        start = time.perf_counter()
        data = load(source)
        try:
            m = read(data)
            loaded = time.perf_counter()
            refuse_others(m)
            made = self._made(data, m)
            made.seconds["read"] = loaded - start
            return made
        except OtherFile as other:
            return self._other(data, *other.args)
        except (UnsupportedImageError, UnsupportedSyntaxError, NotImageError) as error:
            return self._other(data, error.reason, str(error))

    def rehearse(self, source: Any) -> Transcoded:
        """Decode and encode a file that is to be no output, so that all is loaded and compiled."""
        m = read(source)
        self._frames(m, m.bits_stored, {"decode": 0.0, "encode": 0.0})
        return Transcoded([], {}, {})

    def encode(self, image: list[Bytes]) -> list[Bytes]:
        """Return the bytes as they are: `prepare` has encoded, as that may refuse."""
        return image

    def check(self, path: str, made: Transcoded) -> None:
        """Read a written file back and compare it, before it takes its final name.

        Raises:
            NotExactError: it does not hold the source's pixels, or not what PS3.5 10.18 asks.
        """
        try:
            if made.source is None:
                require_same_bytes(uncached(path), made.image)
            else:
                written = read(uncached(path))
                made.record["verified_by"] = compare(written, made.source, made.frames)
        except NotExactError:
            raise
        except FastMammoError as error:
            raise NotExactError(f"the written file cannot be read back: {error}") from error

    def may_replace(self, target: str, made: Transcoded) -> None:
        """Refuse to put a copy of an image that cannot be read where a transcoded one is.

        A file that breaks off just before Pixel Data looks like an image without pixels.

        Raises:
            NotExactError: an earlier run has transcoded the file, and it can no longer be.
        """
        if made.outcome.get("reason") not in _UNREAD or not os.path.isfile(target):
            return
        try:
            earlier = read(target).transfer_syntax_uid
        except FastMammoError:
            return
        if earlier == HTJ2K_LOSSLESS_RPCL:
            raise NotExactError(
                f"{made.outcome['message']}; but an earlier run could transcode it. If this is "
                "right, delete that output, and it is copied as it is now"
            )

    def _other(self, data: Bytes, reason: str, message: str) -> Transcoded:
        copied = self.others == "copy"
        status = "copied" if copied else "skipped"
        outcome = {"status": status, "reason": reason, "message": message}
        record = {"source_syntax": _syntax_of(data)}
        return Transcoded([data] if copied else [], record, outcome)

    def _made(self, data: Bytes, m: Mammogram) -> Transcoded:
        clock = {"decode": 0.0, "encode": 0.0}
        if any(frame.fragments > 1 for frame in m.frames):  # one of them may be another frame's
            require_counted_frames(data, len(m.frames))
        precision = precision_of(None, m, m.codestream(0))
        made = None
        while made is None:
            # all frames get the precision that one of them needs
            made, precision, decoder = self._frames(m, precision, clock)
        codestreams, kept = made
        native = None
        if not m.transfer_syntax.encapsulated:
            native = sum(len(frame.data) for frame in m.frames)
        record = {
            "source_syntax": m.transfer_syntax_uid,
            "frames": len(m.frames),
            "precision": precision,
            "decoder": decoder,
        }
        chunks = rewritten(data, codestreams, native_bytes=native)
        return Transcoded(chunks, record, {"status": "ok"}, clock, m, kept)

    def _frames(
        self, m: Mammogram, precision: int, clock: dict[str, float]
    ) -> tuple[tuple[list[bytes], list[Pixels | None]] | None, int, str]:
        """Return ((codestreams, frames), precision, decoder), or None for the first if a frame
        needs more than the precision: it is returned for another try."""
        codestreams: list[bytes] = []
        kept: list[Pixels | None] = []
        room, name = KEPT_BYTES, ""
        levels = levels_for(m.rows, m.columns)
        for index in range(len(m.frames)):
            start = time.perf_counter()
            pixels, name = samples_of(m, index)
            decoded = time.perf_counter()
            clock["decode"] += decoded - start
            needed = precision_of(pixels, m, m.codestream(index))
            if needed > precision:
                if index:
                    return None, needed, name
                precision = needed
            codestreams.append(
                self.encoder(pixels, precision=precision, levels=levels, tile_parts=True)
            )
            clock["encode"] += time.perf_counter() - decoded
            room -= pixels.nbytes
            kept.append(pixels if room >= 0 or len(m.frames) == 1 else None)
        return (codestreams, kept), precision, name


def _syntax_of(data: Bytes) -> str:
    """Return the transfer syntax that a file's own header gives, "" where there is none."""
    try:
        meta = getattr(parse_header(data)[0], "file_meta", {})
        return str(meta.get("TransferSyntaxUID", ""))
    except Exception:  # pydicom raises whatever damaged bytes lead it to
        return ""
