"""The one way this package compiles a kernel: cached on disk, the GIL released, C's division."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    from collections.abc import Callable


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` in nopython mode on its first call and keep the result on disk.

    Where neither the package's folder nor the user's cache folder can be written, it is compiled
    anew in every process (NUMBA_CACHE_DIR names another folder).
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        compiled = numba.njit(**options)(function)
    return compiled
