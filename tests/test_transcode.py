"""What `transcode` writes: the same pixels and elements, as PS3.5 10.18 wants them coded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from dicom_files import patched
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, parse_basic_offsets

from fastmammo.conversion import comparison, transcoder
from fastmammo.conversion.transcoder import Transcoded, Transcoder
from fastmammo.conversion.warm import warm_up_files
from fastmammo.conversion.worker import warm_up
from fastmammo.conversion.writers import write_atomic
from fastmammo.decoding import decode
from fastmammo.dicom import SYNTAXES, read
from fastmammo.encoding import data_set, missing
from fastmammo.encoding.data_set import Coding, explicit_little_endian
from fastmammo.encoding.rewrite import IMPLEMENTATION_CLASS_UID
from fastmammo.errors import EncodeError, MissingAttributeError, NotExactError, ReadError
from fastmammo.testing import write_dicom

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

J = "1.2.840.10008.1.2.4."
RPCL, RLE = J + "202", "1.2.840.10008.1.2.5"
IMPLICIT, EXPLICIT, BIG, DEFLATED = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"),
    "1.2.840.10008.1.2.1.99",
)
LOSSLESS = [uid for uid, s in SYNTAXES.items() if s.lossless and s.family != "htj2k"]
KINDS = {
    # (dtype, Bits Stored, lowest, highest)
    "8 bits": ("u1", 8, 0, 255),
    "12 bits": ("u2", 12, 0, 4095),
    "16 bits": ("u2", 16, 0, 65535),
    "signed": ("i2", 12, -2048, 2047),
    "signed 8": ("i1", 8, -128, 127),
    "signed 16": ("i2", 16, -32768, 32767),
}


def noise(kind: str, shape: tuple[int, ...] = (75, 130), seed: int = 0) -> NDArray[Any]:
    """Smooth, with noise, and both ends of the range: both its corners."""
    dtype, _, low, high = KINDS[kind]
    random = np.random.default_rng(seed)
    ramp = np.linspace(low, high, shape[-1]) + random.normal(0, (high - low) / 50, shape)
    pixels = np.clip(ramp, low, high).astype(dtype)
    pixels[..., 0, 0], pixels[..., -1, -1] = high, low
    return pixels


def made(source: bytes, folder: Path, others: str = "copy", kind: Any = Transcoder) -> Path:
    """Return the file that a worker writes: made, written, checked, renamed."""
    (folder / "source.dcm").write_bytes(source)
    worker = kind(others)
    found: Transcoded = worker.prepare(str(folder / "source.dcm"))
    target = folder / "target.dcm"
    chunks = worker.encode(found.image)
    write_atomic(str(target), chunks, str(folder / "p"), lambda path: worker.check(path, found))
    made.last = found  # type: ignore[attr-defined]
    return target


def outcome() -> tuple[str, str]:
    found = made.last.outcome  # type: ignore[attr-defined]
    return found["status"], found.get("reason", "")


def pylibjpeg(path: Path) -> NDArray[Any]:
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID != RLE:  # pydicom's own: pylibjpeg's is one more package
        dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    return dataset.pixel_array


def assert_exact(path: Path, pixels: NDArray[Any]) -> None:
    """By pydicom with pylibjpeg, and by each of our decoders, frame by frame."""
    np.testing.assert_array_equal(pylibjpeg(path), pixels)
    m = read(path)
    assert m.transfer_syntax_uid == RPCL
    frames = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    assert len(m.frames) == len(frames)
    for index, frame in enumerate(frames):
        for backend in ("openjpeg", "imagecodecs"):
            got = decode(m, backend=backend, frame=index)
            np.testing.assert_array_equal(got, frame, err_msg=backend)
            assert got.dtype == frame.dtype


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uid", LOSSLESS)
def test_every_lossless_syntax(uid: str, kind: str, tmp_path: Path) -> None:
    pixels = noise(kind)
    bits = KINDS[kind][1]
    photometric = "MONOCHROME1" if kind == "12 bits" else "MONOCHROME2"
    source = write_dicom(
        pixels,
        transfer_syntax_uid=uid,
        bits_stored=bits,
        photometric_interpretation=photometric,
        attributes={"PixelPaddingValue": int(pixels.min())},
    )
    path = made(source, tmp_path)
    assert outcome() == ("ok", "")
    assert_exact(path, pixels)
    m, old = read(path), read(source)
    assert m.codestream().precision == bits
    assert m.codestream().signed == (pixels.dtype.kind == "i")
    assert m.padding_range == old.padding_range
    assert (m.photometric_interpretation, m.sop_instance_uid) == (photometric, old.sop_instance_uid)
    assert made.last.record == {  # type: ignore[attr-defined]
        "source_syntax": uid,
        "frames": 1,
        "precision": bits,
        "decoder": made.last.record["decoder"],  # type: ignore[attr-defined]
        "verified_by": "openjpeg",
    }


@pytest.mark.parametrize("uid", [IMPLICIT, BIG, DEFLATED, J + "70", J + "90"])
@pytest.mark.parametrize("kept", [1 << 28, 0], ids=["kept", "decoded again"])
def test_all_frames(uid: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcoder, "KEPT_BYTES", kept)
    pixels = noise("12 bits", (5, 75, 131))
    path = made(write_dicom(pixels, transfer_syntax_uid=uid), tmp_path)
    assert_exact(path, pixels)
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == 5
    element = dataset["PixelData"]
    assert (element.VR, element.is_undefined_length) == ("OB", True)
    # one fragment a frame, even lengths, the offset table true
    offsets = parse_basic_offsets(element.value)
    frames = list(generate_frames(element.value, number_of_frames=5))
    at = 0
    for offset, frame in zip(offsets, frames, strict=True):
        assert offset == at
        assert len(frame) % 2 == 0
        at += 8 + len(frame)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("uid", [EXPLICIT, BIG, RLE, J + "70", J + "80", J + "90"])
def test_values_beyond_bits_stored_stay_what_pydicom_says(
    uid: str, frames: int, tmp_path: Path
) -> None:
    """It masks them in some syntaxes, and never in HTJ2K: there they can only be copied."""
    pixels = noise("12 bits", (frames, 75, 130))
    pixels[-1, 3, 7] = 40000
    coding = {"precision": 16} if SYNTAXES[uid].family in ("jpeg2000", "jpeg-lossless") else {}
    source = write_dicom(pixels, transfer_syntax_uid=uid, bits_stored=12, **coding)
    path = made(source, tmp_path)
    np.testing.assert_array_equal(pylibjpeg(path), pylibjpeg(tmp_path / "source.dcm"))
    if uid not in (J + "80", J + "90"):
        assert pylibjpeg(path).max() < 4096
        assert outcome() == ("copied", "bits beyond the stored values")
        assert path.read_bytes() == source
        return
    assert_exact(path, pixels if frames > 1 else pixels[0])
    m = read(path)
    assert m.bits_stored == 12
    assert {m.codestream(i).precision for i in range(frames)} == {16}


def test_a_jpeg_2000_codestream_of_16_bits_with_12_bit_values_says_12(tmp_path: Path) -> None:
    pixels = noise("12 bits")
    path = made(write_dicom(pixels, bits_stored=12, precision=16), tmp_path)
    assert read(path).codestream().precision == 12
    assert_exact(path, pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 2), (64, 64), (65, 20), (20, 129)])
def test_small_images(shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = noise("12 bits", shape)
    path = made(write_dicom(pixels, transfer_syntax_uid=EXPLICIT), tmp_path)
    np.testing.assert_array_equal(decode(read(path), backend="openjpeg"), pixels)
    np.testing.assert_array_equal(decode(read(path), backend="imagecodecs"), pixels)


def test_bytes_in_big_endian_words(tmp_path: Path) -> None:
    pixels = noise("8 bits")
    dataset = pydicom.dcmread(
        io.BytesIO(write_dicom(pixels, transfer_syntax_uid=BIG, bits_stored=8))
    )
    swapped = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    dataset.PixelData = swapped
    dataset["PixelData"].VR = "OW"
    out = io.BytesIO()
    dataset.save_as(out)
    assert_exact(made(out.getvalue(), tmp_path), pixels)


def test_a_codestream_whose_sign_the_header_denies_keeps_its_sign(tmp_path: Path) -> None:
    pixels = noise("signed")
    signed = write_dicom(pixels, bits_stored=12, precision=13)
    for source in (patched(signed, PixelRepresentation=0), signed):
        m = read(made(source, tmp_path))
        assert m.codestream().signed
        np.testing.assert_array_equal(decode(m), decode(read(source)))
    unsigned = patched(write_dicom(noise("12 bits"), bits_stored=12), PixelRepresentation=1)
    m = read(made(unsigned, tmp_path))
    assert (m.codestream().signed, m.codestream().precision) == (False, 12)
    np.testing.assert_array_equal(decode(m), decode(read(unsigned)))
    assert decode(m).min() < 0


# ---------------------------------------------------------------- the codestream


@pytest.mark.parametrize("shape", [(64, 40), (65, 40), (40, 257), (1040, 30)])
def test_the_codestream_is_what_part_5_asks(shape: tuple[int, int], tmp_path: Path) -> None:
    path = made(write_dicom(noise("12 bits", shape)), tmp_path)
    m = read(path)
    c = m.codestream()
    assert (c.format, c.wavelet, c.progression, c.tiles, c.layers, c.defects) == (
        *("htj2k", "5/3", "RPCL", 1, 1),
        (),
    )
    assert -(-max(shape) // (1 << c.levels)) <= 64
    assert c.levels == 1 or -(-max(shape) // (1 << (c.levels - 1))) > 64
    data = bytes(m.frame(0).data)
    segments = list(markers(data))
    names = [code for code, _ in segments]
    # SIZ first, CAP right behind it (15444-15 A.2), TLM before the first tile-part
    assert names[:2] == [0xFF51, 0xFF50]
    assert set(names[2:]) == {0xFF52, 0xFF5C, 0xFF64, 0xFF55}
    bodies = dict(segments)
    assert bodies[0xFF52][1] == 2  # COD: RPCL
    assert bodies[0xFF52][5] == c.levels
    assert bodies[0xFF52][9] == 1  # 5/3
    assert bodies[0xFF51][36] == 11  # Ssiz: 12 bits, unsigned
    # TLM (15444-1 A.7.1): a tile-part for each resolution, each where TLM says
    style, entries = bodies[0xFF55][1], bodies[0xFF55][2:]
    assert style == 0x60
    lengths = [int.from_bytes(entries[at + 2 : at + 6], "big") for at in range(0, len(entries), 6)]
    assert len(lengths) == c.levels + 1
    at = data.index(b"\xff\x90")
    for number, length in enumerate(lengths):
        assert data[at : at + 2] == b"\xff\x90"
        assert int.from_bytes(data[at + 6 : at + 10], "big") == length
        assert data[at + 10] == number
        at += length
    assert data[at:].rstrip(b"\0") == b"\xff\xd9"


def markers(data: bytes) -> Any:
    """Yield (code, body) of the main header's segments."""
    at = 2
    while data[at : at + 2] != b"\xff\x90":
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield int.from_bytes(data[at : at + 2], "big"), data[at + 4 : at + 2 + length]
        at += 2 + length


