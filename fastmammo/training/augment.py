"""Takes a batch of images and the keys of their draws, gives the images augmented.

    flips ─► affine with crop ─► CLAHE ─► gamma, contrast, brightness ─► noise ─► cut-out

An image's draws are a function of its key alone (`draws`), and no arithmetic runs over more than
one image: the same key gives the same picture whatever the batch around it, bit for bit on a
device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from fastmammo.errors import ConfigError
from fastmammo.training.clahe import clahe
from fastmammo.training.draws import integers, uniforms
from fastmammo.training.options import check_choices, check_range, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "light": {
        "flip_horizontal": 0.5,
        "affine_share": 0.5,
        "rotation": 10.0,
        "zoom": 0.1,
        "shear": 5.0,
        "shift": 0.05,
        "tone_share": 0.5,
        "brightness": 0.05,
        "contrast": 0.1,
        "gamma": 0.1,
    },
    "standard": {
        "flip_horizontal": 0.5,
        "affine_share": 0.8,
        "rotation": 15.0,
        "zoom": 0.15,
        "shear": 8.0,
        "shift": 0.05,
        "random_crop": 0.1,
        "tone_share": 0.6,
        "brightness": 0.08,
        "contrast": 0.2,
        "gamma": 0.3,
        "clahe_share": 0.1,
        "clahe_limit": 3.0,
        "noise_share": 0.2,
        "noise": 0.03,
        "cut_out_share": 0.2,
        "cut_out": 0.25,
    },
}
"""What `augment` stands for; a setting that is not named is 0."""

_STAGES = {
    "affine_share": ("rotation", "zoom", "shear", "shift", "random_crop"),
    "tone_share": ("brightness", "contrast", "gamma"),
    "clahe_share": ("clahe_limit",),
    "noise_share": ("noise",),
    "cut_out_share": ("cut_out",),
}
"""The ranges of each stage, by the share of the images that it takes."""

_LIMITS = {
    **dict.fromkeys(("flip_horizontal", "flip_vertical", *_STAGES), 1.0),
    "rotation": 180.0,
    "zoom": 0.5,
    "shear": 45.0,
    "shift": 0.5,
    "random_crop": 0.8,
    "brightness": 0.5,
    "contrast": 0.9,
    "gamma": 1.5,
    "clahe_limit": 40.0,
    "noise": 0.5,
    "cut_out": 0.8,
}

_DRAWS = (
    *("flip_horizontal", "flip_vertical", *_STAGES),
    *("rotation", "zoom", "shear", "shift_x", "shift_y", "crop", "crop_x", "crop_y"),
    *("brightness", "contrast", "gamma", "clahe_limit", "noise", "noise_seed"),
    *("cut_rows", "cut_columns", "cut_y", "cut_x"),
)
"""What is drawn for an image, each at its place: a stage that is off shifts no other's draws."""

_CPU_CHUNK = 4
"""Images: more at once leave the cache of a core, which costs twice the time."""


