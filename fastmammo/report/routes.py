"""Takes one mammogram, gives a result for every route by which its pixels can come about.

A route is a backend at a level, or a whole way to a finished image. What it is compared with is
computed another way: the stored values of the backend that `auto` takes, the integer 5/3 transform
in plain NumPy, the image made from the same stored values held uncompressed in memory.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.decoding import BACKENDS, FrameDecoder, choose, cuda_runtime, nvjpeg2000
from fastmammo.dicom import SYNTAXES, Frame, read
from fastmammo.errors import DeviceError, FastMammoError
from fastmammo.preprocess import Config, Preprocessor
from fastmammo.preprocess.roi import roi_level
from fastmammo.report.device_routes import of_batch, reduced_on_cuda
from fastmammo.report.difference import difference
from fastmammo.report.references import low_pass, tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fastmammo.dicom import Mammogram, TransferSyntax

LEVELS = range(1, 6)
"""The wavelet levels that are checked: 1/32 of a detector of 5,355 rows is 168."""

_UNCOMPRESSED = "1.2.840.10008.1.2.1"


@dataclass(frozen=True)
class Result:
    """What became of one route of one file."""

    route: str
    """"level 0", ..., "auto image (codec levels)", "full image", "batch (auto image)", "as RLE
    Lossless: full image"."""
    backend: str
    """A name of `BACKENDS`, "auto", "kernels" (the integer reduction) or "pydicom"."""
    device: str
    status: str
    """"reference", "exact", "within" (the tolerance of a lossy format), "differs", "failed" (the
    backend took it and raised) or "not possible"."""
    count: int = 0
    """Pixels that differ."""
    maximum: int = 0
    """The largest absolute difference, in stored values or 16-bit output values."""
    at: tuple[int, int] | None = None
    """(row, column) of the first pixel that differs the most."""
    note: str = ""
    """Why not possible, how failed."""

    @property
    def wrong(self) -> bool:
        """Whether the route is not as it must be."""
        return self.status in ("differs", "failed")


