"""Where an output pixel came from: crop, flip, scale and padding, forward and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

EDGES = ("row0", "column0", "row1", "column1")
"""The edges of a box, in its order; a record has a column for each of them."""


@dataclass(frozen=True)
class Geometry:
    """The way from a DICOM frame's pixels to an output image's pixels.

    Coordinates are continuous, in pixels, with the origin at the outer corner of the first pixel:
    pixel (i, j) covers [i, i + 1) x [j, j + 1). Boxes are (row0, column0, row1, column1),
    half-open.
    """

    rows: int
    columns: int
    """The frame's size."""
    box: tuple[float, float, float, float]
    """The part of the frame that was kept: whole pixels, unless a spacing in mm was asked for."""
    size: tuple[int, int]
    """(rows, columns) of the output image."""
    placed: tuple[int, int, int, int]
    """Where the kept part lies in the output image; the rest is padding."""
    mirrored: bool
    """Whether columns run the other way."""
    level: int
    """The wavelet level that was decoded: 1/2^level of the full resolution."""
    spacing_mm: tuple[float, float] | None = None
    """(row, column) spacing of the frame's pixels in mm, where the header tells it."""

    def __post_init__(self) -> None:
        r0, c0, r1, c1 = self.box
        if not (0 <= r0 < r1 <= self.rows and 0 <= c0 < c1 <= self.columns):
            raise ValueError(f"{self.box = } lies outside {self.rows} x {self.columns}")
        r0, c0, r1, c1 = self.placed
        if not (0 <= r0 < r1 <= self.size[0] and 0 <= c0 < c1 <= self.size[1]):
            raise ValueError(f"{self.placed = } lies outside {self.size}")

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels for one pixel of the frame, along (rows, columns)."""
        return (
            (self.placed[2] - self.placed[0]) / (self.box[2] - self.box[0]),
            (self.placed[3] - self.placed[1]) / (self.box[3] - self.box[1]),
        )

    @property
    def output_spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) spacing of the output's pixels in mm, where the header tells it."""
        if self.spacing_mm is None:
            return None
        return self.spacing_mm[0] / self.scale[0], self.spacing_mm[1] / self.scale[1]

    def to_output(self, boxes: ArrayLike, *, clip: bool = False) -> NDArray[np.float64]:
        """Map boxes (..., 4) from the frame's pixels to the output's.

        Args:
            boxes: (..., 4) row0, column0, row1, column1, of lesions for instance.
            clip: cut them to the part of the output that holds the image.

        Returns:
            float64 (..., 4). A box outside the crop lies outside `placed`; clipped, it is empty.
        """
        mapped = self._map(boxes, self.box, self.placed, self.scale)
        if clip:
            r0, c0, r1, c1 = self.placed
            mapped = mapped.clip((r0, c0, r0, c0), (r1, c1, r1, c1))
        return mapped

    def to_source(self, boxes: ArrayLike, *, clip: bool = False) -> NDArray[np.float64]:
        """Map boxes (..., 4) from the output's pixels back to the frame's.

        Args:
            boxes: (..., 4) row0, column0, row1, column1, as a detector gives them.
            clip: cut them to the frame.

        Returns:
            float64 (..., 4) in the DICOM frame's pixels.
        """
        inverse = 1.0 / self.scale[0], 1.0 / self.scale[1]
        mapped = self._map(boxes, self.placed, self.box, inverse)
        if clip:
            limit = (self.rows, self.columns, self.rows, self.columns)
            mapped = mapped.clip(0, limit)
        return mapped

    def to_mm(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """Map boxes (..., 4) from the output's pixels to mm from the frame's upper left corner.

        Raises:
            ValueError: the header gives no spacing.
        """
        if self.spacing_mm is None:
            raise ValueError(
                "no spacing: the header has neither Pixel Spacing (0028,0030) nor Imager Pixel "
                "Spacing (0018,1164)"
            )
        row, column = self.spacing_mm
        found: NDArray[np.float64] = self.to_source(boxes) * (row, column, row, column)
        return found

    def _map(
        self,
        boxes: ArrayLike,
        origin: tuple[float, float, float, float],
        target: tuple[float, float, float, float],
        scale: tuple[float, float],
    ) -> NDArray[np.float64]:
        array = np.asarray(boxes, np.float64)
        if array.shape[-1:] != (4,):
            raise ValueError(
                f"boxes: got shape {array.shape}, wanted (..., 4): row0, column0, row1, column1"
            )
        r = (array[..., 0::2] - origin[0]) * scale[0] + target[0]
        if self.mirrored:
            c = (origin[3] - array[..., 3::-2]) * scale[1] + target[1]
        else:
            c = (array[..., 1::2] - origin[1]) * scale[1] + target[1]
        return np.stack((r[..., 0], c[..., 0], r[..., 1], c[..., 1]), axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the geometry as JSON-able values; `Geometry(**values)` restores it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], size: tuple[int, int]) -> Geometry:
        """Return the geometry of a row of manifest.csv, or of `Prepared.record`.

        Args:
            record: the row's values by column; numbers may be text.
            size: (rows, columns) of the output image, `Config.size`.
        """

        def edges(name: str, kind: Callable[[Any], Any]) -> Any:
            return tuple(kind(record[f"{name}_{each}"]) for each in EDGES)

        placed = edges("placed", int)
        box = edges("box", _number)
        spacing: tuple[float, float] | None = None
        if record["row_spacing_mm"] != "":
            shares = (
                (placed[2] - placed[0]) / (box[2] - box[0]),
                (placed[3] - placed[1]) / (box[3] - box[1]),
            )
            spacing = (
                float(record["row_spacing_mm"]) * shares[0],
                float(record["column_spacing_mm"]) * shares[1],
            )
        return cls(
            rows=int(record["rows"]),
            columns=int(record["columns"]),
            box=box,
            size=size,
            placed=placed,
            mirrored=bool(int(record["mirrored"])),
            level=int(record["level"]),
            spacing_mm=spacing,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """Return the geometry that `to_dict` (or its JSON) describes."""
        made = dict(values)
        for name in ("box", "size", "placed", "spacing_mm"):
            if made.get(name) is not None:
                made[name] = tuple(made[name])
        return cls(**made)


def _number(value: Any) -> float:
    """Return an edge as it was: a whole one as an int."""
    number = float(value)
    return int(number) if number.is_integer() else number
