"""Takes a run's scores, gives the images to look at: worst and best, with heat maps and boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fastmammo.conversion.lesions import COLUMN_SETS
from fastmammo.conversion.lesions import NAME as BOXES
from fastmammo.errors import FastMammoError
from fastmammo.preprocess.geometry import EDGES
from fastmammo.report.gallery import Case
from fastmammo.training.checkpoints import load_checkpoint, load_weights
from fastmammo.training.explanation import grad_cam
from fastmammo.training.images import ImagesConfig, open_images
from fastmammo.training.metrics import by_breast
from fastmammo.training.models import build_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fastmammo.report.gallery import Edges
    from fastmammo.training.members import Run
    from fastmammo.training.metrics import Reduce
    from fastmammo.training.models import Model


def choose(
    oof: pd.DataFrame, count: int, threshold: float | None = None, reduce: Reduce = "mean"
) -> dict[str, pd.DataFrame]:
    """Choose the breasts to look at, by their scores, and of each its most telling image.

    A breast is shown once at most.

    Args:
        oof: a row an image: image_id, patient_id, prediction_id, cancer, score.
        count: breasts of each kind, at most.
        threshold: breasts from this score on were called positive; None: none is known.
        reduce: of `by_breast`.

    Returns:
        The most striking first: "false alarms" (negatives from the threshold on), or where there
        are none "highest negatives"; "misses" (positives below it), or where there are none
        "lowest positives", at most half of all; "hits" (the other positives from it on). Rows of
        oof, with breast_score and called (bool, None without a threshold); none is empty.
    """
    scores = by_breast(oof, reduce).set_index("prediction_id")["score"]
    # a breast that is missed is so in its best view: that is the image that tells why
    each = oof.sort_values("score", ascending=False, kind="stable")
    each = each.drop_duplicates("prediction_id")
    each = each.assign(breast_score=each["prediction_id"].map(scores))
    each = each.sort_values("breast_score", ascending=False, kind="stable")
    limit = np.inf if threshold is None else threshold
    called = each["breast_score"] >= limit
    each["called"] = None if threshold is None else called.astype(object)
    positive, negative = each["cancer"] == 1, each["cancer"] == 0
    found: dict[str, pd.DataFrame] = {}
    alarms = each[negative & called]
    found["false alarms" if len(alarms) else "highest negatives"] = (
        alarms if len(alarms) else each[negative]
    )
    missed, caught = each[positive & ~called][::-1], each[positive & called]
    if threshold is None:
        missed, caught = missed[:0], each[positive]
    if len(missed):
        found["misses"] = missed
    else:
        lowest = min(count, len(caught) // 2)
        found["lowest positives"] = caught[len(caught) - lowest :][::-1]
        caught = caught[: len(caught) - lowest]
    found["hits" if threshold is not None else "highest positives"] = caught
    return {name: rows.iloc[:count] for name, rows in found.items() if len(rows)}


def load_cases(
    run: Run, table: pd.DataFrame, chosen: Mapping[str, pd.DataFrame], notes: list[str]
) -> dict[str, list[Case]]:
    """Load the chosen images, and make their heat maps by the models that had not seen them.

    Args:
        run: the trained run.
        table: the run's table.csv, for the join of images.
        chosen: of `choose`.
        notes: what cannot be shown is put here.

    Returns:
        By the names of `chosen`; images that cannot be had are left out.
    """
    wanted = pd.concat(chosen.values()).drop_duplicates(["patient_id", "image_id"])
    if run.settings.model.multiview != "none":  # a breast's heat maps need all of its images
        wanted = table[table["prediction_id"].isin(set(wanted["prediction_id"]))]
    keys = ["patient_id", "image_id"]
    rows = wanted[keys].merge(table, on=keys, how="left").reset_index(drop=True)
    source = Path(run.config["source"]["path"])
    try:
        images = open_images(
            source,
            rows,
            ImagesConfig(storage="ram", missing="drop"),
            config=run.settings.preprocess,
        )
    except (FastMammoError, OSError) as error:
        notes.append(f"Images are not shown: {error}")
        return {}
    with images:
        missing = len(rows) - len(images.kept)
        if missing:
            notes.append(f"{missing} images of the chosen ones cannot be read: not shown")
        pixels = images.fetch(images.kept).float() / (255 if images.bits == 8 else 65535)
        files = images.files[images.kept]
        crops = {at: images.placed(int(row)) for at, row in enumerate(images.kept)}
    rows = rows.iloc[images.kept].reset_index(drop=True)
    heat = _heat_maps(run, rows, pixels, notes)
    rois, lesions = _boxes(source, files, notes)
    rois |= {at: crop for at, crop in crops.items() if crop is not None}
    place = {key: index for index, key in enumerate(zip(*(rows[k] for k in keys), strict=True))}
    shown = (pixels[:, 0] * 255).round().to(torch.uint8).numpy()
    found: dict[str, list[Case]] = {}
    for name, frame in chosen.items():
        found[name] = []
        rows_of: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
        for row in rows_of:
            at = place.get((row["patient_id"], row["image_id"]))
            if at is not None:
                case = Case(row, shown[at], heat.get(at), rois.get(at), lesions.get(at, []))
                found[name].append(case)
    return found


def _heat_maps(
    run: Run, rows: pd.DataFrame, pixels: torch.Tensor, notes: list[str]
) -> dict[int, NDArray[np.float32]]:
    """Return Grad-CAM maps by row, each of the fold that the row was held out of."""
    if run.settings.loop.head == "metadata":
        notes.append("No heat maps: the scores are a logistic regression's on frozen features")
        return {}
    found: dict[int, NDArray[np.float32]] = {}
    for fold in sorted(set(rows["fold"].astype(int))):
        part = rows[rows["fold"] == fold]
        try:
            model = load_model(run, fold, (pixels.shape[2], pixels.shape[3]))
        except (FastMammoError, OSError) as error:
            notes.append(f"No heat maps of fold {fold}: {error}")
            continue
        for _, breast in part.groupby("prediction_id"):  # few images at once: little memory
            at = breast.index.to_numpy().copy()
            groups = torch.zeros(len(at), dtype=torch.int64) if model.multi_view else None
            maps = grad_cam(model, pixels[at], groups).numpy()
            found |= dict(zip(at.tolist(), maps, strict=True))
    return found


def load_model(run: Run, fold: int, image_size: tuple[int, int]) -> Model:
    """Return the model of a fold as it scored, on the CPU, in eval mode.

    Raises:
        CheckpointError: there are no weights of that fold, or of another model.
    """
    path = run.checkpoint(fold)
    state = load_checkpoint(path)
    # the weights come from the checkpoint: nothing is to be downloaded for them
    config = replace(run.settings.model, pretrained=False, weights="")
    model = build_model(config, image_size=image_size)
    load_weights(path, model, state["weights"])
    return model.eval()


def _boxes(
    source: Path, files: NDArray[np.int64], notes: list[str]
) -> tuple[dict[int, Edges], dict[int, list[Edges]]]:
    """Return by row where the crop lies in the image, and the lesions' boxes, where known.

    Args:
        files: (n,) each row's file, `Images.files`: the row of manifest.csv that gave its image.
    """
    rois: dict[int, Edges] = {}
    lesions: dict[int, list[Edges]] = {}
    try:
        manifest = pd.read_csv(source / "manifest.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        notes.append(
            "Lesions are not drawn: the images come from DICOM files, and boxes are mapped onto "
            "images by `fastmammo convert` alone"
        )
        return rois, lesions
    by_output: dict[tuple[str, str], int] = {}
    for at, row in enumerate(manifest.iloc[files].to_dict("records")):
        by_output[row["output"], row["row"]] = at
        edges = _edges(row, [f"placed_{edge}" for edge in EDGES])
        if edges is not None:
            rois[at] = edges
    try:
        table = pd.read_csv(source / BOXES, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return rois, lesions
    for names in COLUMN_SETS:
        columns = [f"{name}_output" for name in names]
        by_lower = {str(name).lower(): str(name) for name in table.columns}
        if all(name in by_lower for name in columns):
            for row in table.to_dict("records"):
                shown = by_output.get((row.get("output", ""), row.get("output_row", "")))
                edges = _edges(row, [by_lower[name] for name in columns])
                if shown is not None and edges is not None:
                    lesions.setdefault(shown, []).append(edges)
            return rois, lesions
    notes.append(f"{source / BOXES} has no columns of mapped boxes: lesions are not drawn")
    return rois, lesions


def _edges(row: Mapping[Any, Any], names: Sequence[str]) -> Edges | None:
    try:
        row0, column0, row1, column1 = (float(row[name]) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
    return row0, column0, row1, column1