# ---------------------------------------------------------------- all else in the file


def rich(uid: str) -> bytes:
    """A file with private, nested, unknown and odd elements, and look-up tables."""
    pixels = noise("12 bits")
    data = write_dicom(pixels, transfer_syntax_uid=uid)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎"
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = "12.5"
    block = dataset.private_block(0x0019, "FASTMAMMO TEST", create=True)
    block.add_new(0x01, "DS", "1.50 ")
    block.add_new(0x02, "OW", bytes(range(8)))
    inner = Dataset()
    inner.add_new(0x00191099, "UN", b"abcd")
    inner.RescaleSlope = "1.00"
    outer = Dataset()
    outer.ReferencedImageSequence = [inner, Dataset()]
    dataset.SourceImageSequence = [outer]
    lut = Dataset()
    lut.LUTDescriptor = [4, 0, 16]
    lut.add_new("LUTData", "OW", np.array([1, 2, 300, 65535], "<u2").tobytes())
    dataset.VOILUTSequence = [lut]
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 4)
    dataset.add_new(0x60003000, "OW", b"\x01\x02\x03\x04")
    dataset.add_new(0x0040A160, "UT", "long " * 20000)
    dataset.add_new(0xFFFCFFFC, "OB", bytes(64))
    dataset.file_meta.SourceApplicationEntityTitle = "ARCHIVE"
    dataset.file_meta.ImplementationClassUID = "1.2.3"
    dataset.file_meta.ImplementationVersionName = "ELSEWHERE"
    if uid == BIG:  # pydicom swaps no bytes of OW
        for place, name in ((lut, "LUTData"), (dataset, 0x60003000), (dataset, 0x00191002)):
            place[name].value = np.frombuffer(place[name].value, "<u2").byteswap().tobytes()
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize("uid", [EXPLICIT, DEFLATED, IMPLICIT, BIG, J + "90", J + "70"])
def test_every_other_element_stays(uid: str, tmp_path: Path) -> None:
    source = rich(uid)
    path = made(source, tmp_path)
    assert outcome() == ("ok", "")
    # as pydicom reads what was meant, in little endian
    wanted, got = pydicom.dcmread(io.BytesIO(rich(EXPLICIT))), pydicom.dcmread(path)
    assert list(got.keys()) == list(wanted.keys())
    for element in wanted:
        if element.tag == 0x7FE00010:
            continue
        found = got[element.tag]
        if element.VR == "SQ":
            assert [str(item) for item in found] == [str(item) for item in element], element.tag
        else:
            if found.VR == "UN" and isinstance(element.value, (str, pydicom.valuerep.DSfloat)):
                assert found.value == b"1.50", element.tag  # no dictionary has it
                continue
            assert found.value == element.value, element.tag
            assert found.VR == element.VR or uid == IMPLICIT, element.tag
    assert got.VOILUTSequence[0].LUTData == np.array([1, 2, 300, 65535], "<u2").tobytes()
    assert got[0x60003000].value == b"\x01\x02\x03\x04"
    assert str(got.PatientName) == "Yamada^Tarou=山田^太郎"
    assert got.LossyImageCompressionRatio == 12.5
    assert got.file_meta.TransferSyntaxUID == RPCL
    assert got.file_meta.SourceApplicationEntityTitle == "ARCHIVE"
    # PS3.10 7.1: the writer's own
    assert got.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert got.file_meta.ImplementationClassUID.is_valid
    assert got.file_meta.ImplementationVersionName.startswith("FASTMAMMO_")
    assert got.file_meta.MediaStorageSOPInstanceUID == got.SOPInstanceUID == wanted.SOPInstanceUID
    assert got.original_encoding == (False, True)
    if uid in (EXPLICIT, J + "90", J + "70"):  # byte for byte, up to Pixel Data and behind it
        start, new = source.index(b"\x08\x00\x05\x00CS"), path.read_bytes()
        pixel_data = source.index(b"\xe0\x7f\x10\x00O")
        assert source[start:pixel_data] in new
        assert new.endswith(source[source.index(b"\xfc\xff\xfc\xffOB") :])


