"""Pooling over places and over views, the settings of a model, and the targets of its heads."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmammo.errors import ConfigError, ModelError
from fastmammo.training.heads import targets_of
from fastmammo.training.models import Model, ModelConfig, build_model
from fastmammo.training.multiview import GatedAttention, MaxViews
from fastmammo.training.pooling import POOLINGS, GeMPool

if TYPE_CHECKING:
    from torch import Tensor, nn


def build(**options: Any) -> Model:
    views = options.pop("views", ())
    return build_model(ModelConfig(model="small_cnn", **options), views=views)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 1, 64, 32, generator=torch.Generator().manual_seed(0))


# ---- pooling


@pytest.mark.parametrize("name", sorted(POOLINGS))
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=20, deadline=None)
def test_pooled_values_lie_between_mean_and_maximum(name: str, seed: int, scale: float) -> None:
    maps = scale * torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    got = POOLINGS[name]()(maps)
    assert got.shape == (2, 3)
    low, high = maps.mean((2, 3)), maps.amax((2, 3))
    slack = 1e-4 * scale + 1e-6
    assert (got >= low - slack).all()
    assert (got <= high + slack).all()


def test_gem_is_the_mean_at_1_and_near_the_maximum_at_64() -> None:
    maps = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(GeMPool(1.0)(maps), maps.mean((2, 3)))
    torch.testing.assert_close(GeMPool(200.0)(maps), maps.amax((2, 3)), rtol=0.05, atol=0)
    torch.testing.assert_close(GeMPool(3.0)(maps), maps.pow(3).mean((2, 3)).pow(1 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_is_stable_in_half_precision(dtype: torch.dtype) -> None:
    pool = GeMPool()
    maps = torch.rand(2, 3, 4, 4).to(dtype)
    maps[0, 0] = 0  # a dead channel
    maps[0, 1] = 60000
    maps[0, 2, 0, 0] = -3
    maps.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pool(maps)
    assert got.dtype == torch.float32
    got.sum().backward()
    assert got.isfinite().all()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pool.parameters())


# ---- several views


@pytest.mark.parametrize("kind", ["attention", "max"])
def test_any_number_of_images_a_breast(kind: str) -> None:
    model = build(multiview=kind, auxiliary="view").eval()
    batch, groups = images(6), torch.tensor([0, 1, 1, 2, 1, 2])
    assert model.multi_view
    with torch.no_grad():
        found = model(batch, groups)
        assert found["cancer"].shape == (3,)
        assert found["view"].shape == (6, 2)
        # the order of the images, and of the breasts, changes nothing
        order = torch.tensor([4, 5, 0, 2, 3, 1])
        again = model(batch[order], groups[order])["cancer"]
        torch.testing.assert_close(again, found["cancer"])
        # a breast with one image: as without the others
        alone = model(batch[:1], groups[:1])["cancer"]
        torch.testing.assert_close(alone, found["cancer"][:1])
    if kind == "attention":
        sums = torch.zeros(3).index_add(0, groups, found["attention"])
        torch.testing.assert_close(sums, torch.ones(3))
        assert not found["attention"].requires_grad
    else:
        assert "attention" not in found


@pytest.mark.parametrize("pool", [GatedAttention(5), MaxViews()])
def test_no_image_reaches_the_score_of_another_breast(pool: nn.Module) -> None:
    features = torch.rand(5, 5, requires_grad=True)
    pooled, _ = pool(features, torch.tensor([0, 1, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(pooled[0].sum(), features)
    assert gradient[[1, 3, 4]].abs().max() == 0
    assert gradient[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ([0, 1], r"got shape \(2,\) for 3 images"),
        ([0, 2, 2], r"got \[0, 2\], wanted every number from 0 to 2"),
        ([-1, 0, 1], r"got \[-1, 0, 1\], wanted every number from 0 to 1"),
    ],
)
def test_groups_that_are_no_groups(groups: list[int], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build(multiview="max")(images(3), torch.tensor(groups))


@pytest.mark.parametrize("pooling", ["max", "attention"])
def test_groups_whose_number_is_known_are_not_looked_at(pooling: str) -> None:
    """Looking at them, the host would wait for the GPU at every step."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoLook(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert "_local_scalar_dense" not in str(func)
            return func(*args, **(kwargs or {}))

    model = build(multiview=pooling).eval()
    groups = torch.tensor([0, 1, 1])
    with torch.no_grad():
        wanted = model(images(3), groups)["cancer"]
        with NoLook():
            found = model(images(3), groups, 2)["cancer"]
    assert torch.equal(found, wanted)


def test_a_multi_view_model_wants_groups() -> None:
    with pytest.raises(ModelError, match="a multi-view model needs groups"):
        build(multiview="attention")(images(3))
    assert not build().multi_view


# ---- settings and targets


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("pooling", "mean", "pooling: got 'mean', allowed are auto, average"),
        ("multiview", "sum", "multiview: got 'sum', allowed are none, attention, max"),
        ("dropout", 1.0, "dropout: got 1.0, allowed is 0 to 0.95"),
        ("drop_path", -0.1, "drop_path: got -0.1"),
        ("freeze", 1.5, "freeze: got 1.5, allowed is a whole number"),
        ("auxiliary", "view,size", "auxiliary: got 'view,size', allowed are view, biopsy"),
        ("auxiliary", "view,view", "auxiliary: got 'view,view', .* each once"),
    ],
)
def test_settings_that_are_not_allowed(field: str, value: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ModelConfig(**{field: value})


def test_every_setting_has_its_help() -> None:
    assert all(each.metadata["help"] for each in dataclasses.fields(ModelConfig))


def test_the_view_head_tells_the_views_that_are_named() -> None:
    model = build(auxiliary="view", views=("CC", "MLO", "ML"))
    assert model.views == ("CC", "MLO", "ML")
    assert model(images())["view"].shape == (2, 3)


def test_targets_are_read_from_the_table() -> None:
    table = pd.DataFrame(
        {
            "cancer": [1.0, 0.0, math.nan],
            "view": ["MLO", "AT", "CC"],
            "biopsy": [1.0, math.nan, 0.0],
            "BIRADS": [0.0, 5.0, math.nan],
            "density": ["D", "", "A"],
            "age": [60.0, 75.0, math.nan],
        }
    )
    found = targets_of(table)
    got = {k: [None if math.isnan(x) else x for x in v.tolist()] for k, v in found.items()}
    assert got == {
        "cancer": [1.0, 0.0, None],
        "view": [1.0, None, 0.0],
        "biopsy": [1.0, None, 0.0],
        "invasive": [None, None, None],  # no such column
        "BIRADS": [0.0, None, None],
        "density": [3.0, None, 0.0],
        "age": [0.0, 1.0, None],
    }
    assert all(v.dtype == torch.float32 for v in found.values())
    assert targets_of(table, ("AT",))["view"][1] == 0
    assert targets_of(table[[]])["view"].isnan().all()
