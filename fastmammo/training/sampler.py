"""Takes the labels of the training rows, gives each rank's batches of an epoch, balanced or plain.

A global batch is what one optimiser step sees: all ranks, all accumulated micro-batches. Batches
are drawn for the whole world from (seed, epoch) alone, then cut: so one process and four train on
the same global batches, ranks never share a row of one draw, and all have equally much to do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import ConfigError, TableError
from fastmammo.options import check_choices, check_range, option
from fastmammo.training.permutations import by_label, draw, need_both, occurrences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

_STREAM = 0x5A3B1E
"""Keeps these draws apart from other parts' draws by the same seed and epoch."""

_SOUGHT = 1 << 14
"""Largest batch that a note on the share names."""


@dataclass(frozen=True)
class SamplingConfig:
    """How training makes up for positives being rare: one way at a time, never two."""

    balance: str = option(
        "oversample",
        "oversample: positives are repeated to positive_share of every batch; undersample: "
        "undersample_ratio negatives a positive are kept; pos_weight: positives weigh more in the "
        "loss; none: nothing",
        choices=("oversample", "undersample", "pos_weight", "none"),
    )
    positive_share: float = option(
        0.125, "oversample: share of positives in every batch (1/8 is 7 negatives a positive)"
    )
    positive_share_start: float = option(
        0.0, "oversample: share in the first epoch, from which it goes to positive_share; 0: as it"
    )
    share_epochs: int = option(
        0, "oversample: epochs over which positive_share_start goes to positive_share, linearly"
    )
    undersample_ratio: float = option(1.0, "undersample: negatives kept for each positive")
    pos_weight: float | None = option(
        None,
        "pos_weight: weight of a positive in the loss; by default negatives / positives of the "
        "training rows",
        type=float,
        metavar="FLOAT",
    )
    batch_size: int = option(
        32, "images (multi-view: breasts) an optimiser step: all ranks and accumulated parts"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "batch_size", 1, 1 << 20, whole=True)
        check_range(self, "positive_share", 1e-6, 1 - 1e-6)
        check_range(self, "positive_share_start", 0, 1 - 1e-6)
        check_range(self, "share_epochs", 0, 1 << 20, whole=True)
        check_range(self, "undersample_ratio", 1e-3, 1e6)
        if self.pos_weight is not None:
            check_range(self, "pos_weight", 1e-6, 1e9)
            if self.balance in ("oversample", "undersample"):
                raise ConfigError(
                    f"pos_weight: got {self.pos_weight} together with balance {self.balance!r}, "
                    "which makes up for the rare positives already: the two would multiply, and no "
                    "correction of the prior would fit. Take balance='pos_weight', or leave "
                    "pos_weight out"
                )
            if self.balance == "none":
                raise ConfigError(
                    f"pos_weight: got {self.pos_weight} with balance 'none', which weighs nothing: "
                    "take balance='pos_weight'"
                )
        if (self.positive_share_start > 0) != (self.share_epochs > 0):
            raise ConfigError(
                f"positive_share_start: got {self.positive_share_start} with share_epochs "
                f"{self.share_epochs}: a schedule wants both more than 0, a constant share both 0"
            )

    def share(self, epoch: int) -> float:
        """Give the share of positives that is asked for in an epoch (from 0), in (0, 1)."""
        if epoch >= self.share_epochs:
            return self.positive_share
        done = epoch / self.share_epochs
        return self.positive_share_start + done * (self.positive_share - self.positive_share_start)

    def loss_weight(self, labels: ArrayLike) -> float | None:
        """Give `pos_weight` for the loss: of the settings, or negatives / positives of `labels`.

        Returns:
            None where balance is not "pos_weight".

        Raises:
            TableError: labels that are not 0 or 1, or are all the same.
        """
        if self.balance != "pos_weight":
            return None
        positives, negatives = by_label(labels)
        need_both(positives, negatives, "pos_weight")
        return self.pos_weight if self.pos_weight is not None else len(negatives) / len(positives)

    def sampler(
        self, labels: ArrayLike, *, seed: int, rank: int = 0, ranks: int = 1, accumulate: int = 1
    ) -> BatchSampler:
        """Make the batches of these settings; undersampled labels are to be given undersampled."""
        if self.balance == "oversample":
            return BalancedBatches(
                labels,
                self.batch_size,
                positive_share=self.positive_share,
                schedule=self.share if self.share_epochs else None,
                seed=seed,
                rank=rank,
                ranks=ranks,
                accumulate=accumulate,
            )
        return PlainBatches(
            labels, self.batch_size, seed=seed, rank=rank, ranks=ranks, accumulate=accumulate
        )


