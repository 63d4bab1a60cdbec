"""Takes image features and gives the auxiliary outputs; takes a table and gives their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fastmammo.training.model_config import AUXILIARY, DENSITIES, VIEWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

AGE_CENTRE, AGE_SCALE = 60.0, 15.0  # years: the age head's target is near 0, within about ±2


class Heads(nn.Module):
    """One linear layer for each thing that is told."""

    def __init__(self, features: int, auxiliary: Sequence[str], views: Sequence[str]) -> None:
        super().__init__()
        self.cancer = nn.Linear(features, 1)
        nn.init.zeros_(self.cancer.bias)
        outputs = {name: AUXILIARY[name].outputs for name in auxiliary}
        if "view" in outputs:
            outputs["view"] = len(views)
        self.auxiliary = nn.ModuleDict(
            {name: nn.Linear(features, count) for name, count in outputs.items()}
        )

    def forward(self, features: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Give the outputs: auxiliary of each image's features, cancer of the (pooled) ones.

        Args:
            features: float32 (n, F), of the images.
            pooled: float32 (B, F), of the breasts; the same as `features` without multi-view.

        Returns:
            "cancer" (B,); binary and number heads (n,), heads with classes (n, classes).
        """
        found = {"cancer": self.cancer(pooled).squeeze(1)}
        for name, layer in self.auxiliary.items():
            out = layer(features)
            found[name] = out if AUXILIARY[name].kind == "classes" else out.squeeze(1)
        return found


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    if column not in table.columns:
        return np.full(len(table), np.nan)
    return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _classes(table: pd.DataFrame, column: str, names: Sequence[str]) -> np.ndarray:
    if column not in table.columns:
        return np.full(len(table), np.nan)
    index = {name: float(place) for place, name in enumerate(names)}
    return np.array([index.get(str(each), np.nan) for each in table[column]], dtype=np.float64)


def targets_of(table: pd.DataFrame, views: Sequence[str] = VIEWS) -> dict[str, Tensor]:
    """Give the targets of all heads, row by row; NaN where the table knows none.

    Args:
        table: as `read_table` gives it; columns that are absent have no targets.
        views: those that the view head tells apart, in the order of its outputs.

    Returns:
        float32 (N,) under "cancer", "view" (index into `views`), "biopsy", "invasive", "BIRADS"
        (0, 1, 2: what a screening reading gives; others have none), "density" (0 to 3 for A to D)
        and "age" (years, shifted and scaled to about ±2).
    """
    birads = _numbers(table, "BIRADS")
    found = {
        "cancer": _numbers(table, "cancer"),
        "view": _classes(table, "view", views),
        "biopsy": _numbers(table, "biopsy"),
        "invasive": _numbers(table, "invasive"),
        "BIRADS": np.where(np.isin(birads, (0.0, 1.0, 2.0)), birads, np.nan),
        "density": _classes(table, "density", DENSITIES),
        "age": (_numbers(table, "age") - AGE_CENTRE) / AGE_SCALE,
    }
    return {name: torch.from_numpy(each.astype(np.float32)) for name, each in found.items()}