@pytest.mark.parametrize("table", ["basic", "empty", "extended", "wrong"])
def test_offset_tables_are_made_anew(table: Any, tmp_path: Path) -> None:
    pixels = noise("12 bits", (3, 75, 130))
    path = made(write_dicom(pixels, offset_table=table), tmp_path)
    assert "ExtendedOffsetTable" not in pydicom.dcmread(path)
    assert "ExtendedOffsetTableLengths" not in pydicom.dcmread(path)
    assert_exact(path, pixels)
    assert read(path).notes == ()


def test_an_explicit_data_set_under_the_implicit_label(tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT)
    meta = pydicom.dcmread(io.BytesIO(data)).file_meta
    del meta
    at = data.index(b"1.2.840.10008.1.2.1\0")
    wrong = data[:at] + b"1.2.840.10008.1.2\0\0\0" + data[at + 20 :]
    assert_exact(made(wrong, tmp_path), noise("12 bits"))


def test_a_bare_data_set_gets_its_file_meta_information(tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT)
    bare = data[data.index(b"\x08\x00\x16\x00UI") :]
    path = made(bare, tmp_path)
    assert_exact(path, noise("12 bits"))
    assert pydicom.dcmread(path).file_meta.MediaStorageSOPClassUID.name.startswith("Digital Mammo")


