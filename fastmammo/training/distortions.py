"""Takes images and what was drawn for each, gives them distorted, on the device they are on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmammo.training.clahe import clahe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Stage = Callable[[Tensor, "_Numbers", NDArray[np.int64]], Tensor]


def apply(images: Tensor, draws: dict[str, NDArray[Any]]) -> None:
    """Change the images in place, stage by stage; a stage that nobody drew costs nothing."""
    still = ~draws["affine_share"]
    stages: list[tuple[NDArray[np.bool_], Stage]] = [
        (draws["flip_horizontal"] & still, lambda part, _, __: part.flip(-1)),
        (draws["flip_vertical"] & still, lambda part, _, __: part.flip(-2)),
        *((draws[share], stage) for share, stage in STAGES.items()),
    ]
    chosen = [np.flatnonzero(mask) for mask, _ in stages]
    columns = _columns(draws, images.shape[-2], images.shape[-1])
    # all in one copy, of which the GPU's queue need not run empty; places are whole as float32
    parts = [*columns.values(), *(each.astype(np.float64) for each in chosen)]
    packed = _sent(np.concatenate(parts).astype(np.float32), images.device)
    ends = np.cumsum([len(each) for each in parts]).tolist()
    sent = [packed[end - len(each) : end] for each, end in zip(parts, ends, strict=True)]
    numbers = dict(zip(columns, sent, strict=False))
    for (_, stage), own, places in zip(stages, chosen, sent[len(columns) :], strict=True):
        seeds = draws["noise_seed"][own]
        if len(own) == len(images):
            images.copy_(stage(images, _Numbers(numbers), seeds))
        elif len(own):
            index = places.long()
            images[index] = stage(images[index], _Numbers(numbers, index), seeds)


def _sent(values: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return the values on the device; a GPU takes them while the host goes on."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class _Numbers:
    """The numbers of the images of one stage, by name: (n, 1, 1, 1) float32 on their device."""

    def __init__(self, columns: Mapping[str, Tensor], index: Tensor | None = None) -> None:
        self._columns, self._index = columns, index

    def __getitem__(self, name: str) -> Tensor:
        column = self._columns[name]
        chosen = column if self._index is None else column[self._index]
        return chosen.view(-1, 1, 1, 1)


def _columns(
    draws: dict[str, NDArray[Any]], rows: int, columns: int
) -> dict[str, NDArray[np.float64]]:
    """Return what the stages compute with, (n,) by name, of the draws and the images' size."""
    d = draws
    # the functions of `math` one by one: NumPy's may round otherwise in another place of an array
    cos, sin = (np.array([f(math.radians(a)) for a in d["rotation"]]) for f in (math.cos, math.sin))
    lean = np.array([math.tan(math.radians(a)) for a in d["shear"]])
    size = d["left"] / d["zoom"]
    mirror_x = np.where(d["flip_horizontal"], -size, size)
    mirror_y = np.where(d["flip_vertical"], -size, size)
    found = {
        # from the output's pixels to the input's, both from the centre, as shares of half a side
        "xx": cos * mirror_x,
        "xy": (cos * lean - sin) * mirror_y * (rows / columns),
        "x0": 2 * d["x"],
        "yx": sin * mirror_x * (columns / rows),
        "yy": (sin * lean + cos) * mirror_y,
        "y0": 2 * d["y"],
        "clahe_limit": d["clahe_limit"],
        "gamma": np.array([math.exp(each) for each in d["gamma"]]),
        "contrast": d["contrast"],
        "brightness": d["brightness"],
        "noise": d["noise"],
    }
    for length, side, centre in ((rows, "cut_rows", "cut_y"), (columns, "cut_columns", "cut_x")):
        middle, half = d[centre] * length, d[side] * length / 2
        found[f"{side}_low"], found[f"{side}_high"] = (
            np.floor(middle - half),
            np.ceil(middle + half),
        )
    return found


def _air(images: Tensor) -> Tensor:
    """Return the darkest value of each image, (n, 1, 1, 1)."""
    return images.amin(dim=(-2, -1), keepdim=True)


def _affine(images: Tensor, numbers: _Numbers, _: NDArray[np.int64]) -> Tensor:
    """Resample once, bilinear, for flips, rotation, zoom, shear, shift and crop; outside is air."""
    rows, columns = images.shape[-2:]
    device, n = images.device, numbers
    y = ((torch.arange(rows, device=device) * 2 + 1) / rows - 1).view(1, -1, 1, 1)
    x = ((torch.arange(columns, device=device) * 2 + 1) / columns - 1).view(1, 1, -1, 1)
    # not affine_grid: its matrix product may take other kernels (TF32) for another batch
    grid = torch.empty((len(images), rows, columns, 2), device=device)
    torch.add(n["xx"] * x, n["xy"] * y + n["x0"], out=grid[..., 0:1])
    torch.add(n["yx"] * x, n["yy"] * y + n["y0"], out=grid[..., 1:2])
    air = _air(images)
    found = F.grid_sample(
        images - air, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return found.add_(air).clamp_(0, 1)


def _cut_out(images: Tensor, numbers: _Numbers, _: NDArray[np.int64]) -> Tensor:
    spans = []
    for length, side in ((images.shape[-2], "cut_rows"), (images.shape[-1], "cut_columns")):
        place = torch.arange(length, device=images.device)
        spans.append((place >= numbers[f"{side}_low"]) & (place < numbers[f"{side}_high"]))
    return torch.where(spans[0].transpose(-1, -2) & spans[1], _air(images), images)


def _clahe(images: Tensor, numbers: _Numbers, _: NDArray[np.int64]) -> Tensor:
    return clahe(images, numbers["clahe_limit"].view(-1))


def _tone(images: Tensor, numbers: _Numbers, _: NDArray[np.int64]) -> Tensor:
    found = images.pow(numbers["gamma"]).mul_(numbers["contrast"])
    return found.add_(numbers["brightness"]).clamp_(0, 1)


def _noise(images: Tensor, numbers: _Numbers, seeds: NDArray[np.int64]) -> Tensor:
    generator = torch.Generator(images.device)
    noise = torch.empty_like(images)
    for page, seed in zip(noise, seeds.tolist(), strict=True):
        page.normal_(generator=generator.manual_seed(seed))
    return noise.mul_(numbers["noise"]).add_(images).clamp_(0, 1)


STAGES = {
    "affine_share": _affine,
    "cut_out_share": _cut_out,
    "clahe_share": _clahe,
    "tone_share": _tone,
    "noise_share": _noise,
}
"""What each stage does, in order: (images, their numbers, their noise's seeds) → images."""
