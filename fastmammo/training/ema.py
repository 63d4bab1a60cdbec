"""Takes a model in training and keeps the moving average of its weights and buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.utils.model_ema import ModelEmaV3

from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def make_ema(model: nn.Module, decay: float, steps: int) -> ModelEmaV3:
    """Start the average (Polyak and Juditsky 1992) with the model's present weights.

    The decay rises with the steps, 1 - (1 + step)^(-2/3), so that the start is soon forgotten. It
    ends at `decay`, or earlier in a run so short that a window of 1 / (1 - decay) steps would
    reach over more than a tenth of it. Buffers (BatchNorm) are averaged too, whole numbers copied.

    Args:
        model: the bare module, no wrapper of a distributed run.
        decay: share of the old average that stays at each step, 0 up to but not including 1.
        steps: optimiser steps of the whole run.

    Returns:
        timm's ModelEmaV3. Call `.update(model, step)` after each optimiser step, counted from 1;
        `.module` is the averaged model, in eval mode; `.module.state_dict()` is its whole state.

    Raises:
        ConfigError: a decay or a number of steps that is not allowed.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"ema: got {decay!r}, allowed is 0 up to but not including 1")
    if steps < 1:
        raise ConfigError(f"ema: got {steps!r} steps, wanted at least 1")
    return ModelEmaV3(model, decay=min(decay, max(0.0, 1 - 10 / steps)), use_warmup=True)
