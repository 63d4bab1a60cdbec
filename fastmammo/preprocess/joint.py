"""Takes planned images from several threads, gives each its own: made together, in one launch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastmammo.decoding.cuda_runtime import device_errors
from fastmammo.errors import DeviceMemoryError, forget_frames
from fastmammo.kernels import gpu, to_host
from fastmammo.preprocess.device_memory import borrowed, cupy_module, on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.cuda_runtime import Event, Stream
    from fastmammo.preprocess.planning import Plan


@dataclass(eq=False)
class _Waiting:
    """One image that waits for a launch."""

    plan: Plan
    ready: Event
    """The plan's level is there when this is reached."""
    image: NDArray[Any] | None = None
    error: Exception | None = None


class Joint:
    """Resamples on one device and copies to the host, for any number of threads.

    While one thread waits for its launch, others' images gather; the next launch takes them all.
    """

    def __init__(self, runtime: Any, size: tuple[int, int], bits: int) -> None:
        self._runtime, self._size, self._bits = runtime, size, bits
        self._gathering = threading.Lock()
        self._launching = threading.Lock()
        self._waiting: list[_Waiting] = []

    def make(self, plan: Plan, stream: Stream) -> NDArray[Any]:
        """Return an image, uint8 or uint16 (H, W) in host memory; the plan's level is let go.

        Args:
            stream: in whose order the level is made.

        Raises:
            DeviceError, DeviceMemoryError: for this image, not for those it was made with.
        """
        own = _Waiting(plan, stream.record(self._runtime.new_event()))
        with self._gathering:
            self._waiting.append(own)
        with self._launching:
            if own.image is None and own.error is None:
                with self._gathering:
                    gathered, self._waiting = self._waiting, []
                self._launch(gathered)
        if own.error is not None:
            raise own.error
        plan.pixels = None
        return cast("NDArray[Any]", own.image)

    def _launch(self, gathered: list[_Waiting]) -> None:
        """Make the images; where that fails, each by itself, so that an error is its own."""
        clock = time.perf_counter()
        try:
            made = self._made(gathered)
        except Exception as error:
            forget_frames(error)
            if len(gathered) == 1:
                gathered[0].error = error
                return
            if isinstance(error, DeviceMemoryError):
                self._runtime.release_cached()
        else:
            seconds = (time.perf_counter() - clock) / len(gathered)
            for each, page in zip(gathered, made, strict=True):
                each.image = page[0]
                each.plan.seconds["resample"] = seconds
            return
        for each in gathered:
            self._launch([each])

    def _made(self, gathered: list[_Waiting]) -> NDArray[Any]:
        made: NDArray[Any]
        with device_errors("making images"), borrowed(self._runtime) as stream, on(stream):
            for each in gathered:
                stream.wait_event(each.ready)
            out = cupy_module().empty((len(gathered), 1, *self._size), f"uint{self._bits}")
            gpu.resample_batch([each.plan.batch_image() for each in gathered], out)
            made = to_host(out)  # waits: then nothing reads the levels any more
        return made
