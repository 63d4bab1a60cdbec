"""One worker process: starts it, listens to its stderr, ends it and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Pipe
from typing import Any

Message = dict[str, Any]

_KILL_SECONDS = 10.0
"""For a killed process to go: one that hangs in the system (a network disk that has gone away) may
never do, and the run does not wait for it."""

_LAST_WORDS = 1000
"""Bytes of a worker's stderr that are kept: its last. A codec may write one line a row."""

# sys.path comes from the parent, as in multiprocessing's spawn; but no parent's __main__ is run
# again, so a script that calls convert() needs no `if __name__ == "__main__"`.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fastmammo.conversion.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)

# One thread a worker: N workers with N threads each would fight over N cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPJ_NUM_THREADS")


class Worker:
    """One process, its pipe, and the tasks it has in hand.

    Args:
        setup: what `worker.main` is told first.
        environment: variables of its own, beside the parent's.

    Raises:
        OSError: the system gives no more processes, descriptors or memory.
    """

    def __init__(self, setup: Message, environment: dict[str, str] | None = None) -> None:
        self.tasks: dict[str, Message] = {}
        """By path; several only where a worker takes several files at once."""
        self.handed: dict[str, float] = {}
        """When each was handed out, the oldest first."""
        self.ready = False
        self.since = time.monotonic()
        self.last_words = ""
        self._heard = b""
        self.connection: Connection
        self.connection, theirs = Pipe()
        try:
            self.stderr, error = os.pipe()
        except BaseException:
            self.connection.close()
            theirs.close()
            raise
        os.set_blocking(self.stderr, False)
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a codec that prints must not spoil the results
                stderr=error,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **(environment or {})},
                start_new_session=True,  # Ctrl-C in a terminal is for the parent
            )
        except BaseException:
            self.connection.close()
            os.close(self.stderr)
            raise
        finally:
            theirs.close()
            os.close(error)
        with contextlib.suppress(OSError):  # it is dead already: the first wait says so
            self.connection.send_bytes(json.dumps(setup).encode())

    @property
    def alone(self) -> bool:
        """Whether it has a file in hand that must have a worker to itself."""
        return any("alone" in task["send"] for task in self.tasks.values())

    def give(self, task: Message) -> None:
        """Hand a task out."""
        self.tasks[task["path"]] = task
        self.handed[task["path"]] = time.monotonic()
        with contextlib.suppress(OSError):  # it is dead: the next wait says so
            self.connection.send_bytes(json.dumps(task["send"]).encode())

    def take(self, path: str) -> Message:
        """Return a task that was replied to: it is no longer in hand."""
        del self.handed[path]
        return self.tasks.pop(path)

    def limit(self, timeout_seconds: float) -> float:
        """Return when the task that was handed out first is over its time."""
        return min(self.handed.values(), default=float("inf")) + timeout_seconds

    def listen(self) -> None:
        """Take what the process has written to stderr since; `stderr` is -1 when that has ended."""
        try:
            heard = os.read(self.stderr, 1 << 16)
        except BlockingIOError:
            return
        if heard:
            self._heard = (self._heard + heard)[-_LAST_WORDS:]
        else:
            os.close(self.stderr)
            self.stderr = -1

    def kill(self) -> None:
        """Kill the process if it lives, without waiting for it."""
        if self.process.poll() is None:
            self.process.kill()

    def end(self) -> str:
        """Kill the process if it lives, and say how it ended. May be called again."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_KILL_SECONDS)
        self.connection.close()
        if self.stderr >= 0:
            self.listen()  # the rest of a full pipe, at most
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1
        self.last_words = self._heard.decode(errors="replace").strip() or "no message"
        code = self.process.returncode
        if code is None:
            return f"no end {_KILL_SECONDS:.0f} s after SIGKILL"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
