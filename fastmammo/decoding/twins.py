"""NVIDIA's packages for CUDA 12 and CUDA 13, which must not be installed beside each other."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, distribution

_TWINS = (
    ("nvidia-nvjpeg2k-cu12", "nvidia-nvjpeg2k-cu13"),
    ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"),
    ("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    ("cupy-cuda12x", "cupy-cuda13x"),
)


@functools.cache
def twins(part: str = "") -> str | None:
    """Return which packages for CUDA 12 and CUDA 13 are both here, and overwrite each other.

    Args:
        part: of the packages' names; "" for all.
    """
    found = [
        f"{old} and {new}"
        for old, new in _TWINS
        if part in old and _installed(old) and _installed(new)
    ]
    if not found:
        return None
    return (
        f"{', '.join(found)} are installed to the same files: the later one has overwritten the "
        "other. Uninstall both, then install one (pip install --force-reinstall)"
    )


def with_twins(reason: str | None, part: str) -> str | None:
    """Return a reason, and after it what `twins` says: it may well be the cause."""
    both = twins(part) if reason is not None else None
    return reason if both is None else f"{reason}; {both}"


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
