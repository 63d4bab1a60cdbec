"""Odd sources of `transcode`: what would be lost is copied, what is damaged is told."""

from __future__ import annotations

import io
import os
import stat
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from test_transcode import BIG, DEFLATED, EXPLICIT, IMPLICIT, J, assert_exact, made, noise, outcome

from fastmammo.conversion import samples
from fastmammo.conversion.one_file import process
from fastmammo.conversion.transcoder import Transcoder
from fastmammo.decoding import decode, numba, openjpeg
from fastmammo.dicom import read
from fastmammo.encoding import missing
from fastmammo.errors import FastMammoError, NotExactError, ReadError
from fastmammo.testing import write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

FRAGMENT = b"\xfe\xff\x00\xe0"


def changed(data: bytes, change: Callable[[Dataset], None]) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def copied(source: bytes, folder: Path, reason: str = "unsupported image") -> str:
    """Require that a file is copied; return the message."""
    assert made(source, folder).read_bytes() == source
    assert outcome() == ("copied", reason)
    return str(made.last.outcome["message"])  # type: ignore[attr-defined]


# ---------------------------------------------------------------- codestreams that are not counted


def frames_under_one(uid: str, frames: int, *, table: Any = "empty") -> bytes:
    """Return a file of some codestreams whose Number of Frames says one."""
    data = write_dicom(
        noise("12 bits", (frames, 40, 50)), transfer_syntax_uid=uid, offset_table=table
    )
    return changed(data, lambda dataset: setattr(dataset, "NumberOfFrames", 1))


@pytest.mark.parametrize("uid", [J + "70", J + "80", J + "90", "1.2.840.10008.1.2.5"])
@pytest.mark.parametrize("table", ["basic", "empty", "extended"])
def test_a_second_codestream_is_not_dropped(uid: str, table: str, tmp_path: Path) -> None:
    message = copied(frames_under_one(uid, 2, table=table), tmp_path)
    assert "holds 2 codestreams" in message
    assert "Number of Frames (0028,0008) says 1" in message


def test_the_offset_table_counts_too(tmp_path: Path) -> None:
    """A last fragment that is no codestream by its first bytes, and an entry for it."""
    data = write_dicom(noise("12 bits", (2, 40, 50)), transfer_syntax_uid=J + "70")

    def change(dataset: Dataset) -> None:
        first, second = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=2)
        dataset.PixelData = encapsulate([first, b"\0\0" + second])
        dataset.NumberOfFrames = 1

    assert "by its offset table" in copied(changed(data, change), tmp_path)


def test_one_codestream_in_several_fragments_is_one_frame(tmp_path: Path) -> None:
    pixels = noise("12 bits")
    source = write_dicom(pixels, transfer_syntax_uid=J + "70", fragments=3)
    assert read(source).frame(0).fragments == 3
    assert_exact(made(source, tmp_path), pixels)


# ---------------------------------------------------------------- nested pixels


def icon(compressed: bool) -> Dataset:
    item = Dataset()
    item.Rows = item.Columns = 8
    pixels = bytes(64)
    item.PixelData = encapsulate([b"\xff\xd8\xff\xd9"]) if compressed else pixels
    item["PixelData"].VR = "OB"
    item["PixelData"].is_undefined_length = compressed
    return item


def at_the_top(dataset: Dataset, item: Dataset) -> None:
    dataset.IconImageSequence = [item]


def deeper(dataset: Dataset, item: Dataset) -> None:
    outer = Dataset()
    outer.IconImageSequence = [item]
    dataset.ReferencedImageSequence = [Dataset(), outer]


def private(dataset: Dataset, item: Dataset) -> None:
    dataset.private_block(0x0009, "GEIIS", create=True).add_new(0x10, "SQ", [item])


def behind(dataset: Dataset, item: Dataset) -> None:
    block = dataset.private_block(0x7FE1, "FASTMAMMO TEST", create=True)
    block.add_new(0x10, "SQ", [item])


@pytest.mark.parametrize("place", [at_the_top, deeper, private, behind])
def test_compressed_icons_are_found_wherever_they_lie(
    place: Callable[[Dataset, Dataset], None], tmp_path: Path
) -> None:
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=J + "70")
    message = copied(changed(data, lambda d: place(d, icon(True))), tmp_path)
    assert "a nested Pixel Data (7FE0,0010), an icon's say" in message
    assert_exact(made(changed(data, lambda d: place(d, icon(False))), tmp_path), noise("12 bits"))


def test_compressed_icons_are_found_in_a_sequence_of_vr_un(tmp_path: Path) -> None:
    inner = b"\xe0\x7f\x10\x00" + b"\xff" * 4 + FRAGMENT + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    item = FRAGMENT + struct.pack("<I", len(inner)) + inner  # in Implicit VR (PS3.5 6.2.2)
    data = write_dicom(noise("12 bits"), transfer_syntax_uid=J + "70")
    copied(changed(data, lambda d: d.add_new(0x00091010, "UN", item)), tmp_path)


# ---------------------------------------------------------------- bytes behind the pixels


