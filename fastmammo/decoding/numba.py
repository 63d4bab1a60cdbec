"""JPEG 2000 and JPEG lossless in numba: greyscale as scanners write it, twice as fast as C.

Neither decoder has a branch on what it decodes, which noise makes a coin toss (see
`fastmammo.decoding.ebcot` and `fastmammo.decoding.lossless_jpeg`). What they do not decode they say
beforehand: those go to OpenJPEG and libjpeg-turbo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmammo.errors import CorruptCodestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmammo.dicom import Codestream

NAME = "numba"
DEVICE = "cpu"
FORMATS = frozenset({"jpeg2000", "jpeg-lossless"})
LEVELS = True  # of JPEG 2000
CLAMPS = True

MOST_PACKETS = 1 << 17
"""Mammograms have some dozens; each costs a hundred bytes of tables, used or not."""

_PASSED_OVER = frozenset({"TLM", "PLM", "PLT", "CRG", "PRF"})
"""Marker segments that say nothing about how samples are coded."""


def missing() -> str | None:
    """Return None: numba is a base dependency."""
    return None


def refuses(codestream: Codestream) -> str | None:
    """Return why this backend cannot decode the codestream, or None if it can."""
    if codestream.precision > 16:
        return f"{codestream.precision} bits a sample, 16 at most"
    if codestream.components != 1 or codestream.subsampling != (1, 1):
        return f"{codestream.components} components, one of every pixel only"
    if codestream.format == "jpeg-lossless":
        return _refuses_jpeg(codestream)
    return _refuses_jpeg2000(codestream)


def _refuses_jpeg(codestream: Codestream) -> str | None:
    if codestream.process != "lossless":
        return f"{codestream.process} coding, Huffman codes only"
    if not 1 <= codestream.predictor <= 7 or codestream.point_transform >= codestream.precision:
        return f"predictor {codestream.predictor}, point transform {codestream.point_transform}"
    if not codestream.columns:
        return "no columns"
    if codestream.restart_interval % codestream.columns:
        return f"restart intervals of {codestream.restart_interval} samples, no whole rows"
    return None


def _refuses_jpeg2000(codestream: Codestream) -> str | None:
    if codestream.wavelet != "5/3":
        return "the 9/7 wavelet: it decodes the reversible 5/3 alone"
    if codestream.tiles != 1 or codestream.origin != (0, 0):
        return f"{codestream.tiles} tiles from {codestream.origin} on, one from (0, 0) only"
    if codestream.styles:
        return f"code-block styles {', '.join(codestream.styles)}"
    if codestream.region_of_interest or codestream.tile_overrides:
        return "a region of interest, or a tile with parameters of its own"
    if others := sorted(set(codestream.markers) - _PASSED_OVER):
        return f"marker segments {', '.join(others)}"
    if codestream.defects:
        return f"headers against the standard: {'; '.join(codestream.defects)}"
    if codestream.packets > MOST_PACKETS:
        return f"{codestream.packets} packets, {MOST_PACKETS} at most"
    if codestream.codeblock[0] * codestream.codeblock[1] > 4096:
        return f"code-blocks of {codestream.codeblock}, 4096 samples at most"
    return None


def version() -> str:
    import numba

    return f"numba {numba.__version__}"


def decode(
    data: bytes | memoryview, codestream: Codestream, level: int = 0, threads: int = 1
) -> NDArray[np.generic]:
    """Return the samples at 1/2^level as the codestream's own type.

    Args:
        threads: not used: one image takes one core, many images take many.

    Returns:
        (ceil(rows / 2^level), ceil(columns / 2^level)) uint8, int8, uint16 or int16, within the
        codestream's precision: JPEG 2000 is clamped to it, JPEG beyond it is refused.

    Raises:
        CorruptCodestreamError: headers or packets break off or contradict themselves.
    """
    return pyramid(data, codestream).decode(level)


def pyramid(data: bytes | memoryview, codestream: Codestream) -> LosslessJpeg | Pyramid:
    """Open a codestream, to decode levels of it.

    Raises:
        CorruptCodestreamError: its headers break off or contradict themselves.
    """
    kind = LosslessJpeg if codestream.format == "jpeg-lossless" else Pyramid
    return kind(data, codestream)


class LosslessJpeg:
    """One JPEG lossless codestream, which has no levels."""

    def __init__(self, data: bytes | memoryview, codestream: Codestream) -> None:
        from fastmammo.decoding.lossless_jpeg.header import read_scan

        self._view = memoryview(data)[codestream.offset : codestream.offset + codestream.length]
        self._scan = read_scan(self._view)
        self._codestream = codestream

    def decode(self, level: int) -> NDArray[np.generic]:
        """Return the samples, uint8 or uint16; level must be 0."""
        from fastmammo.decoding.lossless_jpeg.samples import decode_samples

        c = self._codestream
        samples = decode_samples(
            *(np.frombuffer(self._view, np.uint8), self._scan, c.rows, c.columns),
            precision=c.precision,
            interval=c.restart_interval,
        )
        return samples if c.precision > 8 else samples.astype(np.uint8)


class Pyramid:
    """One codestream, decoded to one level after another: each step takes only its own bands.

    The coarser levels are kept, so that `decode(2)` and then `decode(1)` cost little more than
    `decode(1)` alone.
    """

    def __init__(self, data: bytes | memoryview, codestream: Codestream) -> None:
        from fastmammo.decoding.ebcot.header import read_header
        from fastmammo.decoding.ebcot.packets import read_blocks

        self._view = memoryview(data)[codestream.offset : codestream.offset + codestream.length]
        self._header = read_header(self._view)
        self._blocks = read_blocks(self._view, self._header)
        self._images: dict[int, NDArray[np.int32]] = {}

    def decode(self, level: int) -> NDArray[np.generic]:
        """Return the samples at 1/2^level, as the function `decode` does."""
        from fastmammo.decoding.ebcot.wavelet import finer, lowest

        header, found = self._header, self._blocks
        if not 0 <= level <= header.levels:
            raise CorruptCodestreamError(
                f"no level {level} in a JPEG 2000 codestream of {header.levels}; "
                "decode in full and reduce"
            )
        images, wanted = self._images, header.levels - level
        depth = 1 << (header.precision - 1)
        offset, limits = (0, (-depth, depth - 1)) if header.signed else (depth, (0, 2 * depth - 1))
        known = max((resolution for resolution in images if resolution <= wanted), default=-1)
        if known < wanted:
            if known < 0:
                images[0] = lowest(found, header)
            for resolution in range(max(known, 0) + 1, wanted + (level > 0)):
                image = np.empty(header.size(resolution), np.int32)
                finer(found, header, resolution, images[resolution - 1], image)
                images[resolution] = image  # only now: a failure leaves no half of one
        if level == 0 and wanted:  # the last step clips at once
            samples = np.empty(header.size(wanted), np.uint16)
            finer(found, header, wanted, images[wanted - 1], samples, (offset, *limits))
        else:
            samples = np.clip(images[wanted] + offset, *limits).astype(np.uint16)
        if header.signed:
            signed = samples.view(np.int16)
            return signed if header.precision > 8 else signed.astype(np.int8)
        return samples if header.precision > 8 else samples.astype(np.uint8)
