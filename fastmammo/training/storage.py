"""Takes what is to be stored and what memory there is, gives the store that has room for it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import torch

from fastmammo.errors import TrainingError
from fastmammo.training.sources import DicomSource, PackedSource
from fastmammo.training.store import ArrayStore, FileStore, Store, TensorStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastmammo.training.images import ImagesConfig
    from fastmammo.training.sources import Source


def open_store(
    source: Source,
    files: NDArray[np.int64],
    options: ImagesConfig,
    device: torch.device,
    scratch: str | None = None,
) -> Store:
    """Make the store that the options ask for, or that has room.

    Args:
        files: (count,) the source's file of each slot.
        scratch: folder for what has to lie on a disk and has no `image_cache`.

    Raises:
        TrainingError: there is no room.
    """
    count, size, bits = len(files), source.size, source.bits
    kind = options.storage
    if kind == "auto":
        kind = choose(count * size[0] * size[1] * (bits // 8), source, options, device)
    if kind != "memmap":
        return TensorStore(kind, count, size, bits, device)
    if isinstance(source, PackedSource):
        return ArrayStore(source.array, source.rows[files])
    keep = options.image_cache or (scratch if isinstance(source, DicomSource) else None)
    return _file_store(source, files, keep, scratch)


def open_kept(
    source: Source, files: NDArray[np.int64], store: Store, scratch: str | None
) -> tuple[FileStore | None, str]:
    """Make the file that keeps decoded DICOMs for a later process, where `store` does not.

    Returns:
        The file, or None; and a line on it, or "".
    """
    if not isinstance(source, DicomSource) or scratch is None:
        return None, ""
    removed = f"decoded images are kept in {scratch} until every fold is scored"
    if isinstance(store, FileStore):
        return None, removed if store.folder.startswith(scratch) else ""
    try:
        return _file_store(source, files, scratch, None), removed
    except TrainingError as error:
        return None, f"decoded images are not kept: a run that goes on decodes anew ({error})"


def _file_store(
    source: Source, files: NDArray[np.int64], keep: str | None, near: str | None
) -> FileStore:
    count, size, bits = len(files), source.size, source.bits
    about = {"root": source.root, "count": count, "size": size, "bits": bits, **source.settings}
    folder = os.path.join(keep, f"images-{_key(source, files)}") if keep is not None else None
    return FileStore(folder, count, size, bits, about, near=near)


def in_memory(folder: str, mounts: str = "/proc/mounts") -> bool:
    """Return whether a folder's files lie in the machine's memory (tmpfs), as far as is known."""
    kinds = {}
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, point, kind, *_ = line.split(" ")
                kinds[point.replace("\\040", " ").rstrip("/")] = kind
    except (OSError, ValueError):  # no Linux
        return False
    path = os.path.realpath(folder).rstrip("/")
    while path and path not in kinds:
        path = path.rpartition("/")[0]
    return kinds.get(path) in ("tmpfs", "ramfs")


def choose(need: int, source: Source, options: ImagesConfig, device: torch.device) -> str:
    """Return device, pinned, ram or memmap: the first that has room for `need` bytes."""
    if options.image_cache is not None:
        return "memmap"
    if device.type == "cuda":
        if need <= _budget(options, free_device_bytes(device)):
            return "device"
        # torch locks memory in powers of two
        if 1 << max(0, need - 1).bit_length() <= _budget(options, _free_share()):
            return "pinned"
        return "memmap"
    # the packed array is kept by the system's page cache as it is, and by all processes together
    if isinstance(source, PackedSource) or need > _budget(options, _free_share()):
        return "memmap"
    return "ram"


def local_rank() -> tuple[int, int]:
    """Return which process of this machine this is, and of how many, as torchrun says."""
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return int(os.environ.get("LOCAL_RANK", "0")) % ranks, ranks


def free_host_bytes() -> int:
    """Return what this process may still take without swapping, a container's limit included."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # no Linux
    try:
        limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as file:
            cached = int(dict(line.split() for line in file)["inactive_file"])
    except (OSError, KeyError, ValueError):  # no control group, or "max": no limit
        return free
    # cached files count as used, but give way
    return min(free, max(0, limit - used + cached))


def free_device_bytes(device: torch.device) -> int:
    """Return what is free on a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _free_share() -> int:
    """Return this process's share of the free memory of the machine."""
    return free_host_bytes() // local_rank()[1]


def _budget(options: ImagesConfig, free: int) -> float:
    return free / 2 if options.budget_gb is None else options.budget_gb * 1e9


def _key(source: Source, files: NDArray[np.int64]) -> str:
    """Return 16 hex digits over the settings and the files: their paths, sizes, last changes."""
    digest = hashlib.sha256(str(source.settings["digest"]).encode())
    for index in files.tolist():
        path = source.files[index]
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "absent"
        digest.update(f"{path}\0{state}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
