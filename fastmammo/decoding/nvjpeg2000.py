"""NVIDIA's nvJPEG2000: JPEG 2000 and HTJ2K codestreams at any level, on the GPU.

What the library cannot do is known from the codestream's header (`refuses`), before any work on the
GPU. `decode` is for one frame, `fastmammo.decoding.frames_in_flight` for many at once; both use
`State`, which decodes into the caller's device memory on the caller's stream.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fastmammo.decoding import cuda_runtime
from fastmammo.decoding.cuda_runtime import runtime_of, target_of
from fastmammo.decoding.nvjpeg2000_library import find_library
from fastmammo.decoding.nvjpeg2000_probe import Probed, probe
from fastmammo.decoding.nvjpeg2000_state import Handle, State, dtype_of, shape_of
from fastmammo.decoding.twins import with_twins
from fastmammo.errors import (
    BackendUnavailableError,
    DecodeError,
    DeviceError,
    DeviceMemoryError,
    forget_frames,
)

if TYPE_CHECKING:
    from fastmammo.decoding.cuda_runtime import DeviceArray, Event, Runtime
    from fastmammo.dicom import Codestream

NAME = "nvjpeg2000"
DEVICE = "cuda"
FORMATS = frozenset({"jpeg2000", "htj2k"})
LEVELS = True
"""False once `missing` has seen a GPU on which the library's levels are not what they must be."""
CLAMPS = False  # nobody has seen whether it does

pyramid = None

IDLE_STATES = 4
"""States that `decode` keeps for a device: as many frames it has on the way before it waits."""

_MARKERS = frozenset({"CAP", "TLM", "PLT", "POC"})


_probed: dict[int, Probed] = {}
_probed_lock = threading.Lock()


def missing() -> str | None:
    """Return None if the library can decode on the current GPU, else what is lacking.

    The first call for a GPU makes a decode state there (a library of CUDA 13 cannot on a driver of
    CUDA 12) and looks at two levels of a small codestream: see `nvjpeg2000_probe`. Both outcomes
    are kept for the process, and it has a CUDA context from then on.
    """
    try:
        find_library()
    except BackendUnavailableError as error:
        return with_twins(str(error), "nvjpeg2k")
    if (reason := cuda_runtime.missing()) is not None:
        return reason
    import cupy

    return with_twins(_probe(int(cupy.cuda.runtime.getDevice())), "nvjpeg2k")


def _probe(device: int) -> str | None:
    """Return why the library cannot be used on a device, and settle whether its levels are."""
    global LEVELS
    with _probed_lock:
        if device not in _probed:
            found = probe(find_library(), runtime_of(device))
            if found.passing:
                return found.reason  # short of memory now; the next one may ask again
            _probed[device] = found
            LEVELS = LEVELS and not found.fault
        return _probed[device].reason