class Check:
    """One file's routes; `results()` yields them one after the other.

    Args:
        mammogram: from `read`; with a path, pydicom's own decoding is a route too.
        size: (rows, columns) of the images.
        reencode: whether to write the stored values in every lossless syntax and read them back.
        seen: called with (result, reference, other) for what differs, shapes aside.
        device: "cuda" for the GPU's routes beside the CPU's, with which they are compared. They
            end where CUDA fails for good: `lost` then says how.

    Raises:
        FastMammoError: the frame cannot be decoded by the backend that `auto` takes.
    """

    def __init__(
        self,
        mammogram: Mammogram,
        *,
        size: tuple[int, int] = (1024, 512),
        reencode: bool = False,
        seen: Callable[[Result, NDArray[Any], NDArray[Any]], None] | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.lost = ""
        """How CUDA failed for good, or ""."""
        self.backends = {n: b for n, b in BACKENDS.items() if b.DEVICE in ("cpu", device)}
        self.mammogram = mammogram
        self.size = size
        self.reencode = reencode
        self.seen = seen
        self.decoder = FrameDecoder(mammogram)
        self.codestream = self.decoder.codestream
        self.stored: NDArray[Any] = self.decoder.at(0)
        self.reference = self.decoder.backend
        self.tolerance = tolerance(self.codestream)

    def results(self) -> Iterator[Result]:
        """Yield the result of every route: level 0, levels 1 to 5, images, then re-encodings."""
        name, device = self.reference.NAME, self.reference.DEVICE
        yield Result("level 0", name, device, "reference")
        decoded = {}
        for result in self._level_0():
            decoded[result.backend] = result.status
            yield result
        yield self._pydicom()
        yield from self._levels()
        yield from self._images(decoded)
        if self.device == "cuda":
            yield from self._batches()
        if self.reencode:
            yield from self._reencoded()

    # ------------------------------------------------------------ stored values

    def _level_0(self) -> Iterator[Result]:
        for name, backend in self.backends.items():
            if name == self.reference.NAME or self.codestream.format not in backend.FORMATS:
                continue
            if self._off(backend.DEVICE):
                continue
            route = "level 0", name, backend.DEVICE
            reason = backend.refuses(self.codestream) or backend.missing()
            if reason:
                yield Result(*route, "not possible", note=reason)
                continue
            allowed = tolerance(self.codestream, backend.DEVICE)
            yield self._try(route, self.stored, self._at(name, backend.DEVICE, 0), allowed)

    def _at(self, backend: str, device: str, level: int) -> Callable[[], NDArray[Any]]:
        return lambda: cuda_runtime.host_copy(
            FrameDecoder(self.mammogram, device=device, backend=backend).at(level)
        )

    def _pydicom(self) -> Result:
        """Compare with pydicom's pixel_array, where it can decode and should give the same."""
        m = self.mammogram
        route = "level 0", "pydicom", "cpu"
        reason = ""
        if not m.path:
            reason = "not read from a path"
        elif m.overlay_bits or m.high_bit + 1 != m.bits_stored:
            reason = "bits beside the stored value: pydicom may leave them in"
        elif m.transfer_syntax.encapsulated and self.decoder.notes:
            reason = "codestream and header disagree: pydicom settles it by rules of its own"
        if reason:
            return Result(*route, "not possible", note=reason)
        try:
            from pydicom import dcmread
            from pydicom.pixels.utils import pixel_array

            found = pixel_array(
                dcmread(str(m.path)), index=0
            )  # given a path, it refuses deflated ones
        except Exception as error:  # whatever a plugin raises: it says nothing about our decoding
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Result(*route, "not possible", note=f"pydicom: {words}")
        return self._try(route, self.stored, lambda: found, self.tolerance)

    def _levels(self) -> Iterator[Result]:
        """Compare the codec's own levels and the kernels with the transform in plain NumPy."""
        expected = self.stored.astype(np.int32)
        for level in LEVELS:
            expected = low_pass(expected)
            clipped = np.clip(expected, self.decoder.first, self.decoder.last)
            for name, backend in self.backends.items():
                fault = nvjpeg2000.levels_fault() if name == nvjpeg2000.NAME else None
                if not (backend.LEVELS or fault) or self.codestream.format not in backend.FORMATS:
                    continue
                if self._off(backend.DEVICE):
                    continue
                route = f"level {level}", name, backend.DEVICE
                reason = backend.refuses(self.codestream) or backend.missing()
                reason = reason or fault or self._no_codec_level(name, backend.DEVICE, level)
                if reason:
                    yield Result(*route, "not possible", note=reason)
                else:
                    yield self._try(route, clipped, self._at(name, backend.DEVICE, level))
            route = f"level {level}", "kernels", "cpu"
            # `self.decoder` holds level 0, so that it reduces and asks no codec
            yield self._try(route, clipped, functools.partial(self.decoder.at, level))
            if self.device == "cuda" and not self.lost:
                route = f"level {level}", "kernels", "cuda"
                yield self._try(
                    route,
                    clipped,
                    functools.partial(reduced_on_cuda, self.stored, level, self.decoder),
                )

    def _no_codec_level(self, backend: str, device: str, level: int) -> str:
        """Return why the codec's own level does not serve, or "" where it does."""
        decoder = FrameDecoder(self.mammogram, device=device, backend=backend)
        if decoder.codec_levels >= level:
            return ""
        m, c = self.mammogram, self.codestream
        for holds, reason in (
            (c.wavelet != "5/3", f"{c.wavelet} wavelet: not the integer transform"),
            (not m.transfer_syntax.lossless, "a lossy transfer syntax: passes may be missing"),
            (c.tiles > 1, "several tiles"),
            (c.origin != (0, 0), "an image offset"),
            (c.region_of_interest, "a region of interest"),
            (c.tile_overrides, "a tile with coding parameters of its own"),
            (c.signed != m.signed, "sign of codestream and header differ"),
            (c.precision < m.bits_stored, "fewer bits than the header says"),
            (c.levels < level, f"the codestream has {c.levels} levels"),
        ):
            if holds:
                return reason
        return "the codec's level is not the integer transform"

    # ------------------------------------------------------------ images

    def _images(self, decoded: dict[str, str]) -> Iterator[Result]:
        """Compare each backend's images with those of the same values held uncompressed."""
        names = ["auto", *decoded]
        if choose(self.codestream, levels=True).NAME != self.reference.NAME:
            names.insert(1, self.reference.NAME)  # `auto` takes another one for its levels
        if self.device == "cuda":
            names.append("auto on cuda")
            decoded = {**decoded, "auto on cuda": "within" if self.tolerance else "exact"}
        reason = self._no_twin()
        for scale in ("auto", "full"):
            for name in names:
                status = decoded.get(name, "exact")
                if status == "not possible":
                    continue  # said at level 0
                name, _, on = name.partition(" on ")
                device = on or (BACKENDS[name].DEVICE if name in BACKENDS else "cpu")
                if self._off(device):
                    continue
                route = self._image_route(scale, name, device), name, device
                if reason:
                    yield Result(*route, "not possible", note=reason)
                elif status == "within":
                    note = "lossy: its stored values differ within the tolerance"
                    yield Result(*route, "not possible", note=note)
                elif status == "failed":
                    yield Result(*route, "not possible", note="it did not decode level 0")
                else:
                    make = self._maker(self.mammogram, name, scale, device)
                    yield self._try(route, self._expected[scale], make)

    def _image_route(self, scale: str, backend: str, device: str) -> str:
        """Name the way to the image, so that a row does not claim levels that were not used."""
        if scale == "full":
            return "full image"
        m = self.mammogram
        small = roi_level(m.rows, m.columns)
        codec = FrameDecoder(m, device=device, backend=backend).codec_levels
        return f"auto image ({'codec levels' if 0 < small <= codec else 'integer reduction'})"

    def _image(
        self, mammogram: Mammogram, backend: str, scale: str, device: str = "cpu"
    ) -> NDArray[Any]:
        # 16 bits: rounding to 8 would hide small differences
        config = Config(size=self.size, bits=16, scale=scale, backend=backend, device=device)
        return Preprocessor(config, workers=1).prepare(mammogram).image

    def _maker(
        self, mammogram: Mammogram, backend: str, scale: str, device: str = "cpu"
    ) -> Callable[[], NDArray[Any]]:
        return lambda: self._image(mammogram, backend, scale, device)

    def _batches(self) -> Iterator[Result]:
        """Compare the images of a batch: frames in flight, one launch for all."""
        for scale in ("auto", "full"):
            route = f"batch ({scale} image)", "auto", "cuda"
            if self.lost:
                return
            reason = self._no_twin()
            if not reason and self.tolerance:
                reason = "lossy: its stored values differ within the tolerance"
            if reason:
                yield Result(*route, "not possible", note=reason)
            else:
                config = Config(size=self.size, bits=16, scale=scale, device="cuda")
                make = functools.partial(of_batch, self.mammogram, config, self._expected[scale])
                yield self._try(route, self._expected[scale], make)

    def _no_twin(self, *, encoded: bool = False) -> str:
        """Return why the stored values cannot be held in another syntax, or ""."""
        low, high = int(self.stored.min()), int(self.stored.max())
        if low >= self.decoder.first and high <= self.decoder.last:
            return ""
        if self.decoder.first == 0 and low >= 0 and not encoded:
            return ""  # uncompressed samples have room for them
        return "values beyond Bits Stored"

    @functools.cached_property
    def _expected(self) -> dict[str, NDArray[Any]]:
        """The images that every route must give: of the same values, held uncompressed."""
        values = self._contained
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        twin = self._twin(SYNTAXES[_UNCOMPRESSED], (Frame(data),))
        return {scale: self._image(twin, "auto", scale) for scale in ("auto", "full")}

    @property
    def _contained(self) -> NDArray[Any]:
        """The stored values in a type that has room for all of the header's range, and for them."""
        beyond = int(self.stored.max()) > self.decoder.last
        return self.stored.astype(self.stored.dtype if beyond else self.decoder.dtype, copy=False)

    @property
    def _bits(self) -> int:
        return (self.decoder.last - self.decoder.first).bit_length()

    def _twin(self, syntax: TransferSyntax, frames: tuple[Frame, ...]) -> Mammogram:
        """Return the file's own header facts over the same stored values in another syntax."""
        return dataclasses.replace(
            self.mammogram,
            transfer_syntax=syntax,
            frames=frames,
            number_of_frames=1,
            bits_allocated=8 * self._contained.dtype.itemsize,
            bits_stored=self._bits,
            high_bit=self._bits - 1,
            pixel_representation=int(self.decoder.first < 0),
            overlay_bits=False,
        )

    # ------------------------------------------------------------ re-encoding

    def _reencoded(self) -> Iterator[Result]:
        """Write the stored values in every lossless syntax; read them back; make both images."""
        from fastmammo.testing import write_dicom

        for uid, syntax in SYNTAXES.items():
            if not syntax.lossless:
                continue
            reason = self._no_twin(encoded=True)
            if not reason:
                try:
                    data = write_dicom(
                        self._contained, transfer_syntax_uid=uid, bits_stored=self._bits
                    )
                    written = read(data)
                except Exception as error:  # an encoder's limits say nothing about our decoding
                    reason = f"cannot be written: {type(error).__name__}: {error}"
            routes = {
                what: (f"as {syntax.name}: {what}", "auto", "cpu")
                for what in ("level 0", "auto image", "full image")
            }
            if reason:
                for route in routes.values():
                    yield Result(*route, "not possible", note=reason)
                continue
            other = self._twin(written.transfer_syntax, written.frames)
            make_stored = functools.partial(FrameDecoder(other).at, 0)
            yield self._try(routes["level 0"], self.stored, make_stored)
            for scale in ("auto", "full"):
                make = self._maker(other, "auto", scale)
                yield self._try(routes[f"{scale} image"], self._expected[scale], make)

    # ------------------------------------------------------------ comparison

    def _off(self, device: str) -> bool:
        """Whether a route of this device makes no sense any more."""
        return device == "cuda" and bool(self.lost)

    def _seen(self, error: FastMammoError) -> None:
        """Note whether CUDA has failed for good: then each further route would fail likewise."""
        if not isinstance(error, DeviceError):
            return
        try:
            cuda_runtime.settle(error)
        except DeviceError as lost:
            self.lost = str(lost)

    def _try(
        self,
        route: tuple[str, str, str],
        reference: NDArray[Any],
        make: Callable[[], NDArray[Any]],
        allowed: int = 0,
    ) -> Result:
        try:
            other = make()
        except FastMammoError as error:
            self._seen(error)
            return Result(*route, "failed", note=str(error))
        found = difference(reference, other)
        if found.count == 0:
            return Result(*route, "exact")
        within = not found.shapes and found.maximum <= allowed
        status = "within" if within else "differs"
        result = Result(*route, status, found.count, found.maximum, found.at, found.shapes)
        if result.wrong and not found.shapes and self.seen is not None:
            self.seen(result, reference, other)
        return result
