"""The whole way to an image: same bits for every lossless syntax, geometry, batches, failures."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pydicom
import pytest

import fastmammo
from fastmammo.dicom import read
from fastmammo.errors import ConfigError, NotDicomError, WindowError
from fastmammo.preprocess import RECORD_COLUMNS, Config, Preprocessor, apply_voi
from fastmammo.testing import phantom, write_dicom

J = "1.2.840.10008.1.2.4"
SYNTAXES = [
    ("1.2.840.10008.1.2.1", {}),
    ("1.2.840.10008.1.2.2", {}),
    ("1.2.840.10008.1.2.5", {}),
    (f"{J}.57", {"predictor": 6}),
    (f"{J}.70", {}),
    (f"{J}.80", {}),
    (f"{J}.90", {}),
    (f"{J}.90", {"tile": (256, 256)}),
    (f"{J}.90", {"precision": 16}),
    (f"{J}.90", {"levels": 1}),
    (f"{J}.201", {}),
    (f"{J}.202", {}),
]


@pytest.mark.parametrize("scale", ["auto", "full"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("shape", [(1303, 1001), (640, 512)])
def test_every_lossless_syntax_gives_the_same_bytes(
    scale: str, signed: bool, shape: tuple[int, int]
) -> None:
    made = phantom(*shape, seed=2, view_position="MLO", laterality="R")
    values = made.pixels.astype(np.int16) - 2048 if signed else made.pixels
    center = made.window_center - (2048 if signed else 0)
    prepare = Preprocessor(size=(256, 160), scale=scale, bits=16, workers=1)
    images, levels = [], set()
    for uid, options in SYNTAXES:
        data = write_dicom(
            values,
            transfer_syntax_uid=uid,
            laterality="R",
            window_center=center,
            window_width=made.window_width,
            **options,  # type: ignore[arg-type]
        )
        prepared = prepare.prepare(data)
        images.append(prepared.image.tobytes())
        levels.add((prepared.geometry.level, prepared.geometry.box, prepared.voi.rule))
    assert len(set(images)) == 1
    assert len(levels) == 1
    level = levels.pop()[0]
    assert level == 0 if scale == "full" else level > 0 or shape[0] < 700


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_gives_the_same_image(signed: bool) -> None:
    made = phantom(500, 400, seed=4)
    prepare = Preprocessor(size=(128, 96), bits=16, workers=1, scale="full")
    window = {"window_center": 2047.5, "window_width": 4096, "voi_lut_function": "LINEAR_EXACT"}
    one = prepare.prepare(write_dicom(made.pixels, **window)).image
    other = prepare.prepare(
        write_dicom(made.stored("MONOCHROME1"), photometric_interpretation="MONOCHROME1", **window)
    ).image
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1  # the table is rounded before it is complemented or after


def test_an_unscaled_image_is_apply_voi() -> None:
    made = phantom(200, 150, seed=1)
    data = write_dicom(
        made.pixels, window_center=1500, window_width=2000, voi_lut_function="SIGMOID"
    )
    for bits in (8, 16):
        prepare = Preprocessor(size=(200, 150), bits=bits, crop="none", workers=1)
        prepared = prepare.prepare(data)
        assert prepared.geometry.level == 0
        assert np.array_equal(prepared.image, apply_voi(made.pixels, read(data), bits=bits))


def test_crop_flip_and_padding() -> None:
    made = phantom(1000, 800, seed=3, laterality="R", view_position="CC")
    data = write_dicom(
        made.pixels,
        laterality="R",
        window_center=2000,
        window_width=3000,
        voi_lut_function="SIGMOID",
    )
    plain = Preprocessor(size=(300, 250), workers=1).prepare(data)
    flipped = Preprocessor(size=(300, 250), flip="left", workers=1).prepare(data)
    assert plain.roi.laterality == "R"
    assert not plain.geometry.mirrored
    assert flipped.geometry.mirrored
    assert np.array_equal(flipped.image, plain.image[:, ::-1])
    # The chest wall lies against its edge; what is padded has the value of black, which SIGMOID
    # does not map to 0.
    assert flipped.geometry.placed[1] == 0
    padding = flipped.image[:, flipped.geometry.placed[3] :]
    assert plain.voi.black > 0
    if padding.size:
        assert (padding == plain.voi.black).all()
    # The true breast lies in the box, and the box is not much larger.
    rows, columns = np.nonzero(made.mask)
    r0, c0, r1, c1 = plain.geometry.box
    inside = (rows >= r0) & (rows < r1) & (columns >= c0) & (columns < c1)
    assert inside.mean() > 0.999
    tight = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert (r1 - r0) * (c1 - c0) < 1.25 * tight


def test_auto_is_close_to_full_and_in_place() -> None:
    made = phantom(1600, 1280, seed=6, noise=0.3)
    data = write_dicom(
        made.pixels, window_center=made.window_center, window_width=made.window_width
    )
    images = {
        scale: Preprocessor(size=(256, 160), bits=16, scale=scale, workers=1).prepare(data)
        for scale in ("auto", "full")
    }
    assert images["auto"].geometry.level >= 1
    assert images["auto"].geometry.box == images["full"].geometry.box
    a, b = (images[scale].image.astype(float) for scale in ("auto", "full"))
    psnr = 20 * np.log10(65535 / np.sqrt(np.mean((a - b) ** 2)))
    assert psnr > 40
    shifted = [np.mean((a[:, 1:] - b[:, :-1]) ** 2), np.mean((a[:, :-1] - b[:, 1:]) ** 2)]
    assert np.mean((a - b) ** 2) < 0.2 * min(shifted)


def test_batches_keep_order_and_collect_failures(tmp_path) -> None:
    files = []
    for i in range(4):
        path = tmp_path / f"{i}.dcm"
        path.write_bytes(write_dicom(phantom(256, 200, seed=i).pixels, seed=i))
        files.append(path)
    files.insert(2, tmp_path / "absent.dcm")
    bad = b"not DICOM at all"
    prepare = Preprocessor(size=(64, 48), workers=3, on_error="collect")
    batch = prepare([*files, bad])
    assert batch.images.shape == (4, 1, 64, 48)
    assert batch.images.dtype == np.uint8
    assert batch.indices == (0, 1, 3, 4)
    assert [failure.index for failure in batch.failures] == [2, 5]
    assert isinstance(batch.failures[0].error, FileNotFoundError)
    assert isinstance(batch.failures[1].error, NotDicomError)
    for index, image, m in zip(batch.indices, batch.images, batch.attributes, strict=True):
        assert m.path == str(files[index])
        assert m.frames == ()
        alone = Preprocessor(size=(64, 48)).prepare(files[index])
        assert np.array_equal(alone.image, image[0])
    with pytest.raises(NotDicomError):
        Preprocessor(size=(64, 48))([bad, *files[:2]])
    assert prepare([]).images.shape == (0, 1, 64, 48)
    with pytest.raises(TypeError, match="got one source, wanted several"):
        prepare(str(files[0]))


def test_minmax_does_not_depend_on_the_scale() -> None:
    data = write_dicom(phantom(1303, 1001, seed=9).pixels)
    both = [
        Preprocessor(size=(256, 160), window="minmax", scale=scale, workers=1).prepare(data).voi
        for scale in ("auto", "full")
    ]
    assert both[0].rule == both[1].rule
    assert np.array_equal(both[0].values, both[1].values)


def test_flags() -> None:
    prepare = Preprocessor(size=(64, 64), workers=1)
    blank = prepare.prepare(write_dicom(np.zeros((300, 200), np.uint16)))
    assert "blank" in blank.flags
    assert blank.geometry.box == (0, 0, 300, 200)
    made = phantom(600, 480, seed=8, laterality="L")
    wrong = prepare.prepare(write_dicom(made.pixels, laterality="R"))
    assert "laterality: header R, content L" in wrong.flags
    frames = np.stack([made.pixels, made.pixels])
    assert "one of 2 frames" in prepare.prepare(write_dicom(frames)).flags
    data = write_dicom(
        np.minimum(made.pixels.astype(np.uint32) * 3, 65535).astype(np.uint16), bits_stored=16
    )
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.BitsStored, dataset.HighBit = 12, 11
    out = io.BytesIO()
    dataset.save_as(out)
    assert "values beyond 12 bits stored" in prepare.prepare(out.getvalue()).flags


def test_the_record_tells_what_was_done() -> None:
    made = phantom(640, 512, seed=1)
    data = write_dicom(made.pixels, window_center=1000, window_width=2000, patient_id="SECRET")
    record = Preprocessor(size=(128, 96), workers=1).prepare(data).record
    assert tuple(record) == RECORD_COLUMNS
    assert record["decoder"] == "numba"
    assert record["transfer_syntax_uid"] == f"{J}.90"
    assert record["window_rule"] == "window 0 LINEAR"
    assert record["level"] == 2
    assert "SECRET" not in str(record)


def test_real_mammograms(data) -> None:
    prepare = Preprocessor(size=(512, 512), workers=1)
    spot = prepare.prepare(data / "fo-dicom" / "OutOfBoundsOverlay.dcm")
    assert spot.image.std() > 20
    from PIL import Image

    # R-MLO lies mirrored in this collection: its chest wall is at the left, and the flag says so.
    for name, conflict in (("L-CC", False), ("R-MLO", True)):
        with Image.open(data / "birads" / f"{name}.png") as image:
            pixels = np.asarray(image)
        wrapped = write_dicom(
            pixels,
            bits_stored=8,
            laterality=name[0],
            view_position=name[2:],
        )
        prepared = prepare.prepare(wrapped)
        assert prepared.roi.laterality == "L"
        assert not any("full frame" in flag for flag in prepared.flags)
        assert ("laterality: header R, content L" in prepared.flags) == conflict


def test_window_errors_name_the_file(tmp_path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(write_dicom(phantom(64, 48).pixels))
    with pytest.raises(WindowError) as caught:
        Preprocessor(window="lut:3").prepare(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 5)}, r"size: got \(0, 5\), wanted \(rows, columns\)"),
        ({"size": 512}, "size: got 512"),
        ({"bits": 12}, "bits: got 12, allowed are 8, 16"),
        ({"scale": "half"}, "scale: got 'half', allowed are auto, full"),
        ({"margin": 2}, "margin: got 2, allowed is 0.0 to 0.5"),
        ({"frame": -1}, "frame: got -1"),
        ({"backend": "kakadu"}, "backend: got 'kakadu'"),
        ({"device": "tpu"}, "device: got 'tpu', allowed are cpu, cuda, auto"),
        ({"workers": 0}, "workers: got 0"),
        ({"on_error": "ignore"}, "on_error: got 'ignore'"),
        ({"colour": 1}, "colour: no such setting; there are size, bits"),
    ],
)
def test_settings_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessor(**fields)  # type: ignore[arg-type]


def test_the_digest_covers_what_changes_pixels() -> None:
    base = Config()
    assert base.digest() == Config(size=[1024, 512]).digest()  # type: ignore[arg-type]
    for change in ({"size": (512, 512)}, {"bits": 16}, {"flip": "left"}, {"window": "minmax"}):
        assert dataclasses.replace(base, **change).digest() != base.digest()
    assert fastmammo.Config(**{**base.to_dict(), "size": (1024, 512)}) == base


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_canvas_continues_the_air_around_the_breast(kind: str, bits: int) -> None:
    """A SIGMOID window leaves air above black; an edge there would tell the vendor."""
    made = phantom(640, 512, seed=1).pixels.astype(np.int32)
    top = int(made.max())
    values = (top - made if kind == "MONOCHROME1" else made).astype(np.uint16)
    data = write_dicom(
        values,
        photometric_interpretation=kind,
        window_center=top // 2,
        window_width=top,
        voi_lut_function="SIGMOID",
    )
    prepared = Preprocessor(size=(128, 128), bits=bits, workers=1).prepare(data)
    top_row, left, bottom, right = prepared.geometry.placed
    assert (left, right) != (0, 128)
    canvas = np.delete(prepared.image, np.s_[left:right], axis=1)
    inside = prepared.image[top_row:bottom, left:right]
    assert canvas.min() == canvas.max() == prepared.voi.black > 0
    assert abs(int(np.percentile(inside, 5)) - int(canvas[0, 0])) <= (1 if bits == 8 else 60)
