"""Takes table, images and settings, gives one fold's training, ready to run, and its scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from fastmammo.errors import TableError
from fastmammo.training.augment import Augmentation
from fastmammo.training.batches import Batches
from fastmammo.training.checkpoints import load_checkpoint, load_weights
from fastmammo.training.devices import batch_norms, seed_epoch
from fastmammo.training.ema import make_ema
from fastmammo.training.evaluation import cancer_logits, open_batches
from fastmammo.training.folds import check_both, undersample
from fastmammo.training.heads import targets_of
from fastmammo.training.loop import Training
from fastmammo.training.losses import Loss
from fastmammo.training.models import build_model
from fastmammo.training.prior import posterior_logits, prior_offset, weighted_share
from fastmammo.training.schedule import make_optimiser, make_schedule
from fastmammo.training.scored import SCORED, by_breast_figures
from fastmammo.training.subsets import Subset, make_subset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd
    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from fastmammo.training.batches import Batch
    from fastmammo.training.images import Images
    from fastmammo.training.models import Model
    from fastmammo.training.sampler import BatchSampler
    from fastmammo.training.settings import LoopConfig, Settings


@dataclass(frozen=True, eq=False)
class Parts:
    """What all folds of a run share."""

    fabric: Fabric
    settings: Settings
    table: pd.DataFrame
    images: Images
    identity: dict[str, Any]
    progress: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]
    """Called with what is to be known of the run."""
    remark: Callable[[str], None] = lambda line: None
    """Called with what is to be known of this call alone: it is not kept in the run folder."""

    @property
    def multi_view(self) -> bool:
        """Whether the model takes all images of a breast at once."""
        return self.settings.model.multiview != "none"

    def rows(self, fold: int, *, training: bool) -> NDArray[np.int64]:
        """Return the table's rows, of those with an image, that a fold trains on or is scored on.

        Rows of fold -1 are trained on in every fold, and never scored.
        """
        folds = self.table["fold"].to_numpy()[self.images.kept]
        chosen = (folds != fold) if training else (folds == fold)
        rows: NDArray[np.int64] = self.images.kept[chosen]
        return rows


def check_labels(table: pd.DataFrame, fold: int) -> None:
    """Refuse a fold without positives or negatives, on either of its sides.

    Raises:
        TableError: says which side lacks what, or that the whole table does.
    """
    check_both(table)
    labels, folds = table["cancer"].to_numpy(), table["fold"].to_numpy()
    for side, rows in (("validation", folds == fold), ("training", folds != fold)):
        for name, value in (("positive", 1), ("negative", 0)):
            if not (labels[rows] == value).any():
                raise TableError(
                    f"fold {fold}: none of the {rows.sum()} {side} images is {name}: nothing can "
                    "be learnt or measured. Take fewer folds, another split_seed, or mend the "
                    "table's column fold"
                )


def prepare(parts: Parts, fold: int, folder: Path) -> Training:
    """Build the model, the optimiser and the batches of a fold.

    Raises:
        ConfigError, ModelError, TableError, WeightsError: what cannot be trained so.
    """
    fabric, settings, loop = parts.fabric, parts.settings, parts.settings.loop
    subset, sampler, true_share = drawn(parts, fold)
    if sampler.note:
        parts.note(f"fold {fold}: {sampler.note}")
    for line in loop.score_notes:
        parts.note(line)
    augment, line = settings.augment.of_images(parts.images.settings.get("config", {}))
    if line:
        parts.note(line)
    steps = sum(sampler.steps(epoch) for epoch in range(loop.epochs))
    module = _build(parts, fold)
    weight = settings.sampling.loss_weight(subset.labels)
    shown = sampler.positive_share(0)
    start_at(module, shown if weight is None else weighted_share(shown, weight), loop)
    optimiser = make_optimiser(module, loop, fabric.device)
    compiled: Any = torch.compile(module) if loop.compile else module
    wrapped, wrapped_optimiser = fabric.setup(compiled, optimiser)
    return Training(
        fabric=fabric,
        loop=loop,
        fold=fold,
        folder=folder,
        module=module,
        model=wrapped,
        optimiser=wrapped_optimiser,
        schedule=make_schedule(optimiser, loop, steps),
        average=make_ema(module, loop.ema, steps) if loop.ema else None,
        loss=Loss(
            kind=loop.loss,
            smoothing=loop.smoothing,
            positive_smoothing=loop.positive_smoothing,
            pos_weight=weight,
            gamma=loop.focal_gamma,
            auxiliary=loop.auxiliary_weight,
        ),
        sampler=sampler,
        batches=Batches(
            parts.images,
            sampler=sampler,
            rows=subset.rows,
            labels=subset.labels,
            augment=Augmentation(augment),
            device=fabric.device,
            seed=loop.seed,
            units=subset.units,
            prefetch=settings.images.prefetch,
        ),
        labels=subset.labels,
        targets=_targets(parts, subset),
        validate=_validation(parts, fold),
        prior_offset=_prior(settings, sampler, weight, true_share),
        identity={**parts.identity, "fold": fold},
        progress=parts.progress,
    )


def drawn(parts: Parts, fold: int) -> tuple[Subset, BatchSampler, float]:
    """Return what a fold is trained on, how it is drawn, and the true share of positives."""
    settings, loop, sampling = parts.settings, parts.settings.loop, parts.settings.sampling
    subset = make_subset(parts.table, parts.rows(fold, training=True), multi_view=parts.multi_view)
    true_share = float(subset.labels.mean())
    if sampling.balance == "undersample":
        kept = undersample(
            np.arange(len(subset)),
            subset.labels,
            sampling.undersample_ratio,
            settings.table.split_seed,
        )
        subset = subset.take(kept)
    sampler = sampling.sampler(
        subset.labels,
        seed=loop.seed,
        rank=parts.fabric.global_rank,
        ranks=parts.fabric.world_size,
        accumulate=loop.accumulate,
    )
    return subset, sampler, true_share


def start_at(module: Model, share: float, loop: LoopConfig) -> None:
    """Let an untrained network score the share of positives that it will be shown.

    Else its first steps learn that share alone: Lin, Goyal, Girshick, He and Dollár, "Focal loss
    for dense object detection", ICCV 2017, section 3.3.
    """
    wanted = math.log(share / (1 - share))
    if loop.has_posterior:
        logits = np.linspace(-30, 30, 6001)
        wanted = float(np.interp(wanted, _posterior(logits, loop), logits))
    with torch.no_grad():
        module.heads.cancer.bias.fill_(wanted)


def _build(parts: Parts, fold: int) -> Model:
    fabric, loop = parts.fabric, parts.settings.loop
    ranks = fabric.world_size
    # every rank the same weights: DistributedDataParallel would send the first rank's anyway
    seed_epoch(loop.seed, fold, -1, 0)
    module = build_model(parts.settings.model, image_size=parts.images.size)
    for line in module.notes:
        parts.note(f"fold {fold}: {line}")
    if ranks > 1 and any(each.training for each in batch_norms(module.train())):
        parts.note(
            f"BatchNorm takes its statistics from the {micro_batch(parts.settings, ranks)} images "
            "that a process sees at once, and they are averaged over the processes before each "
            "validation: another number of processes trains a little otherwise. freeze_norms=True, "
            "or a model without BatchNorm, does not depend on it"
        )
    if loop.channels_last and fabric.device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)
    return module


def _targets(parts: Parts, subset: Subset) -> Callable[[Batch], dict[str, torch.Tensor]]:
    device = parts.fabric.device
    known = {name: each.to(device) for name, each in targets_of(parts.table).items()}
    labels = torch.from_numpy(subset.labels.astype(np.float32)).to(device)

    def targets(batch: Batch) -> dict[str, torch.Tensor]:
        rows = torch.tensor(batch.rows).to(device, non_blocking=True)
        positions = torch.tensor(batch.positions).to(device, non_blocking=True)
        return {**{name: each[rows] for name, each in known.items()}, "cancer": labels[positions]}

    return targets


def _prior(
    settings: Settings, sampler: BatchSampler, weight: float | None, true_share: float
) -> Callable[[int], float]:
    def offset(epoch: int) -> float:
        loop = settings.loop
        if not (loop.correct_prior and loop.has_posterior) or settings.sampling.balance == "none":
            return 0.0
        share = sampler.positive_share(epoch)
        if weight is not None:
            share = weighted_share(share, weight)
        return prior_offset(share, true_share)

    return offset


def micro_batch(settings: Settings, ranks: int) -> int:
    """Return how many positions a rank takes at once."""
    return max(1, settings.sampling.batch_size // (ranks * settings.loop.accumulate))


def scores_of_logits(
    logits: NDArray[np.float64], offset: float, loop: LoopConfig
) -> NDArray[np.float64]:
    """Return scores in [0, 1]: probabilities, where `correct_prior` is set and the loss tells them.

    Args:
        offset: that of the prior, see prior.py.
    """
    found: NDArray[np.float64] = (
        torch.from_numpy(_corrected(logits, offset, loop)).sigmoid().numpy()
    )
    return found


def _corrected(logits: NDArray[np.float64], offset: float, loop: LoopConfig) -> NDArray[np.float64]:
    if not (loop.correct_prior and loop.has_posterior):
        return logits
    return offset + _posterior(logits, loop)


def _posterior(logits: NDArray[np.float64], loop: LoopConfig) -> NDArray[np.float64]:
    return posterior_logits(
        logits,
        kind=loop.loss,
        smoothing=loop.smoothing,
        positive_smoothing=loop.positive_smoothing,
        gamma=loop.focal_gamma,
    )


def score(
    parts: Parts, module: Model, subset: Subset, batches: Batches, offset: float
) -> pd.DataFrame:
    """Return the rows of a subset with `score`, in [0, 1], and `logit`, as the model gave it."""
    logits = subset.by_row(cancer_logits(parts.fabric, module, batches, len(subset)))
    frame: pd.DataFrame = parts.table.iloc[subset.rows][list(SCORED)].copy()
    frame["score"] = scores_of_logits(logits, offset, parts.settings.loop)
    frame["logit"] = logits
    return frame


def validation_batches(parts: Parts, subset: Subset) -> Batches:
    """Return this rank's share of a subset, not augmented."""
    return open_batches(
        parts.fabric,
        parts.images,
        subset.rows,
        micro_batch(parts.settings, parts.fabric.world_size),
        units=subset.units,
        prefetch=parts.settings.images.prefetch,
    )


