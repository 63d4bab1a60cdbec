"""Pretended CUDA in a worker of `convert`: importing it makes the device; KERNELS: its library.

Its Preprocessor notes, below NOTES, each launch with its images, and how many frames were decoded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pretended_cuda
import pytest

from fastmammo import preprocess
from fastmammo.kernels import gpu

if TYPE_CHECKING:
    from fastmammo.preprocess import Config

KERNELS, NOTES = "FASTMAMMO_TEST_KERNELS", "FASTMAMMO_TEST_NOTES"
PREPROCESSOR = "convert_pretended:Preprocessor"

cuda = pretended_cuda.install(pytest.MonkeyPatch(), Path(os.environ[KERNELS]))
launch = gpu.resample_batch


def noted(images: Any, out: Any, **options: Any) -> None:
    frames = sum(flight.decoded for flight in pretended_cuda.Flight.made)
    settings = "-".join(str(flight.settings) for flight in pretended_cuda.Flight.made)
    with open(Path(os.environ[NOTES], f"{os.getpid()}"), "a") as file:
        file.write(f"{len(images)};{frames};{settings};{cuda.limits}\n")
    launch(images, out, **options)


gpu.resample_batch = noted


class Preprocessor(preprocess.Preprocessor):
    def __init__(self, config: Config, **settings: Any) -> None:
        super().__init__(config, **settings)
