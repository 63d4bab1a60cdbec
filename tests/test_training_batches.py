"""Batches: what the sampler asked for, made ahead, without hanging or leaking a thread."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fastmammo.errors import TableError
from fastmammo.training.augment import Augmentation, AugmentConfig
from fastmammo.training.batches import Batches
from fastmammo.training.permutations import occurrences
from fastmammo.training.sampler import BalancedBatches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Pages:
    """Images (n, 8, 6) in memory, as `Images` gives them."""

    def __init__(
        self, count: int, bits: int = 8, seconds: float = 0.0, broken: int | None = None
    ) -> None:
        self.bits, self.seconds, self.broken = bits, seconds, broken
        random = np.random.default_rng(0)
        self.pages = torch.from_numpy(random.integers(0, 1 << bits, (count, 1, 8, 6), np.int32))
        if bits == 8:
            self.pages = self.pages.to(torch.uint8)
        self.asked: list[list[int]] = []

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        self.asked.append(rows.tolist())
        if self.broken in rows.tolist():
            raise OSError(f"row {self.broken} cannot be read")
        time.sleep(self.seconds)
        return self.pages[torch.from_numpy(rows)]


class Steps:
    """Batches as they are listed; the epoch is added to each position."""

    def __init__(self, batches: list[list[int]], accumulate: int = 1) -> None:
        self.batches, self.accumulate = batches, accumulate

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        for each in self.batches:
            yield np.array(each) + epoch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [each.name for each in threading.enumerate() if "batches" in each.name] == []


def batches_of(
    pages: Pages, batches: list[list[int]], accumulate: int = 1, **more: object
) -> Batches:
    count = len(pages.pages)
    given = {"rows": np.arange(count), "labels": np.zeros(count), **more}
    return Batches(pages, sampler=Steps(batches, accumulate), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 16])
def test_batches_are_the_samplers_scaled_to_0_to_1(bits: int) -> None:
    pages = Pages(12, bits)
    rows = np.arange(12)[::-1].copy()
    batches = batches_of(pages, [[0, 1, 2], [5, 5, 3], [9, 8, 7]], rows=rows)
    assert len(batches) == 3
    for epoch in (0, 2):
        for batch, wanted in zip(batches.epoch(epoch), batches.sampler.epoch(epoch), strict=True):
            assert (batch.positions == wanted).all()
            assert (batch.rows == rows[wanted]).all()
            assert batch.groups is None
            assert batch.images.dtype == torch.float32
            assert torch.equal(
                batch.images, pages.pages[torch.from_numpy(batch.rows)] / (2.0**bits - 1)
            )
    whole = Pages(1, bits)
    whole.pages[:] = (1 << bits) - 1
    (batch,) = batches_of(whole, [[0]]).epoch(0)
    assert (batch.images == 1).all()


def test_units_are_groups_of_images() -> None:
    pages = Pages(8)
    units = [np.array([4, 1]), np.array([7]), np.array([0, 2, 6])]
    labels = np.array([1.0, 0.0, 0.0])
    augment = Augmentation(AugmentConfig("none", noise_share=1.0, noise=0.1, positive_strength=0))
    batches = batches_of(pages, [[2, 0], [1, 1]], units=units, labels=labels, augment=augment)
    first, second = batches.epoch(0)
    assert first.rows.tolist() == [0, 2, 6, 4, 1]
    assert first.positions.tolist() == [2, 0]
    assert first.groups is not None
    assert first.groups.tolist() == [0, 0, 0, 1, 1]
    # the label of a unit is that of its images: the positive one is not varied here
    same = (first.images == pages.pages[torch.from_numpy(first.rows)] / 255).flatten(1).all(1)
    assert same.tolist() == [False, False, False, True, True]
    assert second.groups is not None
    assert second.groups.tolist() == [0, 1]


def test_the_same_key_gives_the_same_picture_in_every_layout() -> None:
    """One process, two micro-batches a step, or two processes: the pictures are the same."""
    pages = Pages(12)
    augment = Augmentation(AugmentConfig("standard"))

    def pictures(parts: list[list[int]], accumulate: int, seed: int = 3) -> dict[int, bytes]:
        batches = batches_of(pages, parts, accumulate, augment=augment, seed=seed)
        return {
            int(row): page.numpy().tobytes()
            for batch in batches.epoch(0)
            for row, page in zip(batch.rows, batch.images, strict=True)
        }

    whole = pictures([[0, 1, 2, 3], [4, 5, 6, 7]], 1)
    assert pictures([[3, 1], [2, 0], [5, 4], [7, 6]], 2) == whole
    ranks = pictures([[0, 1], [4, 5]], 1) | pictures([[3, 2], [7, 6]], 1)
    assert ranks == whole
    assert pictures([[0, 1, 2, 3], [4, 5, 6, 7]], 1, seed=4) != whole


def test_an_image_that_an_epoch_shows_again_is_another_picture() -> None:
    pages = Pages(4)
    augment = Augmentation(AugmentConfig("none", noise_share=1.0, noise=0.5))
    shown = [[0, 1, 0, 0], [0, 2, 3, 1]]
    batches = batches_of(pages, shown, augment=augment)

    def drawn() -> list[bytes]:
        return [page.numpy().tobytes() for batch in batches.epoch(0) for page in batch.images]

    assert len(set(drawn())) == 8
    assert drawn() == drawn()


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_positive_twice_in_a_global_batch_is_two_pictures_in_every_layout(
    ranks: int, accumulate: int
) -> None:
    pages = Pages(12)
    labels = np.array([1.0] * 2 + [0.0] * 10)
    augment = Augmentation(AugmentConfig("none", noise_share=1.0, noise=0.5))

    def drawn(ranks: int, accumulate: int) -> list[list[tuple[int, bytes]]]:
        """The pictures of each optimiser step, of all ranks together."""
        steps: list[list[tuple[int, bytes]]] = []
        for rank in range(ranks):
            sampler = BalancedBatches(
                *(labels, 8),
                **{"positive_share": 0.5, "seed": 1, "rank": rank, "ranks": ranks},
                accumulate=accumulate,
            )
            given = {"rows": np.arange(12), "labels": labels, "augment": augment}
            batches = Batches(pages, sampler=sampler, **given)  # type: ignore[arg-type]
            for index, batch in enumerate(batches.epoch(0)):
                while len(steps) <= index // accumulate:
                    steps.append([])
                for row, page in zip(batch.rows, batch.images, strict=True):
                    steps[index // accumulate].append((int(row), page.numpy().tobytes()))
        return [sorted(each) for each in steps]

    whole = drawn(1, 1)
    assert drawn(ranks, accumulate) == whole
    for step in whole:
        assert sum(row < 2 for row, _ in step) == 4  # two positives, each of them twice
        assert len(set(step)) == 8


def test_a_unit_without_images_is_refused() -> None:
    units = [np.array([1]), np.empty(0, np.int64)]
    with pytest.raises(TableError, match="unit 1 has no image, wanted one or more"):
        list(batches_of(Pages(4), [[0, 1]], units=units, labels=np.zeros(2)).epoch(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_later_epochs_take_no_more_memory() -> None:
    pages = Pages(64)
    pages.pages = pages.pages.repeat(1, 1, 64, 64).cuda()
    pages.fetch = lambda rows: pages.pages[torch.from_numpy(rows).cuda()]  # type: ignore[method-assign]
    augment = Augmentation(AugmentConfig("standard"))
    shown = [list(range(first, first + 16)) for first in range(0, 48, 16)]
    batches = batches_of(pages, shown, augment=augment, device="cuda", seed=1)
    validation = batches_of(pages, shown, device="cuda")
    reserved = []
    for _ in range(6):
        for each in (batches, validation):
            for batch in each.epoch(0):
                batch.images.sum()
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert len(set(reserved[1:])) == 1


def test_occurrences_count_from_the_front() -> None:
    assert occurrences(np.array([5, 2, 5, 5, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert occurrences(np.array([3])).tolist() == [0]
    assert occurrences(np.arange(0)).tolist() == []


def test_batches_are_made_ahead_but_not_without_bound() -> None:
    pages = Pages(10)
    epoch = batches_of(pages, [[each] for each in range(10)], prefetch=2).epoch(0)
    next(epoch)
    deadline = time.monotonic() + 10
    while len(pages.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    # one was taken, two wait in the queue, one waits for a place there
    assert len(pages.asked) == 4
    assert len(list(epoch)) == 9
    assert len(pages.asked) == 10


def test_waiting_is_measured() -> None:
    slow = batches_of(Pages(6, seconds=0.1), [[0], [1], [2]])
    waited = [batch.waited for batch in slow.epoch(0)]
    assert 0.25 < sum(waited) < 5
    assert slow.waited_seconds == pytest.approx(sum(waited))
    # a loop that is slower than the data does not wait
    fast = batches_of(Pages(6), [[0], [1], [2], [3], [4]])
    waited = []
    for batch in fast.epoch(0):
        waited.append(batch.waited)
        time.sleep(0.1)
    assert max(waited[2:]) < 0.05
    assert fast.waited_seconds == pytest.approx(sum(waited))


def test_an_error_in_the_thread_reaches_the_loop() -> None:
    seen = []
    batches = batches_of(Pages(20, broken=13), [[0], [1], [13], [2]])
    with pytest.raises(OSError, match="row 13 cannot be read"):
        seen.extend(batch.rows.tolist() for batch in batches.epoch(0))
    assert seen == [[0], [1]]
    # an error of the sampler too, and the next epoch begins anew
    with pytest.raises(IndexError):
        list(batches_of(Pages(4), [[0], [99]]).epoch(0))
    assert next(batches.epoch(1)).rows.tolist() == [1]


def test_a_loop_that_stops_early_leaves_no_thread() -> None:
    pages = Pages(200)
    batches = batches_of(pages, [[each] for each in range(200)], prefetch=1)
    for batch in batches.epoch(0):
        if batch.rows[0] == 3:
            break
    gc.collect()
    assert len(pages.asked) < 10
    assert not any("batches" in each.name for each in threading.enumerate())

    def broken() -> None:
        for _ in batches.epoch(0):
            raise RuntimeError("of the loop")

    with pytest.raises(RuntimeError, match="of the loop"):
        broken()
    batches.epoch(0)  # not even begun
    half = batches.epoch(0)
    next(half)
    half.close()
    # two epochs at once, as training and validation may have them
    assert len(list(zip(batches.epoch(0), batches.epoch(0), strict=True))) == 200


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    pages = Pages(12)
    pages.pages = pages.pages.cuda()
    pages.fetch = lambda rows: pages.pages[torch.from_numpy(rows).cuda()]  # type: ignore[method-assign]
    augment = Augmentation(AugmentConfig("standard"))
    shown = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    batches = batches_of(pages, shown, augment=augment, device="cuda", units=None)
    once = [batch.images.clone() for batch in batches.epoch(0)]
    for first, again in zip(once, batches.epoch(0), strict=True):
        assert again.images.is_cuda
        assert torch.equal(first, again.images)
