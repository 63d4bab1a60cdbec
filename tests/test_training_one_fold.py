"""What a fold's training is made of: each setting reaches its part, and the prior is right."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from training_runs import make_set, small, table_of

from fastmammo.training.checkpoints import load_checkpoint
from fastmammo.training.devices import open_fabric
from fastmammo.training.images import open_images
from fastmammo.training.loop import fit
from fastmammo.training.one_fold import Parts, prepare, scores_of_logits
from fastmammo.training.prior import prior_offset, weighted_share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastmammo.training.loop import Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def prepared(folder: Path, tmp_path: Path) -> Iterator[Any]:
    """Gives the training of fold 0 under some changes; fold 1, 24 images, is trained on."""
    opened = []

    def make(**changes: Any) -> Training:
        settings = small(**changes)
        fabric = open_fabric(settings.loop)
        table = table_of(folder).assign(fold=lambda rows: (rows.index // 4 % 2).astype(int))
        images = open_images(folder / "images", table, settings.images)
        opened.append(images)
        parts = Parts(fabric, settings, table, images, {}, lambda event: None, lambda line: None)
        return prepare(parts, 0, tmp_path)

    yield make
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"loss": "focal"}, {"kind": "focal"}),
        ({"smoothing": 0.25}, {"smoothing": 0.25}),
        ({"positive_smoothing": 0.2}, {"positive_smoothing": 0.2}),
        ({"focal_gamma": 3.5}, {"gamma": 3.5}),
        ({"auxiliary_weight": 0.7}, {"auxiliary": 0.7}),
        ({"balance": "pos_weight", "pos_weight": 4.5}, {"pos_weight": 4.5}),
        ({"balance": "pos_weight"}, {"pos_weight": 3.0}),
    ],
)
def test_the_loss_is_that_of_the_settings(
    prepared: Any, change: dict[str, Any], wanted: dict[str, Any]
) -> None:
    plain, loss = prepared().loss, prepared(**change).loss
    differing = {
        each.name: getattr(loss, each.name)
        for each in fields(loss)
        if getattr(loss, each.name) != getattr(plain, each.name)
    }
    assert differing == wanted


@pytest.mark.parametrize("balance", ["oversample", "undersample", "pos_weight", "none"])
@pytest.mark.parametrize("correct", [True, False])
def test_the_offset_goes_from_what_is_shown_to_what_there_is(
    prepared: Any, balance: str, correct: bool
) -> None:
    training = prepared(balance=balance, undersample_ratio=2.0, correct_prior=correct)
    true = 6 / 24  # three patients of six, one breast of two views each
    shown = {
        "oversample": 0.5,
        "undersample": 1 / 3,
        "pos_weight": weighted_share(true, 3.0),
        "none": true,
    }[balance]
    labels = np.concatenate([training.labels[each] for each in training.sampler.epoch(0)])
    if balance in ("oversample", "undersample"):
        assert labels.mean() == pytest.approx(shown, abs=0.05)
    wanted = prior_offset(shown, true) if correct else 0.0
    for epoch in (0, 1, 5):
        assert training.prior_offset(epoch) == pytest.approx(wanted, abs=1e-12)


def test_with_a_schedule_each_epoch_has_its_own_offset(prepared: Any, tmp_path: Path) -> None:
    training = prepared(epochs=5, positive_share_start=0.25, positive_share=0.75, share_epochs=4)
    shares = [0.25, 0.375, 0.5, 0.625, 0.75]
    for epoch, share in enumerate(shares):
        assert training.prior_offset(epoch) == pytest.approx(prior_offset(share, 0.25), abs=1e-12)
    # and the weights are kept with that of the epoch that they come from
    kept = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            kept.append(load_checkpoint(tmp_path / "last.pt")["prior_offset"])

    training.progress = look
    fit(training)
    assert kept == [pytest.approx(prior_offset(share, 0.25), abs=1e-12) for share in shares]


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"balance": "oversample", "positive_share": 0.25}, 0.25),
        ({"balance": "oversample", "positive_share": 0.25, "loss": "focal"}, 0.25),
        ({"balance": "none", "smoothing": 0.1}, 0.25),
        ({"balance": "pos_weight", "pos_weight": 9.0}, 0.75),
    ],
)
def test_an_untrained_network_scores_the_share_that_it_is_shown(
    prepared: Any, changes: dict[str, Any], share: float
) -> None:
    training = prepared(**changes)
    for each in (training.module, training.average.module):
        bias = each.heads.cancer.bias.detach().double().numpy()
        assert scores_of_logits(bias, 0.0, training.loop) == pytest.approx(share, abs=1e-4)
