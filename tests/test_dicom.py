"""Reading: header facts, frames from fragments and offset tables, and clear refusals."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pytest

import fastmammo.dicom.source
from fastmammo.dicom import read
from fastmammo.dicom.frames import encapsulated_frames, native_frames
from fastmammo.errors import (
    MissingAttributeError,
    NotDicomError,
    NotImageError,
    ReadError,
    SizeBombError,
    TruncatedFileError,
    UnsupportedImageError,
    UnsupportedSyntaxError,
)
from fastmammo.testing import write_dicom

J2K = "1.2.840.10008.1.2.4.90"
EXPLICIT = "1.2.840.10008.1.2.1"


def changed(data: bytes, **attributes: object) -> bytes:
    """Return the file with attributes set (None deletes)."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def test_header_facts(pixels: np.ndarray) -> None:
    m = read(
        write_dicom(
            pixels,
            window_center=(2000, 1500.5),
            window_width=(1000, 900),
            voi_lut_function="SIGMOID",
            laterality="R",
            view_position="MLO",
            patient_id="P17",
            attributes={
                "PatientAge": "057Y",
                "Manufacturer": "ACME",
                "ImagerPixelSpacing": [0.1, 0.1],
                "EstimatedRadiographicMagnificationFactor": 1.25,
                "PixelPaddingValue": 0,
                "WindowCenterWidthExplanation": ["NORMAL", "HARDER"],
                "BreastImplantPresent": "NO",
            },
        )
    )
    assert (m.rows, m.columns, m.bits_allocated, m.bits_stored, m.high_bit) == (
        301,
        233,
        16,
        12,
        11,
    )
    assert (m.image_laterality, m.view_position, m.patient_id) == ("R", "MLO", "P17")
    assert m.patient_age == 57
    assert m.manufacturer == "ACME"
    assert m.presentation_intent_type == "FOR PRESENTATION"
    assert m.photometric_interpretation == "MONOCHROME2"
    assert [(w.center, w.width, w.explanation) for w in m.windows] == [
        (2000, 1000, "NORMAL"),
        (1500.5, 900, "HARDER"),
    ]
    assert m.voi_lut_function == "SIGMOID"
    assert m.pixel_padding_value == 0
    assert m.breast_implant_present == "NO"
    assert m.imager_pixel_spacing == (0.1, 0.1)
    assert m.number_of_frames == 1
    assert not m.signed
    assert "P17" not in repr(m)


def test_spacing_divides_by_magnification(pixels: np.ndarray) -> None:
    extra = {
        "ImagerPixelSpacing": [0.1, 0.2],
        "EstimatedRadiographicMagnificationFactor": 2.0,
    }
    data = changed(write_dicom(pixels, attributes=extra), PixelSpacing=None)
    assert read(data).spacing_mm == (0.05, 0.1)


