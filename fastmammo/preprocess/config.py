"""The settings of pre-processing: one frozen dataclass, checked in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, option
from fastmammo.preprocess.voi import WindowChoice

PIXEL_VERSION = 3
"""Raised whenever the same settings and input would give other pixels than before."""


@dataclass(frozen=True)
class Config:
    """How stored values become an image. Every field but `device` and `strict` changes pixels."""

    size: tuple[int, int] = option(
        (1024, 512), "rows and columns of the output, for example 1024x512"
    )
    bits: int = option(8, "bits of an output pixel", choices=(8, 16))
    scale: str = option(
        "auto",
        "auto: decode no more resolution than the output needs; full: decode every pixel",
        choices=("auto", "full"),
    )
    oversample: float = option(
        1.0, "auto decodes a level only if the crop there is at least this many times the output"
    )
    spacing_mm: float | None = option(
        None,
        "distance between the output's pixels in mm, along both axes: size is then the canvas, and "
        "an image that does not fit fails; by default the image is fitted to the size",
        type=float,
        metavar="MM",
    )
    crop: str = option(
        "breast",
        "breast: crop to the breast (Otsu, largest component); none: keep the frame",
        choices=("breast", "none"),
    )
    margin: float = option(0.01, "margin around the breast, as a share of the frame's longer side")
    flip: str = option(
        "none",
        "side on which the chest wall comes to lie: left, right, or none to keep it as it is",
        choices=("none", "left", "right"),
    )
    window: str = option(
        "auto",
        "auto (the file's first usable window or VOI LUT), none, minmax, CENTER,WIDTH[,FUNCTION], "
        "window:INDEX, lut:INDEX or explanation:TEXT; with a minus in front: --window=-5,100",
    )
    frame: int = option(0, "index of the frame, in multi-frame files")
    backend: str = option(
        "auto",
        "decoder: auto, numba, openjpeg, imagecodecs, pylibjpeg or numpy; on cuda also nvjpeg2000, "
        "nvimgcodec or dali",
    )
    device: str = option(
        "cpu",
        "device that decodes and computes: cpu; cuda (a GPU, the CPU where it cannot); or auto: "
        "cuda where GPU, CuPy and nvJPEG2000 are there, else cpu (the GPU path has not been run on "
        "a GPU yet)",
        choices=("cpu", "cuda", "auto"),
        pixels=False,
    )
    strict: bool = option(
        False,
        "on cuda: fail a file that the GPU cannot decode; by default the CPU decodes it",
        pixels=False,
    )

    def __post_init__(self) -> None:
        size = tuple(self.size) if isinstance(self.size, (tuple, list)) else ()
        if len(size) != 2 or not all(type(v) is int and 1 <= v <= 16384 for v in size):
            raise ConfigError(
                f"size: got {self.size!r}, wanted (rows, columns), two whole numbers 1 to 16384"
            )
        object.__setattr__(self, "size", size)
        from fastmammo.decoding.backends import check_device

        check_device(self.device)
        check_choices(self)
        for name, low, high in (("oversample", 0.1, 16.0), ("margin", 0.0, 0.5)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"{name}: got {value!r}, allowed is {low} to {high}")
            object.__setattr__(self, name, float(value))
        spacing = self.spacing_mm
        if spacing is not None:
            if type(spacing) not in (int, float) or not 0.001 <= spacing <= 100:
                raise ConfigError(
                    f"spacing_mm: got {spacing!r}, wanted 0.001 to 100 mm, or None to fit the "
                    "image to the size"
                )
            object.__setattr__(self, "spacing_mm", float(spacing))
        if not isinstance(self.frame, int) or self.frame < 0:
            raise ConfigError(f"frame: got {self.frame!r}, wanted a whole number from 0")
        # one spelling for one choice: the digest of the settings must not see a difference
        object.__setattr__(self, "window", str(WindowChoice.parse(self.window)))
        from fastmammo.decoding import BACKENDS

        if self.backend != "auto" and self.backend not in BACKENDS:
            raise ConfigError(
                f"backend: got {self.backend!r}, allowed are auto, {', '.join(BACKENDS)}"
            )
        on_gpu = self.backend != "auto" and BACKENDS[self.backend].DEVICE == "cuda"
        if self.device == "cpu" and on_gpu:
            raise ConfigError(
                f"backend: got {self.backend!r}, which needs a GPU; set device to cuda too"
            )

    def resolved(self) -> Config:
        """Return the settings with "auto" replaced by the device that there is.

        Raises:
            BackendUnavailableError: the backend is one of the GPU's, and there it cannot be used.
        """
        return self.resolved_why()[0]

    def resolved_why(self) -> tuple[Config, str]:
        """Return what `resolved` does, and why "auto" is the CPU where it is, else "".

        Raises: see `resolved`.
        """
        if self.device != "auto":
            return self, ""
        from fastmammo.decoding.backends import resolve_device

        device, why = resolve_device(self.device, self.backend)
        return replace(self, device=device), why

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return {**asdict(self), "size": list(self.size)}

    def pixels_to_dict(self) -> dict[str, Any]:
        """Return the settings that decide the pixels as JSON-able values."""
        values = self.to_dict()
        return {f.name: values[f.name] for f in fields(self) if f.metadata.get("pixels", True)}

    def digest(self) -> str:
        """Return 16 hex digits over everything that decides the pixels of an output."""
        # None is how it was before there was the setting: what was made then still counts
        pixels = {name: value for name, value in self.pixels_to_dict().items() if value is not None}
        text = json.dumps({"pixel_version": PIXEL_VERSION, **pixels}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
