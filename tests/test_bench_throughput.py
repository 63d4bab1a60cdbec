"""bench/throughput.py end to end on tiny phantoms: who is wrong or missing is named, not timed."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"
NAME = "JPEG 2000 Lossless, 160x128"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("common", "table"):
        monkeypatch.setattr(module(name), "RESULTS", tmp_path)
    return tmp_path


def measured(cache: Path, results: Path, names: str, *more: str) -> dict[str, Any]:
    """Run the script on phantoms of 160 rows, and return what it saved."""
    tiny = ["--size", "160x128", "--sets", "0", "--height", "64", "--cache", str(cache)]
    short = ["--seconds", "0.1", "--rounds", "1", "--workers", "1", "--save"]
    module("throughput").main([*tiny, *short, "--contenders", names, *more])
    found: dict[str, Any] = json.loads((results / "throughput.json").read_text())
    return found


def plus_one(path: str, ds: Any) -> np.ndarray:
    """Decode, and change one pixel: what no picture would show."""
    import fastmammo

    pixels = fastmammo.decode(fastmammo.read(path))
    pixels[5, 7] += 1
    return pixels


def dying(path: str, ds: Any) -> np.ndarray:
    """Crash, as decoders in C do."""
    os._exit(1)


def test_the_ordinary_pipeline_and_ours(
    cache: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2")
    names = ["ordinary", "fastmammo auto", "fastmammo full", "ordinary + Pillow"]
    result = measured(cache, results, ";".join(names), "--rounds", "2")
    found = result["sets"][NAME]
    assert set(found["contenders"]) == set(names)
    assert (found["wrong"], result["missing"]) == ({}, {})
    assert result["file_cache"] == "warm"
    assert result["machine"]["versions"]["opencv-python-headless"]
    assert "--sets 0" in result["command"]
    assert result["disturbed"] == bool(result["disturbed_why"])
    assert found["sources"] == 4
    assert found["copy_gigabytes_per_second"]["median"] > 0.1
    for name, each in found["contenders"].items():
        rate, running = each["images_per_second"], each["running_per_second"]
        assert 0 < rate["lower"] <= rate["median"] <= rate["upper"]
        assert each["start_included"] == name.startswith("fastmammo")
        if each["start_included"]:
            assert running["median"] > rate["median"]
        assert each["start_seconds"] > 0.1
        assert each["files"] % 4 == 0
        assert len(each["rates"]) == 2
        assert each["ratio"]["median"] > 0
        assert each["decode_only_per_second"]["median"] > 0
        assert 0 < each["share_of_decode_only"]["median"] < 1.5
        assert each["cpu_share"]["median"] > 0
        assert each["bytes_an_image"]["decoded"] > 1000
        assert each["bytes_an_image"]["output"] > 100
        assert each["copy_bound_per_second"]["median"] > running["median"]
        assert each["rsna_hours"]["by_images"] > 0
        assert {"read", "decode", "roi", "encode", "total"} <= set(each["stage_ms"])
        assert each["compared"]["stored_values"] == "equal"
    assert found["contenders"]["ordinary"]["ratio"] == dict.fromkeys(
        ("median", "lower", "upper"), 1.0
    )
    assert found["contenders"]["ordinary + Pillow"]["compared"]["equal"]
    assert found["contenders"]["fastmammo auto"]["compared"]["psnr_db"] > 28
    assert found["contenders"]["fastmammo full"]["bytes_an_image"]["decoded"] >= 160 * 128 * 2
    out = capsys.readouterr().out
    assert "fastest first" not in out  # of two rounds
    assert "WARNING: --rounds 2" in out
    assert "1 set of files (JPEG 2000 Lossless, 160x128): about " in out
    assert "ratio          to ordinary: " in out
    assert out.count(": limited by ") == 4
    assert "stored values equal; images equal to ordinary" in out
    lines = module("table").throughput()
    assert lines[0] == "| images/s (times ordinary) | J2K 160x128 |"
    assert len([line for line in lines if line.startswith("| ordinary + Pillow |")]) == 2
    the_picture(results, result)


def the_picture(folder: Path, result: dict[str, Any]) -> None:
    """The same result gives the same picture, which says what it was drawn from."""
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        module("table").main(["--picture", str(folder / name)])
    text = (folder / "a.svg").read_text()
    assert text == (folder / "b.svg").read_text()
    assert module("throughput_tables").digest(result) in text
    assert "<dc:date>" not in text


def test_who_is_wrong_or_dies_is_named_and_the_others_go_on(
    cache: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("cv2")
    contenders = module("contenders")
    for name, decoder in (("off by one", plus_one), ("dying", dying)):
        way = module("contenders.ordinary").Ordinary(decoder)
        monkeypatch.setitem(contenders.CONTENDERS, name, contenders.Contender(way))
    refuses = contenders.Contender(way, syntaxes=contenders.JPEG)
    monkeypatch.setitem(contenders.CONTENDERS, "JPEG alone", refuses)
    names = "off by one;dying;JPEG alone;ordinary;fastmammo full"
    found = measured(cache, results, names)["sets"][NAME]
    assert set(found["contenders"]) == {"ordinary", "fastmammo full"}
    assert found["wrong"]["off by one"] == "stored values of 4 of 4 files differ from fastmammo's"
    assert found["wrong"]["dying"].startswith("BrokenProcessPool: ")
    assert found["refused"] == {"JPEG alone": "does not take JPEG 2000 Lossless"}
    assert "not timed: off by one: stored values of 4 of 4" in capsys.readouterr().out


def test_with_the_base_install_alone(
    cache: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("cv2", "dicomsdl"):
        monkeypatch.setitem(sys.modules, name, None)
    result = measured(
        cache, results, "ordinary;ordinary + dicomsdl;fastmammo full;fastmammo auto, openjpeg"
    )
    assert set(result["missing"]) == {"ordinary", "ordinary + dicomsdl"}
    assert result["missing"]["ordinary"].startswith("not installed: cv2")
    assert result["missing"]["ordinary + dicomsdl"].startswith("not installed: dicomsdl, cv2")
    assert result["baseline"] == "fastmammo full"
    found = result["sets"][NAME]["contenders"]
    assert found["fastmammo full"]["ratio"]["median"] == 1
    other = found["fastmammo auto, openjpeg"]
    assert other["ratio"]["median"] > 0
    assert other["decoder"].startswith("openjpeg")
    assert other["compared"]["equal"]
    out = capsys.readouterr().out
    assert "missing: ordinary: not installed: cv2" in out
    assert "ratios are to fastmammo full" in out
    assert module("table").throughput()[0].startswith("| images/s (times fastmammo full) |")


def test_real_files_with_a_cold_cache(cache: Path, results: Path, tmp_path: Path) -> None:
    from fastmammo.testing import phantom, write_dicom

    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(2):
        write_dicom(phantom(160, 128, seed=i).pixels, path=folder / f"{i}.dcm")
    result = measured(cache, results, "fastmammo full", "--root", str(folder), "--cold")
    assert result["file_cache"].startswith("dropped")
    (name,) = result["sets"]
    assert name == "real, JPEG 2000 Lossless"
    assert result["sets"][name]["contenders"]["fastmammo full"]["files"] >= 3


def test_real_files_are_set_apart_by_syntax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastmammo.testing import phantom, write_dicom

    files = module("phantom_files")
    pixels = phantom(64, 48).pixels
    uids = ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"]
    paths = [tmp_path / f"{uid}.dcm" for uid in uids]
    for uid, path in zip(uids, paths, strict=True):
        write_dicom(pixels, path=path, transfer_syntax_uid=uid)
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    found = files.real_files(tmp_path)
    assert {uid: own.paths for uid, own in found.items()} == {
        uid: [path] for uid, path in zip(uids, paths, strict=True)
    }
    assert all(own.seconds > 0 for own in found.values())
    assert "broken.dcm is left out: it is no DICOM" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no DICOM file there that fastmammo can convert"):
        files.real_files(tmp_path / "nowhere")


def test_phantoms_are_made_once(cache: Path) -> None:
    files = module("phantom_files")
    tiny = files.Set("1.2.840.10008.1.2.1", 96, 80)
    paths = files.phantoms(cache, tiny)
    before = [path.stat().st_mtime_ns for path in paths]
    assert files.phantoms(cache, tiny) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    paths[1].unlink()
    assert files.phantoms(cache, tiny)[1].is_file()
    assert files.key(tiny) != files.key(tiny._replace(rows=112))
    assert not list(cache.glob("making-*"))


def test_what_a_killed_run_has_left_is_dropped(tmp_path: Path) -> None:
    files = module("phantom_files")
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"work-{gone.pid}-abc").mkdir()
    (tmp_path / f"work-{os.getpid()}-abc").mkdir()
    with files.work_folder(tmp_path) as folder:
        assert len(list(tmp_path.iterdir())) == 2
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [f"work-{os.getpid()}-abc"]


def test_a_cold_cache_needs_files_of_their_own(tmp_path: Path) -> None:
    files = module("phantom_files")
    source = tmp_path / "source.dcm"
    source.write_bytes(b"bytes")
    links = files.linked([source], tmp_path / "links", 3)
    assert {path.stat().st_ino for path in links} == {source.stat().st_ino}
    copies = files.linked([source], tmp_path / "copies", 3, copies=True)
    assert len({path.stat().st_ino for path in (*copies, source)}) == 4
    module("usage").drop_from_cache(copies)
    assert [path.read_bytes() for path in copies] == [b"bytes"] * 3


def test_images_are_held_against_others() -> None:
    comparing = module("comparing")
    one = {"0": np.full((4, 4), 7, np.uint8)}
    assert comparing.near(one, one, "x", np.inf)["equal"]
    other = {"0": np.full((4, 4), 8, np.uint8)}
    found = comparing.near(one, other, "x", 28)
    assert (found["equal"], found["psnr_db"]) == (False, 48.1)
    with pytest.raises(comparing.WrongOutput, match=r"those of x: 48.1 dB, wanted equality"):
        comparing.near(one, other, "x", np.inf)
    with pytest.raises(comparing.WrongOutput, match=r"\(4, 4\), that of x \(2, 4\)"):
        comparing.near(one, {"0": np.zeros((2, 4), np.uint8)}, "x", 28)


def test_the_first_place_pipeline_but_for_its_decoder(cache: Path, tmp_path: Path) -> None:
    """What follows DALI's decoder, on a CPU, from values stretched as DALI stretches them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cv2")
    from PIL import Image

    import fastmammo

    dali, ordinary = module("contenders.dali"), module("contenders.ordinary")
    files = module("phantom_files")
    path = files.phantoms(cache, files.Set("1.2.840.10008.1.2.4.90", 640, 512))[0]
    values = fastmammo.decode(fastmammo.read(path))
    stretched = np.round(values * (65535 / 4095)).astype(np.uint16)
    pixels = dali.stored(torch.from_numpy(stretched[..., np.newaxis]), 12)
    np.testing.assert_array_equal(pixels.numpy(), values)
    (data, header), out = dali._parsed(str(path)), tmp_path / "ordinary.png"
    assert data.startswith(b"\xff\x4f\xff\x51")
    assert header[3] == 12
    ordinary.ordinary_image((str(path), str(out), 256, "pylibjpeg"))
    with Image.open(out) as image:
        wanted = {"0": np.asarray(image)}
    found = {"0": dali.finished(pixels, header, 256)}
    assert module("comparing").near(found, wanted, "ordinary", 25)["psnr_db"] < 60
    inverted = {"0": 255 - found["0"]}
    with pytest.raises(module("comparing").WrongOutput, match="wanted 18 dB"):
        module("comparing").near(inverted, wanted, "ordinary", 18)