@pytest.mark.parametrize("zeros", [1, 4, 7, 8, 100])
@pytest.mark.parametrize("uid", [IMPLICIT, BIG, EXPLICIT, J + "70"])
def test_zeros_up_to_the_end_are_no_damage(uid: str, zeros: int, tmp_path: Path) -> None:
    source = write_dicom(noise("12 bits"), transfer_syntax_uid=uid)
    assert_exact(made(source + bytes(zeros), tmp_path), noise("12 bits"))


def test_zeros_before_something_else_are_damage(tmp_path: Path) -> None:
    source = write_dicom(noise("12 bits"), transfer_syntax_uid=IMPLICIT)
    with pytest.raises(ReadError, match=r"zeros at byte .* where an element"):
        made(source + bytes(16) + b"\x01", tmp_path)


# ---------------------------------------------------------------- file meta information


def test_damaged_file_meta_information_is_told(tmp_path: Path) -> None:
    """Whatever a damaged byte leads to, it is an error of this package's."""
    told = 0
    for uid in (EXPLICIT, IMPLICIT, DEFLATED, J + "70"):
        source = write_dicom(noise("12 bits", (8, 9)), transfer_syntax_uid=uid)
        for at in range(132, 132 + 170):
            for value in (0, 0x53, 0xFF):
                data = bytearray(source)
                data[at] = value
                try:
                    Transcoder("copy").prepare(bytes(data))
                except FastMammoError:
                    told += 1
    assert told > 50


def test_file_meta_information_in_implicit_vr(tmp_path: Path) -> None:
    source = write_dicom(noise("12 bits"), transfer_syntax_uid=EXPLICIT)
    start = 132 + 12 + struct.unpack_from("<I", source, 140)[0]
    uid = EXPLICIT.encode() + b"\0"
    meta = struct.pack("<HHI", 2, 0x10, len(uid)) + uid
    assert_exact(made(source[:132] + meta + source[start:], tmp_path), noise("12 bits"))


# ---------------------------------------------------------------- the proof


@pytest.mark.parametrize(("uid", "by"), [(J + "70", "imagecodecs"), (J + "90", "openjpeg")])
def test_a_wrong_decoder_of_ours_does_not_matter(
    uid: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = numba.pyramid

    class Wrong:
        def __init__(self, *arguments: Any) -> None:
            self.right = right(*arguments)

        def decode(self, level: int) -> NDArray[Any]:
            pixels = np.array(self.right.decode(level))
            pixels[3, 3] ^= 1
            return pixels

    pixels = noise("12 bits")
    source = write_dicom(pixels, transfer_syntax_uid=uid)
    monkeypatch.setattr(numba, "pyramid", Wrong)
    assert not np.array_equal(decode(read(source), backend="numba"), pixels)
    path = made(source, tmp_path)
    assert made.last.record["decoder"] == by  # type: ignore[attr-defined]
    assert_exact(path, pixels)


def test_where_the_established_decoder_refuses_another_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert samples.ESTABLISHED["jpeg2000"] == "openjpeg"
    monkeypatch.setattr(openjpeg, "refuses", lambda codestream: "not this one")
    source = write_dicom(noise("12 bits"))
    made_of = Transcoder("copy").prepare(source)
    assert made_of.record["decoder"] == "numba"


def test_the_disk_is_read_and_the_name_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, advise = os.fsync, os.posix_fadvise

    def kind(descriptor: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    def fsync(descriptor: int) -> None:
        events.append(f"sync {kind(descriptor)}")
        sync(descriptor)

    def fadvise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert (start, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        events.append(f"drop {kind(descriptor)}")
        advise(descriptor, start, length, advice)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    for name, uid in (("ok.dcm", J + "90"), ("copied.dcm", J + "91")):
        write_dicom(noise("12 bits"), path=tmp_path / name, transfer_syntax_uid=uid)
        assert one(tmp_path, name)["status"] == name[:-4]
        assert events == ["sync file", "drop file", "sync folder"]
        events.clear()


def one(folder: Path, name: str) -> dict[str, Any]:
    """Do what a worker does with one file."""
    worker = Transcoder("copy")
    task = {"path": name, "source": str(folder / name), "target": str(folder / f"{name}.out")}
    task |= {"content": False, "meant": True}
    steps: dict[str, Any] = {"check": worker.check, "may_replace": worker.may_replace}
    return process(task, worker.prepare, worker.encode, str(folder / "partial"), **steps)


def test_a_source_that_broke_off_before_its_pixels_replaces_nothing(tmp_path: Path) -> None:
    write_dicom(noise("12 bits"), path=tmp_path / "a.dcm")
    assert one(tmp_path, "a.dcm")["status"] == "ok"
    good = (tmp_path / "a.dcm.out").read_bytes()
    data = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[: data.index(b"\xe0\x7f\x10\x00O")])
    reply = one(tmp_path, "a.dcm")
    assert (reply["status"], reply["reason"]) == ("failed", NotExactError("").reason)
    assert "no Pixel Data (7FE0,0010)" in reply["message"]
    assert "but an earlier run could transcode it" in reply["message"]
    assert (tmp_path / "a.dcm.out").read_bytes() == good
    (tmp_path / "a.dcm.out").unlink()
    assert one(tmp_path, "a.dcm")["status"] == "copied"
