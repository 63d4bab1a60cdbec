"""Turn a list of DICOM files into one batch of images, and bring a model's box back to DICOM.

python examples/batch_for_a_model.py a.dcm b.dcm ...
"""

from __future__ import annotations

import sys

import numpy as np

import fastmammo


def main(paths: list[str]) -> None:
    prepare = fastmammo.Preprocessor(
        size=(512, 256), bits=16, flip="left", on_error="collect", workers=2
    )
    batch = prepare(paths)
    print("images:", batch.images.dtype, batch.images.shape)
    for failure in batch.failures:
        print(f"left out: {failure.source}: {failure.error}")

    floats = (
        batch.images.astype(np.float32) / 65535
    )  # what a model eats; torch.from_numpy works too
    print(f"mean {floats.mean():.3f}")

    detected = (100, 20, 160, 90)  # row0, column0, row1, column1 on the model's image
    for index, geometry in zip(batch.indices, batch.geometry, strict=True):
        box = geometry.to_source(detected, clip=True).round(1).tolist()
        print(f"{paths[index]}: the model's box in DICOM pixels: {box}")


if __name__ == "__main__":
    main(sys.argv[1:])
