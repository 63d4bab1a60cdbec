"""One process of several (torchrun): the gradient of the first global batch, then a whole run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from training_runs import frozen_norms, small, table_of

from fastmammo.errors import TableError
from fastmammo.training.batches import Batches
from fastmammo.training.devices import open_fabric
from fastmammo.training.images import open_images
from fastmammo.training.loop import add_gradients
from fastmammo.training.one_fold import Parts, prepare
from fastmammo.training.run import split, train

LIVE = {"augment": "none", "dropout": 0.0, "epochs": 2}
"""Settings under which each rank's BatchNorm follows its own images."""
make = Batches._make


def gradient(folder: Path, accumulate: int) -> dict[str, torch.Tensor]:
    """The gradient that the first optimiser step has of each weight, on this rank."""
    settings = frozen_norms(accumulate=accumulate)
    fabric = open_fabric(settings.loop)
    table = split(table_of(folder), settings)
    with open_images(folder / "images", table, settings.images, device=fabric.device) as images:
        parts = Parts(fabric, settings, table, images, {}, lambda event: None, lambda line: None)
        training = prepare(parts, 0, folder)
        training.module.train()
        batches = training.batches.epoch(0)
        micro = [next(batches) for _ in range(accumulate)]
        add_gradients(training, micro)
    return {
        name: each.grad.clone()
        for name, each in training.module.named_parameters()
        if each.grad is not None
    }


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = gradient(folder, 2)
    rank = torch.distributed.get_rank()
    torch.save(found, out / f"gradient{rank}.pt")
    try:
        train(folder / "table.csv", folder / "images", folder, frozen_norms())
    except Exception as error:  # every rank is to see the first one's
        (out / f"error{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    result = train(folder / "table.csv", folder / "images", out / "run", frozen_norms())
    result.oof.to_csv(out / f"oof{rank}.csv", index=False)
    live = train(folder / "table.csv", folder / "images", out / "live", small(**LIVE), fold=0)
    (out / f"notes{rank}.txt").write_text("\n".join(live.notes))
    for name, calls in (("training", 3), ("validation", 0)):
        break_images(rank, calls, training=name == "training")
        try:
            train(folder / "table.csv", folder / "images", out / name, frozen_norms(), fold=0)
        except Exception as error:  # every rank is to see the second one's
            (out / f"{name}{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def break_images(rank: int, calls: int, *, training: bool) -> None:
    """Let the second rank's images fail from some call on, of the training or the validation."""
    left = [calls]

    def broken(self: Batches, *given: Any) -> Any:
        if rank == 1 and training == (self.augment is not None):
            left[0] -= 1
            if left[0] < 0:
                raise TableError("row 5 cannot be decoded")
        return make(self, *given)

    Batches._make = broken  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
