"""DALI as the first-place RSNA pipeline used it: decode, window and resize on the GPU, PNG.

Like it: pipelines of a batch each, a process that reads the DICOMs for each, images one by one
through torch, bilinear without antialiasing. Unlike it: frames are found by pydicom and not by a
search for bytes; Otsu on a small copy takes the place of its trained detector; DALI's stretch of
12 bits to 16 is undone (its files were of 16 bits); windows keep their digits (it had float16).

Not yet seen on a GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from contenders.processes import die_with_parent
from contenders.turns import Turn, digest, rate_of

if TYPE_CHECKING:
    import numpy as np

    from contenders.turns import Job

Header = tuple[bool, float, float, int]
"""Inverted, window centre and width, bits."""


class Reader:
    """The source of a pipeline: batch number → codestreams, inversions, windows and bits."""

    def __init__(self, paths: list[str], batch: int) -> None:
        self.paths, self.batch, self._begun = paths, batch, False

    def __call__(self, info: Any) -> tuple[list[np.ndarray[Any, Any]], ...]:
        import numpy as np

        if not self._begun:  # in a process that DALI has started
            die_with_parent()
            self._begun = True
        start = info.iteration * self.batch
        chosen = self.paths[start : start + self.batch]
        if not chosen:
            raise StopIteration
        files = [_parsed(path) for path in chosen]
        codestreams = [np.frombuffer(data, np.uint8) for data, _ in files]
        return codestreams, [np.array(header, np.float32) for _, header in files]


def _parsed(path: str) -> tuple[bytes, Header]:
    import pydicom
    from pydicom.encaps import generate_frames
    from pydicom.multival import MultiValue

    ds = pydicom.dcmread(path)
    window = [
        float(value[0] if isinstance(value, MultiValue) else value)
        for value in (ds.WindowCenter, ds.WindowWidth)
    ]
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    inverted = ds.PhotometricInterpretation == "MONOCHROME1"
    return bytes(frame), (inverted, window[0], window[1], int(ds.BitsStored))


def pipeline(paths: list[str], batch: int, threads: int) -> Any:
    """Return a built pipeline: decoded frames on the GPU, and their headers."""
    from nvidia import dali

    made = dali.Pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=0,
        py_num_workers=1,
        py_start_method="spawn",
        prefetch_queue_depth=2,
    )
    with made:
        codestreams, headers = dali.fn.external_source(
            source=Reader(paths, batch),
            num_outputs=2,
            dtype=[dali.types.UINT8, dali.types.FLOAT],
            batch=True,
            batch_info=True,
            parallel=True,
        )
        frames = dali.fn.decoders.image(
            codestreams,
            device="mixed",
            output_type=dali.types.ANY_DATA,
            dtype=dali.types.UINT16,
            adjust_orientation=False,
        )
        made.set_outputs(frames, headers)
    made.build()
    return made


def stored(tensor: Any, bits: int) -> Any:
    """Return a decoded frame as torch.float32 (rows, columns) of stored values, stretch undone."""
    import torch

    cells = torch.from_dlpack(tensor).view(torch.int16).to(torch.int32)[..., 0] & 0xFFFF
    if bits in (8, 16):
        return cells.float()
    return torch.round(cells.double() * ((1 << bits) - 1) / 65535).float()


def windowed(pixels: Any, header: Header) -> Any:
    """Return pixels from 0 to 255 (PS3.3 C.11.2.1.2.1), inverted where the header says so."""
    inverted, center, width, _ = header
    shown = (((pixels - (center - 0.5)) / (width - 1) + 0.5) * 255).clamp(0, 255)
    return 255 - shown if inverted else shown


def finished(pixels: Any, header: Header, height: int) -> np.ndarray[Any, Any]:
    """Return the image of a frame: uint8, `height` rows, on the host."""
    import cv2
    import numpy as np
    import torch.nn.functional as functional

    small = functional.interpolate(pixels[None, None], scale_factor=1 / 8, mode="area")[0, 0]
    small = windowed(small, header)
    small = (small - small.min()) / (small.max() - small.min()) * 255
    grey = small.byte().cpu().numpy()
    _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = (8 * side for side in cv2.boundingRect(max(contours, key=cv2.contourArea)))
    crop = windowed(pixels[y : y + h, x : x + w], header)
    rows, columns = crop.shape
    size = (height, max(1, round(columns * height / rows)))
    image = functional.interpolate(crop[None, None], size=size, mode="bilinear")[0, 0]
    return np.ascontiguousarray(image.byte().cpu().numpy())  # .cpu() waits for the device


def convert(
    task: tuple[list[str], list[str], int, int, int],
) -> tuple[list[dict[str, float]], list[float], int]:
    """Convert a process's share of the files.

    Args:
        task: inputs, outputs, height, batch, threads of the pipeline.

    Returns:
        Seconds of each image's stages, the moments when images were done, bytes decoded an image.
    """
    import cv2

    paths, outs, height, batch, threads = task
    made = pipeline(paths, batch, threads)
    stages, moments, decoded = [], [], 0
    for first in range(0, len(paths), batch):
        start = time.perf_counter()
        frames, headers = made.run()
        read = (time.perf_counter() - start) / min(batch, len(paths) - first)
        for i, out in enumerate(outs[first : first + batch]):
            clock = time.perf_counter()
            header = tuple(headers.at(i).tolist())
            pixels = stored(frames[i], int(header[3]))
            decoded = 2 * pixels.numel()
            image = finished(pixels, header, height)
            made_at = time.perf_counter()
            if not cv2.imwrite(out, image):
                raise OSError(f"cannot write {out}")
            end = time.perf_counter()
            times = {"read+decode": read, "image": made_at - clock, "encode": end - made_at}
            stages.append({**times, "total": sum(times.values())})
            moments.append(end)
    return stages, moments, decoded


def decode_for(paths: list[str], batch: int, threads: int, seconds: float) -> tuple[int, float]:
    """Decode frames again and again for so long; return how many, and the seconds it took."""
    import torch

    repeated = paths * (1 + 4096 // len(paths))
    made = pipeline(repeated, batch, threads)
    made.run()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds and (count + 4 * batch) < len(repeated):
        made.run()
        torch.cuda.synchronize()
        count += batch
    return count, time.perf_counter() - start


def stored_digests(paths: list[str]) -> list[str]:
    """Return `digest` of each file's stored values."""
    made = pipeline(paths, 1, 1)
    found = []
    for _ in paths:
        frames, headers = made.run()
        found.append(digest(stored(frames[0], int(headers.at(0)[3])).cpu().numpy()))
    return found


