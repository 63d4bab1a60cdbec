"""Who decodes which frame when: takes orders, hands them to workers, in order and within bounds.

No CUDA here. Each worker may hold device memory (a decode state); the queue bounds how many do, by
a budget and by what the device turned out to have.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastmammo.errors import DecodeError

if TYPE_CHECKING:
    from fastmammo.decoding.cuda_runtime import DeviceArray, Event, Stream
    from fastmammo.dicom import Codestream


@dataclass(frozen=True, eq=False)
class Request:
    """A frame that is to be decoded.

    data: its bytes, as `Frame.data` holds them; kept until it is decoded.
    codestream: its facts; `nvjpeg2000.refuses` must have let it through.
    level: 0, or r for 1/2^r where the codec's own levels serve (see `FrameDecoder.codec_levels`).
    out: a device array of `shape_of` and `dtype_of` to decode into; None for a new one.
    path, frame: for the error, if there is one.
    """

    data: bytes | memoryview
    codestream: Codestream
    level: int = 0
    out: DeviceArray | None = None
    path: str | None = None
    frame: int = 0


@dataclass(eq=False)
class Order:
    """A frame on its way through the queue."""

    request: Request
    stream: Stream
    need: int
    """Bytes of device memory for its output and its state, estimated."""
    ready: Event | None = None
    """What the caller's stream holds at the submission, where only its own thread can tell."""
    future: Future[Any] = field(default_factory=Future)
    begun: bool = False
    alone: bool = False
    """Whether it was tried with no other state holding memory."""
    limit_before: int = 0


class Surplus:
    """What `FrameQueue.take` gives to a worker that must let go of its memory first."""


SURPLUS: Final = Surplus()


class FrameQueue:
    """The orders that wait, and how many workers may hold device memory (`limit`)."""

    def __init__(self, workers: int, capacity: int, budget: int | None = None) -> None:
        self._changed = threading.Condition()
        self._orders: deque[Order] = deque()
        self._capacity = capacity
        self._budget = budget
        self._largest = 1
        self._workers = self.limit = workers
        self._holding: set[int] = set()
        self._running = 0
        self._ended = False
        self._dead: DecodeError | None = None

    @property
    def dead(self) -> bool:
        """Whether nothing can be decoded any more."""
        return self._dead is not None

    def put(self, order: Order) -> None:
        """Add an order; blocks while `capacity` of them wait.

        Raises:
            DeviceError, DecodeError: the queue is dead, or has ended.
        """
        with self._changed:
            while len(self._orders) >= self._capacity and not (self._ended or self._dead):
                self._changed.wait()
            if self._dead is not None:
                raise type(self._dead)(str(self._dead))
            if self._ended:
                raise DecodeError("the decoder is closed: it takes no more frames; make a new one")
            self._largest = max(self._largest, order.need)
            self.limit = min(self.limit, self._affordable())
            self._orders.append(order)
            self._changed.notify_all()

    def _affordable(self) -> int:
        if self._budget is None:
            return self._workers
        return min(self._workers, max(1, self._budget // self._largest))

    def take(self, worker: int) -> Order | Surplus | None:
        """Wait for an order. SURPLUS: let go of memory, say so, and ask again. None: all is over.

        Nothing is given out while a worker beyond the limit still holds memory.
        """
        with self._changed:
            while True:
                if worker >= self.limit and worker in self._holding:
                    return SURPLUS
                if self._dead is not None or (
                    self._ended and not self._orders and not self._running
                ):
                    return None
                if (
                    self._orders
                    and worker < self.limit
                    and max(self._holding, default=-1) < (self.limit)
                ):
                    self._running += 1
                    self._holding.add(worker)
                    self._changed.notify_all()
                    return self._orders.popleft()
                self._changed.wait()

    def finish(self, worker: int, *, holds: bool) -> None:
        """The worker is through with its order; `holds`: whether it kept its device memory."""
        with self._changed:
            self._running -= 1
            if not holds:
                self._holding.discard(worker)
            self._changed.notify_all()

    def let_go(self, worker: int) -> None:
        """The worker holds no device memory any more."""
        with self._changed:
            self._holding.discard(worker)
            self._changed.notify_all()

    def retry(self, order: Order) -> bool:
        """Device memory was short for this order: fewer workers may hold it from now on.

        Returns:
            Whether the order is to be tried again, before all others. If not, it was alone in the
            end and still did not fit: the others get their memory back.
        """
        with self._changed:
            order.limit_before = order.limit_before or self.limit
            again = True
            if self.limit > 1:
                self.limit -= 1
            elif not order.alone:
                order.alone = True
            else:
                self.limit = min(order.limit_before, self._affordable())
                again = False
            if again:
                self._orders.appendleft(order)
            self._changed.notify_all()
        return again

    def kill(self, error: DecodeError) -> None:
        """Nothing can be decoded any more: every order that waits gets the error."""
        with self._changed:
            self._dead = self._dead or error
            waiting = list(self._orders)
            self._orders.clear()
            self._changed.notify_all()
        for order in waiting:
            if order.begun or order.future.set_running_or_notify_cancel():
                fail(order, type(error)(str(error)))

    def end(self, *, cancel: bool) -> None:
        """Take no more orders; with `cancel`, forget those that no worker has begun."""
        with self._changed:
            self._ended = True
            dropped = [order for order in self._orders if cancel and not order.begun]
            self._orders = deque(order for order in self._orders if order not in dropped)
            self._changed.notify_all()
        for order in dropped:
            order.future.cancel()


def fail(order: Order, error: Exception) -> None:
    """Give a frame's error to whoever waits for it, with the file's path and the frame's index."""
    if isinstance(error, DecodeError):
        error.path, error.frame = order.request.path, order.request.frame
    order.future.set_exception(error)
