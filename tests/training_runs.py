"""A small set of images and its table, and settings that train on it in a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fastmammo.preprocess import Config
from fastmammo.training.augment import AugmentConfig
from fastmammo.training.images import ImagesConfig
from fastmammo.training.models import ModelConfig
from fastmammo.training.sampler import SamplingConfig
from fastmammo.training.settings import LoopConfig, Settings
from fastmammo.training.table import TableOptions, read_table

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (32, 16)
torch.set_num_threads(1)  # so small a step is slower on several, by far where they are busy
VIEWS = ("CC", "MLO")


def write_converted(folder: Path, images: np.ndarray, table: pd.DataFrame, **config: Any) -> None:
    """Write images (N, H, W) as `convert --format packed` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    made = Config(size=images.shape[1:], bits=images.dtype.itemsize * 8, **config)
    settings = {"format": "packed", "config": made.to_dict(), "digest": made.digest(), "src": "x"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    manifest = table[["patient_id", "image_id", "laterality"]].assign(
        view_position=table["view"],
        path=table["patient_id"] + "/" + table["image_id"] + ".dcm",
        listed="",
        status="ok",
        reason="",
        output="images.npy",
        row=range(len(table)),
    )
    manifest.to_csv(folder / "manifest.csv", index=False)


def make_rows(patients: int, positive: int) -> pd.DataFrame:
    """Rows as in RSNA's train.csv: two views of both breasts; in the first patients L is cancer."""
    rows = [
        {
            "site_id": 1 + patient % 2,
            "patient_id": f"{patient:03}",
            "image_id": f"{patient:03}{side}{view}",
            "laterality": side,
            "view": view,
            "age": 50.0 + patient % 7,
            "cancer": int(patient < positive and side == "L"),
            "implant": 0,
            "density": "ABCD"[patient % 4],
            "machine_id": 20 + patient % 2,
        }
        for patient in range(patients)
        for side in "LR"
        for view in VIEWS
    ]
    return pd.DataFrame(rows)


def make_set(folder: Path, patients: int = 12, positive: int = 6, seed: int = 0) -> Path:
    """Write folder/table.csv and folder/images: noise, with a bright spot where there is cancer."""
    random = np.random.default_rng(seed)
    rows = make_rows(patients, positive)
    images = random.normal(90, 12, (len(rows), *SIZE)).clip(0, 255).astype(np.uint8)
    for image, cancer in zip(images, rows["cancer"], strict=True):
        if cancer:
            top, left = random.integers(2, SIZE[0] - 8), random.integers(2, SIZE[1] - 8)
            image[top : top + 6, left : left + 6] = 220
    write_converted(folder / "images", images, rows)
    rows.to_csv(folder / "table.csv", index=False)
    return folder


def small(**changes: Any) -> Settings:
    """Settings for such a set; a change goes to whichever part has a field of that name."""
    values: dict[str, Any] = {
        **{"exclude": "none", "folds": 2, "batch_size": 8, "positive_share": 0.5},
        **{"storage": "ram", "augment": "light", "model": "small_cnn", "pretrained": False},
        **{"dropout": 0.2, "epochs": 2, "lr": 3e-3, "ema": 0.9, "device": "cpu"},
        **changes,
    }
    parts: dict[str, Any] = {}
    for name, kind in (
        ("table", TableOptions),
        ("sampling", SamplingConfig),
        ("images", ImagesConfig),
        ("augment", AugmentConfig),
        ("model", ModelConfig),
        ("loop", LoopConfig),
    ):
        own = {key: values.pop(key) for key in list(values) if key in kind.__dataclass_fields__}
        parts[name] = kind(**own)
    assert not values, values
    return Settings(**parts)


def table_of(folder: Path) -> pd.DataFrame:
    """The set's table, as `read_table` gives it."""
    return read_table(folder / "table.csv", TableOptions(exclude="none"))


def frozen_norms(**changes: Any) -> Settings:
    """Settings under which an image's gradient does not depend on the batch around it."""
    fixed = {"freeze_norms": True, "dropout": 0.0, "augment": "none", "lr": 1e-3}
    return small(**{**fixed, **changes})
