"""Takes a run folder, gives its trained models one by one: what each scores, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import CheckpointError, ConfigError
from fastmammo.training.checkpoints import differences, load_checkpoint, load_weights
from fastmammo.training.evaluation import cancer_logits, open_batches
from fastmammo.training.models import build_model
from fastmammo.training.one_fold import micro_batch, scores_of_logits
from fastmammo.training.run_folder import pixel_settings, read_config
from fastmammo.training.settings import Settings
from fastmammo.training.subsets import make_subset
from fastmammo.training.two_stage import METADATA, score_two_stage

if TYPE_CHECKING:
    import os

    import pandas as pd
    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from fastmammo.training.images import Images


@dataclass(frozen=True, eq=False)
class Run:
    """A trained run: its settings, and the folds that have weights."""

    path: Path
    config: dict[str, Any]
    settings: Settings
    folds: tuple[int, ...]

    @property
    def pixels(self) -> dict[str, Any]:
        """The pre-processing's settings that its images were made with."""
        return pixel_settings(self.config["source"])

    @property
    def precision(self) -> str:
        """What the training was computed in: "32-true", "bf16-mixed" or "16-mixed"."""
        return str(self.config.get("precision", "32-true"))

    @property
    def micro_batch(self) -> int:
        """How many positions each process of the training took at once."""
        return micro_batch(self.settings, int(self.config.get("ranks", 1)))

    def checkpoint(self, fold: int) -> Path:
        """Return the file with the weights of a fold that count."""
        return self.path / f"fold{fold}" / f"{self.settings.loop.scored_weights}.pt"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Read what a run folder holds.

    Raises:
        CheckpointError: it is no run folder, was written by a later version, or no fold of it has
            been trained.
    """
    folder = Path(path)
    config = read_config(folder)
    try:
        settings = Settings.from_dict(config["settings"])
    except ConfigError as error:
        raise CheckpointError(
            f"{folder} was trained by fastmammo {config.get('fastmammo')}: {error}"
        ) from error
    if settings.loop.head == "metadata":
        if not (folder / METADATA).exists():
            raise CheckpointError(f"{folder}: the run has not ended: there is no {METADATA}")
        return Run(folder, config, settings, (0,))  # one model, whatever the folds
    name = f"{settings.loop.scored_weights}.pt"
    # a fold's scores are written when its training has ended
    found = sorted(
        int(each.parent.name.removeprefix("fold"))
        for each in folder.glob(f"fold*/{name}")
        if (each.parent / "oof.csv").exists()
    )
    if not found:
        raise CheckpointError(
            f"{folder}: no fold has been trained to its end: there is no fold*/{name} with an "
            "oof.csv. Go on with the run by resume"
        )
    return Run(folder, config, settings, tuple(found))


def check_images(run: Run, images: Images) -> None:
    """Refuse images that were made otherwise than those of the training.

    Raises:
        CheckpointError: names each setting that differs.
    """
    found = differences(pixel_settings(images.settings), run.pixels)
    if found:
        raise CheckpointError(
            f"{run.path} was trained on images made with other settings: {'; '.join(found)} "
            "(there: the training; here: these images). Convert them with the training's settings"
        )


def scores_of(
    run: Run,
    fold: int,
    fabric: Fabric,
    images: Images,
    table: pd.DataFrame,
    *,
    flip: bool,
    batch_size: int | None = None,
) -> NDArray[np.float64]:
    """Return the scores of one fold's model for all rows of `images.kept`: float64, in [0, 1].

    Args:
        fabric: computes in the run's precision, see `Run.precision`.
        flip: the mean of the scores of each image and of its mirror image.
        batch_size: images (multi-view: breasts) at once; None: as many as in the training, which
            is what the memory is known to hold.

    Raises:
        CheckpointError: the weights are not of that model.
    """
    settings = run.settings
    if settings.loop.head == "metadata":
        size = batch_size or run.micro_batch
        return score_two_stage(run.path, fabric, images, table, settings, size, flip=flip)
    path = run.checkpoint(fold)
    state = load_checkpoint(path)
    # the weights come from the checkpoint: nothing is to be downloaded for them
    config = replace(settings.model, pretrained=False, weights="")
    module = build_model(config, image_size=images.size)
    load_weights(path, module, state["weights"])
    module = module.to(fabric.device)
    subset = make_subset(table, images.kept, multi_view=module.multi_view)
    size = batch_size or run.micro_batch
    batches = open_batches(fabric, images, subset.rows, size, units=subset.units)
    total = np.zeros(len(subset))
    for mirrored in (False, True) if flip else (False,):
        logits = cancer_logits(fabric, module, batches, len(subset), flip=mirrored)
        total += scores_of_logits(logits, float(state["prior_offset"]), settings.loop)
    by_row = np.zeros(len(table))
    by_row[subset.rows] = subset.by_row(total / (2 if flip else 1))
    return by_row[images.kept]
