"""Takes a table and its images, gives some images of each group: machines, views, densities."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from fastmammo.errors import FastMammoError
from fastmammo.preprocess import Config
from fastmammo.report.gallery import Case
from fastmammo.training.join import join

COUNTED = {
    "cancer": "Cancer",
    "site_id": "Site",
    "machine_id": "Machine",
    "view": "View",
    "laterality": "Laterality",
    "age": "Age",
    "density": "Density",
    "implant": "Implant",
    "BIRADS": "BI-RADS",
    "biopsy": "Biopsy",
    "invasive": "Invasive",
    "difficult_negative_case": "Difficult negative case",
}
"""Columns of a table that are counted, and their titles."""

_EXAMPLES = ("cancer", "view", "density", "machine_id", "implant")
_GROUPS = 8
_FLAG = {"0": "no", "1": "yes"}


def texts_of(rows: pd.DataFrame, name: str) -> pd.Series[str]:
    """Return a column as what it is counted by: whole numbers, ages by tens, "" where unknown."""
    column = rows[name]
    if not pd.api.types.is_numeric_dtype(column):
        return column.astype(str)
    whole = [None if value != value else int(value) for value in column]
    if name == "age":
        texts = ["" if v is None else f"{v // 10 * 10}–{v // 10 * 10 + 9}" for v in whole]
    else:
        texts = ["" if v is None else str(v) for v in whole]
    return pd.Series(texts, column.index, dtype=object)


def draw_examples(
    rows: pd.DataFrame,
    source: str | os.PathLike[str],
    count: int,
    seed: int,
    config: Config | None,
    said: list[str],
) -> list[tuple[str, list[Case]]]:
    """Return some images of each value of the columns that change how an image looks."""
    if not count:
        return []
    # torch stays out where there are no images to show
    from fastmammo.training.images import ImagesConfig, open_images
    from fastmammo.training.sources import open_source

    config = config or _small(source)
    try:
        files, _ = join(rows, open_source(os.path.abspath(source), config).candidates)
    except (FastMammoError, OSError) as error:
        said.append(f"No examples: {error}")
        return []
    there = files >= 0
    if not there.all():
        said.append(
            f"{int((~there).sum())} of the table's {len(rows)} rows have no image in {source}"
            if there.any()
            else f"No examples: none of the table's {len(rows)} rows has an image in {source}: "
            "this table does not belong to that folder"
        )
    rows = rows[there]
    random = np.random.default_rng(seed)
    groups: list[tuple[str, pd.DataFrame]] = []
    for name in _EXAMPLES:
        texts = texts_of(rows, name)
        for value in [v for v in texts.value_counts().index if v][:_GROUPS]:
            part = rows[(texts == value).to_numpy()]
            chosen = np.sort(random.permutation(len(part))[:count])
            word = _FLAG.get(value, value) if name in ("cancer", "implant") else value
            groups.append((f"{COUNTED[name]}: {word}", part.iloc[chosen]))
    if not groups:
        return []
    wanted = pd.concat([part for _, part in groups])
    wanted = wanted[~wanted.index.duplicated()]
    try:
        images = open_images(
            source,
            wanted.reset_index(drop=True),
            ImagesConfig(storage="ram", missing="drop"),
            config=config,
        )
    except (FastMammoError, OSError) as error:
        said.append(f"No examples: {error}")
        return []
    with images:
        missing = len(wanted) - len(images.kept)
        if missing:
            said.append(f"{missing} of {len(wanted)} examples cannot be read: not shown")
        pixels = images.fetch(images.kept)[:, 0].cpu()
        shift = 0 if images.bits == 8 else 8
        shown = (pixels >> shift).numpy().astype(np.uint8)
        place = {wanted.index[at]: index for index, at in enumerate(images.kept)}
    return [
        (
            title,
            [
                Case({str(k): v for k, v in row.items()}, shown[place[at]])
                for at, row in part.iterrows()
                if at in place
            ],
        )
        for title, part in groups
    ]


def _small(source: str | os.PathLike[str]) -> Config | None:
    """Return settings for examples of DICOMs; None for converted images, which are as they are."""
    if (Path(source) / "manifest.csv").is_file():
        return None
    return Config(size=(256, 192))