def test_processes_that_hang_are_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = module("contenders.processes")
    with processes.Processes(2) as pool:
        (first, second) = pool.everywhere(os.getpid)
        assert first != second
        monkeypatch.setattr(processes, "LIMIT_SECONDS", 0.2)
        with pytest.raises(TimeoutError, match="not done after 0 s"):
            pool.map(time.sleep, [600])
        monkeypatch.setattr(processes, "LIMIT_SECONDS", 60)
        assert not {first, second} & set(pool.everywhere(os.getpid))


BURN = """
import sys, time
while time.process_time() < 0.6: pass
print("done", flush=True)
sys.stdin.read()
"""


def test_cpu_time_of_children_counts_while_they_live_and_after() -> None:
    usage = module("usage")
    before = usage.cpu_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        alive = usage.cpu_seconds() - before
        child.stdin.close()
    assert alive >= 0.55
    assert usage.cpu_seconds() - before >= alive - 0.05


def test_without_a_gpu_its_meter_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module("usage")
    monkeypatch.setattr(usage, "_nvml", lambda: None)
    with usage.GpuMeter() as meter:
        pass
    assert meter.share is None
    assert "no NVIDIA GPU" in usage.gpu_missing()


def test_rates_are_of_what_ran_after_the_start() -> None:
    turns = module("contenders.turns")
    # two processes: the first two files end with the start, four more come in two seconds
    assert turns.running_rate([5.0, 5.1, 5.6, 6.1, 6.6, 7.1], 2) == pytest.approx(2)
    assert turns.running_rate([5.0, 5.1, 5.6], 2) is None
    assert turns.rate_of([(10, 2.0), (3, 1.0)]) == 8


