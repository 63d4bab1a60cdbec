"""Takes finished images once, gives any of them again: from a GPU, from memory, from a file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from fastmammo.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Store(Protocol):
    """Images by slot, 0 to count - 1: uint8, or 16 bits as the int16 of the same bits.

    Torch can hardly compute with uint16; `images` turns the bits into int32.
    """

    kind: str
    """device, pinned, ram or memmap."""

    def missing(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the slots that hold no image yet, each once, in order."""
        ...

    def put(self, slots: NDArray[np.int64], images: torch.Tensor) -> None:
        """Keep images (n, H, W), on whatever device, under their slots."""
        ...

    def get(self, slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Return (n, 1, H, W) on the device, owned by the caller."""
        ...

    def close(self) -> None:
        """Give back what the store holds."""
        ...


def torch_type(bits: int) -> torch.dtype:
    """Return the type under which a store holds images of so many bits."""
    return torch.uint8 if bits == 8 else torch.int16


def as_tensor(images: Any) -> torch.Tensor:
    """Return NumPy's or torch's uint8 or uint16 as a tensor of a store's type, without a copy."""
    if isinstance(images, torch.Tensor):
        return images if images.dtype == torch.uint8 else images.view(torch.int16)
    array = images if images.dtype == np.uint8 else images.view(np.int16)
    return torch.from_numpy(np.ascontiguousarray(array))


class TensorStore:
    """Images in one tensor: on the device, in pinned memory, or in plain memory."""

    def __init__(
        self, kind: str, count: int, size: tuple[int, int], bits: int, device: torch.device
    ) -> None:
        self.kind = kind
        place = device if kind == "device" else torch.device("cpu")
        try:
            self._images: torch.Tensor = torch.empty(
                (count, *size), dtype=torch_type(bits), device=place, pin_memory=kind == "pinned"
            )
        except (RuntimeError, MemoryError) as error:  # CUDA's out of memory is a RuntimeError
            gigabytes = count * size[0] * size[1] * bits / 8e9
            raise TrainingError(
                f"storage: {kind} has no room for {count} images, {gigabytes:.1f} GB ({error}); "
                "choose storage=memmap, or smaller images"
            ) from error
        self._filled = np.zeros(count, bool)

    def missing(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.unique(slots[~self._filled[slots]])

    def put(self, slots: NDArray[np.int64], images: torch.Tensor) -> None:
        self._images[torch.from_numpy(slots).to(self._images.device)] = images.to(
            self._images.device
        )
        if self._images.is_cuda:
            # the next reader may be on another stream
            torch.cuda.current_stream(self._images.device).synchronize()
        self._filled[slots] = True

    def get(self, slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        if self.kind != "pinned":
            index = torch.from_numpy(slots).to(self._images.device)
            chosen = self._images.index_select(0, index).unsqueeze(1)
            return chosen if self.kind == "device" else to_device(chosen, device)
        # row by row from where they lie: gathering them first would cost the host a copy
        out = torch.empty(
            (len(slots), 1, *self._images.shape[1:]), dtype=self._images.dtype, device=device
        )
        for page, slot in zip(out, slots.tolist(), strict=True):
            page[0].copy_(self._images[slot], non_blocking=True)
        return out

    def close(self) -> None:
        self._images = self._images.new_empty((0, *self._images.shape[1:]))
        self._filled = self._filled[:0]


class ArrayStore:
    """The packed array of a converted folder, mapped into memory as it lies on disk: all there."""

    kind = "memmap"

    def __init__(self, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows

    def missing(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return slots[:0]

    def put(self, slots: NDArray[np.int64], images: torch.Tensor) -> None:
        raise TypeError("the packed array is only read")

    def get(self, slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        return to_device(as_tensor(self._array[self._rows[slots]]).unsqueeze(1), device)

    def close(self) -> None:
        self._array = np.empty((0, *self._array.shape[1:]), self._array.dtype)


class FileStore:
    """Images in a file that is mapped into memory; processes of one machine may share it.

    Beside it lies a file of checksums, 0 where there is no image yet. A checksum is written after
    the pixels, and proved when a process first reads a row: a row that another process is just
    writing, or that a machine lost when its power failed, counts as not there.

    Args:
        folder: kept, to be found again; None for a private one, removed at the end.
        near: where a private one is made; None: where the system puts temporary files.
        about: what the images are, written beside them for a reader.
    """

    kind = "memmap"

    def __init__(
        self,
        folder: str | None,
        count: int,
        size: tuple[int, int],
        bits: int,
        about: dict[str, Any],
        *,
        near: str | None = None,
    ) -> None:
        self._dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
        self._page = size[0] * size[1] * self._dtype.itemsize
        need = count * self._page
        place = folder or near or tempfile.gettempdir()
        try:
            if folder is None:
                os.makedirs(place, exist_ok=True)
                self.folder = tempfile.mkdtemp(prefix="fastmammo-images-", dir=place)
                self._cleanup = weakref.finalize(self, shutil.rmtree, self.folder, True)
            else:
                self.folder = folder
                os.makedirs(folder, exist_ok=True)
            self._files = [
                _open(os.path.join(self.folder, name), length)
                for name, length in (("images.raw", need), ("sums.raw", count * 4))
            ]
            held = sum(os.fstat(file).st_blocks * 512 for file in self._files)
            free = shutil.disk_usage(self.folder).free
            if need > held + free:
                raise TrainingError(
                    f"storage: {count} images need {need / 1e9:.1f} GB in {place}, "
                    f"{free / 1e9:.1f} GB are free there: make room, or name another folder with "
                    "image_cache"
                )
            with open(os.path.join(self.folder, "about.json"), "w", encoding="utf-8") as file:
                json.dump(about, file, indent=2)
        except OSError as error:
            raise TrainingError(
                f"storage: cannot write images to {place}: {error.strerror}; name another folder "
                "with image_cache"
            ) from error
        self._images = _mapped(self._files[0], self._dtype, (count, *size))
        self._sums = _mapped(self._files[1], np.dtype("<u4"), (count,))
        self._proved = np.zeros(count, bool)

    def missing(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        unknown = np.unique(slots[~self._proved[slots]])
        for slot in unknown[self._sums[unknown] != 0]:
            self._proved[slot] = _checksum(self._images[slot]) == self._sums[slot]
        return unknown[~self._proved[unknown]]

    def put(self, slots: NDArray[np.int64], images: torch.Tensor) -> None:
        for slot, image in zip(slots.tolist(), images.cpu().numpy(), strict=True):
            page = np.ascontiguousarray(image).view(self._dtype)
            try:
                # written, not mapped: a full disk is then an error, and not the signal SIGBUS
                _write(self._files[0], page.data.cast("B"), slot * self._page)
                checksum = np.array(_checksum(page), "<u4")
                _write(self._files[1], memoryview(checksum.tobytes()), slot * 4)
            except OSError as error:
                raise TrainingError(
                    f"storage: cannot write an image to {self.folder}: {error.strerror}; make "
                    "room, or name another folder with image_cache"
                ) from error
            self._proved[slot] = True

    def get(self, slots: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        return to_device(as_tensor(self._images[slots]).unsqueeze(1), device)

    def close(self) -> None:
        self._images, self._sums = self._images[:0].copy(), self._sums[:0].copy()
        while self._files:
            os.close(self._files.pop())
        if hasattr(self, "_cleanup"):
            self._cleanup()


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return images of the host on the device; a GPU takes them while the host goes on."""
    if device.type != "cuda":
        return images.to(device)
    # torch keeps pinned blocks, and reuses one only when the copy from it is done
    return images.pin_memory().to(device, non_blocking=True)


def _open(path: str, length: int) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(file).st_size < length:
        os.ftruncate(file, length)  # holes: zeros that take no room
    return file


def _mapped(file: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not shape[0]:
        return np.empty(shape, dtype)
    with os.fdopen(os.dup(file), "rb") as opened:
        return np.memmap(opened, dtype, "r", shape=shape)


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _checksum(image: NDArray[Any]) -> int:
    """Return the CRC-32 of the pixels, never 0: that is "no image"."""
    return zlib.crc32(np.ascontiguousarray(image).data.cast("B")) or 1
