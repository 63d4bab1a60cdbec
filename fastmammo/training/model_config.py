"""Declares the settings of the model, and what they may name: no part of it imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, check_flags, check_range, option

PRESETS: dict[str, str] = {
    "small_cnn": "small_cnn",
    "efficientnet": "tf_efficientnetv2_s",
    "efficientnet_small": "efficientnet_b0",
    "resnet": "resnet50",
    "vgg": "vgg16_bn",
    "squeezenet": "mobilenetv3_small_100",
    "densenet": "densenet121",
    "convnext": "convnext_tiny",
}
"""Short names, and the models they stand for. timm has no SqueezeNet: a MobileNetV3 of its class
(few weights, made of squeezing and expanding 1 x 1 convolutions) stands in."""

POOLING_NAMES = ("average", "max", "gem")
"""The poolings: see pooling.py."""

VIEWS = ("CC", "MLO")
"""The views that the view head tells apart, where none are named; others have no target."""

DENSITIES = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Auxiliary:
    """What a head tells: "binary" (a logit), "classes" (a logit each) or "number"."""

    kind: str
    outputs: int = 1


AUXILIARY: dict[str, Auxiliary] = {
    "view": Auxiliary("classes", len(VIEWS)),
    "biopsy": Auxiliary("binary"),
    "invasive": Auxiliary("binary"),
    "BIRADS": Auxiliary("classes", 3),
    "density": Auxiliary("classes", len(DENSITIES)),
    "age": Auxiliary("number"),
}
"""The auxiliary heads; view has as many outputs as views were named."""


def parse_auxiliary(text: str) -> tuple[str, ...]:
    """Read the names of `ModelConfig.auxiliary`, separated by commas.

    Raises:
        ConfigError: a name that no head has, or one named twice.
    """
    names = tuple(each.strip() for each in text.split(",") if each.strip())
    unknown = [name for name in names if name not in AUXILIARY]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(
            f"auxiliary: got {text!r}, allowed are {', '.join(AUXILIARY)}, each once, "
            "separated by commas"
        )
    return names


@dataclass(frozen=True)
class ModelConfig:
    """Which network, what it tells, and how it starts."""

    model: str = option(
        "tf_efficientnetv2_s", f"a preset ({', '.join(PRESETS)}) or any model of timm by its name"
    )
    pretrained: bool = option(
        True, "start from the weights that timm names for the model (small_cnn has none)"
    )
    weights: str = option(
        "", "start from this file: the model's state_dict as .safetensors or .pth", metavar="FILE"
    )
    pooling: str = option(
        "auto",
        "how a feature map becomes features; auto: max for small_cnn, average where the map "
        "has both signs (ConvNeXt, transformers), gem (generalised mean) else",
        choices=("auto", *POOLING_NAMES),
    )
    dropout: float = option(0.5, "share of features dropped before the heads")
    drop_path: float = option(0.2, "stochastic depth, where the model has it")
    auxiliary: str = option(
        "", "further things to learn, separated by commas: view, biopsy, invasive, BIRADS, "
        "density, age", metavar="NAMES",
    )  # fmt: skip
    multiview: str = option(
        "none",
        "one score a breast, of all its images: their features are pooled by attention or by the "
        "maximum; none: one score an image",
        choices=("none", "attention", "max"),
    )
    freeze: int = option(0, "stages from the stem on that keep their weights")
    freeze_norms: bool = option(False, "keep the statistics of every BatchNorm as they start")

    def __post_init__(self) -> None:
        check_flags(self)
        check_choices(self)
        check_range(self, "dropout", 0, 0.95)
        check_range(self, "drop_path", 0, 0.95)
        check_range(self, "freeze", 0, 1000, whole=True)
        parse_auxiliary(self.auxiliary)
