"""The real preprocessor in workers that die once at chosen points, and a run that kills itself.

As a program: SRC DST FORMAT MARKERS POINT, where POINT is a number of files (die after so many) or
the name of a table or array (die between its write and its rename). MARKERS is a folder: a file
there, named as an input and holding "decoded" or "written", kills the worker that has this input
in hand at that point, once a word.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fastmammo import preprocess
from fastmammo.conversion import ConvertOptions, convert, packed, writers
from fastmammo.decoding import FrameDecoder
from fastmammo.preprocess import Config

PREPROCESSOR = "convert_killed:Preprocessor"
CONFIG = Config(size=(96, 64))
MARKERS = "FASTMAMMO_TEST_MARKERS"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Preprocessor(preprocess.Preprocessor):
    """Prepares as the real one does, unless a marker says to die over this input."""

    def prepare(self, source: Any) -> Any:
        if MARKERS in os.environ and isinstance(source, str):
            marker = Path(os.environ[MARKERS], Path(source).name)
            if marker.exists():
                point, *others = marker.read_text().split()
                if others:
                    marker.write_text(" ".join(others))
                else:
                    marker.unlink()
                if point == "written":
                    writers.os = replacing(lambda *_: die())
                else:
                    decode = FrameDecoder.at
                    FrameDecoder.at = lambda *given: (decode(*given), die())  # type: ignore
        return super().prepare(source)


def replacing(replace: Any) -> Any:
    """Return the module `os` with another `replace`."""
    return type("os", (), {**vars(os), "replace": staticmethod(replace)})


def main() -> int:
    src, dst, kind, markers, point = sys.argv[1:]
    os.environ[MARKERS] = markers

    def replace(source: str, target: str) -> None:
        if os.path.basename(target) == point:
            die()
        os.replace(source, target)

    def progress(done: int, *_: Any) -> None:
        if str(done) == point:
            die()

    writers.os = packed.os = replacing(replace)
    summary = convert(
        src,
        dst,
        config=CONFIG,
        options=ConvertOptions(workers=1, format=kind),
        progress=progress,
        preprocessor=PREPROCESSOR,
    )
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main())
