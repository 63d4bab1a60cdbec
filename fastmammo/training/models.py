"""Takes the model's settings and gives the network: images in [0, 1] to logits of cancer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmammo.errors import ModelError
from fastmammo.training.backbones import Backbone, build_backbone, stage_modules
from fastmammo.training.heads import Heads
from fastmammo.training.model_config import PRESETS, VIEWS, ModelConfig, parse_auxiliary
from fastmammo.training.multiview import view_pooling
from fastmammo.training.pooling import POOLINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PRESETS", "Model", "ModelConfig", "build_model"]


class Model(nn.Module):
    """A backbone, its pooling, and the heads: normalisation of the images is inside.

    Attributes:
        multi_view: it scores breasts, and wants `groups`.
        views: what the view head tells apart, in the order of its outputs.
        notes: what was asked for and is not done.
    """

    def __init__(
        self,
        backbone: Backbone,
        pool: nn.Module,
        *,
        dropout: float = 0.0,
        auxiliary: Sequence[str] = (),
        views: Sequence[str] = VIEWS,
        multiview: str = "none",
    ) -> None:
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.view_pool = view_pooling(multiview, backbone.channels)
        self.dropout = nn.Dropout(dropout)
        self.heads = Heads(backbone.channels, auxiliary, views)
        self.multi_view = self.view_pool is not None
        self.views, self.notes = tuple(views), backbone.notes
        self._frozen: tuple[str, ...] = ()

    def feature_map(self, images: Tensor) -> Tensor:
        """Give the last feature map (n, C, h, w) of images (n, 1, H, W) in [0, 1].

        Raises:
            ModelError: images of another shape, dtype or size than the model takes.
        """
        wanted = self.backbone.fixed_size
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 1 or not images.is_floating_point():
            raise ModelError(
                f"images: got {images.dtype} of shape {shape}, wanted float in [0, 1] of shape "
                "(n, 1, rows, columns)"
            )
        if wanted and shape[2:] != wanted:
            raise ModelError(
                f"images: got {shape[2]}x{shape[3]}, but the model was built for "
                f"{wanted[0]}x{wanted[1]} and takes no other size: give build_model the size of "
                "the images, or choose a convolutional model"
            )
        maps: Tensor = self.backbone(images)
        return maps

    def pooled(self, maps: Tensor) -> Tensor:
        """Give the features float32 (n, F) of feature maps (n, C, h, w)."""
        features: Tensor = self.pool(maps)
        norm = self.backbone.norm
        if norm is not None:
            with torch.autocast(maps.device.type, enabled=False):
                features = F.layer_norm(
                    features, norm.normalized_shape, norm.weight, norm.bias, norm.eps
                )
        return features

    def features(self, images: Tensor) -> Tensor:
        """Give the features float32 (n, F) of images float (n, 1, H, W) in [0, 1].

        Raises:
            ModelError: images of another shape, dtype or size than the model takes.
        """
        return self.pooled(self.feature_map(images))

    def outputs(
        self, features: Tensor, groups: Tensor | None = None, breasts: int | None = None
    ) -> dict[str, Tensor]:
        """Give what `forward` gives, of the features (n, F)."""
        # bfloat16 logits have 8 bits: thousands of images would share a score, and their rank
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.view_pool is None:
                return self._heads(features, features)
            if groups is None:
                raise ModelError("a multi-view model needs groups: which image is of which breast")
            pooled, weights = self.view_pool(features, groups, breasts)
            found = self._heads(features, pooled)
            if weights is not None:
                found["attention"] = weights.detach()
            return found

    def _heads(self, features: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        pooled, same = self.dropout(pooled), pooled is features
        found: dict[str, Tensor] = self.heads(pooled if same else self.dropout(features), pooled)
        return found

    def forward(
        self, images: Tensor, groups: Tensor | None = None, breasts: int | None = None
    ) -> dict[str, Tensor]:
        """Score images, or breasts.

        Args:
            images: float (n, 1, H, W) in [0, 1].
            groups: int64 (n,), for a multi-view model: the position of each image's breast in the
                batch, 0 to B-1; each has at least one image. Others leave it unused.
            breasts: B, where it is known that each has an image: else the groups are looked at,
                and the host waits for the GPU.

        Returns:
            float32 logits: "cancer" (n,), or (B,) of a multi-view model; each auxiliary head by
            its name, of images: (n,) or (n, classes); "attention" (n,), with multiview attention:
            the weight of each image in its breast.

        Raises:
            ModelError: images or groups that the model does not take.
        """
        return self.outputs(self.features(images), groups, breasts)

    def freeze(self, stages: int, *, norms: bool = False) -> None:
        """Keep the stages from the stem on as they are: weights, BatchNorm, no drop-path.

        Args:
            stages: number of stages, as the backbone's feature_info counts them.
            norms: keep the statistics of every BatchNorm.

        Raises:
            ModelError: the backbone has not as many stages.
        """
        frozen = {f"backbone.network.{name}".rstrip(".") for name in stage_modules(
            self.backbone.network, stages
        )}  # fmt: skip
        for name, module in self.named_modules():
            if name in frozen:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
            elif norms and isinstance(module, _BatchNorm):
                frozen.add(name)
        self._frozen = tuple(sorted(frozen))
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        """Switch to training or back; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self


def build_model(
    config: ModelConfig, *, views: Sequence[str] = (), image_size: tuple[int, int] | None = None
) -> Model:
    """Build the model that the settings describe, on the CPU, in train mode.

    Args:
        config: the settings.
        views: what the view head tells apart; without any, CC and MLO.
        image_size: rows and columns of the images; models that are built for one size need it.

    Raises:
        ModelError: no such model (the nearest are named), or it does not take such images.
        WeightsError: pretrained weights could not be had.
        ConfigError: an auxiliary head that does not exist.
    """
    backbone = build_backbone(
        config.model,
        pretrained=config.pretrained,
        weights=config.weights,
        drop_path=config.drop_path,
        image_size=image_size,
    )
    pooling = config.pooling
    if pooling == "auto":
        small = PRESETS.get(config.model) == "small_cnn"
        pooling = "max" if small else "average" if backbone.signed else "gem"
    options: dict[str, Any] = {"dropout": config.dropout, "multiview": config.multiview}
    options |= {"auxiliary": parse_auxiliary(config.auxiliary), "views": tuple(views) or VIEWS}
    model = Model(backbone, POOLINGS[pooling](), **options)
    model.freeze(config.freeze, norms=config.freeze_norms)
    return model
