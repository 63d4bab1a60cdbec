"""Images: every row of a table gets its own image, or an error says why it has none."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fastmammo
from fastmammo.conversion.writers import encode_png
from fastmammo.errors import ConfigError, DeviceError, TableError, TrainingError
from fastmammo.preprocess import Config
from fastmammo.testing import write_dataset
from fastmammo.training import storage
from fastmammo.training.images import Images, ImagesConfig, open_images
from fastmammo.training.join import Candidate, join
from fastmammo.training.sources import DicomSource
from fastmammo.training.storage import in_memory
from fastmammo.training.store import FileStore, TensorStore

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (48, 32)
CONFIG = Config(size=SIZE)
PLAIN = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms of two patients, and one file that is cut off."""
    folder = tmp_path_factory.mktemp("dicoms")
    write_dataset(folder, count=6, rows=160, columns=120, transfer_syntax_uids=[PLAIN])
    paths = sorted(folder.glob("*/*.dcm"))
    (paths[-1].parent / "999.dcm").write_bytes(paths[-1].read_bytes()[:-2000])
    return folder


@pytest.fixture(scope="module")
def wanted(dicoms: Path) -> np.ndarray:
    """The six images, uint8 (6, 48, 32), in the order of the table."""
    return fastmammo.Preprocessor(CONFIG)(good(dicoms)).images[:, 0]


def good(dicoms: Path) -> list[Path]:
    return [each for each in sorted(dicoms.glob("*/*.dcm")) if each.name != "999.dcm"]


def table_of(paths: list[Path]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": [each.parent.name for each in paths],
            "image_id": [each.stem for each in paths],
            "path": "",
        }
    )


@pytest.fixture
def table(dicoms: Path) -> pd.DataFrame:
    return table_of(good(dicoms))


