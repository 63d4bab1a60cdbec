"""Takes features of all images of some breasts (n, F) and gives one vector a breast (B, F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmammo.errors import ModelError


def members(groups: Tensor, images: int, breasts: int | None = None) -> Tensor:
    """Tell which image belongs to which breast: bool (B, n), from `groups` (n,) with 0..B-1.

    Args:
        breasts: B, of a caller who knows that each has an image; without it the groups are looked
            at, for which the host waits until the GPU is done.

    Raises:
        ModelError: groups of another length, negative, or a breast in between without an image.
    """
    if groups.ndim != 1 or len(groups) != images or images == 0:
        raise ModelError(
            f"groups of a multi-view model: got shape {tuple(groups.shape)} for {images} images, "
            "wanted one whole number an image: the position of its breast in the batch"
        )
    known = breasts is not None
    if breasts is None:
        breasts = int(groups.max()) + 1
    # a matrix instead of a scatter: on CUDA scattered sums have no fixed order, so no fixed result
    inside = torch.arange(breasts, device=groups.device)[:, None] == groups[None, :]
    if known:
        return inside
    if int(groups.min()) < 0 or not bool(inside.any(dim=1).all()):
        raise ModelError(
            f"groups of a multi-view model: got {sorted(set(groups.tolist()))}, wanted every "
            f"number from 0 to {breasts - 1}: a breast without an image has no score"
        )
    return inside


class MaxViews(nn.Module):
    """The largest value of each feature over the images of a breast."""

    def forward(
        self, features: Tensor, groups: Tensor, breasts: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Give features (B, F) of features (n, F), and no weights; `breasts` as in `members`.

        Raises:
            ModelError: groups of another length, or a breast in between without an image.
        """
        outside = ~members(groups, len(features), breasts)
        return features[None].masked_fill(outside[:, :, None], -torch.inf).amax(dim=1), None


class GatedAttention(nn.Module):
    """The mean over the images of a breast, by learnt weights (Ilse 2018, arXiv:1802.04712, eq. 9).

    weight ~ exp(w (tanh(V f) * sigmoid(U f))), adding to 1 over the images of one breast.
    """

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(
        self, features: Tensor, groups: Tensor, breasts: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Give features (B, F) of features (n, F), and each image's weight in its breast (n,).

        `breasts` is as in `members`.

        Raises:
            ModelError: groups of another length, or a breast in between without an image.
        """
        inside = members(groups, len(features), breasts)
        hidden = torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features))
        scores = self.score(hidden).flatten().float()
        weights = torch.where(inside, scores[None, :], -torch.inf).softmax(dim=1)
        return weights @ features.float(), weights.sum(dim=0)


def view_pooling(name: str, features: int) -> nn.Module | None:
    """Give the pooling over images that `ModelConfig.multiview` names; None for "none"."""
    if name == "attention":
        return GatedAttention(features)
    return MaxViews() if name == "max" else None
