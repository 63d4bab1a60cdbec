"""Takes a batch of images, gives them with the contrast of each neighbourhood equalised (CLAHE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LEVELS = 256


def clahe(images: torch.Tensor, limits: torch.Tensor, *, tiles: int = 8) -> torch.Tensor:
    """Equalise the histogram of each tile, its slope limited, interpolated between the tiles.

    Contrast limited adaptive histogram equalisation (Zuiderveld 1994, "Contrast limited adaptive
    histogram equalization", Graphics Gems IV), step by step as OpenCV's `createCLAHE` does it on
    8 bits; the result of the interpolation is not rounded. All sums are of integers, so that an
    image's result does not depend on the batch.

    Args:
        images: (n, 1, H, W) float32 in [0, 1]; taken as 256 levels.
        limits: (n,) float32, above 0: the clip limit, in multiples of a flat histogram's count.
        tiles: along each axis.

    Returns:
        (n, 1, H, W) float32 in [0, 1].
    """
    count, _, rows, columns = images.shape
    levels = (images[:, 0] * (LEVELS - 1)).round_().clamp_(0, LEVELS - 1).to(torch.int64)
    tables = _tables(levels, limits, tiles).view(-1)
    rows_of, row_weight = _neighbours(rows, tiles, images.device)
    columns_of, column_weight = _neighbours(columns, tiles, images.device)
    # of each image, the first entry of its tables
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (tiles * tiles * LEVELS)
    levels += first
    sides = []
    for row in rows_of:
        left, right = (
            torch.take(tables, levels + (row.view(-1, 1) * tiles + column) * LEVELS)
            for column in columns_of
        )
        sides.append(left.add_((right - left).mul_(column_weight)))
    top, bottom = sides
    mixed = top.add_((bottom - top).mul_(row_weight.view(-1, 1)))
    return mixed.div_(LEVELS - 1).unsqueeze(1)


def _tables(levels: torch.Tensor, limits: torch.Tensor, tiles: int) -> torch.Tensor:
    """Return the new level of each level, in each tile of each image: (n, tiles², 256) float32."""
    count, rows, columns = levels.shape
    below, beside = -rows % tiles, -columns % tiles
    if below or beside:
        # the mirrored border of OpenCV; torch pads no integers
        padded = F.pad(levels.to(torch.float32), (0, beside, 0, below), mode="reflect")
        levels = padded.to(torch.int64)
    high, wide = levels.shape[1] // tiles, levels.shape[2] // tiles
    area = high * wide
    pixels = levels.view(count, tiles, high, tiles, wide).transpose(2, 3).reshape(-1, area)
    tile = torch.arange(len(pixels), device=levels.device).view(-1, 1) * LEVELS
    histogram = torch.bincount((pixels + tile).view(-1), minlength=len(pixels) * LEVELS)
    histogram = histogram.view(count, tiles * tiles, LEVELS)
    limit = (limits.to(torch.float64) * area / LEVELS).to(torch.int64).clamp_(min=1).view(-1, 1, 1)
    clipped = histogram.clamp(max=limit)
    excess = (histogram - clipped).sum(-1, keepdim=True)
    share, rest = excess // LEVELS, excess % LEVELS
    # what cannot be shared evenly goes to every `step`-th level, as long as it lasts
    step = (LEVELS // rest.clamp(min=1)).clamp_(min=1)
    level = torch.arange(LEVELS, device=levels.device)
    extra = (level % step == 0) & (level // step < rest)
    summed = (clipped + share + extra).cumsum(-1)
    scaled = summed.to(torch.float32) * ((LEVELS - 1) / area)
    return scaled.round_().clamp_(0, LEVELS - 1)


def _neighbours(
    length: int, tiles: int, device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return for each pixel along an axis the tiles before and behind, and the weight of those."""
    size = -(-length // tiles)
    place = torch.arange(length, device=device, dtype=torch.float32) / size - 0.5
    before = place.floor()
    weight = place - before
    index = before.to(torch.int64)
    return (index.clamp(0, tiles - 1), (index + 1).clamp_(0, tiles - 1)), weight
