"""One process of several (torchrun): the gradient of the first global batch, then a whole run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from training_runs import frozen_norms, table_of

from fastmammo.training.devices import open_fabric
from fastmammo.training.images import open_images
from fastmammo.training.loop import add_gradients
from fastmammo.training.one_fold import Parts, prepare
from fastmammo.training.run import split, train


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


if __name__ == "__main__":
    main()