@dataclass(frozen=True)
class AugmentConfig:
    """How the images of a training batch are varied: a preset, and what is to differ from it.

    A field that is None is the preset's. Each image takes part in a stage with the chance of the
    stage's share, and draws evenly from minus to plus its ranges.
    """

    augment: str = option("standard", "variation of the training images", choices=tuple(PRESETS))
    flip_horizontal: float | None = option(
        None, "chance that an image is mirrored left to right", type=float, metavar="P"
    )
    flip_vertical: float | None = option(
        None, "chance that an image is turned upside down", type=float, metavar="P"
    )
    affine_share: float | None = option(
        None, "share of the images that are rotated, zoomed, sheared, shifted", type=float
    )
    rotation: float | None = option(None, "largest rotation, in degrees", type=float)
    zoom: float | None = option(None, "largest change of the scale, as 0.1 for 10 %", type=float)
    shear: float | None = option(None, "largest shear, in degrees", type=float)
    shift: float | None = option(None, "largest shift, as a share of the side", type=float)
    random_crop: float | None = option(
        None, "largest part of both sides that a random crop cuts away", type=float
    )
    tone_share: float | None = option(
        None, "share of the images whose brightness, contrast and gamma change", type=float
    )
    brightness: float | None = option(
        None, "largest change of the brightness; the images run from 0 to 1", type=float
    )
    contrast: float | None = option(
        None, "largest change of the contrast, as 0.2 for a factor 0.8 to 1.2", type=float
    )
    gamma: float | None = option(
        None, "largest logarithm of gamma, as 0.3 for an exponent 0.74 to 1.35", type=float
    )
    clahe_share: float | None = option(
        None, "share of the images whose local contrast is equalised (CLAHE)", type=float
    )
    clahe_limit: float | None = option(
        None, "largest clip limit of CLAHE, drawn from 1 on", type=float
    )
    noise_share: float | None = option(None, "share of the images with noise added", type=float)
    noise: float | None = option(
        None, "largest standard deviation of the noise; the images run from 0 to 1", type=float
    )
    cut_out_share: float | None = option(
        None, "share of the images with a rectangle cut out (made black)", type=float
    )
    cut_out: float | None = option(
        None, "largest side of the cut-out rectangle, as a share of the image's", type=float
    )
    positive_strength: float = option(
        1.0, "all ranges are this many times as large for positive images"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "positive_strength", 0, 10)
        for name, high in _LIMITS.items():
            if getattr(self, name) is not None:
                check_range(self, name, 0, high)
        values = self.values()
        for share, ranges in _STAGES.items():
            given = [name for name in ranges if getattr(self, name)]
            if given and not values[share]:
                raise ConfigError(
                    f"{given[0]}: got {getattr(self, given[0])}, but {share} is 0 with "
                    f"augment={self.augment}, so that no image would take it: set {share} too"
                )
            if getattr(self, share) and not any(values[name] for name in ranges):
                raise ConfigError(
                    f"{share}: got {getattr(self, share)}, but {', '.join(ranges)} are 0 with "
                    f"augment={self.augment}, so that nothing would change: set one of them too"
                )

    def values(self) -> dict[str, float]:
        """Return all shares and ranges: the preset's where a field is None."""
        preset = PRESETS[self.augment]
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: preset.get(name, 0.0) if own[name] is None else float(own[name])
            for name in _LIMITS
        }


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
        images: torch.Tensor,
        keys: tuple[int, int, NDArray[np.int64]],
        positive: torch.Tensor | NDArray[np.bool_],
        repeats: NDArray[np.int64] | int = 0,
    ) -> torch.Tensor:
        """Return the images as their keys have them.

        Args:
            images: (n, 1, H, W) float32 in [0, 1]; left as they are.
            keys: seed, epoch, and (n,) the row of each image.
            positive: (n,) bool: where `positive_strength` counts.
            repeats: (n,) or one for all: tells apart the showings of an image within an epoch.

        Returns:
            (n, 1, H, W) float32 in [0, 1] on the same device.
        """
        if not any(self._values[share] for share in ("flip_horizontal", "flip_vertical", *_STAGES)):
            return images
        flags = positive.cpu().numpy() if isinstance(positive, torch.Tensor) else positive
        draws = self.draw(keys, np.asarray(flags, bool), repeats)
        chunk = _CPU_CHUNK if images.device.type == "cpu" else max(1, len(images))
        with torch.no_grad():
            out = images.clone()
            for first in range(0, len(out), chunk):
                part = {name: each[first : first + chunk] for name, each in draws.items()}
                _apply(out[first : first + chunk], part)
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
            return np.minimum(self._values[name] * strength, _LIMITS[name])

        def around(name: str, range_name: str = "") -> NDArray[np.float64]:
            return (2 * even[name] - 1) * reach(range_name or name)

        draws: dict[str, NDArray[Any]] = {
            name: even[name] < self._values[name]
            for name in ("flip_horizontal", "flip_vertical", *_STAGES)
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


def _apply(images: torch.Tensor, draws: dict[str, NDArray[Any]]) -> None:
    """Change the images in place, stage by stage; a stage that nobody drew costs nothing."""
    still = ~draws["affine_share"]
    _on(images, draws["flip_horizontal"] & still, lambda part, _: part.flip(-1))
    _on(images, draws["flip_vertical"] & still, lambda part, _: part.flip(-2))
    for share, stage in _FUNCTIONS.items():
        _on(images, draws[share], partial(stage, draws))


def _on(
    images: torch.Tensor,
    mask: NDArray[np.bool_],
    stage: Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor],
) -> None:
    """Put what a stage makes of the images under the mask into their places."""
    chosen = np.flatnonzero(mask)
    if len(chosen) == len(images):
        images.copy_(stage(images, chosen))
    elif len(chosen):
        index = torch.from_numpy(chosen).to(images.device)
        images[index] = stage(images[index], chosen)


