"""Losses against their formulas, masks, and the moving average of a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmammo.errors import ConfigError, ModelError
from fastmammo.training.ema import make_ema
from fastmammo.training.losses import Loss
from fastmammo.training.models import ModelConfig, build_model

NAN = math.nan


def draw(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, generator=generator)
    return logits, (torch.rand(count, generator=generator) < 0.4).float()


def value(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    return float(loss({"cancer": logits}, {"cancer": labels}))


def by_hand(logit: float, label: float, gamma: float = 0.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    surprise = (1 - p) if label else p
    return -(surprise**gamma) * math.log(1 - surprise)


def test_bce_and_focal_equal_their_formulas() -> None:
    logits, labels = draw()
    pairs = list(zip(logits.tolist(), labels.tolist(), strict=True))
    for gamma in (0.0, 1.0, 2.5):
        want = sum(by_hand(z, y, gamma) for z, y in pairs) / len(pairs)
        assert value(Loss("focal", gamma=gamma), logits, labels) == pytest.approx(want, rel=1e-5)
    want = sum(by_hand(z, y) for z, y in pairs) / len(pairs)
    assert value(Loss(), logits, labels) == pytest.approx(want, rel=1e-5)


def test_pos_weight_is_that_of_torch() -> None:
    logits, labels = draw(40)
    want = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=torch.tensor(7.0))
    assert value(Loss(pos_weight=7.0), logits, labels) == pytest.approx(float(want), rel=1e-5)


def test_smoothing_of_all_labels_and_of_positives() -> None:
    zero, one, logit = torch.zeros(1), torch.ones(1), torch.tensor([2.0])
    yes, no = by_hand(2.0, 1), by_hand(2.0, 0)
    smooth = Loss(smoothing=0.1)
    assert value(smooth, logit, one) == pytest.approx(0.95 * yes + 0.05 * no)
    assert value(smooth, logit, zero) == pytest.approx(0.05 * yes + 0.95 * no)
    positives = Loss(positive_smoothing=0.1)
    assert value(positives, logit, one) == pytest.approx(0.9 * yes + 0.1 * no)
    assert value(positives, logit, zero) == pytest.approx(no)


def test_auxiliary_terms_and_their_weights() -> None:
    torch.manual_seed(0)
    outputs = {
        "cancer": torch.randn(3),
        "density": torch.randn(3, 4),
        "invasive": torch.randn(3),
        "age": torch.randn(3),
        "attention": torch.rand(3),  # no head's: left out
    }
    targets = {
        "cancer": torch.tensor([0.0, 1, 0]),
        "density": torch.tensor([3.0, NAN, 0]),
        "invasive": torch.tensor([NAN, 1.0, NAN]),
        "age": torch.tensor([0.5, 0.0, NAN]),
    }
    terms = Loss().terms(outputs, targets)
    assert set(terms) == {"cancer", "density", "invasive", "age"}
    # the sum over the known, divided by the number of all
    log_shares = outputs["density"].log_softmax(1)
    want = {
        "density": -(log_shares[0, 3] + log_shares[2, 0]) / 3,
        "invasive": F.softplus(-outputs["invasive"][1]) / 3,
        "age": F.smooth_l1_loss(outputs["age"][:2], targets["age"][:2], reduction="sum") / 3,
    }
    for name, each in want.items():
        torch.testing.assert_close(terms[name], each)
    even = Loss(auxiliary=0.5)(outputs, targets)
    torch.testing.assert_close(even, terms["cancer"] + 0.5 * sum(want.values()))
    named = Loss(auxiliary={"age": 2.0})(outputs, targets)
    torch.testing.assert_close(named, terms["cancer"] + 2 * want["age"])


def test_without_a_known_target_the_loss_is_0_with_a_gradient() -> None:
    logits = torch.randn(4, requires_grad=True)
    grades = torch.randn(4, 3, requires_grad=True)
    outputs = {"cancer": logits, "BIRADS": grades}
    got = Loss(auxiliary=1.0)(outputs, {"cancer": torch.full((4,), NAN)})
    assert float(got.detach()) == 0
    got.backward()
    for each in (logits, grades):
        assert each.grad is not None
        assert each.grad.abs().max() == 0


@given(st.integers(0, 1000), st.sampled_from(["bce", "focal"]), st.sampled_from([2, 3, 4]))
@settings(max_examples=25, deadline=None)
def test_equal_parts_of_a_batch_give_its_gradient(seed: int, kind: str, parts: int) -> None:
    logits, labels = draw(12, seed)
    labels[torch.rand(12, generator=torch.Generator().manual_seed(seed)) < 0.3] = NAN
    loss = Loss(kind)
    whole = logits.clone().requires_grad_()
    loss({"cancer": whole}, {"cancer": labels}).backward()
    pieces = logits.clone().requires_grad_()
    for rows in torch.arange(12).chunk(parts):
        (loss({"cancer": pieces[rows]}, {"cancer": labels[rows]}) / parts).backward()
    torch.testing.assert_close(pieces.grad, whole.grad)


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_half_precision_and_extremes_stay_finite(kind: str) -> None:
    logits = torch.tensor([6e4, -6e4, 0.0, 6e4], dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = Loss(kind, pos_weight=3.0)(
            {"cancer": logits}, {"cancer": torch.tensor([0.0, 1, 1, 1])}
        )
    assert got.dtype == torch.float32
    got.backward()
    assert got.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "hinge"}, "loss: got 'hinge', allowed are bce, focal"),
        ({"smoothing": 0.6}, "smoothing: got 0.6, allowed is 0 to 0.5"),
        ({"positive_smoothing": -0.1}, "positive_smoothing: got -0.1"),
        ({"smoothing": 0.1, "positive_smoothing": 0.1}, "got both, wanted one"),
        ({"gamma": 11}, "gamma: got 11, allowed is 0 to 10"),
        ({"pos_weight": NAN}, "pos_weight: got nan"),
        ({"auxiliary": -1}, "auxiliary weight: got -1"),
        ({"auxiliary": {"age": -1}}, "auxiliary weight of age: got -1"),
        ({"auxiliary": {"size": 1}}, "auxiliary weights: got size, allowed are view, biopsy"),
    ],
)
def test_settings_that_are_not_allowed(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Loss(**options)


def test_targets_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"got targets for \['age'\], wanted cancer among them"):
        Loss()({"cancer": torch.zeros(2)}, {"age": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"loss of cancer: got targets \(3,\) for outputs \(2,\)"):
        Loss()({"cancer": torch.zeros(2)}, {"cancer": torch.zeros(3)})


# ---- the moving average


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.norm = nn.BatchNorm1d(3)


def test_the_average_follows_weights_and_buffers() -> None:
    model = Tiny().train()
    ema = make_ema(model, 0.9, steps=10_000)
    mean = model.norm.running_mean
    assert mean is not None
    want, decays = 0.0, []
    for step in range(1, 301):
        with torch.no_grad():
            model.weight.fill_(float(step))
            mean.fill_(2.0 * step)
        if step == 1:
            model.norm.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
        ema.update(model, step)
        decay = min(0.9, 1 - (1 + max(0, step - 1)) ** (-2 / 3))
        decays.append(decay)
        want = decay * want + (1 - decay) * step
    assert decays[0] == 0  # the random start is forgotten at once
    assert decays[-1] == 0.9
    assert ema.module.weight.tolist() == pytest.approx([want] * 3, rel=1e-5)
    assert ema.module.norm.running_mean.tolist() == pytest.approx([2 * want] * 3, rel=1e-5)
    assert int(ema.module.norm.num_batches_tracked) == 7  # copied
    assert not ema.module.training
    assert model.weight.tolist() == [300.0] * 3  # the model itself is left alone


def test_a_short_run_ends_with_a_short_memory() -> None:
    assert make_ema(Tiny(), 0.9998, steps=100).decay == pytest.approx(0.9)
    assert make_ema(Tiny(), 0.9998, steps=10).decay == 0
    assert make_ema(Tiny(), 0.9998, steps=1_000_000).decay == 0.9998


def test_the_average_of_a_whole_model_restores_from_its_state() -> None:
    model = build_model(ModelConfig(model="small_cnn", auxiliary="view", multiview="attention"))
    ema = make_ema(model, 0.99, steps=100)
    for step in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        ema.update(model, step)
    other = make_ema(build_model(ModelConfig(model="small_cnn", auxiliary="view",
                                             multiview="attention")), 0.99, steps=100)  # fmt: skip
    other.module.load_state_dict(ema.module.state_dict())
    batch, groups = torch.rand(2, 1, 32, 16), torch.tensor([0, 0])
    with torch.no_grad():
        torch.testing.assert_close(
            other.module(batch, groups)["cancer"], ema.module(batch, groups)["cancer"]
        )


@pytest.mark.parametrize(("decay", "steps"), [(1.0, 10), (-0.1, 10), (NAN, 10), (0.9, 0)])
def test_averages_that_are_none(decay: float, steps: int) -> None:
    with pytest.raises(ConfigError, match="ema: got"):
        make_ema(Tiny(), decay, steps)
