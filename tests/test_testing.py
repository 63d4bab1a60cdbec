"""The phantom and the writer: what they promise to every other test.

The reference for a written file is pydicom with each decoder that it finds, never this package.
"""

from __future__ import annotations

import io
import time
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.pixels import get_decoder

from fastmammo.dicom.syntax import SYNTAXES
from fastmammo.errors import ConfigError
from fastmammo.testing import Nuisances, Phantom, encode, phantom, write_dataset, write_dicom
from fastmammo.testing.jpeg_lossless import encode_jpeg_lossless

J = "1.2.840.10008.1.2.4."
LOSSLESS = [uid for uid, syntax in SYNTAXES.items() if syntax.lossless]
LOSSY = [uid for uid, syntax in SYNTAXES.items() if not syntax.lossless]


def frame(kind: str) -> np.ndarray[Any, Any]:
    """Odd-sized stored values with flat parts (runs), steep parts and both ends of the range."""
    generator = np.random.default_rng(7)
    values = generator.integers(0, 4096, (67, 53))
    values[:20] //= 64
    values[30:40] = 0
    values[50] = 4095
    return {
        "uint16": values.astype(np.uint16),
        "int16": (values - 2048).astype(np.int16),
        "uint8": (values >> 4).astype(np.uint8),
        "int8": ((values >> 4) - 128).astype(np.int8),
    }[kind]


def bits(pixels: np.ndarray[Any, Any]) -> int:
    return 8 if pixels.dtype.itemsize == 1 else 12


