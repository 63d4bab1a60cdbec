"""The decoders that peers offer: (path, header) → stored values, by name."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from pydicom import Dataset

    Pixels = np.ndarray[Any, Any]


def by_pydicom(plugin: str, path: str, ds: Dataset) -> Pixels:
    """Decode by one of pydicom's plugins; uncompressed pixels need none."""
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.pixel_array_options(decoding_plugin=plugin)
    return ds.pixel_array


def by_nvimgcodec(path: str, ds: Dataset) -> Pixels:
    """Decode by nvImageCodec's own plugin for pydicom, which copies the pixels back to the host."""
    return by_pydicom(_nvimgcodec_label(), path, ds)


@functools.cache
def _nvimgcodec_label() -> str:
    from nvidia.nvimgcodec.tools.dicom import pydicom_plugin

    pydicom_plugin.register()
    return str(pydicom_plugin.NVIMGCODEC_PLUGIN_LABEL)


def by_dicomsdl(path: str, ds: Dataset) -> Pixels:
    """Decode by dicomsdl, which opens the file itself."""
    import dicomsdl

    return dicomsdl.open(path).pixelData(storedvalue=True)


def by_simpleitk(path: str, ds: Dataset) -> Pixels:
    """Decode by SimpleITK (GDCM inside), which opens the file itself; it applies the rescale."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[0]


def by_imagecodecs(path: str, ds: Dataset) -> Pixels:
    """Decode the codestream by imagecodecs."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    kind = int(ds.file_meta.TransferSyntaxUID.rpartition(".")[2])
    if kind in (90, 91):
        return imagecodecs.jpeg2k_decode(frame)
    if kind in (201, 202, 203):
        return imagecodecs.htj2k_decode(frame)
    if kind in (80, 81):
        return imagecodecs.jpegls_decode(frame)
    return imagecodecs.jpeg8_decode(frame)


def by_fastmammo(path: str, ds: Dataset) -> Pixels:
    """Decode by this package: what the others' stored values are compared with."""
    import fastmammo

    return fastmammo.decode(fastmammo.read(path))


DECODERS: dict[str, Callable[[str, Dataset], Pixels]] = {
    "pylibjpeg": functools.partial(by_pydicom, "pylibjpeg"),
    "gdcm": functools.partial(by_pydicom, "gdcm"),
    "pillow": functools.partial(by_pydicom, "pillow"),
    "nvimgcodec": by_nvimgcodec,
    "dicomsdl": by_dicomsdl,
    "simpleitk": by_simpleitk,
    "imagecodecs": by_imagecodecs,
    "fastmammo": by_fastmammo,
}
