"""Who takes part in bench/throughput.py: name → what it needs, what it takes, how it is run.

`ordinary` is the usual pipeline (pydicom with pylibjpeg, VOI LUT, min-max, OpenCV's Otsu and
INTER_AREA, PNG), the yardstick of every ratio; `ordinary + X` is the same with X's decoder. To add
a contender is to add a line here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from usage import gpu_missing

from contenders.dali import Dali
from contenders.ordinary import Ordinary
from contenders.ours import Ours
from fastmammo.decoding import BACKENDS
from fastmammo.dicom import SYNTAXES

if TYPE_CHECKING:
    from contenders.turns import Way

ALL = frozenset(SYNTAXES)
J2K = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))
JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
COMPRESSED = J2K | HTJ2K | JPEG | JPEG_LS | {"1.2.840.10008.1.2.5"}
NATIVE = ALL - COMPRESSED
LEVELS = J2K | HTJ2K
GPU_JPEG = JPEG - {"1.2.840.10008.1.2.4.51"}  # no 12 bits

ORDINARY = ("cv2", "pylibjpeg", "openjpeg")
NVIMGCODEC = "nvidia.nvimgcodec.tools.dicom.pydicom_plugin"

YARDSTICK, STAND_IN = "ordinary", "fastmammo full"
"""Ratios are to the first; where OpenCV is not installed, to the second."""


@dataclass(frozen=True)
class Contender:
    """One way to make images, and when it can be run.

    way: runs it; see `contenders.turns.Way`.
    needs: modules that must be installed.
    syntaxes: transfer syntaxes that it can decode.
    gpu: whether it needs one.
    quick: transfer syntaxes of which it is part of the default run.
    """

    way: Way
    needs: tuple[str, ...] = ()
    syntaxes: frozenset[str] = ALL
    gpu: bool = False
    quick: frozenset[str] = frozenset()

    def missing(self) -> str | None:
        """Return what is lacking here to run it, or None."""
        absent = [name for name in self.needs if not installed(name)]
        if absent:
            return f"not installed: {', '.join(absent)} (pip install '.[bench]' has the CPU's)"
        if isinstance(self.way, Ours) and (reason := self.way.missing()):
            return reason
        return gpu_missing() if self.gpu else None

    def default(self, uid: str) -> bool:
        """Return whether it is part of the default run; what needs a GPU is, where one is."""
        return self.gpu or uid in self.quick

    def refuses(self, uid: str) -> str | None:
        """Return why it cannot take a transfer syntax, or None."""
        return None if uid in self.syntaxes else f"does not take {SYNTAXES[uid].name}"


def installed(name: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a package above it is not there
        return False


def _backends() -> dict[str, Contender]:
    """Return `convert` with each decoder of JPEG 2000 by name, and on the GPU with each of its."""
    found = {}
    for name in ("numba", "openjpeg", "imagecodecs", "pylibjpeg"):
        syntaxes = (J2K | HTJ2K) & frozenset(u for u in ALL if SYNTAXES[u].lossless)
        taken = syntaxes - HTJ2K if name == "numba" else syntaxes
        found[f"fastmammo auto, {name}"] = Contender(Ours("auto", backend=name), (), taken)
    for name in (name for name, each in BACKENDS.items() if each.DEVICE == "cuda"):
        taken = J2K | HTJ2K if name == "nvjpeg2000" else J2K | HTJ2K | GPU_JPEG
        for scale in ("auto", "full"):
            way = Ours(scale, backend=name, device="cuda")
            found[f"fastmammo cuda {scale}, {name}"] = Contender(way, (), taken, gpu=True)
    return found


CONTENDERS: dict[str, Contender] = {
    "ordinary": Contender(Ordinary("pylibjpeg"), ORDINARY, ALL, quick=ALL),
    "fastmammo auto": Contender(Ours("auto"), quick=ALL),
    "fastmammo full": Contender(Ours("full"), quick=ALL),
    "fastmammo auto, half height": Contender(Ours("auto", share=0.5), quick=LEVELS),
    **_backends(),
    "ordinary + GDCM": Contender(Ordinary("gdcm"), ("gdcm", *ORDINARY), J2K | JPEG | JPEG_LS),
    "ordinary + dicomsdl": Contender(
        Ordinary("dicomsdl"), ("dicomsdl", *ORDINARY), ALL - HTJ2K, quick=LEVELS
    ),
    "ordinary + imagecodecs": Contender(
        Ordinary("imagecodecs"), ORDINARY, J2K | HTJ2K | JPEG | JPEG_LS, quick=ALL
    ),
    "ordinary + SimpleITK": Contender(Ordinary("simpleitk"), ("SimpleITK", *ORDINARY)),
    "ordinary + Pillow": Contender(Ordinary("pillow"), ORDINARY, J2K),
    "ordinary + nvImageCodec": Contender(
        Ordinary("nvimgcodec"), (NVIMGCODEC, "cupy", *ORDINARY), J2K | HTJ2K | GPU_JPEG, gpu=True
    ),
    "DALI, batch 1": Contender(
        Dali(1), ("nvidia.dali", "torch", "cv2"), J2K | HTJ2K | GPU_JPEG, gpu=True
    ),
    "DALI, batch 8": Contender(
        Dali(8), ("nvidia.dali", "torch", "cv2"), J2K | HTJ2K | GPU_JPEG, gpu=True
    ),
}
