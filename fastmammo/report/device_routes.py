"""Takes stored values or a file, gives what a GPU makes of them beside its decoders' own routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import FrameDecoder, cuda_runtime
from fastmammo.errors import DecodeError
from fastmammo.kernels import kernels_of, to_device
from fastmammo.preprocess import Config, Preprocessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Mammogram


def reduced_on_cuda(stored: NDArray[Any], level: int, decoder: FrameDecoder) -> NDArray[Any]:
    """Return a level as the GPU's kernels make it of stored values (rows, columns).

    Args:
        decoder: of the frame, for the range and the type of its levels.
    """
    with cuda_runtime.device_errors("reducing on the GPU"):
        values = to_device(stored)
        kernels = kernels_of(values)
        for _ in range(level):
            values = kernels.low_pass(values)
        clipped, _ = kernels.clip_to(values, decoder.first, decoder.last, 0, decoder.dtype)
    return cuda_runtime.host_copy(clipped)


def of_batch(mammogram: Mammogram, config: Config, expected: NDArray[Any]) -> NDArray[Any]:
    """Return an image of a batch of three of the file: the one that differs, if one does.

    Frames are in flight together, and one launch makes the images.
    """
    make = Preprocessor(config, workers=2, tensors="cupy")
    # it takes what `read` takes, and what `read` gives as well
    batch = make([mammogram] * 3)  # type: ignore[list-item]
    images: list[NDArray[Any]] = [each[0] for each in cuda_runtime.host_copy(batch.images)]
    if len(images) != 3:
        raise DecodeError(f"a batch of three gave {len(images)} images")
    return next((each for each in images if not np.array_equal(each, expected)), images[0])
