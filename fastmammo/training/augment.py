"""Takes a batch of images and the keys of their draws, gives the images augmented.

    flips ─► affine with crop ─► cut-out ─► CLAHE ─► gamma, contrast, brightness ─► noise

What an affine uncovers and what is cut out gets the image's darkest value, which is its air and its
padding: where air is not 0, black there would be an edge that no breast has.

An image's draws are a function of its key alone (`draws`), and no arithmetic runs over more than
one image: the same key gives the same picture whatever the batch around it, bit for bit on a
device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmammo.training.augment_config import LIMITS, PRESETS, STAGES, AugmentConfig
from fastmammo.training.distortions import apply
from fastmammo.training.draws import integers, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PRESETS", "AugmentConfig", "Augmentation"]

_DRAWS = (
    *("flip_horizontal", "flip_vertical", *STAGES),
    *("rotation", "zoom", "shear", "shift_x", "shift_y", "crop", "crop_x", "crop_y"),
    *("brightness", "contrast", "gamma", "clahe_limit", "noise", "noise_seed"),
    *("cut_rows", "cut_columns", "cut_y", "cut_x"),
)
"""What is drawn for an image, each at its place: a stage that is off shifts no other's draws."""

_CPU_CHUNK = 4
"""Images: more at once leave the cache of a core, which costs twice the time."""


class Augmentation:
    """Varies the images of whole batches, on the device they are on.

    Args:
        config: what is drawn; `AugmentConfig()` by default.
    """

    def __init__(self, config: AugmentConfig | None = None) -> None:
        self.config = config or AugmentConfig()
        self._values = self.config.values()

    def __call__(
        self,
        images: Tensor,
        keys: tuple[int, int, NDArray[np.int64]],
        positive: Tensor | NDArray[np.bool_],
        repeats: NDArray[np.int64] | int = 0,
    ) -> Tensor:
        """Return the images as their keys have them.

        Args:
            images: (n, 1, H, W) float32 in [0, 1]; left as they are.
            keys: seed, epoch, and (n,) the row of each image.
            positive: (n,) bool: where `positive_strength` counts.
            repeats: (n,) or one for all: tells apart the showings of an image within an epoch.

        Returns:
            (n, 1, H, W) float32 in [0, 1] on the same device.
        """
        if not any(self._values[share] for share in ("flip_horizontal", "flip_vertical", *STAGES)):
            return images
        flags = positive.cpu().numpy() if isinstance(positive, Tensor) else positive
        draws = self.draw(keys, np.asarray(flags, bool), repeats)
        chunk = _CPU_CHUNK if images.device.type == "cpu" else max(1, len(images))
        with torch.no_grad():
            out = images.clone()
            for first in range(0, len(out), chunk):
                part = {name: each[first : first + chunk] for name, each in draws.items()}
                apply(out[first : first + chunk], part)
        return out

    def draw(
        self,
        keys: tuple[int, int, NDArray[np.int64]],
        positive: NDArray[np.bool_],
        repeats: NDArray[np.int64] | int = 0,
    ) -> dict[str, NDArray[Any]]:
        """Return what is done to each image: bool by stage, and (n,) float64 of every parameter."""
        raw = dict(zip(_DRAWS, integers(*keys, len(_DRAWS), repeats).T, strict=True))
        even = {name: uniforms(each) for name, each in raw.items()}
        strength = np.where(positive, self.config.positive_strength, 1.0)

        def reach(name: str) -> NDArray[np.float64]:
            return np.minimum(self._values[name] * strength, LIMITS[name])

        def around(name: str, range_name: str = "") -> NDArray[np.float64]:
            return (2 * even[name] - 1) * reach(range_name or name)

        draws: dict[str, NDArray[Any]] = {
            name: even[name] < self._values[name]
            for name in ("flip_horizontal", "flip_vertical", *STAGES)
        }
        crop = even["crop"] * reach("random_crop")
        draws |= {
            "rotation": around("rotation"),
            "zoom": 1 + around("zoom"),
            "shear": around("shear"),
            "left": 1 - crop,
            "x": around("shift_x", "shift") + (even["crop_x"] - 0.5) * crop,
            "y": around("shift_y", "shift") + (even["crop_y"] - 0.5) * crop,
            "brightness": around("brightness"),
            "contrast": 1 + around("contrast"),
            "gamma": around("gamma"),
            "clahe_limit": 1 + even["clahe_limit"] * np.maximum(reach("clahe_limit") - 1, 0),
            "noise": even["noise"] * reach("noise"),
            "noise_seed": (raw["noise_seed"] >> np.uint64(1)).astype(np.int64),
        }
        for side, centre in (("cut_rows", "cut_y"), ("cut_columns", "cut_x")):
            draws[side] = (0.25 + 0.75 * even[side]) * reach("cut_out")
            draws[centre] = even[centre]
        return draws
