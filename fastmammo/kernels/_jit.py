"""The one way this package compiles a kernel: cached on disk, the GIL released, C's division."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])


def njit(function: F) -> F:
    """Compile `function` in nopython mode on its first call and keep the result on disk."""
    return cast("F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
