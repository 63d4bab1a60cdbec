"""Takes a model and the rows of one fold, trains it, and keeps the last and the best weights."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch

from fastmammo.errors import CheckpointError
from fastmammo.training.checkpoints import (
    check_identity,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from fastmammo.training.devices import agree, average_buffers, on_first_rank, seed_epoch
from fastmammo.training.divergence import Watch
from fastmammo.training.logs import Events, write_log

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from lightning_fabric import Fabric
    from numpy.typing import NDArray
    from timm.utils.model_ema import ModelEmaV3
    from torch.optim.lr_scheduler import LRScheduler

    from fastmammo.training.batches import Batch, Batches
    from fastmammo.training.losses import Loss
    from fastmammo.training.models import Model
    from fastmammo.training.sampler import BatchSampler
    from fastmammo.training.settings import LoopConfig

    Progress = Callable[[dict[str, Any]], None]
    Targets = Callable[[Batch], dict[str, torch.Tensor]]


@dataclass
class Training:
    """All that the training of one fold needs; `epoch`, `step` and `history` say how far it is."""

    fabric: Fabric
    loop: LoopConfig
    fold: int
    folder: Path
    module: Model
    """The network itself: its weights are those that are kept."""
    model: Any
    """The network as Fabric wraps it: precision, and gradients averaged over the ranks."""
    optimiser: Any
    """As Fabric wraps it."""
    schedule: LRScheduler
    average: ModelEmaV3 | None
    loss: Loss
    sampler: BatchSampler
    batches: Batches
    labels: NDArray[np.float64]
    """0 or 1, by the sampler's positions."""
    targets: Targets
    """Gives what the outputs of a batch are to be."""
    validate: Callable[[Model, float], dict[str, float | None]]
    """Gives the validation metrics of a network whose logits are shifted by the prior's offset:
    loss, pr_auc, auc, pf1_best."""
    prior_offset: Callable[[int], float]
    """Gives what to add to the logits of an epoch's weights: see prior.py."""
    identity: dict[str, Any]
    """What must be equal for a checkpoint to be gone on with."""
    progress: Progress
    epoch: int = 0
    step: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluated(self) -> Model:
        """The network whose scores count: the average of the weights, where there is one."""
        averaged: Model = self.module if self.average is None else self.average.module
        return averaged


def fit(training: Training) -> None:
    """Train until the last epoch, or until the monitored metric has not risen for long.

    After every epoch last.pt and log.csv are written, and best.pt where the epoch is the best so
    far: a run that dies goes on with the epoch in which it died.

    Raises:
        DivergedError: the loss or a gradient is infinite or no number.
        OSError: a checkpoint cannot be written.
    """
    asked = training.loop.tensorboard and training.fabric.is_global_zero
    events = Events(training.folder, asked, training.epoch)
    try:
        while not training.finished:
            row = train_epoch(training)
            row |= validate_epoch(training)
            training.history.append(row)
            training.epoch += 1
            training.finished = is_last(training)
            on_first_rank(training.fabric, lambda: keep(training))
            events.add(row)
            training.progress({"event": "epoch", "fold": training.fold, **row})
    finally:
        events.close()


def train_epoch(training: Training) -> dict[str, Any]:
    """Show every negative image once, and return the epoch's numbers, named as in log.csv."""
    fabric, epoch = training.fabric, training.epoch
    started = time.perf_counter()
    seed_epoch(training.loop.seed, training.fold, epoch, fabric.global_rank)
    training.module.train()
    watch = Watch(fabric, training.fold, epoch)
    steps = training.sampler.steps(epoch)
    seen = torch.zeros(4, dtype=torch.float64)  # images, positions, positives, seconds waited
    lr = training.loop.lr

    def counted(found: Iterator[Batch]) -> Iterator[Batch]:
        for batch in together(fabric, found):
            labels = training.labels[batch.positions]
            seen.add_(
                torch.tensor([len(batch.rows), len(labels), labels.sum(), batch.waited]).double()
            )
            yield batch

    with closing(cast("Generator[Batch]", training.batches.epoch(epoch))) as batches:
        shown = counted(batches)
        for step in range(1, steps + 1):
            loss = add_gradients(training, islice(shown, training.loop.accumulate))
            lr = float(training.schedule.get_last_lr()[0])
            scale = watch.scale()
            norm = update_weights(training)
            skipped = watch.scale() < scale
            watch.add(loss, norm, lr, skipped=skipped)
            training.step += 1
            if not skipped:  # else AdamW has not stepped, and the rate would run ahead of it
                training.schedule.step()
                if training.average is not None:
                    training.average.update(training.module, training.step)
            training.progress(
                {
                    "event": "step",
                    **{"fold": training.fold, "epoch": epoch + 1, "step": step, "steps": steps},
                    **{"loss": watch.latest, "lr": lr, "waited": float(seen[3])},
                }
            )
        watch.look()
    seconds = time.perf_counter() - started
    images, positions, positives, waited = fabric.all_reduce(
        seen.to(fabric.device), reduce_op="sum"
    ).tolist()  # type: ignore[union-attr]
    return {
        "epoch": epoch + 1,
        "steps": training.step,
        "skipped_steps": watch.skipped,
        "lr": lr,
        "train_loss": watch.mean,
        "positive_share": positives / max(1.0, positions),
        "seconds": seconds,
        "wait_seconds": waited / fabric.world_size,
        "images_per_second": images / seconds,
    }


