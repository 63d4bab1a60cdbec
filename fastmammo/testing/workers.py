"""Takes jobs and a function's name, runs them in processes, gives the answers in order.

Neither fork nor spawn serves here: the one may hang where other threads hold locks, the other
runs the caller's script again. So each worker is a fresh interpreter fed through its pipes, which
ends by itself when its parent is gone.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, cast

from fastmammo.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAIN = "from fastmammo.testing.workers import serve; serve()"


def run_jobs(
    function: str,
    jobs: Sequence[Any],
    workers: int | None = None,
    on_done: Callable[[int], object] | None = None,
) -> list[Any]:
    """Runs a function of the package on every job.

    Args:
        function: "module:name"; it takes one job.
        jobs: what can be pickled.
        workers: processes; None for as many as there are cores. With 1, or one job, all runs in
            this process.
        on_done: called with the number of finished jobs after each.

    Returns:
        The answers, in the order of the jobs.

    Raises:
        ConfigError: workers below 1.
        WorkerError: a job failed or its worker died; what it said is in the message.
    """
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if count < 1:
        raise ConfigError(f"run_jobs: workers {workers}; wanted 1 or more, or None for all cores")
    answers: list[Any] = [None] * len(jobs)
    if count == 1 or len(jobs) < 2:
        call = _find(function)
        for index, job in enumerate(jobs):
            answers[index] = call(job)
            if on_done:
                on_done(index + 1)
        return answers
    todo = iter(range(len(jobs)))
    lock, done = threading.Lock(), 0
    failures: list[Exception] = []

    def feed() -> None:
        nonlocal done
        try:
            with _Worker(function) as worker:
                while not failures:
                    with lock:
                        index = next(todo, None)
                    if index is None:
                        return
                    answers[index] = worker.ask(jobs[index])
                    with lock:
                        done += 1
                        if on_done:
                            on_done(done)
        except Exception as error:  # whatever it is: it is raised again by the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=feed, daemon=True) for _ in range(min(count, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers


class _Worker:
    """One interpreter that answers jobs until its input ends."""

    def __init__(self, function: str) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # one core a worker: the numerical libraries' own threads would fight over them
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._function = function

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, job: Any) -> Any:
        """The answer to a job."""
        pipe_in = cast("IO[bytes]", self._process.stdin)
        pipe_out = cast("IO[bytes]", self._process.stdout)
        try:
            pickle.dump((self._function, job), pipe_in)
            pipe_in.flush()
            good, answer = pickle.load(pipe_out)
        except (EOFError, BrokenPipeError) as error:
            code = self._process.wait()
            raise WorkerError(f"run_jobs: a worker died (exit code {code}) on {job!r}") from error
        if not good:
            raise WorkerError(f"run_jobs: {self._function} failed on {job!r}\n{answer}")
        return answer


def serve() -> None:
    """What a worker runs: jobs from standard input, answers to standard output."""
    import traceback

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    while True:
        try:
            function, job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, _find(function)(job)
        except Exception:
            answer = False, traceback.format_exc()
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)  # a second flush, of an orderly exit, would complain again


def _find(function: str) -> Callable[[Any], Any]:
    """The function by its name."""
    module, _, name = function.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(module), name)
    return found
