"""The usual pipeline, with any decoder: (path, out, height, decoder) → a PNG, stage seconds."""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders.decoders import DECODERS
from contenders.turns import Turn, digest, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from contenders.turns import Job

Decoder = Any
"""A name of `DECODERS`, or a function of a module that processes can import."""
_warm: set[tuple[Decoder, str]] = set()
"""Who has decoded which transfer syntax in this process, and imported what that needs."""


def decoder_of(decoder: Decoder) -> Callable[..., Any]:
    return DECODERS[decoder] if isinstance(decoder, str) else decoder


def ordinary_image(task: tuple[str, str, int, Decoder]) -> tuple[dict[str, float], int]:
    """Convert one file as most people who prepare the RSNA mammograms do.

    Returns:
        Seconds of each stage, and bytes of the decoded pixels.
    """
    import cv2
    import numpy as np
    import pydicom
    from pydicom.pixels import apply_voi_lut

    path, out, height, decoder = task
    warnings.filterwarnings("ignore")
    cv2.setNumThreads(1)
    seconds = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    ds = pydicom.dcmread(path)
    lap("read")
    pixels = decoder_of(decoder)(path, ds)
    lap("decode")
    image = apply_voi_lut(pixels, ds)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    image = image - image.min()
    grey = (image / image.max() * 255).astype(np.uint8)
    lap("voi")
    _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    lap("roi")
    size = (max(1, round(w * height / h)), height)
    crop = cv2.resize(grey[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    lap("resample")
    if not cv2.imwrite(out, crop):
        raise OSError(f"cannot write {out}")
    lap("encode")
    return {**seconds, "total": sum(seconds.values())}, int(pixels.nbytes)


def load() -> None:
    """Import what the usual pipeline needs; a process does it once, at its start."""
    for name in ("numpy", "cv2", "pydicom.pixels", "openjpeg", "libjpeg"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def stored_digest(task: tuple[str, Decoder]) -> str:
    """Return `digest` of one file's stored values."""
    import pydicom

    warnings.filterwarnings("ignore")
    path, decoder = task
    return digest(decoder_of(decoder)(path, pydicom.dcmread(path)))


def decode_seconds(task: tuple[str, Decoder]) -> float:
    """Return the seconds that a decoder takes for a file, which is read beside the clock."""
    import pydicom

    warnings.filterwarnings("ignore")
    path, decoder = task
    data = Path(path).read_bytes()
    while True:
        ds = pydicom.dcmread(BytesIO(data))
        start = time.perf_counter()
        decoder_of(decoder)(path, ds)
        taken = time.perf_counter() - start
        key = decoder, str(ds.file_meta.TransferSyntaxUID)
        if key in _warm:
            return taken
        _warm.add(key)


@dataclass(frozen=True)
class Ordinary:
    """The usual pipeline in warm processes, with one decoder."""

    decoder: Decoder
    start_included = False

    def turn(self, job: Job) -> Turn:
        tasks = [
            (str(path), str(job.out / f"{path.stem}.png"), job.height, self.decoder)
            for path in job.files
        ]
        done = job.peers.map(ordinary_image, tasks)
        decoded = sum(count for _, count in done) / len(done)
        return Turn([stages for stages, _ in done], decoded, decoder=f"{self.decoder}, level 0")

    def decode_only(self, job: Job, turn: Turn, seconds: float) -> tuple[int, float] | None:
        import pydicom

        header = pydicom.dcmread(job.sources[0], stop_before_pixels=True)
        if not header.file_meta.TransferSyntaxUID.is_compressed:
            return None
        tasks = [(str(path), self.decoder) for path in job.files]
        return side_by_side(job.peers.map(decode_seconds, tasks), job.workers)

    def digests(self, job: Job) -> list[str] | None:
        return job.peers.map(stored_digest, [(str(path), self.decoder) for path in job.sources])
