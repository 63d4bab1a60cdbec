"""Takes a folder of `convert` or of DICOMs, gives its files and the finished image of each."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fastmammo.conversion.inputs import find_inputs
from fastmammo.conversion.names import STATE_FOLDER
from fastmammo.conversion.packed import NAME as ARRAY
from fastmammo.errors import ConfigError, DeviceError, TableError
from fastmammo.preprocess import Config, Preprocessor
from fastmammo.training.join import Candidate
from fastmammo.training.store import as_tensor, torch_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NO_DICOM = (".png", ".jpg", ".csv", ".json", ".txt")


@dataclass
class Loaded:
    """What became of some files."""

    images: torch.Tensor
    """(k, H, W) uint8, or int16 of the same bits; on any device."""
    positions: list[int]
    """For each image, the place of its file among those asked for."""
    failures: dict[int, str] = field(default_factory=dict)
    """By place among those asked for: why there is no image."""


class PackedSource:
    """The array images.npy of `convert --format packed`."""

    def __init__(self, folder: str, settings: dict[str, Any], manifest: pd.DataFrame) -> None:
        self.root, self.settings, self.manifest = folder, settings, manifest
        self.size, self.bits = _size_of(folder, settings)
        self.candidates = _candidates(manifest, settings, "row", "not in images.npy yet")
        path = os.path.join(folder, ARRAY)
        self.files = [f"{path} ({name})" for name in manifest["path"]]
        try:
            self.array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TableError(
                f"images: {path} cannot be read: {error}; run the same `fastmammo convert` again"
            ) from error
        wanted = (self.size, "uint8" if self.bits == 8 else "uint16")
        got = (self.array.shape[1:], self.array.dtype.name)
        rows = (
            pd.to_numeric(manifest["row"], errors="coerce").fillna(-1).to_numpy().astype(np.int64)
        )
        used = rows[rows >= 0]
        if got != wanted or not self.array.flags.c_contiguous:
            raise TableError(
                f"images: {path} is {got[1]} of shape {self.array.shape}; its config.json says "
                f"{wanted[1]} of shape (N, {self.size[0]}, {self.size[1]}): "
                "run the same `fastmammo convert` again"
            )
        if len(np.unique(used)) < len(used) or (len(used) and used.max() >= len(self.array)):
            raise TableError(
                f"images: {path} has {len(self.array)} rows, its manifest.csv names "
                f"{len(np.unique(used))} up to {used.max()} for {len(used)} images: "
                "run the same `fastmammo convert` again"
            )
        self.rows = rows

    def load(self, files: Sequence[int]) -> Loaded:
        """Return the images of some files."""
        return Loaded(as_tensor(self.array[self.rows[list(files)]]), list(range(len(files))))


class PngSource:
    """The PNGs of `convert`."""

    def __init__(self, folder: str, settings: dict[str, Any], manifest: pd.DataFrame) -> None:
        self.root, self.settings, self.manifest = folder, settings, manifest
        self.size, self.bits = _size_of(folder, settings)
        self.candidates = _candidates(manifest, settings, "output", "without an output")
        self.files = [os.path.join(folder, name) for name in manifest["output"]]

    def load(self, files: Sequence[int]) -> Loaded:
        """Return the images of some files; those that cannot be read with their reason."""
        # PIL lets go of the GIL while it decodes
        with ThreadPoolExecutor(min(len(files) or 1, len(os.sched_getaffinity(0)))) as pool:
            results = list(pool.map(lambda index: self._read(self.files[index]), files))
        good = [place for place, each in enumerate(results) if not isinstance(each, str)]
        images = np.empty((len(good), *self.size), np.uint8 if self.bits == 8 else np.uint16)
        for page, place in zip(images, good, strict=True):
            page[:] = results[place]
        bad = {place: each for place, each in enumerate(results) if isinstance(each, str)}
        return Loaded(as_tensor(images), good, bad)

    def _read(self, path: str) -> NDArray[Any] | str:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path, formats=("PNG",)) as file:
                mode = file.mode
                image = np.asarray(file)
        except FileNotFoundError:
            return f"{path} is gone"
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            return f"{path} cannot be read: {error}"
        bits = 8 if mode == "L" else 16 if mode.startswith("I") else 0
        if image.shape != self.size or bits != self.bits:
            return (
                f"{path} is {image.shape} of PNG mode {mode}, config.json says {self.size} of "
                f"{self.bits} bits"
            )
        return image


class DicomSource:
    """A folder of DICOMs, decoded here."""

    def __init__(self, folder: str, config: Config) -> None:
        self.root = folder
        self._prepare = Preprocessor(config, on_error="collect")
        self.config = self._prepare.config
        self.settings: dict[str, Any] = {"config": config.to_dict(), "digest": config.digest()}
        self.size, self.bits = config.size, config.bits
        inputs = [
            each
            for each in find_inputs(folder, os.devnull)
            if not each.path.lower().endswith(_NO_DICOM)
        ]
        self.files = [each.source for each in inputs]
        self.placed: dict[int, tuple[int, int, int, int]] = {}
        """Of each file decoded by now: row0, column0, row1, column1 of the breast's crop."""
        self.candidates = [
            Candidate(
                (each.path, each.source),
                each.patient_id,
                each.image_id,
                f"{each.status}: {each.reason}" if each.status else "",
            )
            for each in inputs
        ]

    def load(self, files: Sequence[int]) -> Loaded:
        """Return the images of some files; those that cannot be decoded with their reason.

        Raises:
            DeviceError: the GPU failed: no fault of a file.
        """
        batch = self._prepare([self.files[index] for index in files])
        failures = {}
        for each in batch.failures:
            if isinstance(each.error, DeviceError):
                raise each.error
            failures[each.index] = f"{each.source}: {each.error}"
        for index, geometry in zip(batch.indices, batch.geometry, strict=True):
            self.placed[files[index]] = geometry.placed
        if not len(batch):
            return Loaded(torch.empty((0, *self.size), dtype=torch_type(self.bits)), [], failures)
        images = batch.images
        if not isinstance(images, np.ndarray):
            images = torch.as_tensor(images)
        return Loaded(as_tensor(images)[:, 0], list(batch.indices), failures)


