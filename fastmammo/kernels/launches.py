"""Takes addresses and shapes, gives launches: grids, arguments and tables, without a device.

Whoever runs a launch (`gpu` with CuPy, the tests on a CPU) adds nothing to it, so that what the
tests see is what a GPU gets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastmammo.kernels.batch import BatchImage

SOURCES = {
    "resample": ("resample_batch",),
    "low_pass": ("low_pass",),
    "values": ("clip", "extremes"),
}
"""The .cu files, without their suffix, and the kernels in each."""

TILE_ROWS, TILE_COLUMNS = 16, 64
"""Output pixels that a block of resample.cu makes at a time."""
THREADS = 256
SHARED_ENTRIES = 8192
"""Tables up to this length (16 KB) are copied into shared memory, longer ones read through L1.

With resample.cu's own 23 KB a block then stays below the 48 KB that every device gives. Tables are
trimmed first, so that only 14 and 16 bits with hardly a saturated value are longer."""

MARCH = 8
"""At most so many tiles share one copy of the table."""

KINDS = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "int32": 4}
OUTPUTS = {"uint8": 0, "uint16": 1, "float16": 2, "bfloat16": 3, "float32": 4}

_POINTERS = (
    "table",
    "row_starts",
    "row_counts",
    "row_weights",
    "column_starts",
    "column_counts",
    "column_weights",
    "row_ranges",
    "column_ranges",
)
JOB = np.dtype(
    [("pixels", np.uint64)]
    + [(name, np.uint64) for name in _POINTERS]
    + [("pitch", np.uint32)]
    + [
        (name, np.int32)
        for name in (
            *("rows", "columns", "kind", "first", "entries", "in_shared"),
            *("top", "left", "height", "width", "row_reach", "mirror", "black"),
        )
    ],
    align=True,
)
"""One image as resample.cu reads it (struct Job)."""

_FIELDS = tuple(JOB.names or ())

OPTIONS = (
    "--std=c++17",
    "--fmad=false",  # float32 products and sums are rounded each by itself, as on the CPU
    f"-DTILE_ROWS={TILE_ROWS}",
    f"-DTILE_COLUMNS={TILE_COLUMNS}",
    f"-DTHREADS={THREADS}",
    "-DSPAN=160",
    "-DSTAGED_ROWS=40",
    "-DMIN_BLOCKS=4",
    f"-DJOB_BYTES={JOB.itemsize}",
)
"""What every .cu file is compiled with."""


class Surface(NamedTuple):
    """Integers in device memory, row by row."""

    pointer: int
    pitch: int
    """Bytes from one row to the next."""
    rows: int
    columns: int
    dtype: str


class Launch(NamedTuple):
    """One kernel launch."""

    source: str
    """The .cu file, without its suffix."""
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[np.generic, ...]
    """Pointers are uint64."""
    shared: int = 0
    """Bytes of dynamic shared memory."""


def low_pass(source: Surface, out: int) -> Launch:
    """Return the launch of `low_pass` into the contiguous int32 array at `out`."""
    half_rows, half_columns = -(-source.rows // 2), -(-source.columns // 2)
    grid = -(-half_columns // 126), min(-(-half_rows // 8), 65535), 1
    arguments = (
        np.uint64(source.pointer),
        np.int64(source.pitch),
        np.int32(source.rows),
        np.int32(source.columns),
        np.int32(KINDS[source.dtype]),
        np.uint64(out),
    )
    return Launch("low_pass", "low_pass", grid, (256, 1, 1), arguments)


def clip(
    source: Surface, first: int, last: int, slack: int, out: int, dtype: str, far: int
) -> Launch:
    """Return the launch of `clip` into the contiguous array at `out`, adding to int64 `far`."""
    arguments = (
        *_values(source),
        np.int32(first),
        np.int32(last),
        np.int64(slack),
        np.uint64(out),
        np.int32(KINDS[dtype]),
        np.uint64(far),
    )
    return Launch("values", "clip", _values_grid(source), (256, 1, 1), arguments)


def extremes(source: Surface, found: int) -> Launch:
    """Return the launch of `extremes` into int32 (2,), which holds the type's ends before."""
    arguments = (*_values(source), np.uint64(found))
    return Launch("values", "extremes", _values_grid(source), (256, 1, 1), arguments)


