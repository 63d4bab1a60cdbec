"""Takes a name of timm and gives the network up to its last feature map, of grey images."""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor, nn

from fastmammo.errors import ModelError
from fastmammo.training.model_config import PRESETS
from fastmammo.training.small_cnn import SmallCNN
from fastmammo.training.weights import pretrained_model


class Backbone(nn.Module):
    """A network without its head, with the normalisation of its pretraining.

    Attributes:
        channels: of the feature map.
        signed: the map has values of both signs, so that GeM pooling would lose half of it.
        fixed_size: rows and columns it was built for, where it takes no others.
        norm: what the pretrained head normalises the pooled features with (ConvNeXt), or None.
        notes: what was asked for and is not done.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        layout: str,
        *,
        mean: float,
        std: float,
        signed: bool = False,
        fixed_size: tuple[int, int] | None = None,
        norm: nn.LayerNorm | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = int(network.num_features)  # type: ignore[arg-type]
        self.layout, self.signed, self.fixed_size = layout, signed, fixed_size
        self.norm, self.notes = norm, notes
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Give the last feature map (n, C, h, w) of images (n, 1, H, W) in [0, 1]."""
        maps: Tensor = self.network.forward_features(  # type: ignore[operator]
            (images - self.mean) / self.std
        )
        if self.layout == "NHWC":
            return maps.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            patches: Any = self.network.patch_embed
            rows, columns = patches.grid_size
            maps = maps[:, -rows * columns :]  # class and register tokens come first
            return maps.transpose(1, 2).reshape(len(maps), -1, rows, columns)
        return maps


def resolve(name: str) -> str:
    """Give the model that a preset stands for, or the name itself where timm has it.

    Raises:
        ModelError: there is none of that name; the nearest are named.
    """
    if name in PRESETS:
        return PRESETS[name]
    known: list[str] = timm.list_models()
    if timm.is_model(name) and ":" not in name:
        if "." not in name:
            return name
        known = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
        if name in known:
            return name
    nearest = difflib.get_close_matches(name, [*PRESETS, *known], n=5, cutoff=0.4)
    raise ModelError(
        f"model: got {name!r}, wanted a preset ({', '.join(PRESETS)}) or a model of timm; the "
        f"nearest: {', '.join(nearest or known[:5])}"
    )


def build_backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: str = "",
    drop_path: float = 0.0,
    image_size: tuple[int, int] | None = None,
) -> Backbone:
    """Build the backbone of a preset or a timm model, for one-channel images.

    Args:
        name: a preset or a name of timm.
        pretrained: start from the weights that timm names; `small_cnn` has none and starts at
            random either way.
        weights: file to start from instead.
        drop_path: stochastic depth, where the model has it (else a note).
        image_size: rows and columns, for models that are built for one size.

    Raises:
        ModelError: no such model, or it does not take such images or has no feature map.
        WeightsError: pretrained weights could not be had.
    """
    name = resolve(name)
    if name == "small_cnn":
        if weights:
            raise ModelError(f"weights: got {weights!r}, but small_cnn has no pretrained weights")
        small = SmallCNN()
        return Backbone(small, "NCHW", mean=small.mean, std=small.std)
    notes: list[str] = []
    options: dict[str, Any] = {"in_chans": 1, "num_classes": 0, "global_pool": ""}
    if drop_path and "drop_path_rate" in _accepted(name):
        options["drop_path_rate"] = drop_path
    elif drop_path:
        notes.append(f"{name} has no stochastic depth: drop_path {drop_path} is not used")
    if image_size and "img_size" in _accepted(name):
        options["img_size"] = tuple(image_size)
    with torch.device("meta"):  # shapes without numbers: faults show before any download
        try:
            blueprint = _create(name, options)
        except ModelError:  # some refuse to do without their pooling, which is not run here
            del options["global_pool"]
            blueprint = _create(name, options)
    settings = blueprint.pretrained_cfg
    size = tuple(image_size or settings["input_size"][1:])
    layout, unused = _probe(name, blueprint, size)
    if pretrained or weights:
        network = pretrained_model(name, weights, options)
    else:
        network = _create(name, options)
    norm = getattr(getattr(network, "head", None), "norm", None)
    # inside a longer head it may stand after further layers
    if not isinstance(norm, nn.LayerNorm) or norm.normalized_shape != (blueprint.num_features,):
        norm = None
    for child in unused:
        # weights that no gradient reaches stop a distributed run (VGG's head: 100 million of them)
        setattr(network, child, nn.Identity())
    return Backbone(
        network,
        layout,
        mean=sum(settings["mean"]) / len(settings["mean"]),
        std=sum(settings["std"]) / len(settings["std"]),
        signed=layout != "NCHW" or norm is not None,
        fixed_size=size if settings.get("fixed_input_size") or layout == "tokens" else None,
        norm=norm,
        notes=tuple(notes),
    )