Source = PackedSource | PngSource | DicomSource


def open_source(folder: str, config: Config | None) -> Source:
    """Look what a folder is, and open it.

    Args:
        folder: what `convert` has written, or a folder of DICOMs of any shape.
        config: how DICOMs become images; for a converted folder None, or what made it.

    Raises:
        TableError: it is neither, or a conversion that has not ended.
        ConfigError: `config` would give other pixels than the folder's.
    """
    if not os.path.isdir(folder):
        raise TableError(
            f"images: {folder} is no folder; wanted what `fastmammo convert` has written, or a "
            "folder of DICOMs"
        )
    path = os.path.join(folder, "manifest.csv")
    if not os.path.isfile(path):
        if os.path.isdir(os.path.join(folder, STATE_FOLDER)):
            raise TableError(
                f"images: {folder} has no manifest.csv, the run of `fastmammo convert` that writes "
                "there has not ended: run the same command again"
            )
        return DicomSource(folder, config or Config())
    try:
        manifest = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
        )
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            settings = json.load(file)
        packed = settings["format"] == "packed"
        digest = settings["digest"]
        lacking = {"path", "status", "reason", "output", "row"} - set(manifest.columns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"images: {folder}: its manifest.csv and config.json are not as `fastmammo convert` "
            f"writes them: {type(error).__name__}: {error}; run the same command again"
        ) from error
    if lacking:
        raise TableError(
            f"images: {path} has no column {', '.join(sorted(lacking))}: no manifest of "
            "`fastmammo convert`; name the folder that it has written"
        )
    if config is not None and config.digest() != digest:
        own = settings.get("config", {})
        differing = [
            f"{name} {own.get(name)!r}, asked for {value!r}"
            for name, value in config.pixels_to_dict().items()
            if own.get(name) != value
        ]
        raise ConfigError(
            f"images: {folder} was made with other settings: "
            f"{'; '.join(differing) or 'another version of fastmammo'}. Leave the settings out to "
            "take the images as they are, or convert anew"
        )
    return (PackedSource if packed else PngSource)(folder, settings, manifest)


def _size_of(folder: str, settings: dict[str, Any]) -> tuple[tuple[int, int], int]:
    try:
        config = settings["config"]
        rows, columns = map(int, config["size"])
        return (rows, columns), int(config["bits"])
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"images: {folder}: its config.json tells no size and bits of the images "
            f"({type(error).__name__}: {error}); run the same `fastmammo convert` again"
        ) from error


def _candidates(
    manifest: pd.DataFrame, settings: dict[str, Any], needed: str, absent: str
) -> list[Candidate]:
    """Return a candidate for each row of the manifest; `needed` is the column an image has."""
    src = str(settings.get("src", ""))
    columns = ("path", "listed", "status", "reason", "output", "patient_id", "image_id", needed)
    blank = pd.Series("", manifest.index)
    found = []
    for path, listed, status, reason, output, patient, image, value in zip(
        *(manifest.get(name, blank) for name in columns), strict=True
    ):
        names = [path, listed, os.path.normpath(os.path.join(src, path)).replace(os.sep, "/")]
        if output != ARRAY:
            names.append(output)
        why = "" if value else absent
        if status != "ok":
            why = f"{status}: {reason}"
        found.append(Candidate(tuple(dict.fromkeys(filter(None, names))), patient, image, why))
    return found