def make_dst(
    folder: Path, images: np.ndarray, table: pd.DataFrame, *, packed: bool, src: str = "/src"
) -> Path:
    """Write what `convert` writes; a test below holds it against `convert` itself."""
    folder.mkdir(parents=True)
    bits = images.dtype.itemsize * 8
    manifest = pd.DataFrame(
        {
            "path": table["patient_id"] + "/" + table["image_id"] + ".dcm",
            "listed": "",
            "status": "ok",
            "reason": "",
            "message": "",
            "output": "images.npy",
            "row": range(len(table)),
            "patient_id": table["patient_id"],
            "image_id": table["image_id"],
        }
    ).astype(str)
    if packed:
        np.save(folder / "images.npy", images)
    else:
        manifest["output"] = table["patient_id"] + "/" + table["image_id"] + ".png"
        manifest["row"] = ""
        for name, image in zip(manifest["output"], images, strict=True):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"".join(encode_png(image)))
    manifest.to_csv(folder / "manifest.csv", index=False)
    config = Config(size=images.shape[1:], bits=bits)
    settings = {
        "src": src,
        "format": "packed" if packed else "png",
        "config": config.to_dict(),
        "digest": config.digest(),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def edit_manifest(folder: Path, place: int, **values: str) -> None:
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    for name, value in values.items():
        manifest.loc[place, name] = value
    manifest.to_csv(folder / "manifest.csv", index=False)


def check(images: Images, wanted: np.ndarray) -> None:
    """All images, and some of them in another order and twice."""
    for rows in (np.arange(len(wanted)), np.array([4, 0, 4, 2]), np.arange(0)):
        got = images.fetch(rows)
        assert got.shape == (len(rows), 1, *wanted.shape[1:])
        assert got.dtype == (torch.uint8 if wanted.dtype == np.uint8 else torch.int32)
        assert (got[:, 0].numpy() == wanted[rows]).all()


# Sources and storages


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("choice", ["auto", "ram", "memmap"])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_source_and_storage_gives_the_images(
    tmp_path: Path, table: pd.DataFrame, packed: bool, choice: str, bits: int
) -> None:
    random = np.random.default_rng(0)
    dtype = np.uint8 if bits == 8 else np.uint16
    pages = random.integers(0, 1 << bits, (6, 20, 12), dtype, endpoint=False)
    dst = make_dst(tmp_path / "dst", pages, table, packed=packed)
    notes: list[str] = []
    with open_images(dst, table, ImagesConfig(storage=choice), note=notes.append) as images:
        assert (images.size, images.bits, len(images)) == ((20, 12), bits, 6)
        stored = "memmap" if choice == "auto" and packed else "ram" if choice == "auto" else choice
        assert images.storage == stored
        assert images.settings["config"]["bits"] == bits
        assert images.kept.tolist() == [0, 1, 2, 3, 4, 5]
        check(images, pages)
    assert notes == [f"6 images of 20 x 12 pixels, {bits} bits, in {stored}"]


@pytest.mark.parametrize("format", ["packed", "png"])
def test_what_convert_writes(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, wanted: np.ndarray, format: str
) -> None:
    options = fastmammo.ConvertOptions(format=format, workers=1)
    fastmammo.convert(dicoms, tmp_path / "dst", config=CONFIG, options=options)
    with open_images(tmp_path / "dst", table) as images:
        check(images, wanted)
    # the same by path alone, absolute as the DICOMs are
    by_path = table.assign(patient_id="", image_id="", path=[str(each) for each in good(dicoms)])
    with open_images(tmp_path / "dst", by_path, config=CONFIG) as images:
        check(images, wanted)
    # the file that is cut off
    row = {"patient_id": "10002", "image_id": "999", "path": ""}
    longer = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
    with pytest.raises(TableError, match=r"1 failed: .*: row 6 \(10002/999\)"):
        open_images(tmp_path / "dst", longer)


@pytest.mark.parametrize("choice", ["ram", "memmap"])
@pytest.mark.parametrize("bits", [8, 16])
def test_dicoms_are_decoded_once(
    dicoms: Path, table: pd.DataFrame, choice: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(size=SIZE, bits=bits)
    pages = fastmammo.Preprocessor(config)(good(dicoms)).images[:, 0]
    asked: list[int] = []
    load = DicomSource.load
    monkeypatch.setattr(
        DicomSource, "load", lambda self, files: asked.extend(files) or load(self, files)
    )
    with open_images(dicoms, table, ImagesConfig(storage=choice), config=config) as images:
        assert asked == []
        images.fetch(np.array([3, 3, 1]))
        assert len(asked) == 2
        check(images, pages)
        check(images, pages)
        assert len(asked) == 6
        assert images.settings["digest"] == config.digest()


def test_a_folder_of_dicoms_without_patients_is_joined_by_name(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, wanted: np.ndarray
) -> None:
    for path in good(dicoms):
        shutil.copy(path, tmp_path / path.name)
        (tmp_path / f"{path.stem}.png").write_bytes(b"no DICOM, and not taken for one")
    with open_images(tmp_path, table, config=CONFIG) as images:
        check(images, wanted)


# The cache


def test_a_cache_is_found_again_and_shared(
    tmp_path: Path,
    dicoms: Path,
    table: pd.DataFrame,
    wanted: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ImagesConfig(image_cache=str(tmp_path / "cache"))
    with (
        open_images(dicoms, table, options, config=CONFIG) as first,
        open_images(dicoms, table, options, config=CONFIG) as second,
    ):
        assert first.storage == "memmap"
        first.fetch(np.arange(4))

        def no_decoding(self: DicomSource, files: list[int]) -> None:
            raise DeviceError(f"asked to decode {files}")

        with monkeypatch.context() as patch:
            patch.setattr(DicomSource, "load", no_decoding)
            assert (second.fetch(np.arange(4))[:, 0].numpy() == wanted[:4]).all()
            with pytest.raises(DeviceError, match="asked to decode"):
                second.fetch(np.array([5]))
    (cache,) = (tmp_path / "cache").iterdir()
    assert sorted(each.name for each in cache.iterdir()) == ["about.json", "images.raw", "sums.raw"]
    assert json.loads((cache / "about.json").read_text())["count"] == 6
    # other settings, other files: another cache
    with open_images(dicoms, table, options, config=Config(size=SIZE, flip="left")) as other:
        other.fetch(np.arange(1))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_row_of_the_cache_that_is_not_whole_is_made_again(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, wanted: np.ndarray
) -> None:
    options = ImagesConfig(image_cache=str(tmp_path))
    with open_images(dicoms, table, options, config=CONFIG) as images:
        check(images, wanted)
    (cache,) = tmp_path.iterdir()
    with open(cache / "images.raw", "r+b") as file:
        file.seek(2 * SIZE[0] * SIZE[1])
        file.write(bytes(100))
    with open_images(dicoms, table, options, config=CONFIG) as images:
        check(images, wanted)


def test_the_checksum_is_written_after_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(str(tmp_path), 2, (4, 4), 8, {})
    page = torch.arange(32, dtype=torch.uint8).view(2, 4, 4)
    written: list[tuple[int, int]] = []
    pwrite = os.pwrite
    monkeypatch.setattr(
        os,
        "pwrite",
        # a disk may take a part of what it is given
        lambda file, data, offset: (
            written.append((len(data), offset)) or pwrite(file, data[:10], offset)
        ),
    )
    store.put(np.array([1, 0]), page)
    assert written == [(16, 16), (6, 26), (4, 4), (16, 0), (6, 10), (4, 0)]
    assert (tmp_path / "sums.raw").read_bytes()[:4] == zlib.crc32(bytes(range(16, 32))).to_bytes(
        4, "little"
    )
    assert torch.equal(store.get(np.array([0, 1]), torch.device("cpu"))[:, 0], page.flip(0))
    store.close()


@pytest.mark.parametrize("choice", ["auto", "ram", "memmap"])
def test_decoded_images_are_kept_where_the_run_writes(
    tmp_path: Path,
    dicoms: Path,
    table: pd.DataFrame,
    wanted: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
) -> None:
    notes: list[str] = []
    more = {"config": CONFIG, "scratch": tmp_path / "cache", "note": notes.append}
    options = ImagesConfig(storage=choice)
    with open_images(dicoms, table, options, **more) as images:  # type: ignore[arg-type]
        images.fetch(np.arange(4))
        with pytest.raises(TableError, match="was asked for"):
            images.fetch(np.array([9]))
    assert f"decoded images are kept in {tmp_path / 'cache'} until every fold is scored" in notes
    asked: list[int] = []
    load = DicomSource.load
    monkeypatch.setattr(
        DicomSource, "load", lambda self, files: asked.extend(files) or load(self, files)
    )
    with open_images(dicoms, table, options, **more) as images:  # type: ignore[arg-type]
        check(images, wanted)
    assert len(asked) == 2  # the two that nobody had asked for


def test_a_run_goes_on_where_decoded_images_cannot_be_kept(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    more = {"config": CONFIG, "scratch": tmp_path, "note": notes.append}
    ram = ImagesConfig(storage="ram")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with open_images(dicoms, table, ram, **more) as images, monkeypatch.context() as patch:  # type: ignore[arg-type]
        patch.setattr(os, "pwrite", full)
        images.fetch(np.arange(2))
        images.fetch(np.arange(4))
    assert sum("no longer kept for a run that goes on" in line for line in notes) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with open_images(dicoms, table, ram, **more) as images:  # type: ignore[arg-type]
        images.fetch(np.arange(2))
    assert any("a run that goes on decodes anew" in line for line in notes)


def test_all_files_that_cannot_be_decoded_are_told_together(
    tmp_path: Path, dicoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dicoms"
    shutil.copytree(dicoms, folder)
    broken = sorted(folder.glob("*/*.dcm"))[0]
    broken.write_bytes(broken.read_bytes()[:-2000])
    every = table_of(sorted(folder.glob("*/*.dcm")))
    more = {"config": CONFIG, "scratch": tmp_path / "cache"}
    last = np.array([6])
    with (
        open_images(folder, every, **more) as images,  # type: ignore[arg-type]
        pytest.raises(TableError) as e,
        images.all_failures(),
    ):
        images.fetch(last)
    text = str(e.value)
    assert "2 of the table's 7 rows have no image" in text
    assert broken.name in text
    assert "999.dcm" in text
    assert f"a new run with image_cache={tmp_path / 'cache'} and missing=drop" in text
    # as it says: all that could be decoded is found
    asked: list[int] = []
    load = DicomSource.load
    monkeypatch.setattr(
        DicomSource, "load", lambda self, files: asked.extend(files) or load(self, files)
    )
    again = ImagesConfig(image_cache=str(tmp_path / "cache"), missing="drop")
    with open_images(folder, every, again, config=CONFIG) as images:
        assert images.kept.tolist() == [1, 2, 3, 4, 5]
    assert len(asked) == 2
    # other errors pass, and where several processes train one does not keep the others waiting
    with (
        open_images(folder, every, config=CONFIG) as images,
        pytest.raises(TableError, match="row 9"),
        images.all_failures(),
    ):
        raise TableError("row 9")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        open_images(folder, every, config=CONFIG) as images,
        pytest.raises(TableError, match=r"^images: row 6 "),
        images.all_failures(),
    ):
        images.fetch(last)


def test_a_temporary_file_lies_in_the_run_folder(
    tmp_path: Path, table: pd.DataFrame, wanted: np.ndarray
) -> None:
    make_dst(tmp_path / "dst", wanted, table, packed=False)
    options = ImagesConfig(storage="memmap")
    with open_images(tmp_path / "dst", table, options, scratch=tmp_path / "run" / "cache"):
        (made,) = (tmp_path / "run" / "cache").iterdir()
        assert made.name.startswith("fastmammo-images-")
    assert list((tmp_path / "run" / "cache").iterdir()) == []


def test_a_folder_in_memory_is_told(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("x / ext4 rw 0 0\nx /a\\040b tmpfs rw 0 0\nx /a\\040b/disk xfs rw 0 0\n")
    found = [in_memory(each, str(mounts)) for each in ("/a b/c/d", "/a b/disk/e", "/a", "/a bc")]
    assert found == [True, False, False, False]
    assert not in_memory("/", str(tmp_path / "none"))
    monkeypatch.setattr("fastmammo.training.images.in_memory", lambda folder: True)
    notes: list[str] = []
    options = ImagesConfig(storage="memmap")
    open_images(dicoms, table, options, config=CONFIG, note=notes.append).close()
    assert any("lies in the machine's memory (tmpfs)" in line for line in notes)


def test_a_temporary_file_is_removed(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = open_images(dicoms, table, ImagesConfig(storage="memmap"), config=CONFIG)
    images.fetch(np.arange(2))
    assert len(list(tmp_path.iterdir())) == 1
    images.close()
    assert list(tmp_path.iterdir()) == []
    # and when nobody closes it
    images = open_images(dicoms, table, ImagesConfig(storage="memmap"), config=CONFIG)
    assert len(list(tmp_path.iterdir())) == 1
    del images
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ImagesConfig(image_cache=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(TrainingError, match=r"6 images need .* are free there: make room"):
            open_images(dicoms, table, options, config=CONFIG)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with open_images(dicoms, table, options, config=CONFIG) as images:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(TrainingError, match=r"cannot write an image to .*: No space left"):
            images.fetch(np.arange(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write images to .*name another folder"):
        FileStore(str(tmp_path / "file"), 1, (4, 4), 8, {})


def test_memory_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"ram has no room for .* images, .* GB"):
        TensorStore("ram", 1 << 40, (1024, 512), 8, torch.device("cpu"))


# Which storage


@pytest.mark.parametrize(
    ("device", "need", "free_gpu", "free_host", "choice"),
    [
        ("cuda", 4, 8, 0, "device"),
        ("cuda", 5, 8, 16, "pinned"),
        ("cuda", 5, 8, 15, "memmap"),  # locked memory comes in powers of two
        ("cpu", 4, 0, 8, "ram"),
        ("cpu", 5, 0, 8, "memmap"),
    ],
)
def test_auto_takes_the_first_that_has_room(
    device: str,
    need: int,
    free_gpu: int,
    free_host: int,
    choice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "free_device_bytes", lambda _: free_gpu)
    monkeypatch.setattr(storage, "free_host_bytes", lambda: free_host)
    place = torch.device(device)
    source = object.__new__(DicomSource)
    assert storage.choose(need, source, ImagesConfig(), place) == choice
    # what the user allows counts, not what is free
    assert storage.choose(need, source, ImagesConfig(budget_gb=0), place) == "memmap"
    plenty = "device" if device == "cuda" else "ram"
    assert storage.choose(need, source, ImagesConfig(budget_gb=1), place) == plenty
    # the processes of a machine share its memory
    if choice in ("pinned", "ram"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert storage.choose(need, source, ImagesConfig(), place) == "memmap"


def test_free_memory_is_a_plausible_number() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < storage.free_host_bytes() <= physical


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": "disk"}, "storage: got 'disk', allowed are auto, device"),
        ({"missing": "skip"}, "missing: got 'skip', allowed are error, drop"),
        ({"prefetch": 0}, "prefetch: got 0, allowed is a whole number 1 to 64"),
        ({"budget_gb": -1.0}, "budget_gb: got -1.0, allowed is 0 to"),
        ({"image_cache": "x", "storage": "ram"}, "image_cache: got 'x' with storage=ram; wanted"),
    ],
)
def test_settings_that_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImagesConfig(**fields)  # type: ignore[arg-type]


def test_a_storage_on_a_gpu_needs_one(dicoms: Path, table: pd.DataFrame) -> None:
    for choice in ("device", "pinned"):
        with pytest.raises(ConfigError, match=f"storage: got {choice}, which needs a GPU"):
            open_images(dicoms, table, ImagesConfig(storage=choice))


# Rows without an image


def test_rows_without_an_image_are_named_with_their_reasons(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    pages = np.zeros((6, 4, 4), np.uint8)
    dst = make_dst(tmp_path / "dst", pages, table, packed=True)
    edit_manifest(dst, 1, status="failed", reason="corrupt codestream", output="", row="")
    edit_manifest(dst, 2, status="skipped", reason="not dicom", output="", row="")
    edit_manifest(dst, 3, output="", row="")
    extra = pd.DataFrame({"patient_id": ["1", "10001"], "image_id": ["100000004", "5"]})
    longer = pd.concat([table, extra], ignore_index=True).fillna("")
    longer.loc[3, "image_id"] = table["image_id"][3]
    with pytest.raises(TableError) as caught:
        open_images(dst, longer)
    message = str(caught.value)
    assert "5 of the table's 8 rows have no image in" in message
    for part in (
        f"1 failed: corrupt codestream: row 1 (10001/{table['image_id'][1]})",
        f"1 skipped: not dicom: row 2 (10001/{table['image_id'][2]})",
        f"1 not in images.npy yet: row 3 (10001/{table['image_id'][3]})",
        "1 only of another patient: row 6 (1/100000004)",
        "1 no such file: row 7 (10001/5)",
        "Convert what is missing, correct the table",
        "missing=drop",
    ):
        assert part in message
    notes: list[str] = []
    with open_images(dst, longer, ImagesConfig(missing="drop"), note=notes.append) as images:
        assert images.kept.tolist() == [0, 4, 5]
        assert images.dropped[1] == "failed: corrupt codestream"
        assert len(images) == 8
        assert len(images.fetch(images.kept)) == 3
        with pytest.raises(TableError, match=r"row 7 \(10001/5\) was asked for, but has no image"):
            images.fetch(np.array([0, 7]))
        for row in (-1, 8):
            with pytest.raises(TableError, match=f"row {row} was asked for; wanted 0 to 7"):
                images.fetch(np.array([0, row]))
    assert "left out: 5 of the table's 8 rows" in notes[1]
    strangers = table.assign(image_id="x")
    with pytest.raises(TableError, match="6 of the table's 6 rows have no image"):
        open_images(dst, strangers, ImagesConfig(missing="drop"))


def test_many_rows_without_an_image_are_counted_and_some_named(
    dicoms: Path, table: pd.DataFrame
) -> None:
    longer = pd.DataFrame(
        {"patient_id": ["7"] * 3000, "image_id": [f"n{each}" for each in range(3000)]}
    )
    with pytest.raises(TableError, match=r"3000 no such file: row 0 \(7/n0\), .*\.\.\.") as e:
        open_images(dicoms, longer, config=CONFIG)
    assert len(str(e.value)) < 800


def test_a_dicom_that_cannot_be_decoded(dicoms: Path, table: pd.DataFrame) -> None:
    row = {"patient_id": "10002", "image_id": "999", "path": ""}
    longer = pd.concat([pd.DataFrame([row]), table], ignore_index=True)
    with open_images(dicoms, longer, config=CONFIG) as images:
        images.fetch(np.array([1, 2]))
        with pytest.raises(TableError, match=r"row 0 \(10002/999\): .*999\.dcm: .*missing=drop"):
            images.fetch(np.array([3, 0]))
        # the others of that batch are kept all the same
        images.fetch(np.array([3]))
    steps: list[tuple[int, int]] = []
    with open_images(
        dicoms,
        longer,
        ImagesConfig(missing="drop"),
        config=CONFIG,
        progress=lambda done, total: steps.append((done, total)),
    ) as images:
        assert images.kept.tolist() == [1, 2, 3, 4, 5, 6]
        assert "999.dcm" in images.dropped[0]
    assert steps == [(7, 7)]


def test_processes_that_share_a_cache_begin_at_different_places(
    tmp_path: Path, dicoms: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmammo.training.images._AT_ONCE", 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    first: list[list[int]] = []
    load = DicomSource.load
    monkeypatch.setattr(
        DicomSource, "load", lambda self, files: first.append(files) or load(self, files)
    )
    options = ImagesConfig(image_cache=str(tmp_path), missing="drop")
    with open_images(dicoms, table, options, config=CONFIG) as images:
        sources = [images._source.files[index] for index in first[0]]
    assert sources == [str(each) for each in good(dicoms)[3:5]]


def test_a_png_that_is_gone_or_no_png(tmp_path: Path, table: pd.DataFrame) -> None:
    pages = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
    dst = make_dst(tmp_path / "dst", pages, table, packed=False)
    paths = sorted(dst.glob("*/*.png"))
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(paths[2])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(paths[3])
    with pytest.raises(TableError) as caught:
        open_images(dst, table)
    for path, part in zip(
        paths,
        ("is gone", "cannot be read", "is (5, 4) of PNG mode L", "is (4, 4) of PNG mode I;16"),
        strict=False,
    ):
        assert f"{path} {part}" in str(caught.value)
    with open_images(dst, table, ImagesConfig(missing="drop")) as images:
        assert images.kept.tolist() == [4, 5]
        assert (images.fetch(images.kept)[:, 0].numpy() == pages[4:]).all()


# The join


def joined(rows: list[tuple[str, str, str]], candidates: list[Candidate]) -> list[int | str]:
    table = pd.DataFrame(rows, columns=["patient_id", "image_id", "path"])
    found, reasons = join(table, candidates)
    return [reasons.get(row, int(position)) for row, position in enumerate(found)]


def test_the_join() -> None:
    candidates = [
        Candidate(("a/1.dcm", "/root/a/1.dcm"), "a", "1"),
        Candidate(("b/1.dcm", "/root/b/1.dcm"), "b", "1"),
        Candidate(("c/2.dcm", "/root/c/2.dcm"), "c", "2"),
        Candidate(("deep/down/3.dcm", "/root/deep/down/3.dcm")),
        Candidate(("x/4.dcm",)),
        Candidate(("y/4.dcm",)),
        Candidate(("z/5",), reason="skipped: not dicom"),
        Candidate(("z/6.dcm",)),
        Candidate(("z/6.png",), reason="skipped: not dicom"),
    ]
    assert joined(
        [
            ("b", "1", ""),  # patient and image
            ("", "2", ""),  # a unique image_id
            ("q", "3", ""),  # a file of which no patient is known, by its name
            ("", "1", "a/1"),  # an image_id of two files: the path, without its suffix
        ],
        candidates,
    ) == [1, 2, 3, 0]
    assert joined(
        [
            ("", "1", ""),
            ("q", "1", ""),
            ("q", "4", ""),
            ("", "", "x/4.dcm"),
            ("", "", "/root/a/1.dcm"),
            ("", "", "./y/../y/4.png"),
            ("", "", ""),
            ("", "", "nowhere"),
            ("", "5", ""),
            ("", "6", ""),
        ],
        candidates,
    ) == [
        "several files of that name",
        "only of another patient",
        "several files of that name",
        4,
        0,
        5,
        "no such file",
        "no such file",
        "skipped: not dicom",
        7,
    ]


def test_two_rows_of_one_file_are_refused() -> None:
    candidates = [Candidate(("a/1.dcm",), "a", "1")]
    with pytest.raises(TableError, match=r"a/1\.dcm by row 0 \(a/1\) and row 2 \(a/1\.dcm\)"):
        joined([("a", "1", ""), ("b", "2", ""), ("", "", "a/1.dcm")], candidates)


# Folders that are not what they should be


def test_a_folder_that_is_none_or_unfinished(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(TableError, match=r"absent is no folder; wanted what `fastmammo convert`"):
        open_images(tmp_path / "absent", table)
    (tmp_path / ".fastmammo").mkdir()
    with pytest.raises(TableError, match=r"has no manifest\.csv, the run of .* has not ended"):
        open_images(tmp_path, table)


def test_a_damaged_folder_is_refused(tmp_path: Path, table: pd.DataFrame) -> None:
    pages = np.zeros((6, 4, 4), np.uint8)
    dst = make_dst(tmp_path / "dst", pages, table, packed=True)

    def broken(match: str) -> None:
        with pytest.raises(TableError, match=match):
            open_images(dst, table)

    np.save(dst / "images.npy", pages.astype(np.uint16))
    broken(r"is uint16 of shape \(6, 4, 4\); its config\.json says uint8 of shape \(N, 4, 4\)")
    np.save(dst / "images.npy", pages[:4])
    broken(r"has 4 rows, its manifest\.csv names 6 up to 5 for 6 images")
    np.save(dst / "images.npy", pages)
    edit_manifest(dst, 1, row="0")
    broken(r"has 6 rows, its manifest\.csv names 5 up to 5 for 6 images")
    edit_manifest(dst, 1, row="1")
    np.save(dst / "images.npy", np.array([{}]), allow_pickle=True)
    broken(r"images\.npy cannot be read: .*run the same")
    settings = json.loads((dst / "config.json").read_text())
    (dst / "config.json").write_text(json.dumps({**settings, "config": {"size": 7}}))
    broken("its config.json tells no size and bits")
    (dst / "config.json").unlink()
    broken("its manifest.csv and config.json are not as .*FileNotFoundError")
    (dst / "config.json").write_text(json.dumps(settings))
    (dst / "manifest.csv").write_text("path,label\na,1\n")
    broken(r"has no column output, reason, row, status: no manifest of `fastmammo convert`")


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, table: pd.DataFrame) -> None:
    dst = make_dst(tmp_path / "dst", np.zeros((6, 4, 4), np.uint8), table, packed=True)
    with open_images(dst, table, config=Config(size=(4, 4), device="auto")):
        pass  # the device decides no pixel
    with pytest.raises(ConfigError, match=r"other settings: size \[4, 4\], asked for \[8, 4\]"):
        open_images(dst, table, config=Config(size=(8, 4)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("choice", ["device", "pinned", "ram", "memmap"])
@pytest.mark.parametrize("packed", [True, False])
def test_on_a_gpu(tmp_path: Path, table: pd.DataFrame, choice: str, packed: bool) -> None:
    pages = np.random.default_rng(0).integers(0, 1 << 16, (6, 20, 12), np.uint16)
    dst = make_dst(tmp_path / "dst", pages, table, packed=packed)
    with open_images(dst, table, ImagesConfig(storage=choice), device="cuda") as images:
        assert images.storage == choice
        got = images.fetch(np.array([4, 0, 4]))
        assert got.is_cuda
        assert (got[:, 0].cpu().numpy() == pages[[4, 0, 4]]).all()