def decoded_by_pydicom(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Stored values by each plugin of pydicom that can decode the file."""
    uid = pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
    plugins = get_decoder(uid).available_plugins if uid.is_encapsulated else ("",)
    decoded = {}
    for plugin in plugins:
        if plugin in ("gdcm", "pillow") and uid == J + "51":
            continue  # neither takes 12 bits there
        # a fresh dataset each, as decoding may change it
        dataset = pydicom.dcmread(io.BytesIO(data))
        decoded[plugin] = get_decoder(uid).as_array(dataset, decoding_plugin=plugin)[0]
    return decoded


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint8", "int8"])
@pytest.mark.parametrize("uid", LOSSLESS)
def test_lossless_syntaxes_decode_to_the_stored_values(uid: str, kind: str) -> None:
    pixels = frame(kind)
    decoded = decoded_by_pydicom(
        write_dicom(pixels, transfer_syntax_uid=uid, bits_stored=bits(pixels))
    )
    assert decoded
    for plugin, values in decoded.items():
        np.testing.assert_array_equal(values, pixels, err_msg=plugin)


@pytest.mark.parametrize("kind", ["uint16", "uint8"])
@pytest.mark.parametrize("uid", LOSSY)
def test_lossy_syntaxes_decode_to_about_the_stored_values(uid: str, kind: str) -> None:
    image = phantom(128, 104)
    pixels = image.pixels if kind == "uint16" else (image.pixels >> 4).astype(np.uint8)
    if uid == J + "50" and kind == "uint16":
        pytest.skip("JPEG baseline is 8 bits by definition")
    data = write_dicom(pixels, transfer_syntax_uid=uid, bits_stored=bits(pixels))
    dataset = pydicom.dcmread(io.BytesIO(data))
    assert dataset.LossyImageCompression == "01"
    assert dataset.LossyImageCompressionMethod.startswith("ISO_")
    decoded = decoded_by_pydicom(data)
    assert decoded
    for plugin, values in decoded.items():
        error = np.abs(values.astype(int) - pixels.astype(int))
        assert error.max() > 0, plugin
        # at the label's letters transforms ring; elsewhere they stay close
        assert np.percentile(error, 95) <= (12 if kind == "uint16" else 4), plugin


@pytest.mark.parametrize("kind", ["uint16", "int16"])
@pytest.mark.parametrize(
    "options",
    [
        {"precision": 16},
        {"jp2": True},
        {"tile": (32, 16)},
        {"tile": (24, 40), "precision": 16, "levels": 2},
        {"levels": 0},
        {"levels": 3},
        {"layers": 3},
        {"progression": "RPCL", "codeblock": (32, 16)},
        {"mode": 1 + 4 + 32},
    ],
    ids=str,
)
def test_every_style_of_jpeg2000_is_lossless(options: dict[str, Any], kind: str) -> None:
    pixels = frame(kind)
    for uid in (J + "90", J + "91"):
        data = write_dicom(pixels, transfer_syntax_uid=uid, reversible=True, **options)
        for plugin, values in decoded_by_pydicom(data).items():
            np.testing.assert_array_equal(values, pixels, err_msg=plugin)


@pytest.mark.parametrize("kind", ["uint16", "int16"])
@pytest.mark.parametrize(
    "options", [{"precision": 16}, {"tile": (32, 16)}, {"levels": 1}, {"levels": 7}], ids=str
)
def test_every_style_of_htj2k_is_lossless(options: dict[str, Any], kind: str) -> None:
    pixels = frame(kind)
    codestream = encode(pixels, J + "201", bits_stored=12, **options)
    np.testing.assert_array_equal(imagecodecs.htj2k_decode(codestream), pixels)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(codestream), pixels)


def siz_and_cod(codestream: bytes) -> dict[str, int]:
    """Precision, sign, tile size and levels as the bytes say them (15444-1 A.5.1, A.6.1)."""
    siz = codestream.index(b"\xff\x4f\xff\x51") + 2
    cod = codestream.index(b"\xff\x52", siz)

    def number(at: int) -> int:
        return int.from_bytes(codestream[at : at + 4], "big")

    return {
        "precision": (codestream[siz + 40] & 0x7F) + 1,
        "signed": codestream[siz + 40] >> 7,
        "tile_columns": number(siz + 22),
        "tile_rows": number(siz + 26),
        "progression": codestream[cod + 5],
        "levels": codestream[cod + 9],
        "reversible": codestream[cod + 13],
    }


@pytest.mark.parametrize("uid", [J + "90", J + "201"])
def test_the_codestream_says_what_was_asked(uid: str) -> None:
    got = siz_and_cod(
        encode(frame("uint16"), uid, bits_stored=12, tile=(32, 16), levels=3, progression="RPCL")
    )
    assert got == {
        "precision": 12,
        "signed": 0,
        "tile_rows": 32,
        "tile_columns": 16,
        "progression": 2,
        "levels": 3,
        "reversible": 1,
    }
    got = siz_and_cod(encode(frame("int16"), uid, bits_stored=12, precision=16))
    assert (got["precision"], got["signed"], got["levels"]) == (16, 1, 5)


def test_htj2k_rpcl_carries_a_tlm_marker_and_the_lossy_one_the_9_7_wavelet() -> None:
    assert b"\xff\x55" in encode(frame("uint16"), J + "202", bits_stored=12)[:200]
    assert siz_and_cod(encode(frame("uint16"), J + "203", bits_stored=12))["reversible"] == 0


def test_lossy_quality_is_heard() -> None:
    pixels = phantom(128, 104).pixels
    for uid, good, bad in (("51", 98, 50), ("81", 1, 20), ("91", 70, 40), ("203", 1, 40)):
        sizes = [len(encode(pixels, J + uid, bits_stored=12, quality=q)) for q in (good, bad)]
        assert sizes[0] > 1.5 * sizes[1], uid


@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_predictors_and_restart_intervals(predictor: int) -> None:
    generator = np.random.default_rng(predictor)
    for precision in (2, 8, 12, 16):
        pixels = generator.integers(0, 1 << precision, (37, 29)).astype(np.uint16)
        pixels[10:14] = 0
        pixels[14:18] = (1 << precision) - 1  # differences of 2^15: T.81's category 16
        for restart_rows in (0, 1, 5):
            codestream = encode_jpeg_lossless(
                pixels, precision=precision, predictor=predictor, restart_rows=restart_rows
            )
            assert (b"\xff\xdd" in codestream) == (restart_rows > 0)
            np.testing.assert_array_equal(imagecodecs.jpeg8_decode(codestream), pixels)
            if restart_rows == 0:  # imagecodecs.ljpeg_decode misreads restart markers
                np.testing.assert_array_equal(imagecodecs.ljpeg_decode(codestream), pixels)


def test_jpeg_lossless_restart_intervals_and_predictors_through_dicom() -> None:
    pixels = frame("uint16")
    for uid, options in (
        (J + "70", {"restart_rows": 4}),
        (J + "57", {"predictor": 6, "restart_rows": 1}),
        (J + "57", {"predictor": 4}),
        (J + "57", {"precision": 16}),
    ):
        data = write_dicom(pixels, transfer_syntax_uid=uid, **options)  # type: ignore[arg-type]
        assert "pylibjpeg" in decoded_by_pydicom(data)
        for plugin, values in decoded_by_pydicom(data).items():
            np.testing.assert_array_equal(values, pixels, err_msg=f"{plugin} {options}")


def test_jpeg_lossless_point_transform_drops_low_bits() -> None:
    pixels = frame("uint16")
    codestream = encode(pixels, J + "57", bits_stored=12, point_transform=3)
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(codestream), pixels >> 3 << 3)


@pytest.mark.parametrize(
    ("uid", "kind", "options", "words"),
    [
        (J + "50", "uint16", {}, "precision 12; wanted one of (8,)"),
        (J + "51", "int16", {}, "knows no sign"),
        (J + "81", "int16", {}, "knows no sign"),
        (J + "70", "uint16", {"predictor": 2}, "use 1.2.840.10008.1.2.4.57"),
        (J + "57", "uint16", {"predictor": 8}, "predictor 8; wanted 1 to 7"),
        (J + "57", "uint16", {"restart_rows": 2000}, "at most 65535"),
        (J + "57", "uint16", {"point_transform": 12}, "wanted 0 to 11"),
        (J + "57", "uint16", {"precision": 17, "restart_rows": 1}, "precision 17"),
        (J + "57", "uint16", {"precision": 9}, "pixels from 0 to 4095 at precision 9"),
        (J + "80", "uint16", {"precision": 12}, "leave precision out"),
        (J + "90", "uint16", {"precision": 8}, "give a higher precision"),
        (J + "90", "uint16", {"levels": 20}, "OpenJPEG refused"),
        (J + "201", "uint16", {"levels": 0}, "HTJ2K with levels 0"),
        (J + "90", "uint16", {"bits_stored": 17}, "bits_stored 17; wanted 2 to 16"),
        (J + "99", "uint16", {}, "wanted one of ["),
    ],
)
def test_settings_that_a_syntax_does_not_allow_are_refused(
    uid: str, kind: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(frame(kind), uid, **{"bits_stored": 12, **options})
    assert words in str(caught.value)


def test_pixels_that_are_no_frame_are_refused() -> None:
    with pytest.raises(ConfigError, match="encode frame by frame"):
        encode(np.zeros((2, 8, 8), np.uint16), J + "90", bits_stored=12)
    with pytest.raises(ConfigError, match="wanted one of"):
        write_dicom(frame("uint16"), transfer_syntax_uid="1.2.3")


@pytest.mark.parametrize("uid", [J + "90", J + "70", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.2"])
def test_multi_frame(uid: str) -> None:
    pixels = np.stack([frame("uint16"), frame("uint16")[::-1], frame("uint16") // 2])
    data = write_dicom(pixels, transfer_syntax_uid=uid)
    assert pydicom.dcmread(io.BytesIO(data)).NumberOfFrames == 3
    for plugin, values in decoded_by_pydicom(data).items():
        np.testing.assert_array_equal(values, pixels, err_msg=plugin)


def test_fragments_and_offset_tables() -> None:
    pixels = np.stack([frame("uint16"), frame("uint16")[::-1]])

    def written(**options: Any) -> tuple[pydicom.Dataset, list[int], int]:
        dataset = pydicom.dcmread(io.BytesIO(write_dicom(pixels, **options)))
        buffer = io.BytesIO(dataset.PixelData)
        offsets = parse_basic_offsets(buffer)
        return dataset, offsets, parse_fragments(buffer)[0]

    dataset, right, fragments = written(offset_table="basic", fragments=3)
    assert (len(right), fragments) == (2, 6)
    np.testing.assert_array_equal(dataset.pixel_array, pixels)
    dataset, offsets, fragments = written(offset_table="empty")
    assert (offsets, fragments) == ([], 2)
    np.testing.assert_array_equal(dataset.pixel_array, pixels)
    dataset, offsets, fragments = written(offset_table="extended")
    assert (offsets, len(dataset.ExtendedOffsetTable), fragments) == ([], 16, 2)
    np.testing.assert_array_equal(dataset.pixel_array, pixels)
    _, wrong, _ = written(offset_table="wrong", fragments=3)
    assert len(wrong) == 2
    assert set(wrong).isdisjoint(right)
    with pytest.raises(ConfigError, match="wanted 1 "):
        written(offset_table="extended", fragments=2)
    with pytest.raises(ConfigError, match="fragments 0"):
        written(fragments=0)


def test_the_header_says_what_was_asked(tmp_path: Any) -> None:
    image = phantom(64, 52, laterality="R", view_position="MLO")
    path = tmp_path / "view.dcm"
    data = write_dicom(
        image.stored("MONOCHROME1"),
        path=path,
        photometric_interpretation="MONOCHROME1",
        window_center=[2000, 1500.5],
        window_width=[900, 800],
        voi_lut_function="SIGMOID",
        laterality="R",
        view_position="MLO",
        patient_id="P7",
        attributes={"Manufacturer": "ACME", "PixelPaddingValue": 4095, "PixelSpacing": None},
    )
    assert path.read_bytes() == data
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
    assert dataset.PresentationIntentType == "FOR PRESENTATION"
    assert (dataset.ImageLaterality, dataset.ViewPosition, dataset.PatientID) == ("R", "MLO", "P7")
    assert dataset.ViewCodeSequence[0].CodeValue == "399368009"
    assert dataset.WindowCenter == [2000, 1500.5]
    assert dataset.VOILUTFunction == "SIGMOID"
    assert dataset.PresentationLUTShape == "INVERSE"
    assert (dataset.Manufacturer, dataset.PixelPaddingValue) == ("ACME", 4095)
    assert "PixelSpacing" not in dataset
    assert dataset.ImagerPixelSpacing == [0.07, 0.07]
    np.testing.assert_array_equal(dataset.pixel_array, 4095 - image.pixels)


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, again = (write_dicom(phantom(64, 52, seed=3).pixels, seed=3) for _ in range(2))
    assert first == again
    uid = pydicom.dcmread(io.BytesIO(first)).SOPInstanceUID
    other = pydicom.dcmread(io.BytesIO(write_dicom(phantom(64, 52).pixels, seed=4)))
    assert other.SOPInstanceUID != uid


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("view_position", ["CC", "MLO"])
@pytest.mark.parametrize("seed", range(3))
def test_the_phantom_is_a_breast_at_the_chest_wall(
    laterality: Any, view_position: Any, seed: int
) -> None:
    image = phantom(416, 320, seed=seed, laterality=laterality, view_position=view_position)
    assert image.pixels.dtype == np.uint16
    assert image.pixels.shape == image.mask.shape == (416, 320)
    pixels = image.pixels if laterality == "L" else image.pixels[:, ::-1]
    mask = image.mask if laterality == "L" else image.mask[:, ::-1]
    assert 0.2 < mask.mean() < 0.7
    assert mask[:, 0].mean() > 0.5
    assert not mask[:, -1].any()
    assert mask[0].any() == (view_position == "MLO")  # the axilla leaves the field above
    assert (pixels[mask] > 0).all()
    # air is suppressed everywhere but in the label
    assert image.label_box is not None
    top, left, bottom, right = image.label_box
    label = image.pixels[top:bottom, left:right]
    assert set(np.unique(label)) == {0, 4095}
    assert not image.mask[top:bottom, left:right].any()
    air = ~image.mask
    air[top:bottom, left:right] = False
    if image.belly is not None:  # seen, but no breast
        assert view_position == "MLO"
        assert (image.pixels[image.belly] > 0).all()
        assert not (image.belly & image.mask).any()
        air &= ~image.belly
    assert not image.pixels[air].any()
    if view_position == "MLO":  # the muscle is brighter than the fat beside it
        assert pixels[2:20, 2:20].mean() > 1.3 * np.median(pixels[mask])


def test_the_breast_darkens_towards_the_skin() -> None:
    for seed in range(2):
        image = phantom(832, 640, seed=seed, noise=0)  # 0.28 mm a pixel
        profiles = []
        for column in range(10, 120):
            top = int(np.flatnonzero(image.mask[:, column])[0])
            profiles.append(image.pixels[top : top + 90, column])
        profile = np.mean(profiles, axis=0)
        fat = profile[55:90].mean()  # 15 to 25 mm inside
        assert profile[9:18].mean() < 0.9 * fat  # 2.5 to 5 mm
        assert profile[6:9].mean() < profile[1:5].max()  # the skin's own bright line


def test_the_phantom_varies_by_seed_alone() -> None:
    def drawn(**options: Any) -> Phantom:
        return phantom(128, 104, **options)

    np.testing.assert_array_equal(drawn(seed=5).pixels, drawn(seed=5).pixels)
    assert (drawn(seed=5).mask != drawn(seed=6).mask).any()
    larger = phantom(256, 208, seed=5)
    assert (drawn(seed=5).mask != larger.mask[::2, ::2]).mean() < 0.001
    assert drawn(label=False).label_box is None
    assert drawn(label=False).pixels.max() < 4095
    assert drawn(bits_stored=14).pixels.max() == 16383
    assert drawn(bits_stored=8).pixels.max() == 255


def test_noise_grows_with_the_signal_and_the_setting() -> None:
    clean = phantom(416, 320, noise=0)
    for noise in (0.5, 1.0):
        grain = phantom(416, 320, noise=noise).pixels.astype(float) - clean.pixels
        low, high = np.percentile(clean.pixels[clean.mask], [20, 80])
        dark = grain[clean.mask & (clean.pixels < low)].std()
        bright = grain[clean.mask & (clean.pixels > high) & (clean.pixels < 4095)].std()
        assert dark < bright
        assert 15 * noise < dark < bright < 45 * noise


@pytest.mark.slow
def test_full_size_costs_what_a_real_one_costs() -> None:
    start = time.perf_counter()
    image = phantom(3328, 2560)
    assert time.perf_counter() - start < 15  # 2 s alone on a core; a shared machine is slower
    codestream = encode(image.pixels, J + "90", bits_stored=12)
    assert 6.5 < 8 * len(codestream) / image.mask.sum() < 7.6


@pytest.mark.parametrize("shape", [(16, 16), (67, 53), (16, 400), (400, 16), (1701, 333)])
def test_any_size_will_do(shape: tuple[int, int]) -> None:
    image = phantom(*shape, view_position="MLO", laterality="R", seed=1)
    assert image.pixels.shape == shape
    assert image.mask.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 8}, "rows 8; wanted 16 or more"),
        ({"columns": 0}, "columns 0"),
        ({"view_position": "XX"}, "'XX'; wanted CC or MLO"),
        ({"laterality": "B"}, "'B'; wanted L or R"),
        ({"bits_stored": 17}, "bits_stored 17; wanted 8 to 16"),
        ({"noise": -1}, "noise -1"),
        ({"field_height": 20}, "field_height 20; wanted 50 to 500 mm"),
        ({"density": "E"}, "density 'E'; wanted A, B, C, D or None"),
        ({"lesions": ["wart"]}, "lesions ['wart']; wanted of ['calcifications'"),
        ({"lesions": ["round mass"], "lesion_contrast": 0}, "lesion_contrast 0; wanted above 0"),
        ({"nuisances": Nuisances(air=0.5)}, "Nuisances: air 0.5; wanted 0 to 0.15"),
        ({"nuisances": Nuisances(border_sides=("left",))}, "border_sides ('left',); wanted of"),
    ],
)
def test_phantom_settings_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        phantom(**{"rows": 64, "columns": 64, **options})
    assert words in str(caught.value)


def test_a_dataset_is_a_mixed_archive(tmp_path: Any) -> None:
    paths = write_dataset(tmp_path / "a", count=9, rows=64, columns=52, seed=2)
    again = write_dataset(tmp_path / "b", count=9, rows=64, columns=52, seed=2)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert len({path.name for path in paths}) == 9
    assert sorted((tmp_path / "a").rglob("*.dcm")) == sorted(paths)
    datasets = [pydicom.dcmread(path) for path in paths]
    assert len({path.parent.name for path in paths}) == 3
    for path, dataset in zip(paths, datasets, strict=True):
        assert path.parent.name == dataset.PatientID
    assert {dataset.PhotometricInterpretation for dataset in datasets} == {
        "MONOCHROME1",
        "MONOCHROME2",
    }
    assert {dataset.VOILUTFunction for dataset in datasets} == {"LINEAR", "SIGMOID"}
    assert len({dataset.file_meta.TransferSyntaxUID for dataset in datasets}) == 9
    views = {(dataset.ImageLaterality, dataset.ViewPosition) for dataset in datasets[:4]}
    assert views == {("L", "CC"), ("R", "CC"), ("L", "MLO"), ("R", "MLO")}
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 9
    assert len({dataset.StudyInstanceUID for dataset in datasets}) == 3
    with pytest.raises(ConfigError, match="at least one syntax"):
        write_dataset(tmp_path, count=1, transfer_syntax_uids=())
