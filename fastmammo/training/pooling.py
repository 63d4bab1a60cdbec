"""Takes feature maps (n, C, h, w) and gives one float32 vector an image (n, C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AveragePool(nn.Module):
    """The mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Give (n, C) float32 of maps (n, C, h, w)."""
        return maps.float().mean(dim=(2, 3))


class MaxPool(nn.Module):
    """The maximum over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Give (n, C) float32 of maps (n, C, h, w)."""
        return maps.float().amax(dim=(2, 3))


class GeMPool(nn.Module):
    """The generalised mean over the map, its power learnt (Radenovic 2018, arXiv:1711.02512).

    (mean of x^p)^(1/p): the average at p = 1, near the maximum where p is large. Values below
    `floor` count as it, so maps must be mostly positive (after ReLU, SiLU and the like).
    """

    def __init__(self, power: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([float(power)]))
        self.floor = floor

    def forward(self, maps: Tensor) -> Tensor:
        """Give (n, C) float32 of maps (n, C, h, w)."""
        # float16 overflows at 41^3 and loses 1e-6 altogether; autocast would cast the powers back
        with torch.autocast(maps.device.type, enabled=False):
            # below 1 the mean prefers the smallest values, at 0 it is undefined
            power = self.power.float().clamp(min=1.0)
            values = maps.float().clamp(min=self.floor)
            # scaled by each map's maximum: high powers of large values overflow even float32
            top = values.detach().amax(dim=(2, 3), keepdim=True)
            mean = (values / top).pow(power).mean(dim=(2, 3))
            return top.flatten(1) * mean.pow(1.0 / power)


POOLINGS: dict[str, type[nn.Module]] = {
    "average": AveragePool,
    "max": MaxPool,
    "gem": GeMPool,
}
"""The poolings by the name that `ModelConfig.pooling` takes."""
