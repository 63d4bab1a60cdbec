"""Takes a source and those of its files that are used, gives a digest that tells other pixels."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import TableError
from fastmammo.training.sources import DicomSource, PackedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastmammo.training.sources import Source

_LOOKED_AT = 64
"""Converted images that are read: a set of 29 GB must not be read to be known again."""


def fingerprint(source: Source, files: NDArray[np.int64]) -> str:
    """Return 16 hex digits that change with the pixels behind some files, or with their order.

    Of DICOMs: each file's path below the root, size and time. Of converted images: each one's row
    of the manifest, and the pixels of some of them; a copy in another folder is the same.
    """
    found = hashlib.sha256()
    for each in _dicoms(source, files) if isinstance(source, DicomSource) else _made(source, files):
        found.update(len(each).to_bytes(8, "little"))
        found.update(each)
    return found.hexdigest()[:16]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return 16 hex digits of a file's SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()[:16]


def _dicoms(source: DicomSource, files: NDArray[np.int64]) -> Iterator[bytes]:
    for index in files.tolist():
        path = source.files[index]
        try:
            state = os.stat(path)
        except OSError as error:
            raise TableError(
                f"images: {path} cannot be looked at ({error.strerror}): was it moved after the "
                "folder was listed? Start again"
            ) from error
        name = os.path.relpath(path, source.root)
        yield f"{name}\0{state.st_size}\0{state.st_mtime_ns}".encode(errors="surrogateescape")


def _made(source: Source, files: NDArray[np.int64]) -> Iterator[bytes]:
    rows = source.manifest.iloc[files]  # type: ignore[union-attr]
    yield rows.to_csv(index=False).encode(errors="surrogateescape")
    yield str(source.settings.get("digest", "")).encode()
    chosen = files[np.unique(np.linspace(0, len(files) - 1, _LOOKED_AT).round().astype(np.int64))]
    for index in chosen.tolist():
        if isinstance(source, PackedSource):
            yield source.array[source.rows[index]].tobytes()
        else:
            yield _bytes(source.files[index])


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise TableError(f"images: {path} cannot be read: {error.strerror}") from error
