"""Takes a table and finished images, gives a trained model, its out-of-fold scores, its metrics.

    table ─► folds ─► sampler ─┐
                               ├─► batches ─► model ─► loop ─► scores ─► metrics
    images (convert, DICOM) ───┘   augmented                   oof.csv

Needs the extra `train` (torch, timm, pandas, scikit-learn). Names load on first use::

    from fastmammo.training import LoopConfig, ModelConfig, Settings, train

    result = train("train.csv", "images", "run", Settings(loop=LoopConfig(epochs=5)))
    result.metrics["breast"]["auc"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmammo.training.augment import Augmentation, AugmentConfig
    from fastmammo.training.batches import Batches
    from fastmammo.training.explanation import grad_cam
    from fastmammo.training.folds import assign_folds, check_split, hold_out
    from fastmammo.training.images import ImagesConfig, open_images
    from fastmammo.training.losses import Loss
    from fastmammo.training.metrics import best_threshold, by_breast, evaluate, pf1
    from fastmammo.training.models import ModelConfig, build_model
    from fastmammo.training.prediction import predict
    from fastmammo.training.prior import correct_prior
    from fastmammo.training.run import RunResult, train
    from fastmammo.training.sampler import BalancedBatches, PlainBatches, SamplingConfig
    from fastmammo.training.settings import LoopConfig, Settings
    from fastmammo.training.table import TableOptions, read_table, split_table

_HOMES = {
    "AugmentConfig": "augment_config",
    "Augmentation": "augment",
    "BalancedBatches": "sampler",
    "Batches": "batches",
    "ImagesConfig": "images_config",
    "LoopConfig": "settings",
    "Loss": "losses",
    "ModelConfig": "model_config",
    "PlainBatches": "sampler",
    "RunResult": "run",
    "SamplingConfig": "sampler",
    "Settings": "settings",
    "TableOptions": "table",
    "assign_folds": "folds",
    "best_threshold": "metrics",
    "build_model": "models",
    "by_breast": "metrics",
    "check_split": "folds",
    "correct_prior": "prior",
    "evaluate": "metrics",
    "grad_cam": "explanation",
    "hold_out": "folds",
    "open_images": "images",
    "pf1": "metrics",
    "predict": "prediction",
    "read_table": "table",
    "split_table": "table",
    "train": "run",
}

__all__ = [
    "AugmentConfig",
    "Augmentation",
    "BalancedBatches",
    "Batches",
    "ImagesConfig",
    "LoopConfig",
    "Loss",
    "ModelConfig",
    "PlainBatches",
    "RunResult",
    "SamplingConfig",
    "Settings",
    "TableOptions",
    "assign_folds",
    "best_threshold",
    "build_model",
    "by_breast",
    "check_split",
    "correct_prior",
    "evaluate",
    "grad_cam",
    "hold_out",
    "open_images",
    "pf1",
    "predict",
    "read_table",
    "split_table",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmammo.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastmammo.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
