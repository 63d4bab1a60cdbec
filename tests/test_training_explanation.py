"""Grad-CAM: it points to what speaks for cancer, and leaves nothing behind on the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmammo.training.backbones import Backbone
from fastmammo.training.ema import make_ema
from fastmammo.training.explanation import grad_cam
from fastmammo.training.models import Model, ModelConfig, build_model
from fastmammo.training.pooling import AveragePool


class Mean4(nn.Module):
    """Brightness, and darkness, of squares of 4 x 4: what speaks for cancer is known."""

    num_features = 2

    def forward_features(self, images: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(images, 4)
        return torch.cat([bright, 1 - bright], dim=1)


def known(weights: tuple[float, float]) -> Model:
    model = Model(Backbone(Mean4(), "NCHW", mean=0.0, std=1.0), AveragePool())
    with torch.no_grad():
        model.heads.cancer.weight.copy_(torch.tensor([weights]))
    return model


def spot(row: int, column: int) -> Tensor:
    image = torch.zeros(1, 1, 64, 32)
    image[..., row : row + 4, column : column + 4] = 1
    return image


def test_it_points_to_the_spot() -> None:
    batch = torch.cat([spot(8, 4), spot(40, 20)])
    heat = grad_cam(known((1.0, 0.0)), batch)
    assert heat.shape == (2, 64, 32)
    assert heat.dtype == torch.float32
    for each, (row, column) in zip(heat, ((8, 4), (40, 20)), strict=True):
        assert float(each.max()) == 1
        peak = divmod(int(each.argmax()), 32)
        assert row <= peak[0] < row + 4
        assert column <= peak[1] < column + 4
        assert float(each[row - 8 : row + 12, column - 4 : column + 12].sum() / each.sum()) > 0.99


def test_what_speaks_against_cancer_is_not_shown() -> None:
    heat = grad_cam(known((-1.0, 0.0)), spot(8, 4))
    assert torch.equal(heat, torch.zeros(1, 64, 32))
    # by hand: 1 x brightness - 0.5 x darkness, cut off at 0, is the spot again
    assert float(grad_cam(known((1.0, -0.5)), spot(8, 4))[0, 30, 20]) == 0


def test_images_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(model="small_cnn"))
    batch = torch.rand(3, 1, 64, 32)
    torch.testing.assert_close(grad_cam(model, batch)[1:2], grad_cam(model, batch[1:2]))


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_nothing_stays_behind(name: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(model=name, pretrained=False, freeze=1)
    model = build_model(config, image_size=(64, 32)).train()
    images = torch.rand(2, 1, 64, 32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    heat = grad_cam(model, images)
    assert heat.shape == (2, 64, 32)
    assert float(heat.min()) >= 0
    assert float(heat.max()) <= 1
    assert not heat.requires_grad
    assert images.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    hooks: list[Any] = [m._forward_hooks or m._backward_hooks for m in model.modules()]
    assert not any(hooks)


def test_it_works_where_no_gradients_are_kept() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(model="small_cnn"))
    images = torch.rand(2, 1, 64, 32)
    want = grad_cam(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(model, images), want)
        grad_cam(model, torch.rand(1, 1, 64, 32))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(grad_cam(model, images), want)


def test_of_an_averaged_model() -> None:
    model = known((1.0, 0.0))
    averaged = make_ema(model, 0.9, steps=100).module
    with torch.no_grad():
        model.heads.cancer.weight.fill_(-1.0)
    assert float(grad_cam(averaged, spot(8, 4)).max()) == 1


@pytest.mark.parametrize("kind", ["attention", "max"])
def test_of_a_multi_view_model(kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(model="small_cnn", multiview=kind))
    images = torch.rand(4, 1, 64, 32)
    heat = grad_cam(model, images, torch.tensor([1, 0, 0, 1]))
    assert heat.shape == (4, 64, 32)
    # the other breast changes nothing
    torch.testing.assert_close(grad_cam(model, images[[1, 2]], torch.tensor([0, 0])), heat[[1, 2]])