def levels_fault() -> str | None:
    """Return why LEVELS is False: what the library did on one of this process's GPUs."""
    with _probed_lock:
        return next((found.fault for found in _probed.values() if found.fault), None)


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can.

    The rules are what nvjpeg2kStreamParse 0.11 says to codestreams of every style and to damaged
    headers (a test asks it again), and what NVIDIA's documentation excludes: HTJ2K code-blocks with
    refinement, several HT sets, or mixed with others. Refused though the library takes it, as
    nobody has compared the pixels: an image offset, and parameters changed in a tile-part.
    """
    c = codestream
    if c.precision > 16:
        return f"{c.precision} bits a sample, 16 at most"
    if c.signed and c.precision <= 8:
        return f"signed samples of {c.precision} bits: it has no signed type of 8 bits"
    if c.subsampling != (1, 1):
        return "subsampled components"
    if c.origin != (0, 0):
        return f"the image is offset by {c.origin} on its grid"
    if not c.complete:
        return "the codestream ends too early"
    if c.defects:
        return f"the codestream's headers break the standard: {', '.join(c.defects)}"
    if c.layers > 32:
        return f"{c.layers} quality layers, 32 at most"
    if c.codeblock[1] > 128:
        return f"code-blocks {c.codeblock[1]} columns wide, 128 at most"
    if c.tile_overrides:
        return "a tile-part's header changes coding parameters"
    foreign = set(c.markers) - _MARKERS
    if foreign:
        return f"marker segments that it does not read: {', '.join(sorted(foreign))}"
    if c.format == "htj2k":
        if c.styles != ("high throughput",):
            return f"HTJ2K with code-block styles {', '.join(c.styles) or 'of JPEG 2000'}"
        if c.high_throughput & 0xE000:
            return "HTJ2K with several HT sets a code-block, or with other code-blocks among them"
    elif c.styles not in ((), ("predictable termination",)):
        return f"code-block style {', '.join(c.styles)}"
    return None


def version() -> str:
    library = find_library()
    return f"nvJPEG2000 {library.version()} ({library.path.name})"


class _Lender:
    """The States that `decode` uses on one device, for any number of threads."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._idle: list[State] = []
        self._made = 0

    def take(self) -> State:
        """Return a State whose work is done, a new one while there are few, or wait for one."""
        with self._lock:
            free = [s for s in self._idle if s.done is None or s.done.done]
            if not free and self._made >= IDLE_STATES:
                free = self._idle[:1]
            if free:
                self._idle.remove(free[0])
            else:
                self._made += 1
        state = free[0] if free else None
        try:
            if state is None:
                state = State(self._handle)
            elif state.done is not None:
                state.done.synchronize()
        except BaseException:
            self.drop(state)
            raise
        return state

    def give(self, state: State, done: Event) -> None:
        state.done = done
        with self._lock:
            self._idle.append(state)

    def drop_idle(self) -> None:
        """Free the memory of the States whose work is done."""
        with self._lock:
            free = [s for s in self._idle if s.done is None or s.done.done]
            self._idle = [s for s in self._idle if s not in free]
        for state in free:
            self.drop(state)

    def drop(self, state: State | None) -> None:
        if state is not None:
            state.close()
        with self._lock:
            self._made -= 1


_lenders: dict[int, _Lender] = {}
_lenders_lock = threading.Lock()


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> DeviceArray:
    """Return the samples at 1/2^level as the codestream's own type, on CuPy's current stream.

    The call returns when the work is queued; use the array in the order of that stream. It is not
    compared with what a codestream of this precision can hold: reading it back would cost a wait.

    Returns:
        cupy.ndarray (ceil(rows / 2^level), ceil(columns / 2^level)) uint8, uint16 or int16.

    Raises:
        CorruptCodestreamError, UnsupportedSyntaxError: the library refused the bytes.
        DecodeError: the GPU failed on this frame and goes on.
        DeviceError, DeviceMemoryError: CUDA failed, or had no memory left.
        BackendUnavailableError: library, CuPy or GPU are not there.
    """
    import cupy

    runtime = cuda_runtime.runtime_of(cupy.cuda.runtime.getDevice())
    with _lenders_lock:
        if runtime.device not in _lenders:
            _lenders[runtime.device] = _Lender(Handle(find_library()))
    return _with_room(_lenders[runtime.device], runtime, data, codestream, level)


def _with_room(
    lender: _Lender,
    runtime: Runtime,
    data: bytes | memoryview,
    codestream: Codestream,
    level: int,
) -> DeviceArray:
    """Decode; where memory is short give back what is idle, and try once more."""
    try:
        return _decode(lender, runtime, data, codestream, level)
    except DeviceMemoryError as error:
        forget_frames(error)  # the stream's work is done: `_decode` has waited for it
    lender.drop_idle()
    runtime.release_cached()
    return _decode(lender, runtime, data, codestream, level)


def _decode(
    lender: _Lender,
    runtime: Runtime,
    data: bytes | memoryview,
    codestream: Codestream,
    level: int,
) -> DeviceArray:
    shape, kind = shape_of(codestream, level), dtype_of(codestream)
    stream = runtime.stream_of(None)
    try:
        state = lender.take()
        try:
            pixels = runtime.empty(shape, kind, stream)
            state.parse(data, codestream)
            state.decode(codestream, level, target_of(pixels, shape, kind), stream.ptr)
            done = stream.record(runtime.new_event())
        except BaseException as error:
            try:
                stream.synchronize()  # nothing may be on the way when the memory goes
            finally:
                lender.drop(state)
            if type(error) is DeviceError:  # the stream has come to its end: the device is well
                raise DecodeError(f"{error}; for this frame alone: the device goes on") from error
            raise
    except runtime.failures as error:
        raise DeviceError(f"CUDA failed: {error}; a new process may use the GPU again") from error
    lender.give(state, done)
    return pixels
