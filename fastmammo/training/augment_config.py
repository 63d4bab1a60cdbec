"""Declares the settings of the augmentation and their presets; no part of it imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, check_range, option

if TYPE_CHECKING:
    from collections.abc import Mapping

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

STAGES = {
    "affine_share": ("rotation", "zoom", "shear", "shift", "random_crop"),
    "tone_share": ("brightness", "contrast", "gamma"),
    "clahe_share": ("clahe_limit",),
    "noise_share": ("noise",),
    "cut_out_share": ("cut_out",),
}
"""The ranges of each stage, by the share of the images that it takes."""

LIMITS = {
    **dict.fromkeys(("flip_horizontal", "flip_vertical", *STAGES), 1.0),
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

_MIRRORED = "flip_horizontal"


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
        None, "share of the images with a rectangle cut out (made air)", type=float
    )
    cut_out: float | None = option(
        None, "largest side of the cut-out rectangle, as a share of the image's", type=float
    )
    positive_strength: float = option(
        1.0,
        "all ranges are this many times as large for positive images; other than 1 it is a cue: "
        "the model may learn how strongly an image is distorted instead of what it shows",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "positive_strength", 0, 10)
        for name, high in LIMITS.items():
            if getattr(self, name) is not None:
                check_range(self, name, 0, high)
        values = self.values()
        for share, ranges in STAGES.items():
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

    def of_images(self, config: Mapping[str, Any]) -> tuple[AugmentConfig, str]:
        """Return these settings for images that are all flipped to one side, and a line on it.

        A preset that mirrored half of them would undo that; a `flip_horizontal` that was given
        stays.

        Args:
            config: the preprocessing's settings; "flip" is the side, or "none".

        Returns:
            These settings, and "" where nothing is changed.
        """
        side = config.get("flip", "none")
        if side == "none" or self.flip_horizontal is not None or not self.values()[_MIRRORED]:
            return self, ""
        return replace(self, flip_horizontal=0.0), (
            f"the images are flipped so that the breast is at the {side}: augment={self.augment} "
            "mirrors none of them. To have it so all the same, give flip_horizontal"
        )

    def values(self) -> dict[str, float]:
        """Return all shares and ranges: the preset's where a field is None."""
        preset = PRESETS[self.augment]
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: preset.get(name, 0.0) if own[name] is None else float(own[name])
            for name in LIMITS
        }
