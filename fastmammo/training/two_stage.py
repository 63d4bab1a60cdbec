"""Takes a frozen network's image features and the table, fits the two-stage metadata model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import CheckpointError
from fastmammo.training.backbones import resolve
from fastmammo.training.checkpoints import load_checkpoint, load_weights, save_checkpoint
from fastmammo.training.devices import on_first_rank, seed_epoch
from fastmammo.training.evaluation import of_each, open_batches
from fastmammo.training.metadata import SITE_WARNING, MetadataModel, fit_metadata
from fastmammo.training.models import build_model
from fastmammo.training.one_fold import micro_batch
from fastmammo.training.scored import SCORED, by_breast_figures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from fastmammo.training.batches import Batch
    from fastmammo.training.images import Images
    from fastmammo.training.models import Model
    from fastmammo.training.one_fold import Parts
    from fastmammo.training.run_folder import RunFolder
    from fastmammo.training.settings import Settings

FEATURES, METADATA, STAGES = "features.pt", "metadata.json", "stages.json"
"""In the run folder: the frozen network's weights, the model on its features, and what image and
metadata score alone, out of fold and by breast."""

RANDOM = (
    "head metadata: the network is not trained, and its weights are random: its features tell "
    "little. Give pretrained weights (--weights FILE, or --pretrained and another model)"
)


def fit_two_stage(parts: Parts, folder: RunFolder, folds: Sequence[int]) -> None:
    """Fit the metadata model on a frozen network's features, fold by fold, and score each fold.

    The network is `ModelConfig`'s as it starts (pretrained, or from a file): it is not trained, so
    no fold's images have shaped the features. The run folder gets features.pt, metadata.json (the
    model fitted on all rows, for new images), stages.json and each fold's oof.csv.

    Raises:
        TableError: the table is not fit for it.
        ModelError, WeightsError: the network cannot be had.
    """
    fabric, settings = parts.fabric, parts.settings
    oof = [folder.path / f"fold{each}" / "oof.csv" for each in folds]
    if on_first_rank(fabric, lambda: all(each.exists() for each in oof)):
        parts.remark(f"folds {', '.join(map(str, folds))} are finished")
        return
    seed_epoch(settings.loop.seed, 0, -1, 0)
    module = build_model(settings.model, image_size=parts.images.size)
    for line in module.notes:
        parts.note(line)
    if not settings.model.weights and not (settings.model.pretrained and has_pretraining(settings)):
        parts.note(RANDOM)
    kept = parts.images.kept
    size = micro_batch(settings, fabric.world_size)
    features = features_of(fabric, module, parts.images, kept, size)
    table = parts.table.iloc[kept].reset_index(drop=True)
    fold = table["fold"].to_numpy()
    # stages.json is of the same patients as metrics.json: of all folds that are scored by then
    there = on_first_rank(fabric, folder.scored_folds)
    scored = sorted({*there, *folds})
    scores, model = fit_metadata(features, table, fold, folds=scored)
    parts.note(SITE_WARNING)
    frame = table[list(SCORED)].copy()
    frame["score"] = scores
    within = scores.clip(1e-12, 1 - 1e-12)  # a certain score has no logit
    frame["logit"] = np.log(within) - np.log1p(-within)
    alone = {
        "image": fit_metadata(features, table, fold, folds=scored, use_table=False)[0],
        "metadata": fit_metadata(None, table, fold, folds=scored)[0],
        "both": scores,
    }

    def write() -> None:
        save_checkpoint(folder.path / FEATURES, {"weights": module.state_dict()})
        folder.write_text(METADATA, model.to_json() + "\n")
        stages = {
            name: by_breast_figures(
                frame.assign(score=each)[np.isin(fold, scored)], settings.loop.reduce
            )
            for name, each in alone.items()
        }
        folder.write_json(STAGES, stages)
        for each in folds:
            (folder.path / f"fold{each}").mkdir(exist_ok=True)
            folder.write_table(f"fold{each}/oof.csv", frame[frame["fold"] == each])

    on_first_rank(fabric, write)


def has_pretraining(settings: Settings) -> bool:
    """Return whether `pretrained` means anything to the model."""
    return resolve(settings.model.model) != "small_cnn"


def features_of(
    fabric: Fabric,
    module: Model,
    images: Images,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    flip: bool = False,
) -> NDArray[np.float64]:
    """Return the network's features of some rows of the table: float64 (n, F).

    Args:
        flip: show the images mirrored, left to right.
    """
    module = module.to(fabric.device).eval()
    batches = open_batches(fabric, images, rows, batch_size)

    def compute(batch: Batch) -> torch.Tensor:
        return module.features(batch.images.flip(-1) if flip else batch.images)

    return of_each(fabric, batches, len(rows), compute)


def score_two_stage(
    path: Path,
    fabric: Fabric,
    images: Images,
    table: pd.DataFrame,
    settings: Settings,
    batch_size: int,
    *,
    flip: bool = False,
) -> NDArray[np.float64]:
    """Return the scores of a two-stage run for all rows of `images.kept`: float64, in [0, 1].

    Args:
        flip: the mean of the scores of each image and of its mirror image.

    Raises:
        CheckpointError: its files are damaged, or of another model.
    """
    state = load_checkpoint(path / FEATURES)
    module = build_model(
        replace(settings.model, pretrained=False, weights=""), image_size=images.size
    )
    load_weights(path / FEATURES, module, state["weights"])
    try:
        model = MetadataModel.from_json((path / METADATA).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path / METADATA} cannot be read: {error}") from error
    rows = table.iloc[images.kept]
    found = [
        model.scores(
            features_of(fabric, module, images, images.kept, batch_size, flip=mirrored), rows
        )
        for mirrored in ((False, True) if flip else (False,))
    ]
    scores: NDArray[np.float64] = np.mean(found, axis=0)
    return scores