def _create(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # each of timm's families refuses sizes in a class of its own
        raise ModelError(
            f"model {name}: timm cannot build it with {options}: {type(error).__name__}: {error}"
        ) from error


@cache
def _accepted(name: str) -> frozenset[str]:
    """Give the settings that the model's class takes: its factory takes any, and fails later."""
    with torch.device("meta"):
        kind = type(_create(name, {"in_chans": 1}))
    return frozenset(inspect.signature(kind.__init__).parameters)


def _probe(name: str, network: Any, size: tuple[int, ...]) -> tuple[str, list[str]]:
    """Run a network of the device "meta": give the layout of its map, and children not used."""
    used: set[str] = set()
    for child, module in network.named_children():
        for each in module.modules():
            each.register_forward_pre_hook(lambda *_, child=child: used.add(child))
    sizes = "x".join(map(str, size))
    try:
        with torch.no_grad():
            maps = network.eval().forward_features(torch.zeros(1, 1, *size, device="meta"))
    except Exception as error:  # each of timm's families refuses sizes in a class of its own
        raise ModelError(
            f"model {name}: it does not take images of {sizes}: {type(error).__name__}: {error}; "
            "choose another size, or a convolutional model such as efficientnet"
        ) from error
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    if isinstance(patch, tuple) and any(
        side % step for side, step in zip(size, patch, strict=True)
    ):
        raise ModelError(
            f"model {name}: it cuts images into squares of {patch[0]}x{patch[1]}, and would not "
            f"see what is left over of {sizes}: wanted multiples of that"
        )
    unused = [
        child
        for child, module in network.named_children()
        if child not in used and next(module.parameters(), None) is not None
    ]
    channels, shape = network.num_features, tuple(getattr(maps, "shape", ()))
    if len(shape) == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        if shape[3] == channels:
            return "NHWC", unused
    elif len(shape) == 4 and shape[1] == channels:
        return "NCHW", unused
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if len(shape) == 3 and grid and shape[2] == channels:
        first = getattr(network, "num_prefix_tokens", 0)
        if shape[1] == first + grid[0] * grid[1]:
            return "tokens", unused
    raise ModelError(
        f"model {name}: got features of shape {shape} for images of {sizes}, wanted a map of "
        f"{channels} channels: choose another model, such as efficientnet"
    )


def stage_modules(network: Any, stages: int) -> list[str]:
    """Name all modules up to the end of a stage, counted from the stem (timm's feature_info).

    Raises:
        ModelError: the network has not as many stages, or does not tell them.
    """
    ends = [each["module"] for each in getattr(network, "feature_info", None) or []]
    if not 0 <= stages <= len(ends):
        raise ModelError(
            f"freeze: got {stages} stages, but {type(network).__name__} has {len(ends)}"
        )
    names = [name for name, _ in network.named_modules()]
    if not stages:
        return []
    end = ends[stages - 1]
    last = max(i for i, name in enumerate(names) if name == end or name.startswith(f"{end}."))
    # modules are named in the order they are run in; an enclosing one holds only its own weights
    return names[: last + 1]
