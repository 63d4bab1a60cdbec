"""Takes a model and images and gives heat maps of what speaks for cancer (Grad-CAM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from fastmammo.training.models import Model


def grad_cam(model: Model, images: Tensor, groups: Tensor | None = None) -> Tensor:
    """Show where the last feature map speaks for cancer (Selvaraju 2017, arXiv:1610.02391).

    The channels, weighed by the mean gradient of the cancer logit, are summed; what speaks against
    is cut off. The model works in eval mode and is left as it was: mode, weights, gradients.

    Args:
        model: bare, not wrapped; an averaged one serves as well.
        images: float (n, 1, H, W) in [0, 1], on the model's device.
        groups: int64 (n,), for a multi-view model: the position of each image's breast.

    Returns:
        float32 (n, H, W) in [0, 1]: each map's largest value is 1, or all are 0 where nothing
        speaks for cancer. The map is as coarse as the last feature map, enlarged bilinearly.

    Raises:
        ModelError: images or groups that the model does not take.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # also under the caller's inference_mode, whose tensors no gradient passes
        with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                maps = model.feature_map(images.float().clone())
            maps = maps.float().clone().requires_grad_()
            with torch.enable_grad():
                features = model.pooled(maps)
                logits = model.outputs(features, groups)["cancer"]
                # an image reaches its own logit alone, so one sum gives every image its gradient
                (gradients,) = torch.autograd.grad(logits.sum(), maps)
    finally:
        for module, mode in modes.items():
            module.training = mode
    heat = (gradients.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1, keepdim=True)
    heat = F.interpolate(heat.relu(), size=images.shape[2:], mode="bilinear")[:, 0]
    top = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(top > 0, heat / top.clamp(min=torch.finfo(heat.dtype).tiny), 0.0)