def validation_subset(parts: Parts, fold: int) -> Subset:
    """Return what a fold is scored on."""
    rows = parts.rows(fold, training=False)
    return make_subset(parts.table, rows, multi_view=parts.multi_view)


def _validation(parts: Parts, fold: int) -> Callable[[Model, float], dict[str, float | None]]:
    subset = validation_subset(parts, fold)
    batches = validation_batches(parts, subset)
    reduce = parts.settings.loop.reduce

    def validate(module: Model, offset: float) -> dict[str, float | None]:
        frame = score(parts, module, subset, batches, offset)
        corrected = _corrected(frame["logit"].to_numpy(), offset, parts.settings.loop)
        logits = torch.tensor(corrected)
        labels = torch.tensor(frame["cancer"].to_numpy())
        loss = float(binary_cross_entropy_with_logits(logits, labels))
        if not math.isfinite(loss):
            return {"loss": None, "pr_auc": None, "auc": None, "pf1_best": None}
        found = by_breast_figures(frame, reduce)
        return {"loss": loss, **{name: found[name] for name in ("pr_auc", "auc", "pf1_best")}}

    return validate


def out_of_fold(parts: Parts, training: Training) -> pd.DataFrame:
    """Score a fold's own images by the weights that count, read back from their checkpoint."""
    path = training.folder / f"{parts.settings.loop.scored_weights}.pt"
    state = load_checkpoint(path)
    load_weights(path, training.module, state["weights"])
    subset = validation_subset(parts, training.fold)
    batches = validation_batches(parts, subset)
    return score(parts, training.module, subset, batches, float(state["prior_offset"]))
