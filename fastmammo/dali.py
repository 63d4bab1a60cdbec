"""For those whose loaders are DALI: takes DICOM files, gives finished images inside a pipeline.

    from nvidia.dali import fn, pipeline_def
    import fastmammo, fastmammo.dali

    prepare = fastmammo.Preprocessor(size=(1024, 512), flip="left")

    @pipeline_def(batch_size=16, num_threads=4, device_id=0)
    def training():
        images, label = fastmammo.dali.mammograms(paths, labels, preprocessor=prepare, shuffle=True)
        images = fn.rotate(images.gpu(), angle=fn.random.uniform(range=(-10, 10)), fill_value=0)
        images = fn.crop_mirror_normalize(images, mean=[0], std=[255], output_layout="CHW")
        return images, label.gpu()

`pipeline` is the same with nothing added, for `DALIGenericIterator([...], ["images", "labels"],
auto_reset=True)`. 16-bit images: DALI's warps and its PyTorch iterator take no uint16, so fn.cast
to floats first, in a pipeline of your own.

The images are `Preprocessor`'s own, bit for bit: it prepares the next batches in threads of its own
while DALI and the model are at work.

Decoding is the Preprocessor's too. DALI's decoder within the graph would always decode every pixel,
where the Preprocessor decodes the level that the output needs; a single file that it cannot decode
would end the pipeline; and it stretches the values. Who wants DALI to decode sets backend="dali".

Not yet seen on a GPU: pipelines were run on a CPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.errors import BackendUnavailableError, ConfigError
from fastmammo.kernels import INSTALL
from fastmammo.preprocess import Failure, Preprocessor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from fastmammo.dicom import Source
    from fastmammo.preprocess import Batch

    Item = tuple[int, Any]
    """The position of a source, and its image (1, H, W)."""


class Batches:
    """Finished images and their labels, batch by batch; each pass over it is an epoch.

    What `mammograms` feeds DALI with. It is an iterable of its own, needs no DALI, and gives
    (images, labels): (N, H, W, 1) of the Preprocessor's dtype, NumPy's, or CuPy's for one on a GPU;
    and (N, ...) of the labels' type. Every batch but the last has `batch_size` images.

    Args:
        preprocessor: makes the images. With on_error="collect" a file that fails is left out, the
            next moves up, and `failures` tells; with "raise" it ends the epoch with its error.
        sources: paths, bytes or file objects. Paths, if there is more than one epoch.
        labels: a number, or an array of them, for each source; by default its position in
            `sources`, with which anything else can be looked up.
        batch_size: images in a batch.
        shuffle: another order in each epoch, the same for the same seed.
        seed: of the order.
        shard, shards: of the order, every `shards`-th source from `shard` on: one shard a GPU. The
            shards share out the sources; their lengths differ by one at most.
        drop_last: leave out the last batch where it is not full.
        look_ahead: batches that are prepared ahead.
        layout: "HWC", which DALI's operators on images want, or "CHW" for (N, 1, H, W).
        device_id: the GPU of a Preprocessor on a GPU; None for the one that is current where the
            first epoch begins. `mammograms` gives the pipeline's.

    Raises:
        ConfigError: a setting is not allowed.
        BackendUnavailableError: the Preprocessor is on a GPU, and CuPy or the GPU is not there.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        sources: Sequence[Source],
        labels: ArrayLike | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        shard: int = 0,
        shards: int = 1,
        drop_last: bool = False,
        look_ahead: int = 2,
        layout: str = "HWC",
        device_id: int | None = None,
    ) -> None:
        self.sources = list(sources)
        self.labels = np.asarray(np.arange(len(self.sources)) if labels is None else labels)
        if not self.sources:
            raise ConfigError("sources: got none, wanted at least one DICOM file")
        if self.labels.ndim < 1 or len(self.labels) != len(self.sources):
            raise ConfigError(
                f"labels: got shape {self.labels.shape} for {len(self.sources)} sources, wanted "
                "one row a source"
            )
        if self.labels.dtype.kind not in "biuf":
            raise ConfigError(
                f"labels: got {self.labels.dtype}, wanted numbers; leave labels out to get each "
                "image's position in sources, and look the rest up by it"
            )
        for name, value, low in (("batch_size", batch_size, 1), ("look_ahead", look_ahead, 1)):
            if value < low:
                raise ConfigError(f"{name}: got {value}, wanted {low} or more")
        if not 0 <= shard < shards:
            raise ConfigError(f"shard, shards: got {shard} of {shards}, wanted 0 <= shard < shards")
        if layout not in ("HWC", "CHW"):
            raise ConfigError(f"layout: got {layout!r}, allowed are HWC, CHW")
        if preprocessor.output.dtype == "bfloat16":
            raise ConfigError("dtype: got 'bfloat16', which DALI lacks; wanted float16 or float32")
        self.preprocessor = preprocessor
        self.layout = layout
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.shard = shard
        self.shards = shards
        self.drop_last = drop_last
        self.look_ahead = look_ahead
        self.device_id = device_id
        self.epoch = 0
        """The epoch that the next pass is."""
        self.failures: list[Failure] = []
        """Sources that were left out, of all epochs; `index` is the position in `sources`."""
        # one for all epochs: on a GPU it holds decode states, threads and pinned memory
        output, on_cpu = preprocessor.output, self.device == "cpu"
        self._prepares = Preprocessor(
            preprocessor.config,
            # on a CPU a source a task, or a batch would wait for its slowest; else whole batches
            workers=1 if on_cpu else preprocessor.workers,
            on_error="collect",
            dtype=output.dtype,
            normalisation=(output.scale, output.offset),
            tensors="cupy",
            memory_budget_mb=output.budget_bytes and output.budget_bytes >> 20,
        )

    @property
    def device(self) -> str:
        """Where the images are: DALI's name of it, "cpu" or "gpu"."""
        return "cpu" if self.preprocessor.config.device == "cpu" else "gpu"

    def __len__(self) -> int:
        """Return the batches of an epoch in which no source fails."""
        count = len(range(self.shard, len(self.sources), self.shards))
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Begin the next epoch."""
        if self.device == "gpu":
            self._on_device()  # settled in the caller's thread
        order = np.arange(len(self.sources))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        self.epoch += 1
        return self._batches([int(index) for index in order[self.shard :: self.shards]])

    def _batches(self, order: list[int]) -> Iterator[tuple[Any, NDArray[Any]]]:
        held: list[Item] = []
        for item in self._items(order):
            held.append(item)
            if len(held) == self.batch_size:
                yield self._joined(held)
                held = []
        if held and not self.drop_last:
            yield self._joined(held)

    def _items(self, order: list[int]) -> Iterator[Item]:
        """Yield each image in the order asked for; the next ones are made in threads meanwhile."""
        on_cpu = self.device == "cpu"
        size = 1 if on_cpu else self.batch_size
        ahead = self.look_ahead * self.batch_size // size
        pool = ThreadPoolExecutor(self.preprocessor.workers if on_cpu else self.look_ahead)
        waiting: deque[tuple[list[int], Any]] = deque()
        try:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                waiting.append((part, pool.submit(self._prepare, part)))
                if len(waiting) > ahead:
                    yield from self._kept(*waiting.popleft())
            while waiting:
                yield from self._kept(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, part: list[int]) -> Batch:
        sources = [self.sources[index] for index in part]
        if self.device == "cpu":
            return self._prepares(sources)
        import cupy

        # which device is current is each thread's own affair, and this one is the pool's
        cupy.cuda.Device(self._on_device()).use()
        batch = self._prepares(sources)
        cupy.cuda.get_current_stream().synchronize()  # another thread reads it
        return batch

    def _on_device(self) -> int:
        """Return the GPU that the images are on: where none was named, that of the first epoch."""
        if self.device_id is None:
            import cupy

            self.device_id = int(cupy.cuda.runtime.getDevice())
        return self.device_id

    def _kept(self, part: list[int], future: Any) -> list[Item]:
        batch: Batch = future.result()
        for failure in batch.failures:
            if self.preprocessor.on_error == "raise":
                raise failure.error
            self.failures.append(Failure(part[failure.index], failure.source, failure.error))
        return [(part[i], image) for i, image in zip(batch.indices, batch.images, strict=True)]

    def _joined(self, held: list[Item]) -> tuple[Any, NDArray[Any]]:
        labels = self.labels[[index for index, _ in held]]
        height, width = self.preprocessor.config.size
        shape = (height, width, 1) if self.layout == "HWC" else (1, height, width)
        parts = [image.reshape(shape) for _, image in held]
        if self.device == "cpu":
            return np.stack(parts), labels
        import cupy

        with cupy.cuda.Device(self._on_device()):
            images = cupy.stack(parts)
            cupy.cuda.get_current_stream().synchronize()  # DALI copies on a stream of its own
        return images, labels


def mammograms(
    sources: Sequence[Source] | Batches,
    labels: ArrayLike | None = None,
    *,
    preprocessor: Preprocessor | None = None,
    **order: Any,
) -> tuple[Any, Any]:
    """Return the DALI nodes (images, labels): an input of the pipeline that is being defined.

    To be called inside a function under `pipeline_def`, or in `with pipeline:`; the batch size is
    the pipeline's. At the end of an epoch the pipeline's `run` raises StopIteration, and after
    `reset` the next begins; DALI's iterators for frameworks do that by themselves with
    auto_reset=True and without `size` or `reader_name`.

    Args:
        sources: see `Batches`; or a `Batches`, which keeps `failures` at hand.
        labels, order: see `Batches` (shuffle, seed, shard, shards, drop_last, look_ahead, layout).
        preprocessor: makes the images; by default `Preprocessor()`.

    Returns:
        images: (H, W, 1) a sample, of the Preprocessor's dtype, on the Preprocessor's device.
        labels: one row a sample, on the same device.

    Raises:
        ConfigError: a setting is not allowed, or no pipeline is being defined.
        BackendUnavailableError: DALI is not installed.
    """
    dali = _dali()
    current = dali.Pipeline.current()
    if current is None:
        raise ConfigError(
            "fastmammo.dali.mammograms was called outside a pipeline: call it in a function under "
            "@pipeline_def, or use fastmammo.dali.pipeline"
        )
    size = int(current.max_batch_size)
    if isinstance(sources, Batches):
        if labels is not None or preprocessor is not None or order:
            raise ConfigError("sources: got Batches and other settings; give those to the Batches")
        batches = sources
        if batches.batch_size > size:
            raise ConfigError(
                f"batch_size: the Batches give {batches.batch_size}, the pipeline takes {size}"
            )
    else:
        chosen = preprocessor or Preprocessor()
        device_id = None if current.device_id is None else int(current.device_id)
        batches = Batches(
            chosen, sources, labels, batch_size=size, **{"device_id": device_id, **order}
        )
    images, rows = dali.fn.external_source(
        source=batches,
        num_outputs=2,
        batch=True,
        cycle="raise",
        layout=[batches.layout, ""],
        device=batches.device,
    )
    return images, rows


def pipeline(
    sources: Sequence[Source] | Batches,
    labels: ArrayLike | None = None,
    *,
    preprocessor: Preprocessor | None = None,
    batch_size: int = 16,
    threads: int = 2,
    device_id: int | None = None,
    **order: Any,
) -> Any:
    """Return a DALI pipeline whose outputs are finished images and their labels.

    Args:
        sources, labels, preprocessor, order: see `mammograms`.
        batch_size: images in a batch.
        threads: DALI's own; the images are made in the Preprocessor's.
        device_id: the GPU on which the outputs are to be; None for the CPU, with no GPU needed.

    Returns:
        nvidia.dali.Pipeline with outputs (images, labels), built.

    Raises:
        ConfigError: a setting is not allowed.
        BackendUnavailableError: DALI is not installed, or finds no such GPU.
    """
    dali = _dali()
    with _its_gpu(device_id):
        made = dali.Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id)
    with made:
        nodes = mammograms(sources, labels, preprocessor=preprocessor, **order)
        made.set_outputs(*(nodes if device_id is None else (node.gpu() for node in nodes)))
    with _its_gpu(device_id):
        made.build()
    return made


@contextlib.contextmanager
def _its_gpu(device_id: int | None) -> Iterator[None]:
    """Turn what DALI raises where it cannot use a GPU into this package's error."""
    try:
        yield
    except RuntimeError as error:
        if device_id is None:
            raise
        words = " ".join(str(error).split())[:400].rstrip(".")
        raise BackendUnavailableError(
            f"device_id: got {device_id}, and DALI cannot make a pipeline on that GPU: "
            f"{words}. `fastmammo doctor` tells what is there; "
            "device_id=None needs no GPU"
        ) from error


def _dali() -> Any:
    try:
        return importlib.import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"fastmammo.dali needs DALI ({error}): {INSTALL}") from error


__all__ = ["Batches", "mammograms", "pipeline"]
