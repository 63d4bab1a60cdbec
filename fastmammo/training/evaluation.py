"""Takes a model and images, gives a value for each: every image once, whatever the ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastmammo.training.devices import agree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from fastmammo.training.batches import Batch, Batches
    from fastmammo.training.images import Images
    from fastmammo.training.models import Model


class OnceEach:
    """A rank's share of positions 0 to count - 1, in order; batches of any epoch are the same.

    A rank that would have nothing takes position 0, so that no rank is without a value's shape.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        own = np.arange(rank, count, ranks, dtype=np.int64)
        self._own = own if len(own) else np.zeros(1, np.int64)
        self._size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._own) / self._size)

    def epoch(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of each batch."""
        for start in range(0, len(self._own), self._size):
            yield self._own[start : start + self._size]


def open_batches(
    fabric: Fabric,
    images: Images,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    units: Sequence[NDArray[np.int64]] | None = None,
    prefetch: int = 2,
) -> Batches:
    """Return batches of this rank's share of `rows` (or `units`), not augmented."""
    from fastmammo.training.batches import Batches

    count = len(rows) if units is None else len(units)
    return Batches(
        images,
        sampler=OnceEach(count, batch_size, fabric.global_rank, fabric.world_size),
        rows=rows,
        labels=np.zeros(count, np.float64),
        device=fabric.device,
        units=units,
        prefetch=prefetch,
    )


def of_each(
    fabric: Fabric,
    batches: Batches,
    count: int,
    compute: Callable[[Batch], torch.Tensor],
) -> NDArray[np.float64]:
    """Return what `compute` gives for each position, on every rank: float64 (count, ...).

    Args:
        compute: gives (m, ...) of a batch of m positions.
    """
    found: torch.Tensor | None = None
    failure: Exception | None = None
    rank, ranks, device = fabric.global_rank, fabric.world_size, fabric.device
    try:
        with torch.inference_mode(), fabric.autocast():
            for batch in batches.epoch(0):
                values = compute(batch).double()
                if found is None:
                    shape = (count, *values.shape[1:])
                    found = torch.zeros(shape, dtype=torch.float64, device=device)
                own = np.flatnonzero(batch.positions % ranks == rank)
                # gathered where they are: the host would wait for the GPU at every batch
                places = torch.from_numpy(batch.positions[own]).to(device, non_blocking=True)
                found[places] = values[torch.from_numpy(own).to(device, non_blocking=True)]
    except Exception as error:  # raised below, on every rank
        failure = error
    agree(fabric, failure)
    if found is None:
        return np.zeros(0)
    # every position is one rank's and 0 on the others: the sum is exact, and nothing stands twice
    summed = fabric.all_reduce(found, reduce_op="sum")
    gathered: NDArray[np.float64] = summed.cpu().numpy()  # type: ignore[union-attr]
    return gathered


def cancer_logits(
    fabric: Fabric, model: Model, batches: Batches, count: int, *, flip: bool = False
) -> NDArray[np.float64]:
    """Return the logit of cancer for each position (image, or breast of a multi-view model).

    Args:
        flip: show the images mirrored, left to right.
    """
    model.eval()

    def compute(batch: Batch) -> torch.Tensor:
        images = batch.images.flip(-1) if flip else batch.images
        outputs: dict[str, torch.Tensor] = model(images, batch.groups, len(batch.positions))
        return outputs["cancer"]

    return of_each(fabric, batches, count, compute)