def together(fabric: Fabric, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield this rank's batches, as long as every rank has got its own.

    Raises:
        Exception: what failed on a rank, on all of them: see `agree`.
    """
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except Exception as error:  # raised below, on every rank
            failure = error
        agree(fabric, failure)
        if batch is None:
            return
        yield batch


def add_gradients(training: Training, micro_batches: Iterable[Batch]) -> torch.Tensor:
    """Add up the gradients of one optimiser step, and return its mean loss on this rank.

    Every rank has equally many micro-batches of equal size, so that the mean over micro-batches,
    which is taken here, and over ranks, which is DistributedDataParallel's, is the mean over the
    global batch: one process and many take the same step.
    """
    count = training.loop.accumulate
    total = torch.zeros((), device=training.fabric.device)
    for index, batch in enumerate(micro_batches, start=1):
        # the ranks need to agree once a step only: on the sum
        with training.fabric.no_backward_sync(training.model, enabled=index < count):
            outputs = training.model(batch.images, batch.groups, len(batch.positions))
            loss = training.loss(outputs, training.targets(batch)) / count
            training.fabric.backward(loss)
        total += loss.detach()
    return total


def update_weights(training: Training) -> torch.Tensor | None:
    """Clip the gradients and step; return their norm before that, or None where none is taken."""
    norm = None
    if training.loop.clip:
        norm = training.fabric.clip_gradients(
            training.model,
            training.optimiser,
            max_norm=training.loop.clip,
            error_if_nonfinite=False,  # the watch tells where and what to do
        )
    training.optimiser.step()
    training.optimiser.zero_grad(set_to_none=True)
    return norm


def validate_epoch(training: Training) -> dict[str, Any]:
    """Return the validation metrics, and whether this epoch is the best so far."""
    started = time.perf_counter()
    offset = training.prior_offset(training.epoch)
    modules = [training.module] + ([training.average.module] if training.average else [])
    average_buffers(training.fabric, modules)
    metrics = training.validate(training.evaluated, offset)
    earlier = [_rank(row, training.loop.monitor) for row in training.history]
    best = not earlier or _rank(metrics, training.loop.monitor) > max(earlier)
    return {**metrics, "best": int(best), "validation_seconds": time.perf_counter() - started}


def _rank(row: dict[str, Any], monitor: str) -> float:
    """Return the monitored metric so that more is better; one that is undefined is worst."""
    value = row.get(monitor)
    if value is None or value != value:
        return float("-inf")
    return -value if monitor == "loss" else float(value)


def is_last(training: Training) -> bool:
    """Return whether training ends here: all epochs done, or no better one for `early_stop`."""
    patience = training.loop.early_stop
    since = len(training.history) - max(row["epoch"] for row in training.history if row["best"])
    return training.epoch >= training.loop.epochs or bool(patience and since >= patience)


def keep(training: Training) -> None:
    """Write best.pt where the epoch is the best so far, then last.pt and log.csv.

    last.pt comes after best.pt: it is what a later run believes, and a run that dies between the
    two does the epoch again and writes the same best.pt.
    """
    weights = {
        "identity": training.identity,
        "fold": training.fold,
        "epoch": training.epoch,
        "weights": training.evaluated.state_dict(),
        "prior_offset": training.prior_offset(training.epoch - 1),
    }
    if training.history[-1]["best"]:
        save_checkpoint(training.folder / "best.pt", weights)
    last = {
        **weights,
        "module": training.module.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "schedule": training.schedule.state_dict(),
        "scaler": training.fabric.strategy.precision.state_dict(),
        "step": training.step,
        "finished": training.finished,
        "ranks": training.fabric.world_size,
        "history": training.history,
    }
    save_checkpoint(training.folder / "last.pt", last)
    write_log(training.folder, training.history)


def restore(training: Training) -> str:
    """Go on where last.pt ends; return a line on that, or "" where there is none.

    Raises:
        CheckpointError: it is of other settings, another version, other data, or damaged.
    """
    path = training.folder / "last.pt"
    if not on_first_rank(training.fabric, path.exists):
        return ""
    state = load_checkpoint(path, resuming=True)
    check_identity(path, state, training.identity)
    load_weights(path, training.module, state["module"])
    if training.average is not None:
        load_weights(path, training.average.module, state["weights"])
    try:
        training.optimiser.load_state_dict(state["optimiser"])
        training.schedule.load_state_dict(state["schedule"])
        training.fabric.strategy.precision.load_state_dict(state["scaler"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the optimiser's state is not of this run ({error}). Was it written with "
            "another precision or version of torch?"
        ) from error
    training.epoch, training.step = state["epoch"], state["step"]
    training.history, training.finished = state["history"], state["finished"]
    if training.finished:
        return f"fold {training.fold} is finished"
    ranks = training.fabric.world_size
    other = f", with {ranks} processes instead of {state['ranks']}: dropout draws other numbers"
    return f"fold {training.fold} goes on after epoch {training.epoch}" + (
        other if ranks != state["ranks"] else ""
    )