@dataclass(frozen=True)
class Dali:
    """DALI with batches of one size: a pipeline in each process, built within the turn."""

    batch: int
    start_included = True

    def turn(self, job: Job) -> Turn:
        # neighbours in a row: each process has all sources, and as often as the others have
        ends = [i * len(job.files) // job.workers for i in range(job.workers + 1)]
        shares = [job.files[first:end] for first, end in pairwise(ends)]
        tasks = [
            (
                [str(path) for path in share],
                [str(job.out / f"{path.stem}.png") for path in share],
                job.height,
                self.batch,
                self._threads,
            )
            for share in shares
            if share
        ]
        done = job.peers.map(convert, tasks)
        running = rate_of(
            [(len(m) - self.batch, m[-1] - m[self.batch - 1]) for _, m, _ in done if m]
        )
        return Turn(
            [each for stages, _, _ in done for each in stages],
            done[0][2],
            running or None,
            f"DALI, batch {self.batch}, level 0",
        )

    @property
    def _threads(self) -> int:
        return min(4, self.batch)

    def decode_only(self, job: Job, turn: Turn, seconds: float) -> tuple[int, float] | None:
        paths = [str(path) for path in job.sources]
        done = job.peers.everywhere(decode_for, paths, self.batch, self._threads, seconds)
        frames = sum(count for count, _ in done)
        return frames, frames / rate_of(done)

    def digests(self, job: Job) -> list[str] | None:
        return job.peers.map(stored_digests, [[str(path) for path in job.sources]])[0]
