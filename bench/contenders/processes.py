"""Processes that stay: one function over many items, or once in every process at the same time."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Has glibc keep freed memory, as the workers of `convert` do (mallopt(3))."""

LIMIT_SECONDS = 900.0
"""For one call: a decoder that hangs must not hang the benchmark."""

_PR_SET_PDEATHSIG = 1
_together: Any = None


def die_with_parent() -> None:
    """Have the system kill this process with the one that started it, even by SIGKILL (prctl(2)).

    Without it the processes of a killed benchmark would wait, and keep their memory, for good.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # nobody's child: of a shell, which may end before
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:
        os._exit(1)  # it died before we asked


def _begin(barrier: Any) -> None:
    global _together
    die_with_parent()
    # a Ctrl-C reaches the whole group: the benchmark ends, and ends its processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _together = barrier


def _all_at_once(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    with contextlib.suppress(threading.BrokenBarrierError):
        _together.wait(60)
    return function(*arguments)


class Processes:
    """A pool that is started by its first call, and again after a crash.

    Args:
        count: of processes.
        environment: variables that they start with.
        load: called in each at its start, to import what it will need.
    """

    def __init__(
        self,
        count: int,
        environment: Mapping[str, str] | None = None,
        load: Callable[[], object] = os.getpid,
    ) -> None:
        self.count = count
        self._load = load
        self.start_seconds = 0.0
        """That the last start took, until each process had imported what it needs."""
        self._environment = dict(environment or {})
        self._pool: ProcessPoolExecutor | None = None
        self._children: list[Any] = []
        self._others: set[Any] = set()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return the function's result for each item, in order.

        Raises: what the function raised, BrokenProcessPool where a process died, TimeoutError.
        """
        return self._results([(function, (item,)) for item in items])

    def everywhere(self, function: Callable[..., Result], *arguments: Any) -> list[Result]:
        """Return the function's result in each process; they begin together."""
        task = (_all_at_once, (function, arguments))
        return self._results([task] * self.count)

    def _results(self, tasks: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
        pool = self._running()
        try:
            futures = [pool.submit(function, *arguments) for function, arguments in tasks]
            end = time.monotonic() + LIMIT_SECONDS
            return [future.result(max(0.0, end - time.monotonic())) for future in futures]
        except BaseException as error:
            self.close(kill=True)  # what is under way would disturb the next turn
            if isinstance(error, Late):
                raise TimeoutError(f"not done after {LIMIT_SECONDS:.0f} s") from error
            raise

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is not None:
            return self._pool
        begun = time.perf_counter()
        context = multiprocessing.get_context("spawn")  # no threads or locks of ours come along
        barrier = context.Barrier(self.count)
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(self.count, context, _begin, (barrier,))
        with _environment(self._environment):
            self.everywhere(self._load)
        self._children = self._started()
        self.start_seconds = time.perf_counter() - begun
        return self._pool

    def _started(self) -> list[Any]:
        return [p for p in multiprocessing.active_children() if p not in self._others]

    def close(self, *, kill: bool = False) -> None:
        """End the processes; the next call starts others."""
        pool, self._pool = self._pool, None
        children, self._children = self._children, []
        if pool is None:
            return
        if kill:
            for child in children or self._started():  # none are known while they start
                child.kill()
        pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close(kill=error is not None)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started within."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
