"""Takes a model and the number of steps, gives its optimiser and its learning rate's course."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

if TYPE_CHECKING:
    from fastmammo.training.settings import LoopConfig

_END = 0.01
"""The last learning rate of cosine, as a share of the highest."""


def make_optimiser(
    model: torch.nn.Module, loop: LoopConfig, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) over the weights that are not frozen.

    Weights of one dimension (biases, normalisation) do not decay: it would only shift them.

    Args:
        device: where it is to step. On a GPU one kernel does it for all weights; but not under
            16-mixed, where the gradients could not be clipped: that kernel unscales them itself.
    """
    fused = device is not None and device.type == "cuda" and loop.precision != "16-mixed"
    groups = param_groups_weight_decay(model, loop.weight_decay)
    return torch.optim.AdamW(groups, lr=loop.lr, fused=fused or None)


def make_schedule(optimiser: torch.optim.Optimizer, loop: LoopConfig, steps: int) -> LRScheduler:
    """Return the learning rate's course over so many optimiser steps.

    A linear warm-up over the share `warmup`, then half a cosine to a hundredth (Loshchilov and
    Hutter 2017), or no change; or one cycle (Smith and Topin 2018), of which `warmup` is the rise.
    """
    if loop.schedule == "one_cycle":
        # it may be asked for its rate after the last step, which is one more than it allows
        total = steps + 1
        return OneCycleLR(
            optimiser, loop.lr, total_steps=total, pct_start=max(loop.warmup, 2 / total)
        )
    rise = round(loop.warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        if loop.schedule == "constant":
            return 1.0
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return _END + (1 - _END) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimiser, factor)
