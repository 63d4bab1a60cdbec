"""Takes a sampler and images, gives the batches of an epoch, made ahead in a thread.

sampler ─► fetch ─► scale ─► augment ─► queue ─► the loop
└──────── a thread, a stream of its own on a GPU ┘
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch

from fastmammo.errors import TableError
from fastmammo.training.permutations import occurrences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fastmammo.training.augment import Augmentation

_POLL_SECONDS = 0.1
"""How soon a thread whose reader has gone away notices that."""


class Sampler(Protocol):
    """What gives the positions of an epoch's batches."""

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        ...

    def epoch(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of each batch."""
        ...


class Fetcher(Protocol):
    """What gives the images of rows: `Images`."""

    @property
    def bits(self) -> int:
        """8 or 16."""
        ...

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return (n, 1, H, W) of integers on the device."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, on the device."""

    images: torch.Tensor
    """float32 (n, 1, H, W) in [0, 1], augmented."""
    rows: NDArray[np.int64]
    """(n,) the table's row of each image."""
    positions: NDArray[np.int64]
    """(m,) the sampler's positions: m = n without units, else the number of units."""
    groups: torch.Tensor | None
    """int64 (n,) on the device: which of the m units an image belongs to, each of them has one or
    more; None without units."""
    waited: float
    """Seconds that the reader stood waiting for this batch."""


@dataclass(frozen=True, eq=False)
class _Made:
    """A batch on its way to the reader."""

    images: torch.Tensor
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    groups: torch.Tensor | None
    done: torch.cuda.Event | None
    """On a GPU: when the images are there."""


HandOver: TypeAlias = "Callable[[_Made | BaseException | None], None]"


class Batches:
    """The batches of any epoch: `for batch in batches.epoch(k)`, `len(batches)` of them.

    An image's augmentation is drawn from (seed, epoch, row) and from which of the epoch's optimiser
    steps shows it: a positive that an epoch shows ten times is ten pictures, the same ones for any
    number of processes.

    Args:
        images: gives the pixels: `open_images`.
        sampler: gives an epoch's positions, batch by batch; where it has an attribute `accumulate`,
            so many batches are one optimiser step; where it has `repeats`, that numbers a
            position's showings within a step, over all ranks.
        rows: (positions,) the table's row of each of the sampler's positions.
        labels: (positions,) above 0.5 is positive, for the augmentation's `positive_strength`.
        augment: None for no augmentation, as in validation.
        device: where the batches are to be; that of `images`.
        seed: of the augmentation.
        units: multi-view: for each position the table's rows of that breast, in place of `rows`.
        prefetch: batches that are made ahead.
    """

    def __init__(
        self,
        images: Fetcher,
        *,
        sampler: Sampler,
        rows: NDArray[np.int64],
        labels: NDArray[np.float64],
        augment: Augmentation | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        units: Sequence[NDArray[np.int64]] | None = None,
        prefetch: int = 2,
    ) -> None:
        self.images, self.sampler = images, sampler
        self.rows, self.labels, self.units = np.asarray(rows), np.asarray(labels), units
        self.augment = augment
        self.device = torch.device(device)
        self.seed, self.prefetch = seed, prefetch
        self.waited_seconds = 0.0
        """Of the epoch that is going on, or of the last one."""

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        A reader that stops early closes the generator (or lets go of it), which ends the thread
        after the batch in hand.

        Raises:
            Exception: what failed in the thread, as it was: a file that cannot be decoded, say.
        """
        self.waited_seconds = 0.0
        made: queue.Queue[_Made | BaseException | None] = queue.Queue(self.prefetch)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._work, args=(epoch, made, stop), name="fastmammo-batches", daemon=True
        )
        thread.start()
        try:
            while True:
                start = time.perf_counter()
                each = made.get()
                if each is None:
                    return
                if isinstance(each, BaseException):
                    raise each
                if each.done is not None:
                    self._take_over(each)
                waited = time.perf_counter() - start
                self.waited_seconds += waited
                yield Batch(each.images, each.rows, each.positions, each.groups, waited)
                del each  # or its memory would be held while the next one is waited for
        finally:
            stop.set()
            thread.join()

    def _work(
        self, epoch: int, made: queue.Queue[_Made | BaseException | None], stop: threading.Event
    ) -> None:
        """Make batch after batch; runs in the thread."""

        def hand_over(item: _Made | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    made.put(item, timeout=_POLL_SECONDS)
                except queue.Full:
                    continue
                return

        try:
            with torch.no_grad():
                if self.device.type == "cuda":
                    with torch.cuda.device(self.device), torch.cuda.stream(_stream(self.device)):
                        self._make_all(epoch, hand_over, stop)
                else:
                    self._make_all(epoch, hand_over, stop)
        except BaseException as error:  # whatever it is, the reader raises it
            hand_over(error)
        else:
            hand_over(None)

    def _make_all(self, epoch: int, hand_over: HandOver, stop: threading.Event) -> None:
        accumulate = int(getattr(self.sampler, "accumulate", 1))
        numbered = getattr(self.sampler, "repeats", None)
        numbers = repeat(None) if numbered is None else numbered(epoch)
        for index, positions in enumerate(self.sampler.epoch(epoch)):
            if stop.is_set():
                return
            own = np.asarray(positions, np.int64)
            number = next(numbers)
            number = occurrences(own) if number is None else number
            hand_over(self._make(epoch, (index // accumulate << 16) + number, own))

    def _make(self, epoch: int, showings: NDArray[np.int64], positions: NDArray[np.int64]) -> _Made:
        """Return a batch: its images fetched, scaled to [0, 1] and augmented.

        Args:
            showings: (m,) tells apart the showings of a position within the epoch.
        """
        groups = None
        labels = self.labels[positions]
        if self.units is None:
            rows = self.rows[positions]
        else:
            parts = [np.asarray(self.units[position], np.int64) for position in positions]
            sizes = [len(part) for part in parts]
            if 0 in sizes:
                raise TableError(
                    f"batches: unit {positions[sizes.index(0)]} has no image, wanted one or more: "
                    "a breast without an image has no score"
                )
            rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
            group = np.repeat(np.arange(len(parts)), sizes)
            labels, showings = labels[group], showings[group]
            groups = torch.from_numpy(group).to(self.device)
        images = self.images.fetch(rows).to(torch.float32).div_((1 << self.images.bits) - 1)
        if self.augment is not None:
            images = self.augment(images, (self.seed, epoch, rows), labels > 0.5, showings)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.current_stream(self.device).record_event()
        return _Made(images, rows, positions, groups, done)

    def _take_over(self, each: _Made) -> None:
        """Let the reader's stream wait for the batch, and keep its memory until that has read it.

        The reader goes on at once: it is the GPU that waits, if the batch is late.
        """
        stream = torch.cuda.current_stream(self.device)
        if each.done is not None:
            stream.wait_event(each.done)
        for tensor in (each.images, each.groups):
            if tensor is not None:
                tensor.record_stream(stream)


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a GPU that runs beside the reader's: one for the whole process.

    torch keeps freed memory for the stream that it was taken on: with a stream an epoch, each epoch
    would take its own and none would be used again.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
