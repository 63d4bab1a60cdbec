"""Takes rows of a table, gives what a model takes at once: images, or all those of a breast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of a table, and the positions that a sampler counts: images or breasts.

    rows: int64 (n,), rows of the table; with `units` in their order.
    units: the rows of each breast, for a multi-view model; None where each image is by itself.
    labels: float64, one a position: 0 or 1, NaN where unlabelled.
    """

    rows: NDArray[np.int64]
    units: tuple[NDArray[np.int64], ...] | None
    labels: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def by_row(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give each of `rows` its position's value: (positions,) → (n,)."""
        if self.units is None:
            return values
        return np.repeat(values, [len(unit) for unit in self.units])

    def take(self, positions: NDArray[np.int64]) -> Subset:
        """Return the subset of some of its positions."""
        if self.units is None:
            return Subset(self.rows[positions], None, self.labels[positions])
        units = tuple(self.units[each] for each in positions)
        return Subset(np.concatenate(units), units, self.labels[positions])


def make_subset(table: pd.DataFrame, rows: NDArray[np.int64], *, multi_view: bool) -> Subset:
    """Return rows of a table as a subset; with `multi_view` by breast (prediction_id).

    A breast is positive if one of its images is.
    """
    labels = table["cancer"].to_numpy(np.float64)
    if not multi_view:
        return Subset(rows, None, labels[rows])
    breasts = table["prediction_id"].iloc[rows].to_numpy()
    found: dict[str, list[int]] = {}
    for breast, row in zip(breasts, rows, strict=True):
        found.setdefault(str(breast), []).append(int(row))
    units = tuple(np.array(each, np.int64) for each in found.values())
    largest = np.array([labels[unit].max() for unit in units])
    return Subset(np.concatenate(units), units, largest)