class BatchSampler(ABC):
    """Batches of positions into `labels`, the same number and size for every rank.

    Args:
        labels: (N,), 0 or 1.
        batch_size: the GLOBAL batch: of all ranks and all accumulated micro-batches together.
        seed: 0 or more; with the number of the epoch it decides every draw.
        rank: this process's number, of `ranks`.
        ranks: processes that train together.
        accumulate: micro-batches that one optimiser step adds up.

    Raises:
        ConfigError: a batch that ranks x accumulate does not divide, or a number out of range.
        TableError: labels that are not 0 or 1, or too few of them.
    """

    note: str = ""
    """What the user should know of the draw, in a sentence; empty: nothing."""

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("ranks", ranks, 1),
            ("accumulate", accumulate, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}: got {value}, wanted {least} or more")
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank: got {rank} of {ranks} ranks, wanted 0 to {ranks - 1}")
        if batch_size % (ranks * accumulate):
            raise ConfigError(
                f"batch_size: got {batch_size}, which {ranks} ranks x {accumulate} accumulated "
                f"micro-batches do not divide: take a multiple of {ranks * accumulate}"
            )
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.positives, self.negatives = by_label(labels)

    def __len__(self) -> int:
        """Micro-batches of a rank in epoch 0; where the share has a schedule see `steps`."""
        return self.steps(0) * self.accumulate

    def epoch(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Give this rank's micro-batches of an epoch, `accumulate` of them an optimiser step.

        Yields:
            int64 (batch_size / ranks / accumulate,), positions into `labels`.
        """
        yield from self._own(self.global_batches(epoch), epoch)

    def repeats(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Give for each position that `epoch` gives how often its GLOBAL batch had it before.

        However a batch is cut, a positive that stands twice in it has the numbers 0 and 1.
        """
        batches = self.global_batches(epoch)
        yield from self._own(np.stack([occurrences(each) for each in batches]), epoch)

    def _own(self, batches: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Cut what is (steps, batch_size) into this rank's micro-batches."""
        cut = batches.reshape(self.steps(epoch) * self.accumulate, self.ranks, -1)
        return cut[:, self.rank]

    @abstractmethod
    def steps(self, epoch: int) -> int:
        """Give the number of optimiser steps in an epoch (from 0)."""

    @abstractmethod
    def positive_share(self, epoch: int) -> float:
        """Give the share of positives that the batches of an epoch really have: the prior taught.

        With few images a batch it is not quite the share asked for.
        """

    @abstractmethod
    def global_batches(self, epoch: int) -> NDArray[np.int64]:
        """Give all batches of an epoch, whatever the ranks: int64 (steps, batch_size)."""

    def _random(self, epoch: int) -> np.random.Generator:
        if epoch < 0:
            raise ConfigError(f"epoch: got {epoch}, wanted 0 or more")
        return np.random.default_rng([_STREAM, self.seed, epoch])


class PlainBatches(BatchSampler):
    """Every row once an epoch, in a new order; the last batch is filled up with further rows."""

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__(
            labels, batch_size, seed=seed, rank=rank, ranks=ranks, accumulate=accumulate
        )
        self._count = len(self.positives) + len(self.negatives)
        if not self._count:
            raise TableError("batches: there are no rows to train on")
        if self._count < batch_size:
            self.note = (
                f"batch_size {batch_size} is more than the {self._count} that there are to train "
                f"on: each batch shows them {batch_size / self._count:.1f} times on average"
            )

    def steps(self, epoch: int) -> int:
        return math.ceil(self._count / self.batch_size)

    def positive_share(self, epoch: int) -> float:
        return len(self.positives) / self._count

    def global_batches(self, epoch: int) -> NDArray[np.int64]:
        rows = np.arange(self._count)
        return draw(self._random(epoch), rows, self.steps(epoch), self.batch_size)


class BalancedBatches(BatchSampler):
    """Every negative once an epoch; a stated share of every batch are positives, at least one.

    Positives come from permutations drawn anew whenever all were seen: over an epoch no two differ
    by more than one in how often they are shown, and no batch holds one twice while there are
    enough. The last batch is filled up with further negatives.

    Args:
        positive_share: share of positives in every batch, in (0, 1); rounded to whole images, at
            least one and at most all but one.
        schedule: epoch (from 0) → that epoch's share; positive_share is then what it comes to.
    """

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        *,
        positive_share: float = 1 / 8,
        schedule: Callable[[int], float] | None = None,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__(
            labels, batch_size, seed=seed, rank=rank, ranks=ranks, accumulate=accumulate
        )
        if batch_size < 2:
            raise ConfigError(
                f"batch_size: got {batch_size}, wanted 2 or more: a balanced batch holds a "
                "positive and a negative"
            )
        self._share = schedule if schedule is not None else lambda _: positive_share
        need_both(self.positives, self.negatives, "balanced batches")
        own = len(self.positives) / (len(self.positives) + len(self.negatives))
        notes = []
        for name, rows, count in (
            ("positives", self.positives, self._positives_a_batch(0)),
            ("negatives", self.negatives, batch_size - self._positives_a_batch(0)),
        ):
            if len(rows) < count:
                notes.append(
                    f"a batch of {batch_size} takes {count} {name}, of which there are "
                    f"{len(rows)}: each is in it {count / len(rows):.1f} times on average"
                )
        if own > self.positive_share(0):
            notes.append(
                f"{own:.1%} of the training rows are positive, more than the {self._share(0):.1%} "
                "of a balanced batch: an epoch leaves positives out. Take balance none, or a "
                "larger positive_share"
            )
        elif self.note_of_share(positive_share):
            notes.append(self.note_of_share(positive_share))
        self.note = "; ".join(notes)

    def note_of_share(self, share: float) -> str:
        """Say where whole images cannot make up a share within a tenth of it; "" where they can."""
        have = _whole(share, self.batch_size) / self.batch_size
        if not 0 < share < 1 or _fits(share, self.batch_size):
            return ""
        step = self.ranks * self.accumulate
        sizes = range(step, max(4 * self.batch_size, min(_SOUGHT, math.ceil(4 / share))), step)
        fitting = [size for size in sizes if size > 1 and _fits(share, size)]
        nearest = min(fitting, key=lambda size: abs(size - self.batch_size), default=None)
        return (
            f"{have:.1%} of each batch are positives, not the {share:.1%} of positive_share: a "
            f"batch of {self.batch_size} has no nearer share in whole images"
            + (f". The nearest batch_size that has one is {nearest}" if nearest else "")
        )

    def _positives_a_batch(self, epoch: int) -> int:
        share = self._share(epoch)
        if not 0 < share < 1:
            raise ConfigError(
                f"positive_share: got {share!r} for epoch {epoch}, wanted more than 0 and less "
                "than 1"
            )
        return _whole(share, self.batch_size)

    def steps(self, epoch: int) -> int:
        negatives_a_batch = self.batch_size - self._positives_a_batch(epoch)
        return math.ceil(len(self.negatives) / negatives_a_batch)

    def positive_share(self, epoch: int) -> float:
        return self._positives_a_batch(epoch) / self.batch_size

    def global_batches(self, epoch: int) -> NDArray[np.int64]:
        random, steps = self._random(epoch), self.steps(epoch)
        positives = self._positives_a_batch(epoch)
        batches = np.concatenate(
            (
                draw(random, self.negatives, steps, self.batch_size - positives),
                draw(random, self.positives, steps, positives),
            ),
            axis=1,
        )
        # positives at the end of every batch would all go to the last rank's last micro-batch
        return random.permuted(batches, axis=1)


def _whole(share: float, batch_size: int) -> int:
    """Round a share to whole positives: at least one, at most all images but one."""
    return min(max(1, round(share * batch_size)), batch_size - 1)


def _fits(share: float, batch_size: int) -> bool:
    """Tell whether whole positives come within a tenth of a share."""
    return abs(_whole(share, batch_size) / batch_size - share) <= share / 10 + 1e-9
