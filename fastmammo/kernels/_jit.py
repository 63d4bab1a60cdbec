"""The one way this package compiles a kernel: cached on disk, the GIL released, C's division."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    from collections.abc import Callable


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` in nopython mode on its first call and keep the result on disk."""
    compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled
