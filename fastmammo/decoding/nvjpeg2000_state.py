"""One decode at a time: takes a frame's bytes and device memory, queues the work on a stream.

A `State` owns nvJPEG2000's buffers for one frame on the way; who has several keeps several frames
on the way. Nothing here waits for the GPU.
"""

from __future__ import annotations

import ctypes as C
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding.nvjpeg2000_library import (
    ComponentInfo,
    Image,
    ImageInfo,
    Library,
    PixelType,
)
from fastmammo.errors import (
    BackendUnavailableError,
    DeviceError,
    MismatchError,
    UnsupportedSyntaxError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.decoding.cuda_runtime import Event, Target
    from fastmammo.dicom import Codestream

_PIXEL_TYPES = {"u1": PixelType.UINT8, "u2": PixelType.UINT16, "i2": PixelType.INT16}


def dtype_of(codestream: Codestream) -> np.dtype[np.generic]:
    """Return the type that the samples are decoded to: uint8, uint16 or int16."""
    if codestream.signed:
        return np.dtype(np.int16)
    return np.dtype(np.uint8 if codestream.precision <= 8 else np.uint16)


def shape_of(codestream: Codestream, level: int) -> tuple[int, int]:
    """Return (rows, columns) of a level.

    Raises:
        UnsupportedSyntaxError: the codestream does not hold the level in one piece, or at all.
    """
    c, scale = codestream, 1 << level
    if level and (c.tiles > 1 or c.origin != (0, 0) or c.tile_overrides or level > c.levels):
        raise UnsupportedSyntaxError(
            f"nvJPEG2000: level {level} of a codestream with {c.levels} levels in {c.tiles} tiles, "
            f"image offset {c.origin}: wanted one tile at offset (0, 0) and as many levels; decode "
            "level 0 and reduce it"
        )
    return -(-c.rows // scale), -(-c.columns // scale)


class Handle:
    """The library's own handle on one device. Threads may share it; its States they may not."""

    def __init__(
        self,
        library: Library,
        device_padding: int | None = None,
        pinned_padding: int | None = None,
    ) -> None:
        """Make the handle; paddings are bytes to whose multiples its States' memory is rounded."""
        self.library = library
        self.pointer = library.new("CreateSimple")
        for kind, padding in (("Device", device_padding), ("Pinned", pinned_padding)):
            if padding is not None:
                library(f"Set{kind}MemoryPadding", padding, self.pointer)

    def close(self) -> None:
        """Destroy it; its States must be closed already."""
        self.library.quietly("Destroy", self.pointer)


class State:
    """The buffers of one decode on the way: host and device memory that grows with the frames.

    The order is `parse`, `decode`, and, once the stream's work is done, the next `parse`.
    """

    def __init__(self, handle: Handle) -> None:
        """Make a decode state and a bitstream on the current device.

        Raises:
            BackendUnavailableError: the library has no GPU that it can use.
            DeviceMemoryError: there is no memory for it.
        """
        self.library, self._handle = handle.library, handle.pointer
        self._bitstream = self.library.new("StreamCreate")
        try:
            self._state = self.library.new("DecodeStateCreate", self._handle)
        except DeviceError as error:
            self.library.quietly("StreamDestroy", self._bitstream)
            if type(error) is DeviceError:
                raise BackendUnavailableError(
                    f"{error}; there is no GPU, its driver is older than the library's CUDA, or "
                    "this process has lost it"
                ) from error
            raise
        self._source: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._image: tuple[Any, ...] = ()
        self._resolutions = 0
        self.done: Event | None = None
        """For whoever lends States: reached when the stream's work with this one is done."""

    def parse(self, data: bytes | memoryview, codestream: Codestream) -> None:
        """Read the header of a frame's bytes, which are kept until the next `parse`.

        Raises:
            CorruptCodestreamError, UnsupportedSyntaxError: the library's own verdict.
            MismatchError: it reads other facts than `codestream`.
        """
        c, library = codestream, self.library
        view = memoryview(data)[c.offset : c.offset + c.length]
        self._source = np.frombuffer(view, np.uint8)
        address = self._source.ctypes.data
        library("StreamParse", self._handle, address, len(view), 0, 0, self._bitstream)
        image, component = ImageInfo(), ComponentInfo()
        library("StreamGetImageInfo", self._bitstream, C.byref(image))
        library("StreamGetImageComponentInfo", self._bitstream, C.byref(component), 0)
        self._resolutions = library.number("StreamGetResolutionsInTile", self._bitstream, 0)
        found = (
            (image.image_height, image.image_width),
            image.num_tiles_x * image.num_tiles_y,
            image.num_components,
            (component.component_height, component.component_width),
            (component.precision, bool(component.sgn)),
            self._resolutions - 1,
        )
        size = c.rows, c.columns
        wanted = size, c.tiles, c.components, size, (c.precision, c.signed), c.levels
        if found != wanted:
            raise MismatchError(
                "nvJPEG2000 reads (size, tiles, components, size, precision and sign, levels) "
                f"{found}, the codestream's header says {wanted}"
            )

    def decode(self, codestream: Codestream, level: int, target: Target, stream: int) -> None:
        """Decode the parsed frame at 1/2^level into device memory, in the order of a CUDA stream.

        It returns when the packet headers are read and the GPU's work is queued. Until that is
        done the target must live, and this State must not be used.

        Args:
            target: room for `shape_of` samples of `dtype_of`.
            stream: its address; 0 is the default stream.

        Raises:
            UnsupportedSyntaxError: see `shape_of`.
            MismatchError: the library's level has another size.
            DeviceError: CUDA failed.
            DecodeError: any other status; the message names it.
        """
        library, rows_columns = self.library, shape_of(codestream, level)
        pointers, pitches = (C.c_void_p * 1)(target.pointer), (C.c_size_t * 1)(target.pitch)
        kind = dtype_of(codestream)
        image = Image(pointers, pitches, _PIXEL_TYPES[kind.str[1:]], 1)
        self._image = image, pointers, pitches
        where = self._handle, self._state, self._bitstream, None
        if not level:
            library("DecodeImage", *where, C.byref(image), stream)
            return
        count = self._resolutions - level
        height, width = C.c_uint32(), C.c_uint32()
        query = self._bitstream, 0, 0, count - 1, C.byref(width), C.byref(height)
        library("StreamGetResolutionComponentDim", *query)
        if (height.value, width.value) != rows_columns:
            raise MismatchError(
                f"nvJPEG2000's level {level} is {height.value} x {width.value}, wanted "
                f"{rows_columns[0]} x {rows_columns[1]}"
            )
        library("DecodeTile", *where, 0, count, C.byref(image), stream)

    def close(self) -> None:
        """Free its memory; the stream's work with it must be done."""
        self.library.quietly("DecodeStateDestroy", self._state)
        self.library.quietly("StreamDestroy", self._bitstream)