def test_contenders_whose_quartiles_overlap_tie() -> None:
    spans = {"a": (9, 10, 11), "b": (8, 9, 9.5), "c": (6, 7, 8), "d": (7, 7.5, 8)}
    figures = {
        name: {"images_per_second": {"lower": low, "median": middle, "upper": high}}
        for name, (low, middle, high) in spans.items()
    }
    assert module("rounds").ranking(figures) == [["a", "b"], ["d", "c"]]


def test_what_cannot_be_asked_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--contenders", "nobody"], "no ['nobody']; there are: ordinary; fastmammo auto;"),
        (["--rounds", "0"], "wanted 1 or more"),
    ):
        with pytest.raises(SystemExit):
            module("throughput").parse(arguments)
        assert message in capsys.readouterr().err


def test_every_contender_can_be_named_in_a_table() -> None:
    contenders = module("contenders")
    assert contenders.YARDSTICK in contenders.CONTENDERS
    assert contenders.STAND_IN in contenders.CONTENDERS
    for name, each in contenders.CONTENDERS.items():
        assert not set(name) & set(";|"), name
        assert each.syntaxes <= contenders.ALL
        assert each.gpu == bool(re.search("cuda|DALI|nvImageCodec", name)), name


def test_scripts_with_a_table_of_their_own(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Script:
        @staticmethod
        def table(result: dict[str, Any]) -> str:
            return f"| {result['ms']} |\n| --- |"

    monkeypatch.setitem(sys.modules, "stages", Script)  # type: ignore[arg-type]
    (results / "stages.json").write_text('{"ms": 4}')
    assert module("table").of_script("stages") == ["| 4 |", "| --- |"]
    committed = {path.stem for path in (BENCH / "results").glob("*.json")}
    own = {"transcode", "scaling", "stages"}
    assert own & set(module("table").SECTIONS) == own & committed


def test_the_committed_picture_is_of_the_committed_result() -> None:
    result = json.loads((BENCH / "results" / "throughput.json").read_text())
    text = (BENCH / "results" / "throughput.svg").read_text()
    assert module("throughput_tables").digest(result) in text, (
        "python bench/table.py --picture bench/results/throughput.svg"
    )