def test_view_modifiers_and_laterality_from_sequences(pixels: np.ndarray) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def code(value: str, meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
        return item

    view = code("399368009", "medio-lateral oblique")
    view.ViewModifierCodeSequence = Sequence(
        [code("399055006", ""), code("399163009", "Magnification"), code("399209000", "x")]
    )
    anatomy = Dataset()
    anatomy.FrameLaterality = "R"
    shared = Dataset()
    shared.FrameAnatomySequence = Sequence([anatomy])
    data = changed(
        write_dicom(pixels),
        ImageLaterality=None,
        ViewPosition=None,
        ViewCodeSequence=Sequence([view]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    m = read(data)
    assert m.view_position == "MLO"
    assert m.view_modifiers == ("spot compression", "magnification", "implant displaced")
    assert m.spot_compression
    assert m.magnification_view
    assert m.implant_displaced
    assert m.image_laterality == "R"


def test_sources(pixels: np.ndarray, tmp_path) -> None:
    data = write_dicom(pixels)
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    uid = read(data).sop_instance_uid
    assert read(path).sop_instance_uid == uid
    assert read(str(path)).path == str(path)
    assert read(memoryview(data)).sop_instance_uid == uid
    with open(path, "rb") as file:
        assert read(file).sop_instance_uid == uid
    with pytest.raises(TypeError, match=r"from int; supported are a path"):
        read(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.dcm")


@pytest.mark.parametrize("offset_table", ["basic", "empty", "extended", "wrong"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_by_every_kind_of_offset_table(
    pixels: np.ndarray, offset_table: str, fragments: int
) -> None:
    if offset_table == "extended" and fragments > 1:
        pytest.skip("an extended table allows one fragment a frame (PS3.3 C.7.6.3.1.8)")
    frames = np.stack([pixels, pixels[::-1], 4095 - pixels])
    m = read(write_dicom(frames, fragments=fragments, offset_table=offset_table))
    plain = [read(write_dicom(frame)).frame(0).data for frame in frames]
    assert len(m.frames) == 3
    for found, wanted in zip(m.frames, plain, strict=True):
        assert found.fragments == fragments
        assert bytes(found.data).rstrip(b"\0") == bytes(wanted).rstrip(b"\0")
    if offset_table == "wrong" and fragments == 3:
        assert any("Offset Table ignored" in note for note in m.notes)


def test_fragments_that_cannot_be_shared_out() -> None:
    def item(value: bytes) -> bytes:
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value

    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    with pytest.raises(ReadError, match=r"2 fragments for 3 frames, no usable offset table"):
        encapsulated_frames(memoryview(item(b"") + item(b"ab") + item(b"cd") + end), 3)
    with pytest.raises(ReadError, match="holds no fragment"):
        encapsulated_frames(memoryview(item(b"") + end), 1)
    with pytest.raises(ReadError, match=r"tag \(6261,6463\) where an item"):
        encapsulated_frames(memoryview(item(b"") + b"abcdefgh" + end), 1)
    with pytest.raises(TruncatedFileError, match="a fragment of 4 bytes, only 2 are left"):
        encapsulated_frames(memoryview(item(b"") + item(b"abcd")[:-2]), 1)
    with pytest.raises(TruncatedFileError, match="in the middle of an item tag"):
        encapsulated_frames(memoryview(item(b"") + item(b"abcd") + end[:5]), 1)
    frames, notes = encapsulated_frames(memoryview(item(b"x") + item(b"abcd")), 1)
    assert bytes(frames[0].data) == b"abcd"
    assert notes == [
        "Basic Offset Table of 1 bytes ignored: not a multiple of 4",
        "no sequence delimiter after the last fragment",
    ]
    with pytest.raises(TruncatedFileError, match=r"holds 10 bytes, wanted 2 frame\(s\) of 6"):
        native_frames(memoryview(bytes(10)), 2, 6)


@pytest.mark.parametrize("uid", [J2K, EXPLICIT, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"])
def test_every_truncation_is_an_error_of_ours(pixels: np.ndarray, uid: str) -> None:
    data = write_dicom(pixels[:40, :40], transfer_syntax_uid=uid)
    for length in range(132, len(data) - 16):
        try:
            read(data[:length])
        except NotImageError as error:  # `convert` would skip it, and say nothing
            raise AssertionError(f"cut at {length}: {error}") from error
        except ReadError:
            continue
        raise AssertionError(f"cut at {length} of {len(data)}: read without an error")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", NotDicomError, r"not a DICOM file: no DICM at byte 128"),
        (b"hello, this is no DICOM file at all" * 9, NotDicomError, "not a DICOM file"),
        (b"\x08\x00\x05\x00" + b"\xff" * 100, ReadError, "cannot be read|breaks off|absent"),
    ],
)
def test_not_dicom(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(data)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"Rows": 0}, UnsupportedImageError, r"Rows \(0028,0010\) is 0"),
        ({"Columns": 0}, UnsupportedImageError, r"Columns \(0028,0011\) is 0"),
        ({"Rows": None}, MissingAttributeError, r"Rows \(0028,0010\) is absent or empty"),
        ({"BitsAllocated": None}, MissingAttributeError, "BitsAllocated"),
        ({"BitsStored": 17}, UnsupportedImageError, r"Bits Stored .* is 17, wanted 1 to"),
        ({"NumberOfFrames": 0}, UnsupportedImageError, r"Number of Frames .* is 0"),
        ({"PixelData": None}, UnsupportedImageError, r"no Pixel Data \(7FE0,0010\)"),
        (
            {"PixelData": None, "Rows": None},
            TruncatedFileError,
            "before Rows and Pixel Data of its",
        ),
    ],
)
def test_unusable_headers(
    pixels: np.ndarray, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    data = write_dicom(pixels, transfer_syntax_uid=EXPLICIT)
    with pytest.raises(error, match=message):
        read(changed(data, **changes))


def test_an_object_of_another_kind_is_no_image(pixels: np.ndarray) -> None:
    report = changed(
        write_dicom(pixels, transfer_syntax_uid=EXPLICIT),
        PixelData=None,
        Rows=None,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11",
    )
    with pytest.raises(NotImageError, match=r"DICOM object without an image \(Basic Text SR"):
        read(report)


def test_unknown_syntax(pixels: np.ndarray) -> None:
    dataset = pydicom.dcmread(io.BytesIO(write_dicom(pixels)))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    out = io.BytesIO()
    dataset.save_as(out)
    with pytest.raises(UnsupportedSyntaxError, match=r"1\.2\.840\.10008\.1\.2\.4\.100 \(MPEG2"):
        read(out.getvalue())


def test_syntax_and_pixel_data_contradict(pixels: np.ndarray) -> None:
    native = write_dicom(pixels, transfer_syntax_uid=EXPLICIT)
    patched = _retag(native, EXPLICIT, J2K)
    with pytest.raises(ReadError, match=r"has a defined length .* needs\s+fragments"):
        read(patched)
    with pytest.raises(ReadError, match="is in fragments but Explicit VR Little Endian"):
        read(_retag(write_dicom(pixels), J2K, EXPLICIT))


def _retag(data: bytes, old: str, new: str) -> bytes:
    """Replace the transfer syntax UID in the file meta information, lengths included."""

    def element(uid: str) -> bytes:
        value = uid.encode() + b"\0" * (len(uid) % 2)
        return b"\x02\x00\x10\x00UI" + struct.pack("<H", len(value)) + value

    assert element(old) in data
    swapped = data.replace(element(old), element(new), 1)
    at = 128 + 4 + 8
    length = struct.unpack_from("<I", data, at)[0] + len(element(new)) - len(element(old))
    return swapped[:at] + struct.pack("<I", length) + swapped[at + 4 :]


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
    monkeypatch.setattr(fastmammo.dicom.source, "_MAX_INFLATED", 10_000)
    data = write_dicom(pixels, transfer_syntax_uid="1.2.840.10008.1.2.1.99")
    with pytest.raises(SizeBombError, match="grows beyond 10000 bytes"):
        read(data)


def test_unreadable_values_cost_only_themselves(pixels: np.ndarray) -> None:
    data = write_dicom(pixels, window_center=1234.5, window_width=500)
    assert data.count(b"1234.5") == 1
    patched = data.replace(b"1234.5", b"abcd.e")
    m = read(patched)
    assert m.window_center == ()
    assert any("WindowCenter" in note for note in m.notes)
    assert m.window_width == (500.0,)


def test_a_bare_data_set_without_preamble_is_read(pixels: np.ndarray) -> None:
    data = write_dicom(pixels, transfer_syntax_uid="1.2.840.10008.1.2")
    dataset = pydicom.dcmread(io.BytesIO(data))
    out = io.BytesIO()
    pydicom.dcmwrite(
        out, _without_meta(dataset), implicit_vr=True, little_endian=True, enforce_file_format=False
    )
    m = read(out.getvalue())
    assert m.transfer_syntax_uid == "1.2.840.10008.1.2"
    assert (m.rows, m.columns) == (301, 233)


def _without_meta(dataset: pydicom.Dataset) -> pydicom.Dataset:
    bare = pydicom.Dataset()
    for element in dataset:
        bare.add(element)
    return bare


def test_real_files(data) -> None:
    m = read(data / "fo-dicom" / "OutOfBoundsOverlay.dcm")
    assert (m.image_laterality, m.view_position, m.modality) == ("L", "CC", "MG")
    m = read(data / "fo-dicom" / "D_CLUNIE_CT1_RLE_FRAGS.dcm")
    assert m.frame(0).fragments == 4
    assert m.notes == ("one RLE frame in 4 fragments, joined",)
    m = read(data / "dicomparser" / "CT0012.fragmented_no_bot_jpeg_lossless.57.dcm")
    assert [frame.fragments for frame in m.frames] == [9, 8]
    with pytest.raises(ReadError, match=r"2 frame\(s\); frame 2 was asked for"):
        m.frame(2)
    with pytest.raises(TruncatedFileError, match="claims 8192 bytes, 8130 are left"):
        read(data / "pydicom" / "MR_truncated.dcm")


def test_a_spacing_of_no_detector_is_ignored(pixels: np.ndarray) -> None:
    m = read(write_dicom(pixels, attributes={"ImagerPixelSpacing": ["1e300", "1e300"]}))
    assert m.imager_pixel_spacing is None
    assert any("no detector's: ignored" in note for note in m.notes)