def test_without_a_sop_instance_uid_there_is_no_file_to_write(tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT)
    bare = data[data.index(b"\x08\x00\x20\x00DA") :]
    with pytest.raises(EncodeError, match="needs a SOP Class UID and a SOP Instance UID"):
        made(bare, tmp_path)


@pytest.mark.parametrize(
    ("preamble", "kept"), [(b"x" * 128, b"x" * 128), (b"II*\0" + b"y" * 124, bytes(128))]
)
def test_a_preamble_stays_unless_it_points_into_the_file(
    preamble: bytes, kept: bytes, tmp_path: Path
) -> None:
    data = preamble + write_dicom(noise("12 bits"))[128:]
    assert made(data, tmp_path).read_bytes()[:128] == kept


# ---------------------------------------------------------------- what is left alone


def encapsulated_icon() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(write_dicom(noise("12 bits"))))
    icon = Dataset()
    icon.PixelData = encapsulate([b"\xff\x4f" * 8])
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    dataset.IconImageSequence = [icon]
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def overlaid() -> bytes:
    pixels = noise("12 bits")
    pixels[10:20, 10:20] |= 0x8000
    data = write_dicom(pixels, transfer_syntax_uid=EXPLICIT)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.add_new(0x60000102, "US", 15)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def cells(values: Any, **attributes: int) -> bytes:
    data = write_dicom(noise("signed"), transfer_syntax_uid=EXPLICIT, bits_stored=12)
    return patched(data, PixelData=np.asarray(values, "<i2").tobytes(), **attributes)


