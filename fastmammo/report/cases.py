"""Takes a run's scores, gives the images to look at: worst and best, with heat maps and boxes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

from fastmammo.conversion.lesions import COLUMN_SETS
from fastmammo.conversion.lesions import NAME as BOXES
from fastmammo.errors import FastMammoError
from fastmammo.preprocess.geometry import EDGES
from fastmammo.report.html import Markup, element, escape, png
from fastmammo.training.checkpoints import load_checkpoint, load_weights
from fastmammo.training.explanation import grad_cam
from fastmammo.training.images import ImagesConfig, open_images
from fastmammo.training.models import build_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fastmammo.training.members import Run
    from fastmammo.training.models import Model

_HEIGHT = 380
"""Of a picture, in pixels: two stand beside each other in a column of a page."""
_ROI, _LESION = (86, 180, 233), (120, 220, 80)
_OPAQUE = 0.6

Edges = tuple[float, float, float, float]


@dataclass
class Case:
    """One image that is shown.

    image: uint8 (rows, columns), as the model saw it.
    heat: float32 (rows, columns) in [0, 1], or None where there is no heat map.
    roi: the part of the image that holds the breast's crop; the rest is padding.
    lesions: boxes of boxes.csv, on the image.
    """

    row: Mapping[str, Any]
    image: NDArray[np.uint8]
    heat: NDArray[np.float32] | None = None
    roi: Edges | None = None
    lesions: list[Edges] = field(default_factory=list)


def choose(oof: pd.DataFrame, count: int) -> dict[str, pd.DataFrame]:
    """Choose the images to look at, of each breast its most telling one.

    Args:
        oof: a row an image: image_id, patient_id, prediction_id, cancer, score.

    Returns:
        "false alarms" (negatives of the highest scores), "misses" (positives of the lowest), "hits"
        (positives of the highest): rows of oof, the most striking first.
    """
    positive, negative = oof[oof["cancer"] == 1], oof[oof["cancer"] == 0]

    def first(rows: pd.DataFrame, *, ascending: bool) -> pd.DataFrame:
        # a breast that is missed is so in its best view: that is the image that tells why
        each = rows.sort_values("score", ascending=False, kind="stable")
        each = each.drop_duplicates("prediction_id")
        each = each.sort_values("score", ascending=ascending, kind="stable")
        chosen: pd.DataFrame = each.iloc[:count]
        return chosen

    return {
        "false alarms": first(negative, ascending=False),
        "misses": first(positive, ascending=True),
        "hits": first(positive, ascending=False),
    }


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
    rows = rows.iloc[images.kept].reset_index(drop=True)
    heat = _heat_maps(run, rows, pixels, notes)
    rois, lesions = _boxes(source, rows, notes)
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
    source: Path, rows: pd.DataFrame, notes: list[str]
) -> tuple[dict[int, Edges], dict[int, list[Edges]]]:
    """Return by row where the crop lies in the image, and the lesions' boxes, where known."""
    rois: dict[int, Edges] = {}
    lesions: dict[int, list[Edges]] = {}
    try:
        manifest = pd.read_csv(source / "manifest.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return rois, lesions  # DICOMs themselves: no manifest
    by_output: dict[tuple[str, str], int] = {}
    ids = {(p, i): at for at, (p, i) in enumerate(zip(rows["patient_id"], rows["image_id"]))}  # noqa: B905
    for row in manifest.to_dict("records"):
        at = ids.get((row.get("patient_id"), row.get("image_id")))
        if at is None or row.get("status") != "ok":
            continue
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
                at = by_output.get((row.get("output", ""), row.get("output_row", "")))
                edges = _edges(row, [by_lower[name] for name in columns])
                if at is not None and edges is not None:
                    lesions.setdefault(at, []).append(edges)
            return rois, lesions
    notes.append(f"{source / BOXES} has no columns of mapped boxes: lesions are not drawn")
    return rois, lesions


def _edges(row: Mapping[Any, Any], names: Sequence[str]) -> Edges | None:
    try:
        row0, column0, row1, column1 = (float(row[name]) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
    return row0, column0, row1, column1


def gallery(cases: Sequence[Case]) -> Markup:
    """Return the cases as figures: the image as it is, beside it heat map and lesions."""
    return element("div", *(_figure(case) for case in cases), class_="cases")


def single_gallery(cases: Sequence[Case]) -> Markup:
    """Return images without scores: one picture each, with what the table knows of it."""
    figures = []
    for case in cases:
        row = case.row
        truth = {1: "cancer", 0: "no cancer"}.get(row["cancer"], "unlabelled")
        name = f"{row['patient_id']} {row['laterality']} {row['view']}".strip()
        picture = element("div", png(_drawn(case, plain=True, height=190), name), class_="pictures")
        where = f"machine {row['machine_id']}" if row["machine_id"] else ""
        caption = element(
            "figcaption", name, Markup("<br>"), element("span", f"{truth} {where}".strip())
        )
        figures.append(element("figure", picture, caption, class_="case"))
    return element("div", *figures, class_="cases single")


def _figure(case: Case) -> Markup:
    row = case.row
    name = f"{row['patient_id']} {row.get('laterality', '')} {row.get('view', '')}".strip()
    pictures = [png(_drawn(case, plain=True), f"image {row['image_id']}")]
    if case.heat is not None or case.lesions:
        what = "heat map" if case.heat is not None else "lesions"
        pictures.append(png(_drawn(case, plain=False), f"{what} of image {row['image_id']}"))
    where = [
        f"{title} {row[key]}"
        for key, title in (("site_id", "site"), ("machine_id", "machine"), ("fold", "fold"))
        if str(row.get(key, "")) not in ("", "nan")
    ]
    truth = "cancer" if row["cancer"] == 1 else "no cancer"
    caption = element(
        "figcaption",
        element("b", f"score {row['score']:.3f}"),
        f" · {truth} · {name}",
        Markup("<br>"),
        element("span", f"image {row['image_id']} · {' · '.join(where)}"),
    )
    return element("figure", element("div", *pictures, class_="pictures"), caption, class_="case")


def _drawn(case: Case, *, plain: bool, height: int = _HEIGHT) -> Image.Image:
    """Return the picture: plain with the ROI alone, so that the eye can search by itself first."""
    rows, columns = case.image.shape
    height = min(height, max(rows, 160))
    scale = height / rows
    size = max(1, round(columns * scale)), height
    grey = Image.fromarray(case.image).resize(size, Image.Resampling.LANCZOS)
    if plain and case.roi is None:
        return grey
    picture = grey.convert("RGB")
    if not plain and case.heat is not None:
        strength = Image.fromarray(case.heat).resize(size, Image.Resampling.BILINEAR)
        share = np.asarray(strength, np.float32).clip(0, 1)
        colours = matplotlib.colormaps["inferno"](share)[..., :3].astype(np.float32) * 255
        cover = (_OPAQUE * share)[..., None]
        base = np.asarray(picture, np.float32)
        picture = Image.fromarray((base * (1 - cover) + colours * cover).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    if plain and case.roi is not None:
        draw.rectangle(_corners(case.roi, scale), outline=_ROI, width=1)
    for edges in [] if plain else case.lesions:
        draw.rectangle(_corners(edges, scale, grow=3), outline=_LESION, width=2)
    return picture


def _corners(edges: Edges, scale: float, grow: float = 0.0) -> tuple[float, float, float, float]:
    row0, column0, row1, column1 = (edge * scale for edge in edges)
    x0, y0 = max(0.0, column0 - grow), max(0.0, row0 - grow)
    return x0, y0, max(x0, column1 - 1 + grow), max(y0, row1 - 1 + grow)


def legend(cases: Mapping[str, Sequence[Case]]) -> Markup:
    """Return what the colours in the pictures mean."""
    every = [case for group in cases.values() for case in group]
    parts: list[object] = ["Left the image as the model saw it"]
    if any(case.heat is not None for case in every):
        parts.append(
            ", right with a heat map (Grad-CAM) of what spoke for cancer, each on a scale of its "
            "own: it tells where, not how much, and a map of a low score is mostly noise"
        )
    parts.append(". ")
    for there, colour, words in (
        (any(case.roi is not None for case in every), _ROI, "the crop around the breast (ROI)"),
        (any(case.lesions for case in every), _LESION, "lesion of the table of boxes"),
    ):
        if there:
            key = f'<span class="key" style="background:rgb{colour}"></span>'
            parts += [Markup(key), words]
    return Markup("".join(escape(part) for part in parts))