def _values(source: Surface) -> tuple[np.generic, ...]:
    return (
        np.uint64(source.pointer),
        np.int64(source.pitch),
        np.int32(source.rows),
        np.int64(source.columns),
        np.int32(KINDS[source.dtype]),
    )


def _values_grid(source: Surface) -> tuple[int, int, int]:
    rows = min(source.rows, 65535)
    return min(-(-source.columns // 1024), max(1, 4096 // rows)), rows, 1


@dataclass
class BatchPlan:
    """The tables of a batch: what resample.cu reads beside the pixels."""

    jobs: NDArray[np.void]
    """JOB (N,); the fields of `_POINTERS` are indices into `arrays`."""
    arrays: list[NDArray[Any]] = field(default_factory=list)
    shared: int = 0
    _known: dict[tuple[int, str], int] = field(default_factory=dict)

    def jobs_at(self, offsets: Sequence[int]) -> NDArray[np.void]:
        """Return the jobs with the offsets of the arrays put in."""
        table = np.array(offsets, np.uint64)
        placed: NDArray[np.void] = self.jobs.copy()
        for name in _POINTERS:
            placed[name] = table[self.jobs[name].astype(np.intp)]
        return placed

    def blob(self) -> tuple[NDArray[np.uint8], int]:
        """Return arrays and jobs in one piece for one transfer, and the jobs' offset in it."""
        offsets, end = [], 0
        for array in self.arrays:
            offsets.append(end)
            end += -(-array.nbytes // 16) * 16  # tables are read 16 bytes at a time
        made = np.zeros(end + self.jobs.nbytes, np.uint8)
        for array, offset in zip(self.arrays, offsets, strict=True):
            made[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        made[end:] = self.jobs_at(offsets).view(np.uint8)
        return made, end

    def _add(self, array: NDArray[Any], *, transposed: bool = False) -> int:
        """Keep an array once, however many images share it (weights are cached by their maker)."""
        key = id(array), "transposed" if transposed else ""
        if key not in self._known:
            self._known[key] = self._new(array.T if transposed else array)
        return self._known[key]

    def _new(self, array: NDArray[Any]) -> int:
        self.arrays.append(np.ascontiguousarray(array))
        return len(self.arrays) - 1


def plan(
    images: Sequence[BatchImage], sources: Sequence[Surface], height: int, width: int
) -> BatchPlan:
    """Return the tables of a batch of images that have been checked.

    Raises:
        ConfigError: more images or larger ones than a launch can address.
    """
    if len(images) > 65535:
        raise ConfigError(f"images: got {len(images)} in one batch, wanted at most 65535")
    made = BatchPlan(np.zeros(len(images), JOB))
    for number, (image, source) in enumerate(zip(images, sources, strict=True)):
        size = source.pitch * source.rows
        if size >= 1 << 31:  # the kernel counts bytes in 32 bits, some past the end too
            raise ConfigError(f"image {number}: {size} bytes, wanted less than 2^31")
        facts = _described(made, image, source, height, width)
        made.jobs[number] = tuple(facts[name] for name in _FIELDS)
    return made


def _described(
    made: BatchPlan, image: BatchImage, source: Surface, height: int, width: int
) -> dict[str, int]:
    """Return the fields of a job, its arrays added to the plan."""
    first, table = trimmed(image.first, image.table)
    entries = table.size
    padded = np.zeros(-(-entries // 8) * 8, np.uint16)
    padded[:entries] = table
    if entries <= SHARED_ENTRIES:
        made.shared = max(made.shared, padded.nbytes)
    row_starts, row_counts, row_weights = image.row_taps
    column_starts, column_counts, column_weights = image.column_taps
    rows = ranges(row_starts, row_starts + row_counts, image.top, TILE_ROWS, height)
    order = slice(None, None, -1) if image.mirror else slice(None)
    ends = (column_starts + column_counts)[order]
    columns = ranges(column_starts[order], ends, image.left, TILE_COLUMNS, width)
    return {
        "pixels": source.pointer,
        "table": made._new(padded),
        "row_starts": made._add(row_starts),
        "row_counts": made._add(row_counts),
        "row_weights": made._add(row_weights),
        "column_starts": made._add(column_starts),
        "column_counts": made._add(column_counts),
        "column_weights": made._add(column_weights, transposed=True),
        "row_ranges": made._new(rows),
        "column_ranges": made._new(columns),
        "pitch": source.pitch,
        "rows": source.rows,
        "columns": source.columns,
        "kind": KINDS[source.dtype],
        "first": first,
        "entries": entries,
        "in_shared": entries <= SHARED_ENTRIES,
        "top": image.top,
        "left": image.left,
        "height": len(row_starts),
        "width": len(column_starts),
        "row_reach": row_weights.shape[1],
        "mirror": image.mirror,
        "black": image.black,
    }


def trimmed(first: int, table: NDArray[np.uint16]) -> tuple[int, NDArray[np.uint16]]:
    """Return the table without repetitions of its two ends, which clamping gives anyway."""
    steps = np.flatnonzero(table[1:] != table[:-1])
    if steps.size == 0:
        return first, table[:1]
    return first + int(steps[0]), table[steps[0] : steps[-1] + 2]


def ranges(
    starts: NDArray[np.int32], ends: NDArray[np.int32], place: int, tile: int, length: int
) -> NDArray[np.int32]:
    """Return the source samples that each tile along one axis of the output needs.

    Args:
        starts, ends: for each pixel of the image, in the output's order.
        place: the output position of the first one.
        tile: output pixels a tile.
        length: output pixels.

    Returns:
        int32 (tiles, 2): the first sample and the one past the last; 0, 0 for padding alone.
    """
    tiles = -(-length // tile)
    found = np.zeros((tiles, 2), np.int32)
    edges = np.clip(np.arange(tiles + 1) * tile - place, 0, len(starts))
    used = edges[1:] > edges[:-1]
    found[used, 0] = np.minimum.reduceat(starts, edges[:-1][used])
    found[used, 1] = np.maximum.reduceat(ends, edges[:-1][used])
    return found


def resample_batch(
    made: BatchPlan,
    base: int,
    jobs: int,
    out: Surface,
    image_stride: int,
    *,
    bits: int,
    scale: float = 1.0,
    offset: float = 0.0,
    multiprocessors: int = 132,
) -> Launch:
    """Return the launch of `resample_batch`.

    Args:
        made: the plan.
        base: the address that the jobs' offsets count from.
        jobs: the address of the jobs.
        out: one image of the output; its dtype is one of OUTPUTS.
        image_stride: elements from one output image to the next.
        bits, scale, offset: see `batch.resample_batch`.
        multiprocessors: of the device; about 20 blocks each are kept before tiles share a block.
    """
    across, down = -(-out.columns // TILE_COLUMNS), -(-out.rows // TILE_ROWS)
    count = len(made.jobs)
    march = min(max(across * down * count // (20 * multiprocessors), 1), MARCH)
    march = max(march, -(-down // 65535))
    itemsize = 2 if out.dtype == "bfloat16" else np.dtype(out.dtype).itemsize
    arguments = (
        np.uint64(jobs),
        np.uint64(base),
        np.uint64(out.pointer),
        np.int64(image_stride),
        np.int64(out.pitch // itemsize),
        np.int32(out.rows),
        np.int32(out.columns),
        np.int32(march),
        np.int32(OUTPUTS[out.dtype]),
        np.int32(bits == 8),
        np.float32(scale),
        np.float32(offset),
    )
    grid = across, -(-down // march), count
    return Launch("resample", "resample_batch", grid, (THREADS, 1, 1), arguments, made.shared)
