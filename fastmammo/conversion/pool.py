"""Worker processes, a pipe each: tasks in, replies out; a dead or hanging worker costs one file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections import deque
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.process import Worker
from fastmammo.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Message = dict[str, Any]

_START_SECONDS = 300.0
"""For a worker to import, and in a first run to compile, what it needs: a cold disk is slow, and
many workers compile at once; a broken install never gets there."""

_WAIT_SECONDS = 3600.0
"""The longest single wait: the system takes no more than 24 days, and a time limit may be more."""


class Pool:
    """Runs tasks in worker processes and yields a reply for each, in the order they come.

    A worker that dies has its file tried once more by a new one, since someone may have killed it
    (the system, short of memory); when that dies too the file has failed. A worker that is over
    its time is killed and its file has failed. A worker that says it is "ending" is replaced, and
    with "again" its file is tried once more, as by one that died. Everything else goes on.

    A worker may have several files in hand (`in_hand`). When it dies, ends or is over its time
    nobody knows which of them it was: each is tried once more, alone in a worker, where the one
    that is to blame is found, and named. "again" without "ending" asks for the same.

    Args:
        workers: number of processes.
        setup: what `worker.main` is told first; JSON-able.
        timeout_seconds: for one file; infinity for no limit.
        in_hand: files that a worker has in hand at once.
        environments: variables of the workers' own, taken in turn: a GPU each.
        one_first: start one worker, and the others when it is ready: it then compiles what each
            would compile for itself.
    """

    def __init__(
        self,
        workers: int,
        setup: Message,
        timeout_seconds: float,
        *,
        in_hand: int = 1,
        environments: Sequence[dict[str, str]] = (),
        one_first: bool = False,
    ) -> None:
        self._environments = environments
        self._setup = setup
        self._count = workers
        self._in_hand = in_hand
        self._one_first = one_first
        self._timeout = timeout_seconds
        self._workers: list[Worker] = []
        self._again: deque[Message] = deque()
        self._left = 0
        self._stopping = False
        self._abandoned = False
        self._false_starts = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    @property
    def process_ids(self) -> list[int]:
        """The process ids of the workers that live now."""
        return [worker.process.pid for worker in self._workers]

    def stop(self) -> None:
        """Hand out no more tasks; those handed out are finished. Safe in a signal handler."""
        self._stopping = True
        if self._wake_write < 0:
            return  # closed: the descriptor's number may be some other file's by now
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_write, b"x")

    def abandon(self) -> None:
        """End `run` at once, whatever is in hand: no output is ever half of one."""
        self._abandoned = True
        self.stop()

    def close(self) -> None:
        """Kill what still runs and give back the pipes. `stop` may still be called."""
        for worker in self._workers:
            worker.kill()  # all of them, before the first is waited for
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        descriptors = [self._wake_read, self._wake_write]
        self._wake_read = self._wake_write = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def run(self, tasks: Iterable[Message], total: int) -> Iterator[Message]:
        """Yield one reply for each of `total` tasks; after `stop()`, for those in hand.

        Raises:
            WorkerError: workers do not start at all.
        """
        queue = iter(tasks)
        self._left = total
        self._start(1 if self._one_first else min(self._count, total))
        while not self._abandoned:
            self._hand_out(queue)
            if not any(worker.tasks for worker in self._workers) and (
                self._stopping or not self._left
            ):
                return
            yield from self._replies()

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            worker = self._new(len(self._workers))
            self._workers.append(worker)  # owned at once: the next may not start

    def _new(self, place: int) -> Worker:
        own = self._environments
        return Worker(self._setup, own[place % len(own)] if own else None)

    def _hand_out(self, queue: Iterator[Message]) -> None:
        # No more tasks than a worker begins at once, none waiting in its pipe: the parent answers
        # within a fraction of a millisecond, and no file has to wait behind one that hangs.
        for _ in range(self._in_hand):  # one each in turn
            for worker in self._workers:
                if self._stopping or not self._left or not worker.ready:
                    continue
                if self._again and not worker.tasks:
                    task = self._again.popleft()
                elif len(self._again) == self._left or worker.alone:
                    continue  # what is left is for idle workers
                elif len(worker.tasks) < self._share():
                    task = next(queue)
                else:
                    continue
                self._left -= 1
                worker.give(task)

    def _share(self) -> int:
        """Return how many tasks a worker may have in hand: others may not be ready yet."""
        unfinished = self._left + sum(len(worker.tasks) for worker in self._workers)
        return min(self._in_hand, -(-unfinished // len(self._workers)))

    def _replies(self) -> Iterator[Message]:
        busy = [worker for worker in self._workers if worker.tasks or not worker.ready]
        limit = min((self._limit(worker) for worker in busy), default=math.inf)
        seconds = min(max(0.0, limit - time.monotonic()) + 0.01, _WAIT_SECONDS)
        listening = [worker.stderr for worker in self._workers if worker.stderr >= 0]
        connections = [worker.connection for worker in self._workers]
        ready = wait([*connections, *listening, self._wake_read], seconds)
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        for worker in list(self._workers):
            if worker.stderr in ready:
                worker.listen()
            if worker.connection in ready:
                yield from self._reply(worker)
            elif worker in busy and time.monotonic() > self._limit(worker):
                yield from self._overdue(worker)

    def _reply(self, worker: Worker) -> Iterator[Message]:
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            yield from self._died(worker)
            return
        if not worker.ready:
            worker.ready = True
            self._false_starts = 0
            if self._one_first:
                self._one_first = False
                self._start(min(self._count, self._left))
            return
        task = worker.take(message["path"])
        ending, again = message.pop("ending", False), message.pop("again", False)
        later = again and self._retry(task)
        if ending:
            self._replace(worker)
        if not later:
            yield {**task, **message}

    def _limit(self, worker: Worker) -> float:
        return worker.limit(self._timeout) if worker.ready else worker.since + _START_SECONDS

    def _died(self, worker: Worker) -> Iterator[Message]:
        # its pipe is closed: it is about to end by itself, and how it ends is the reason
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(5)
        how = worker.end()
        if not worker.ready:
            self._false_start(worker, how, fatal=(worker.process.returncode or 0) >= 0)
        for task in worker.tasks.values():
            task["died"] = task.get("died", 0) + 1
        for task in self._replace(worker):
            before = "a second one too" if task["died"] > 1 else "when it was tried once more"
            message = f"the worker process died on this file with {how}, {before}"
            yield {**task, "status": "failed", "reason": "worker died", "message": message}

    def _overdue(self, worker: Worker) -> Iterator[Message]:
        worker.end()
        if not worker.ready:
            self._false_start(worker, f"not ready in {_START_SECONDS:.0f} s", fatal=True)
        for task in self._replace(worker, guilty=len(worker.tasks) == 1):
            message = f"timed out after {self._timeout:g} s: see timeout_seconds"
            yield {**task, "status": "failed", "reason": "timed out", "message": message}

    def _false_start(self, worker: Worker, how: str, *, fatal: bool) -> None:
        """Bear with a worker that is killed while it starts, but not with many in a row."""
        self._false_starts += 1
        if fatal or self._false_starts > 3:
            raise WorkerError(f"a worker process does not start ({how}): {worker.last_words}")

    def _retry(self, task: Message) -> bool:
        """Have a task done once more, alone in a worker; False if it was tried twice."""
        if task.get("tried"):
            return False
        task["tried"] = True
        task["send"]["alone"] = True
        self._again.append(task)
        self._left += 1
        return True

    def _replace(self, worker: Worker, *, guilty: bool = False) -> list[Message]:
        """Put a new worker in one's place; return those of its tasks that have failed for good.

        Args:
            guilty: its one task is to blame, and not tried again.
        """
        worker.end()
        tasks = list(worker.tasks.values())
        failed = tasks if guilty else [task for task in tasks if not self._retry(task)]
        index = self._workers.index(worker)
        if self._stopping or not self._left:
            del self._workers[index]
        else:
            self._workers[index] = self._new(index)
        return failed


def watch_signals(handler: Callable[[int], None]) -> Callable[[], None]:
    """Call `handler` with SIGINT or SIGTERM; return what puts the old handlers back.

    Outside of the main thread Python allows no handlers: there the caller's own stay in force.
    """
    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda n, _: handler(n))
    except ValueError:
        return lambda: None

    def restore() -> None:
        for number, old in previous.items():
            signal.signal(number, old)

    return restore