def _numbers(like: torch.Tensor, *columns: NDArray[Any]) -> list[torch.Tensor]:
    """Return each column as (n, 1, 1, 1) float32 on the images' device, copied there together."""
    stacked = torch.from_numpy(np.stack(columns).astype(np.float32)).to(like.device)
    return list(stacked.view(len(columns), -1, 1, 1, 1))


def _affine(
    draws: dict[str, NDArray[Any]], images: torch.Tensor, chosen: NDArray[np.int64]
) -> torch.Tensor:
    """Resample once, bilinear, for flips, rotation, zoom, shear, shift and crop; 0 is outside."""
    rows, columns = images.shape[-2:]
    d = {name: each[chosen] for name, each in draws.items()}
    # the functions of `math` one by one: NumPy's may round otherwise in another place of an array
    cos, sin = (np.array([f(math.radians(a)) for a in d["rotation"]]) for f in (math.cos, math.sin))
    lean = np.array([math.tan(math.radians(a)) for a in d["shear"]])
    size = d["left"] / d["zoom"]
    mirror_x = np.where(d["flip_horizontal"], -size, size)
    mirror_y = np.where(d["flip_vertical"], -size, size)
    # from the output's pixels to the input's, both from the centre, as shares of half a side
    xx, xy, x0, yx, yy, y0 = _numbers(
        images,
        cos * mirror_x,
        (cos * lean - sin) * mirror_y * (rows / columns),
        2 * d["x"],
        sin * mirror_x * (columns / rows),
        (sin * lean + cos) * mirror_y,
        2 * d["y"],
    )
    device = images.device
    y = ((torch.arange(rows, device=device) * 2 + 1) / rows - 1).view(1, -1, 1, 1)
    x = ((torch.arange(columns, device=device) * 2 + 1) / columns - 1).view(1, 1, -1, 1)
    # not affine_grid: its matrix product may take other kernels (TF32) for another batch
    grid = torch.empty((len(images), rows, columns, 2), device=device)
    torch.add(xx * x, xy * y + x0, out=grid[..., 0:1])
    torch.add(yx * x, yy * y + y0, out=grid[..., 1:2])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _clahe(
    draws: dict[str, NDArray[Any]], images: torch.Tensor, chosen: NDArray[np.int64]
) -> torch.Tensor:
    (limits,) = _numbers(images, draws["clahe_limit"][chosen])
    return clahe(images, limits.view(-1))


def _tone(
    draws: dict[str, NDArray[Any]], images: torch.Tensor, chosen: NDArray[np.int64]
) -> torch.Tensor:
    exponents = np.array([math.exp(each) for each in draws["gamma"][chosen]])
    gamma, contrast, brightness = _numbers(
        images, exponents, draws["contrast"][chosen], draws["brightness"][chosen]
    )
    return images.pow(gamma).mul_(contrast).add_(brightness).clamp_(0, 1)


def _noise(
    draws: dict[str, NDArray[Any]], images: torch.Tensor, chosen: NDArray[np.int64]
) -> torch.Tensor:
    (spread,) = _numbers(images, draws["noise"][chosen])
    generator = torch.Generator(images.device)
    noise = torch.empty_like(images)
    for page, seed in zip(noise, draws["noise_seed"][chosen].tolist(), strict=True):
        page.normal_(generator=generator.manual_seed(seed))
    return noise.mul_(spread).add_(images).clamp_(0, 1)


def _cut_out(
    draws: dict[str, NDArray[Any]], images: torch.Tensor, chosen: NDArray[np.int64]
) -> torch.Tensor:
    spans = []
    for length, side, centre in (
        (images.shape[-2], "cut_rows", "cut_y"),
        (images.shape[-1], "cut_columns", "cut_x"),
    ):
        middle, half = draws[centre][chosen] * length, draws[side][chosen] * length / 2
        low, high = _numbers(images, np.floor(middle - half), np.ceil(middle + half))
        place = torch.arange(length, device=images.device)
        spans.append((place >= low) & (place < high))
    return images.masked_fill(spans[0].transpose(-1, -2) & spans[1], 0.0)


_FUNCTIONS = {
    "affine_share": _affine,
    "clahe_share": _clahe,
    "tone_share": _tone,
    "noise_share": _noise,
    "cut_out_share": _cut_out,
}
"""What each stage does, in order."""
