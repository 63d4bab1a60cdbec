"""A worker on a GPU: takes several files at a time from the pipe, gives their replies as they come.

Each file has a thread, from its reading to its writing, so that files are read, decoded, encoded
and written beside each other: frames meet in the decoder of many frames in flight, images in one
launch (`preprocess.device`).
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fastmammo.conversion.options import SHARE_OF_FREE
from fastmammo.decoding import cuda_runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from fastmammo.errors import DeviceMemoryError

    Message = dict[str, Any]

IN_HAND = 16
"""Files that a worker on a GPU has in hand: twice as many as frames are decoded at once, so that
others are read, encoded and written meanwhile. Not measured yet."""


def serve(
    pipe: Connection, process: Callable[[Message, str], Message], files: int, partial: str
) -> None:
    """Process tasks, `files` at once, until the pipe is closed.

    Args:
        pipe: tasks in, replies out; JSON.
        process: (task, temporary name that no other thread has) → reply. What it raises ends this
            process, as it would one that does a file at a time.
        partial: what the temporary names begin with.
    """
    one_at_a_time = threading.Lock()

    def work(task: Message) -> None:
        try:
            reply = process(task, f"{partial}-{threading.get_native_id()}")
            with one_at_a_time:
                pipe.send_bytes(json.dumps(reply).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    with ThreadPoolExecutor(files, thread_name_prefix="fastmammo-file") as threads:
        while True:
            try:
                task = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                return
            threads.submit(work, task)


def device_arguments(setup: Message) -> dict[str, Any]:
    """Return what a preprocessor on this worker's GPU is told beside its settings.

    Half of the worker's device memory is for the decoder's states, by estimate, and half, by a
    limit on CuPy's pool, for all arrays.
    """
    memory = setup.get("device_memory")
    if memory is None or cuda_runtime.missing() is not None:
        return {}
    runtime = cuda_runtime.runtime_of(0)  # CUDA_VISIBLE_DEVICES lets this process see one
    free = int(runtime.free_bytes() * SHARE_OF_FREE / memory["processes"])
    budget = max(memory["megabytes"] << 20 or free, 2 << 20)
    runtime.limit_pool(budget // 2)
    return {"workers": setup["in_hand"], "memory_budget_mb": budget >> 20}


def by_the_cpu(
    load: Callable[[dict[str, Any]], Any], config: dict[str, Any]
) -> Callable[[str, DeviceMemoryError], Any]:
    """Return what prepares a file for which the device's memory does not suffice, and notes it.

    It raises that error where `strict`, or a decoder that was asked for by name, forbids the CPU.

    Args:
        load: settings → preprocessor.
    """
    lock = threading.Lock()
    made: list[Any] = []

    def prepare(source: str, error: DeviceMemoryError) -> Any:
        if config["strict"] or config["backend"] != "auto":
            raise error
        with lock:
            if not made:
                made.append(load({**config, "device": "cpu"}))
        prepared = made[0].prepare(source)
        note = f"made on the CPU: {' '.join(str(error).split())}"
        notes = prepared.record.get("notes")
        prepared.record["notes"] = f"{notes}|{note}" if notes else note
        return prepared

    return prepare
