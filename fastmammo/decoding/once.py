"""Looks for a library once: what was found is kept, and so is the reason why nothing was."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from fastmammo.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class once(Generic[T]):
    """A function whose outcome is kept for the process, a BackendUnavailableError included.

    Each frame asks whether a backend is there: to search the disk for it each time costs more than
    a small frame's decoding.
    """

    def __init__(self, find: Callable[[], T]) -> None:
        functools.update_wrapper(self, find)
        self._find = find
        self._lock = threading.Lock()
        self._kept: list[Callable[[], T]] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._kept:
                self._kept.append(self._look())
            outcome = self._kept[0]
        return outcome()

    def _look(self) -> Callable[[], T]:
        try:
            found = self._find()
        except BackendUnavailableError as error:
            words = str(error)

            def fail() -> T:
                raise BackendUnavailableError(words)  # a new one: whoever raises adds to it

            return fail
        return lambda: found

    def cache_clear(self) -> None:
        """Forget the outcome."""
        with self._lock:
            self._kept.clear()
