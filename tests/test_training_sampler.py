"""The batches' promises over an epoch, for 1, 2 and 4 ranks; and one way of balancing at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmammo.errors import ConfigError, TableError
from fastmammo.training.sampler import BalancedBatches, PlainBatches, SamplingConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    ranks = draw(st.sampled_from((1, 2, 4)))
    accumulate = draw(st.integers(1, 3))
    micro = draw(st.integers(1, 5))
    positives, negatives = draw(st.integers(1, 40)), draw(st.integers(1, 200))
    labels = np.zeros(positives + negatives)
    labels[:positives] = 1
    return {
        "labels": np.random.default_rng(draw(st.integers(0, 99))).permutation(labels),
        "batch_size": micro * ranks * accumulate,
        "ranks": ranks,
        "accumulate": accumulate,
        "seed": draw(st.integers(0, 2**31 - 1)),
    }


def gather(kind: type, world: dict[str, Any], epoch: int, **more: Any) -> NDArray[np.int64]:
    """Give the global batches (steps, batch_size), put together from what every rank gets."""
    ranks, accumulate = world["ranks"], world["accumulate"]
    micro = world["batch_size"] // (ranks * accumulate)
    parts = []
    for rank in range(ranks):
        sampler = kind(**world, rank=rank, **more)
        batches = list(sampler.epoch(epoch))
        assert len(batches) == sampler.steps(epoch) * accumulate
        if epoch == 0:
            assert len(batches) == len(sampler)
        assert all(each.shape == (micro,) and each.dtype == np.int64 for each in batches)
        parts.append(np.stack(batches).reshape(-1, accumulate, micro))
    return np.stack(parts, axis=2).reshape(len(parts[0]), -1)


@settings(max_examples=150, deadline=None)
@given(world=worlds(), share=st.floats(0.01, 0.9), epoch=st.integers(0, 3))
def test_balanced_batches(world: dict[str, Any], share: float, epoch: int) -> None:
    labels, size = world["labels"], world["batch_size"]
    if size < 2:
        with pytest.raises(ConfigError, match="wanted 2 or more"):
            BalancedBatches(**world)
        return
    found = gather(BalancedBatches, world, epoch, positive_share=share)
    wanted = min(max(1, round(share * size)), size - 1)
    assert (labels[found].sum(axis=1) == wanted).all()
    sampler = BalancedBatches(**world, positive_share=share)
    assert sampler.positive_share(epoch) == wanted / size
    # every negative once, but for those that fill up the last batch
    negatives = np.flatnonzero(labels == 0)
    shown = found[labels[found] == 0]
    spare = len(found) * (size - wanted) - len(negatives)
    assert 0 <= spare < size - wanted
    before_last = found[:-1][labels[found[:-1]] == 0]
    assert len(np.unique(before_last)) == len(before_last)
    assert set(shown) == set(negatives)
    # positives as often as each other
    positives = np.flatnonzero(labels == 1)
    times = np.bincount(found[labels[found] == 1], minlength=len(labels))[positives]
    assert np.ptp(times) <= 1
    # none twice in a batch where there are enough; so ranks are disjoint
    for kind, count in ((0, size - wanted), (1, wanted)):
        if (labels == kind).sum() >= count:
            for batch in found:
                rows = batch[labels[batch] == kind]
                assert len(np.unique(rows)) == len(rows)


@settings(max_examples=100, deadline=None)
@given(world=worlds(), epoch=st.integers(0, 3))
def test_plain_batches(world: dict[str, Any], epoch: int) -> None:
    count, size = len(world["labels"]), world["batch_size"]
    found = gather(PlainBatches, world, epoch)
    assert len(found) == -(-count // size)
    assert set(found.flat) == set(range(count))
    if count >= size:
        assert len(np.unique(found[:-1])) == found[:-1].size
        assert all(len(np.unique(batch)) == size for batch in found)
    share = PlainBatches(**world).positive_share(epoch)
    assert share == world["labels"].mean()


@pytest.mark.parametrize("kind", [BalancedBatches, PlainBatches])
def test_global_batches_are_the_same_for_any_number_of_ranks(kind: type) -> None:
    labels = np.arange(101) % 9 == 0
    one = {"labels": labels, "batch_size": 16, "ranks": 1, "accumulate": 1, "seed": 3}
    alone = gather(kind, one, 2)
    for ranks, accumulate in itertools.product((1, 2, 4), (1, 2)):
        world = {**one, "ranks": ranks, "accumulate": accumulate}
        assert (gather(kind, world, 2) == alone).all()


@pytest.mark.parametrize("kind", [BalancedBatches, PlainBatches])
def test_seed_and_epoch_decide_the_draw(kind: type) -> None:
    labels = np.arange(100) % 9 == 0

    def draw(seed: int, epoch: int) -> bytes:
        return np.concatenate(list(kind(labels, 8, seed=seed).epoch(epoch))).tobytes()

    draws = [draw(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(draws)) == 9
    assert draws[4] == draw(1, 1)


def test_positives_are_anywhere_in_a_batch() -> None:
    sampler = BalancedBatches(np.arange(4000) % 40 == 0, 32, seed=0)
    where = np.argwhere(np.stack(list(sampler.epoch(0))) % 40 == 0)[:, 1]
    assert np.bincount(where, minlength=32).min() > 0


def test_a_share_of_less_than_one_positive_is_one() -> None:
    sampler = BalancedBatches(np.arange(64) == 5, 8, positive_share=0.001, seed=0)
    assert all((batch == 5).sum() == 1 for batch in sampler.epoch(0))
    assert sampler.positive_share(0) == 1 / 8
    assert "nearest batch_size that has one is 910" in sampler.note


def test_a_schedule_of_the_share() -> None:
    config = SamplingConfig(positive_share=0.125, positive_share_start=0.5, share_epochs=3)
    assert [config.share(epoch) for epoch in range(5)] == [0.5, 0.375, 0.25, 0.125, 0.125]
    labels = np.arange(280) >= 210
    sampler = config.sampler(labels, seed=0)
    for epoch, (positives, steps) in enumerate([(16, 14), (12, 11), (8, 9), (4, 8)]):
        batches = list(sampler.epoch(epoch))
        assert len(batches) == steps == sampler.steps(epoch)
        assert all(labels[batch].sum() == positives for batch in batches)
        assert sampler.positive_share(epoch) == positives / 32
    assert len(sampler) == 14


def test_a_table_with_more_positives_than_the_share_is_said() -> None:
    sampler = BalancedBatches(np.arange(100) % 2, 16, seed=0)
    assert sampler.note.startswith("50.0% of the training rows are positive, more than the 12.5%")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"labels": np.zeros(5)}, TableError, "none of the 5 training rows is positive"),
        ({"labels": np.ones(5)}, TableError, "none of the 5 training rows is negative"),
        ({"labels": [0, 1, np.nan]}, TableError, "labels: got nan at 2"),
        ({"labels": np.zeros((2, 2))}, TableError, r"got shape \(2, 2\)"),
        ({"batch_size": 6, "ranks": 2, "accumulate": 2}, ConfigError, "take a multiple of 4"),
        ({"batch_size": 0}, ConfigError, "batch_size: got 0, wanted 1 or more"),
        ({"rank": 2, "ranks": 2}, ConfigError, "rank: got 2 of 2 ranks, wanted 0 to 1"),
        ({"seed": -1}, ConfigError, "seed: got -1"),
        ({"positive_share": 1.0}, ConfigError, "positive_share: got 1.0 for epoch 0"),
    ],
)
def test_what_cannot_be_sampled(given: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        BalancedBatches(**{"labels": [0, 1, 0, 0], "batch_size": 4, "seed": 0, **given})


def test_no_rows_and_no_epoch() -> None:
    with pytest.raises(TableError, match="no rows to train on"):
        PlainBatches([], 4, seed=0)
    with pytest.raises(ConfigError, match="epoch: got -1"):
        list(PlainBatches([0, 1], 1, seed=0).epoch(-1))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"balance": "smote"}, "balance: got 'smote', allowed are oversample"),
        ({"pos_weight": 7.0}, "pos_weight: got 7.0 together with balance 'oversample'.*multiply"),
        ({"pos_weight": 7.0, "balance": "undersample"}, "together with balance 'undersample'"),
        ({"pos_weight": 7.0, "balance": "none"}, "take balance='pos_weight'"),
        ({"pos_weight": 0.0, "balance": "pos_weight"}, "pos_weight: got 0.0"),
        ({"positive_share": 1.0}, "positive_share: got 1.0"),
        ({"positive_share_start": 0.5}, "share_epochs 0: a schedule wants both"),
        ({"share_epochs": 2}, "positive_share_start: got 0.0 with share_epochs 2"),
        ({"undersample_ratio": 0}, "undersample_ratio: got 0"),
        ({"batch_size": 2.0}, "batch_size: got 2.0, allowed is a whole number"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**given)


def test_settings_make_their_sampler_and_their_weight() -> None:
    labels = np.arange(64) % 8 == 0
    balanced = SamplingConfig(batch_size=16).sampler(labels, seed=0, rank=1, ranks=2, accumulate=2)
    assert isinstance(balanced, BalancedBatches)
    assert balanced.positive_share(0) == 2 / 16
    assert next(iter(balanced.epoch(0))).shape == (4,)
    assert SamplingConfig().loss_weight(labels) is None
    weighted = SamplingConfig(balance="pos_weight")
    assert isinstance(weighted.sampler(labels, seed=0), PlainBatches)
    assert weighted.loss_weight(labels) == 7
    assert SamplingConfig(balance="pos_weight", pos_weight=3).loss_weight(labels) == 3
    with pytest.raises(TableError, match="pos_weight: none of the 4 training rows is positive"):
        weighted.loss_weight(np.zeros(4))


@pytest.mark.parametrize(
    ("size", "more", "share", "nearest"),
    [
        (2, {}, "50.0%", 8),
        (4, {}, "25.0%", 8),
        (12, {}, "16.7%", 15),
        (6, {"ranks": 2, "accumulate": 3}, "16.7%", 24),
    ],
)
def test_a_batch_too_small_for_its_share_is_told(
    size: int, more: dict[str, int], share: str, nearest: int
) -> None:
    labels = np.arange(200) % 20 == 0
    note = BalancedBatches(labels, size, seed=0, **more).note
    assert note.startswith(f"{share} of each batch are positives, not the 12.5%")
    assert note.endswith(f"nearest batch_size that has one is {nearest}")
    assert not BalancedBatches(labels, nearest, seed=0, **more).note


@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 100])
def test_a_share_that_fits_is_not_told(size: int) -> None:
    assert not BalancedBatches(np.arange(400) % 20 == 0, size, seed=0).note


def test_a_share_that_no_batch_has_is_told_without_one() -> None:
    note = BalancedBatches(
        np.arange(200) % 200 == 0, 4, positive_share=1e-6, schedule=lambda _: 0.5, seed=0
    ).note
    assert note.endswith("no nearer share in whole images")


def test_a_batch_that_shows_images_twice_is_told() -> None:
    labels = np.arange(40) % 10 == 0
    note = PlainBatches(labels, 100, seed=0).note
    assert note == (
        "batch_size 100 is more than the 40 that there are to train on: each batch shows them 2.5 "
        "times on average"
    )
    assert not PlainBatches(labels, 40, seed=0).note
    note = BalancedBatches(labels, 48, seed=0).note
    assert "a batch of 48 takes 6 positives, of which there are 4: each is in it 1.5 times" in note
    assert "a batch of 48 takes 42 negatives, of which there are 36: each is in it 1.2" in note
