"""Takes image features and a table, gives scores of a classifier on both: the two-stage model.

The first stage is a network whose weights stay as they are, the second a logistic regression on its
features and what the table knows of the patient. It is fitted inside the folds: the scaling, the
principal components and the weights see no image of the patients whose scores they give.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fastmammo.errors import CheckpointError, ConfigError, TableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

SITE_WARNING = (
    "metadata betrays the site: in the RSNA 2022 set only site 1 tells density and implants, and "
    "the sites' shares of cancers differ. A model that reads such columns scores hospitals, and "
    "does worse in one that it has not seen: judge it per site, and by an unseen site"
)
"""What a user of the metadata model is told each time."""

_VERSION = 1
_COMPONENTS = 32
_VIEWS = ("CC", "MLO", "AT", "LM", "ML", "LMO")
_DENSITIES = ("A", "B", "C", "D")
_REGULARISATION = 0.1
"""scikit-learn's C: few positives, some 40 columns."""

COLUMNS = (
    "age",
    "age missing",
    *(f"view {view}" for view in _VIEWS),
    "left",
    "implant",
    "implant missing",
    *(f"density {density}" for density in _DENSITIES),
)
"""What the table gives, in this order; nothing that is derived from the label."""


@dataclass(frozen=True)
class MetadataModel:
    """A fitted second stage: plain numbers, so that it is kept as JSON and no pickle is loaded.

    score = sigmoid(intercept + Σ coefficients · values), values being the principal components of
    the standardised features, then the standardised columns.
    """

    feature_mean: NDArray[np.float64]
    """(F,); F may be 0: metadata alone."""
    feature_scale: NDArray[np.float64]
    """(F,)"""
    components: NDArray[np.float64]
    """(K, F)"""
    column_mean: NDArray[np.float64]
    """(C,), C = len(COLUMNS), or 0: the image alone."""
    column_scale: NDArray[np.float64]
    """(C,)"""
    coefficients: NDArray[np.float64]
    """(K + C,)"""
    intercept: float
    age: float
    """Median of the ages that were known, in years: stands in for a missing one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user must be told: that columns of the table betray the site."""
        return (SITE_WARNING,) if len(self.column_mean) else ()

    def scores(self, features: NDArray[Any], table: pd.DataFrame) -> NDArray[np.float64]:
        """Return the probability of cancer of each row, float64 (N,).

        Args:
            features: (N, F) of the table's rows.
            table: (N rows) as `read_table` gives it.

        Raises:
            TableError: features of another shape.
        """
        wanted = (len(table), len(self.feature_mean))
        if features.shape != wanted:
            raise TableError(
                f"metadata model: got features {features.shape}, wanted {wanted}: those of the "
                "network it was fitted with, a row for each of the table's"
            )
        parts = [
            ((features - self.feature_mean) / self.feature_scale) @ self.components.T,
        ]
        if len(self.column_mean):
            parts.append((columns_of(table, self.age) - self.column_mean) / self.column_scale)
        logits = np.hstack(parts) @ self.coefficients + self.intercept
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))

    def to_json(self) -> str:
        """Return the model as JSON: every float64 is kept exactly."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }
        return json.dumps({"version": _VERSION, "columns": COLUMNS, **values})

    @classmethod
    def from_json(cls, text: str) -> MetadataModel:
        """Return the model that `to_json` wrote.

        Raises:
            CheckpointError: no such JSON, or of another version.
        """
        try:
            values = json.loads(text)
            version, columns = values.pop("version"), values.pop("columns")
            if version != _VERSION or columns != list(COLUMNS):
                raise CheckpointError(
                    f"metadata model: version {version} with {len(columns)} columns; this "
                    f"fastmammo reads version {_VERSION} with {len(COLUMNS)}: train it again"
                )
            arrays = {
                name: np.asarray(value, np.float64) if isinstance(value, list) else float(value)
                for name, value in values.items()
            }
            # JSON has no (0, F) and no (K, 0)
            shape = (-1, len(values["feature_mean"])) if values["feature_mean"] else (0, 0)
            arrays["components"] = np.reshape(arrays["components"], shape)
            return cls(**arrays)  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"metadata model: not the JSON that to_json writes ({error}): train it again"
            ) from error


def fit_metadata(
    features: NDArray[Any] | None,
    table: pd.DataFrame,
    fold: NDArray[np.int64],
    *,
    folds: Sequence[int] | None = None,
    use_table: bool = True,
    seed: int = 0,
) -> tuple[NDArray[np.float64], MetadataModel]:
    """Fit the second stage inside the folds; return out-of-fold scores and the model of all rows.

    Args:
        features: (N, F) of the frozen network. Those of a row must come from a network that has not
            seen its patient, or what is fitted on them is fitted on memories. None: metadata alone.
        table: (N rows) as `read_table` gives it, cancer known.
        fold: (N,), -1 for rows that are fitted on in every fold and never scored (NaN).
        folds: those to score; None: all. Rows of the others are fitted on, and have NaN.
        use_table: whether age, view, laterality, implant and density count; False: image alone.
        seed: of the principal components.

    Returns:
        Scores (N,), and the model fitted on all rows, for images to come.

    Raises:
        TableError: shapes that differ, a fold whose other folds hold one class only.
        ConfigError: neither features nor table.
    """
    if features is None and not use_table:
        raise ConfigError("fit_metadata: got neither features nor use_table; wanted one at least")
    values = np.zeros((len(table), 0)) if features is None else np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) != len(table) or len(fold) != len(table):
        raise TableError(
            f"fit_metadata: features {values.shape}, {len(fold)} folds and {len(table)} rows; "
            "wanted (N, F), N and N"
        )
    scores = np.full(len(table), np.nan)
    for one in np.unique(fold[fold >= 0]) if folds is None else folds:
        out = fold == one
        model = _fit(values[~out], table[~out], use_table, seed, f"fold {one}")
        scores[out] = model.scores(values[out], table[out])
    return scores, _fit(values, table, use_table, seed, "all folds")


def unknown(table: pd.DataFrame) -> list[str]:
    """Say which columns that the model takes are unknown: "age, implant unknown for 3 of 9"."""
    blank = {
        "age": table["age"].isna(),
        "view": ~table["view"].isin(_VIEWS),
        "laterality": table["laterality"] == "",
        "implant": table["implant"].isna(),
        "density": ~table["density"].isin(_DENSITIES),
    }
    counts: dict[int, list[str]] = {}
    for name, each in blank.items():
        counts.setdefault(int(each.sum()), []).append(name)
    return [
        f"{', '.join(names)} unknown for {count} of {len(table)} images"
        for count, names in counts.items()
        if count
    ]


def columns_of(table: pd.DataFrame, age: float) -> NDArray[np.float64]:
    """Return COLUMNS of each row as numbers, float64 (N, C)."""
    ages, implant = (table[name].to_numpy(np.float64) for name in ("age", "implant"))
    parts = [
        np.where(np.isnan(ages), age, ages),
        np.isnan(ages),
        *(table["view"] == view for view in _VIEWS),
        table["laterality"] == "L",
        np.nan_to_num(implant),
        np.isnan(implant),
        *(table["density"] == density for density in _DENSITIES),
    ]
    return np.stack([np.asarray(part, np.float64) for part in parts], axis=1)


def _fit(
    features: NDArray[np.float64], table: pd.DataFrame, use_table: bool, seed: int, what: str
) -> MetadataModel:
    labels = table["cancer"].to_numpy(np.float64)
    if len(np.unique(labels)) != 2:
        raise TableError(
            f"fit_metadata, {what}: the rows to fit have labels {np.unique(labels).tolist()}; "
            "wanted 0 and 1, both"
        )
    ages = table["age"].to_numpy(np.float64)
    age = float(np.nanmedian(ages)) if not np.isnan(ages).all() else 0.0
    feature_scaler, column_scaler = StandardScaler(), StandardScaler()
    count = features.shape[1]
    components = np.zeros((0, count))
    parts = []
    if count:
        scaled = feature_scaler.fit_transform(features)
        pca = PCA(min(_COMPONENTS, *scaled.shape), random_state=seed).fit(scaled)
        # whitened: the penalty of the regression is then equal for all
        spread = np.sqrt(pca.explained_variance_) + 1e-9
        components = pca.components_ / spread[:, None]
        parts.append(scaled @ components.T)
    if use_table:
        parts.append(column_scaler.fit_transform(columns_of(table, age)))
    fitted = LogisticRegression(C=_REGULARISATION, max_iter=2000).fit(np.hstack(parts), labels)
    empty = np.zeros(0)
    return MetadataModel(
        feature_mean=feature_scaler.mean_ if count else empty,
        feature_scale=feature_scaler.scale_ if count else empty,
        components=components,
        column_mean=column_scaler.mean_ if use_table else empty,
        column_scale=column_scaler.scale_ if use_table else empty,
        coefficients=fitted.coef_[0],
        intercept=float(fitted.intercept_[0]),
        age=age,
    )
