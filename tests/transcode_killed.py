"""Transcoders that break, and a run of `transcode` that kills itself.

As a program: SRC DST POINT, where POINT is a number of files (die after so many) or the name of a
table or output (die between its write and its rename).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fastmammo.conversion import TranscodeOptions, transcode, transcoder, writers

PREFIX = "transcode_killed:"
POINT = "FASTMAMMO_TEST_POINT"


class Broken(transcoder.Transcoder):
    """Changes one pixel of each file that is called so."""

    def prepare(self, source: Any) -> Any:
        made = super().prepare(source)
        if isinstance(source, str) and "broken" in Path(source).name:
            assert made.frames[0] is not None
            made.frames[0] = made.frames[0].copy()
            made.frames[0][0, 0] ^= 1
        return made


class Crashing(transcoder.Transcoder):
    """Dies over each file that is called so, hangs over others, has no memory for a third kind."""

    def prepare(self, source: Any) -> Any:
        name = Path(source).name if isinstance(source, str) else ""
        if "crash" in name:
            os.abort()
        if "hang" in name:
            signal.pause()
        if "memory" in name:
            raise MemoryError
        return super().prepare(source)


class Dying(transcoder.Transcoder):
    """Dies once, with its parent, when the named output is about to take its name."""

    def check(self, path: str, made: Any) -> None:
        super().check(path, made)
        marker = Path(os.environ[POINT])
        if made.source is not None and marker.exists():
            marker.unlink()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    src, dst, point = sys.argv[1:]

    def replace(source: str, target: str) -> None:
        if os.path.basename(target) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(source, target)

    def progress(done: int, *_: Any) -> None:
        if str(done) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    writers.os = type("os", (), {**vars(os), "replace": staticmethod(replace)})  # type: ignore
    kind = PREFIX + "Dying" if POINT in os.environ else "fastmammo.conversion.transcoder:Transcoder"
    options = TranscodeOptions(workers=1)
    return transcode(src, dst, options=options, progress=progress, transcoder=kind).exit_code


if __name__ == "__main__":
    sys.exit(main())