OTHERS = {
    "already htj2k": lambda: write_dicom(noise("12 bits"), transfer_syntax_uid=J + "203"),
    "lossy coding": lambda: write_dicom(noise("12 bits"), transfer_syntax_uid=J + "91"),
    "unsupported image": encapsulated_icon,
    "bits beyond the stored values": overlaid,
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_files_are_copied_or_skipped(reason: str, tmp_path: Path) -> None:
    source = OTHERS[reason]()
    path = made(source, tmp_path)
    assert outcome() == ("copied", reason)
    assert path.read_bytes() == source
    made(source, tmp_path, "skip")
    assert outcome() == ("skipped", reason)
    assert not made.last.image  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "attributes",
    [
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
    ],
)
def test_what_is_no_grey_image_is_copied(attributes: dict[str, Any], tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits", (4, 6)), transfer_syntax_uid=EXPLICIT)
    source = patched(data, PixelData=bytes(4 * 6 * 2 * 3), **attributes)
    assert made(source, tmp_path).read_bytes() == source
    assert outcome() == ("copied", "unsupported image")


def test_float_and_absent_pixels_are_copied(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(
        io.BytesIO(write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT))
    )
    del dataset.PixelData
    for pixels in (None, np.zeros((75, 130), "<f4").tobytes()):
        if pixels is not None:
            dataset.FloatPixelData = pixels
        out = io.BytesIO()
        dataset.save_as(out)
        assert made(out.getvalue(), tmp_path).read_bytes() == out.getvalue()
        assert outcome() == ("copied", "unsupported image")


def test_cells_that_are_not_their_values_are_left_alone(tmp_path: Path) -> None:
    pixels = noise("signed")
    made(cells(pixels), tmp_path)
    assert outcome()[0] == "ok"
    for values, attributes in (
        (np.where(pixels < -2000, 5000, pixels), {}),  # beyond 12 bits, signed
        (pixels & 0xFFF, {}),  # the sign not carried on
        (pixels << 4, {"HighBit": 15}),  # in the high bits
    ):
        source = cells(values, **attributes)
        assert made(source, tmp_path).read_bytes() == source
        assert outcome() == ("copied", "bits beyond the stored values")


def test_pixel_data_longer_than_its_frames_is_left_alone(tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT)
    longer = patched(data, PixelData=noise("12 bits").tobytes() + bytes(4))
    assert made(longer, tmp_path).read_bytes() == longer
    assert outcome() == ("copied", "unsupported image")


def test_a_broken_file_fails(tmp_path: Path) -> None:
    data = write_dicom(noise("12 bits"), attributes={"BitsAllocated": None})
    with pytest.raises(MissingAttributeError, match="BitsAllocated"):
        made(data, tmp_path)


# ---------------------------------------------------------------- the proof


class OneOff(Transcoder):
    """Encodes one pixel wrongly."""

    @staticmethod
    def encoder(pixels: NDArray[Any], **settings: Any) -> bytes:
        wrong = pixels.copy()
        wrong[7, 9] ^= 1
        return Transcoder.encoder(wrong, **settings)


class Halved(Transcoder):
    """Writes another progression's style of codestream: too few levels."""

    @staticmethod
    def encoder(pixels: NDArray[Any], **settings: Any) -> bytes:
        return Transcoder.encoder(pixels, **{**settings, "levels": 1})


class Cut(Transcoder):
    """Loses the end of the codestream."""

    @staticmethod
    def encoder(pixels: NDArray[Any], **settings: Any) -> bytes:
        return Transcoder.encoder(pixels, **settings)[:-40]


class Renamed(Transcoder):
    """Writes another header, or other bytes of a copy."""

    def encode(self, image: list[Any]) -> list[Any]:
        return [bytes(piece).replace(b"MONOCHROME2", b"MONOCHROME1") for piece in image]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneOff, "decoded by openjpeg: 1 of 39000 pixels differ, the first at row 7, column 9"),
        (Halved, "not what PS3.5 10.18 asks"),
        (Cut, "cannot be read back: the codestream ends too early"),
        (Renamed, "says photometric_interpretation 'MONOCHROME1', the source's 'MONOCHROME2'"),
    ],
)
def test_what_is_not_exact_is_not_kept(kind: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(NotExactError, match=message):
        made(write_dicom(noise("12 bits", (300, 130))), tmp_path, kind=kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.dcm"]


def test_a_copy_that_differs_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(NotExactError, match="the copy differs"):
        made(OTHERS["lossy coding"](), tmp_path, kind=Renamed)
    assert not (tmp_path / "target.dcm").exists()


def test_the_checker_is_another_library_while_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent, wanted in ((("openjpeg",), "pylibjpeg"), (("pylibjpeg",), "imagecodecs")):
        for name in absent:
            monkeypatch.setattr(comparison.BACKENDS[name], "missing", lambda: "gone")
        made(write_dicom(noise("12 bits")), tmp_path)
        assert made.last.record["verified_by"] == wanted  # type: ignore[attr-defined]


# ---------------------------------------------------------------- damaged data sets


def rewrite(data: bytes, *, implicit: bool = True, big: bool = False) -> bytes:
    return explicit_little_endian(memoryview(data), 0, len(data), Coding(implicit, big))


@pytest.mark.parametrize(
    ("data", "big", "message"),
    [
        ("0800 6000 ff000000 4d47", False, "has 255 bytes, 2 are left"),
        ("0800 60", False, "breaks off in the middle of an element"),
        ("feff 00e0 00000000", False, "where an element should be"),
        ("0800 1211 08000000 0900000000000000", False, "where an item of a sequence should be"),
        ("e07f 1000 ffffffff", False, "undefined length in an uncompressed data set"),
        ("0028 0010 5553 0003 000001", True, "has 3 bytes, its VR US wants a multiple of 2"),
        ("0028 0010 0002 0001", True, "has no VR but"),
        ("0800 1211 10000000 feff00e0 ff000000 0000000000000000", False, "longer than what is"),
    ],
)
def test_damaged_data_sets_are_refused(data: str, big: bool, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        rewrite(bytes.fromhex(data), implicit=not big, big=big)


def test_sequences_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_set, "_DEEPEST", 20)
    nested = b"\x08\x00\x12\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 30
    with pytest.raises(ReadError, match="more than 20 deep"):
        rewrite(nested)


def test_a_value_too_long_for_its_vr_becomes_un() -> None:
    text = b"\x10\x00\x10\x00" + (70000).to_bytes(4, "little") + b"a" * 70000
    assert rewrite(text)[4:12] == b"UN\0\0" + (70000).to_bytes(4, "little")


def test_a_worker_s_rehearsal_takes_every_file_that_it_is_given() -> None:
    """What raises there ends the rehearsal early, unsaid, and later files pay for it."""
    seen: list[int] = []

    class Counted(Transcoder):
        @staticmethod
        def encoder(pixels: NDArray[Any], **settings: Any) -> bytes:
            seen.append(pixels.size)
            return Transcoder.encoder(pixels, **settings)

    files = list(warm_up_files())
    warm_up(Counted("copy").rehearse, Counted("copy").encode)
    assert len(seen) == len(files) > 2
