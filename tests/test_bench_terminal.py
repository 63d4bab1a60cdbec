"""What benchmarks say to who runs them: files left out, limits, warnings, errors, an early end."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"
RAW = "1.2.840.10008.1.2.1"
SCRIPTS = ("throughput", "scaling", "decode", "stages", "transcode")


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    folder = tmp_path / "results"
    monkeypatch.setattr(module("common"), "RESULTS", folder)
    return folder


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_files_that_would_end_a_run_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pydicom

    from fastmammo.testing import phantom, write_dicom

    root = tmp_path / "files"
    (root / "deep").mkdir(parents=True)
    pixels = phantom(64, 48).pixels
    good = root / "deep" / "1.2.840.1"  # as archives name their files
    write_dicom(pixels, path=good, transfer_syntax_uid=RAW)
    colour, cut = root / "colour.dcm", root / "cut.dcm"
    write_dicom(pixels, path=colour, transfer_syntax_uid=RAW)
    ds = pydicom.dcmread(colour)
    ds.PhotometricInterpretation, ds.SamplesPerPixel = "RGB", 3
    ds.save_as(colour)
    cut.write_bytes(good.read_bytes()[:-2000])
    (root / "notes.txt").write_text("no image")
    found = module("phantom_files").real_files(root)
    assert {uid: own.paths for uid, own in found.items()} == {RAW: [good]}
    out = capsys.readouterr().out
    assert "3 DICOM files; 3 are tried" in out
    assert re.search(r"colour\.dcm is left out: .*RGB", out)
    assert re.search(r"cut\.dcm is left out: ", out)
    assert "notes" not in out


def figures(running: float = 10.0, **more: Any) -> dict[str, Any]:
    """Return what is told of a contender: by default its decoder takes 80 % of the time."""
    return {
        "images_per_second": {"median": 8.0, "lower": 7.0, "upper": 9.0},
        "ratio": {"median": 2.0},
        "ratio_to": "ordinary",
        "running_per_second": {"median": running},
        "decode_only_per_second": {"median": 12.5},
        "share_of_decode_only": {"median": 0.8},
        "cpu_share": {"median": 0.9},
        "copy_bound_per_second": {"median": 1000.0},
        "rsna_hours": {"by_images": 1.0},
        "stage_ms": {"read": 1.0, "decode": 90.0, "roi": 7.0, "total": 98.0},
        "compared": {"stored_values": "equal"},
        "start_included": True,
        "start_seconds": 0.2,
        "files": 20,
        **more,
    }


def test_what_limits_a_contender_is_told_in_words() -> None:
    limit = module("throughput_text").limit
    assert limit(figures()) == "the decoder: 80% of the time; copying would take 1.0%"
    little = {"share_of_decode_only": {"median": 0.3}}
    assert limit(figures(**little)).startswith("the rest, most of it roi: the decoder takes 30%")
    raw = {"share_of_decode_only": None, "decode_only_per_second": None}
    assert "nothing is to decode" in limit(figures(**raw))
    fast = {"copy_bound_per_second": {"median": 12.0}, **little}
    assert limit(figures(**fast)) == "copying: its bytes alone would take 83% of the time"
    assert "disturbed" in limit(figures(share_of_decode_only={"median": 1.4}))


def test_no_ranking_of_too_few_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    text = module("throughput_text")
    found = {
        "megabytes_a_file": 3.0,
        "contenders": {"ordinary": figures(start_included=False), "fastmammo auto": figures()},
        "ranking": [["fastmammo auto"], ["ordinary"]],
        "disturbed": [],
        "refused": {},
        "wrong": {},
    }
    text.show("set", found, "ordinary", 3)
    out = capsys.readouterr().out
    assert "fastmammo auto > ordinary" in out
    assert "WARNING" not in out
    heads = next(line for line in out.splitlines() if "images/s" in line)
    assert tuple(re.split(r" {3,}", heads.strip())) == text.HEADS
    text.show("set", found, "ordinary", 2)
    out = capsys.readouterr().out
    assert "fastest first" not in out
    assert "WARNING: --rounds 2" in out
    for head in text.HEADS:
        assert f"\n  {head}  " in text.LEGEND


def test_a_turn_that_is_mostly_start_is_told() -> None:
    warnings = module("throughput_text").warnings
    short = {"fastmammo auto": figures(start_seconds=2.0), "fastmammo full": figures()}
    (found,) = warnings(short, 3)
    assert "fastmammo auto (50%): " in found
    assert "fastmammo full" not in found
    assert warnings({"ordinary": figures(start_included=False, start_seconds=9.0)}, 3) == []


def test_time_grows_with_contenders_rounds_and_files() -> None:
    minutes, settings = module("throughput_text").minutes, module("rounds").Settings
    short = minutes(2, 4, 0.0, settings(2.5, 3, 2))
    assert 0.3 < short < 1
    assert minutes(4, 4, 0.0, settings(2.5, 3, 2)) == pytest.approx(2 * short)
    assert minutes(2, 4, 0.0, settings(2.5, 9, 2)) > short
    assert minutes(2, 64, 1.0, settings(2.5, 3, 2)) > 5 * short


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("throughput", "--sets 9", "--sets: no 9; there are 0 to 5"),
        ("throughput", "--sets x,0", "--sets: no x; there are 0 to 5"),
        ("throughput", "--size abc", "argument --size: 'abc': wanted rows x columns"),
        ("throughput", "--seconds -1", "argument --seconds: '-1': wanted a number above 0"),
        ("throughput", "--seconds nan", "argument --seconds: 'nan': wanted a number above 0"),
        ("throughput", "--root /no/folder", "--root /no/folder: no such folder"),
        ("scaling", "--size 3x", "argument --size: '3x': wanted rows x columns"),
        ("scaling", "--rounds 0", "argument --rounds: '0': wanted 1 or more"),
        ("scaling", "--steps 1 -2", "argument --steps: '-2': wanted 1 or more"),
        ("decode", "--noises 0", "argument --noises: '0': wanted a number above 0"),
        ("decode", "--rows many", "argument --rows: 'many': wanted 1 or more"),
        ("stages", "--output 0x5", "argument --output: '0x5': wanted rows x columns"),
        ("transcode", "--files 0", "argument --files: '0': wanted 1 or more"),
    ],
)
def test_bad_arguments_are_errors_of_the_command(
    script: str, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        module(script).main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_every_default(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module(script).main(["--help"])
    text = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    options = re.split(r" (?=--[a-z])", f" {text}")[1:]
    valued = [each for each in options if re.match(r"--[a-z-]+ \[?[A-Z]", each)]
    assert len(valued) >= 5
    assert [each for each in valued if "(default: " not in each] == []
    if script == "throughput":
        assert "0 JPEG 2000 Lossless, 3328x2560 *" in text


def ended(script: str, arguments: str) -> None:
    with pytest.raises(SystemExit) as error:
        module(script).main([*arguments.split(), "--save"])
    assert error.value.code == 130


def interrupting(whole: Any, after: int) -> Any:
    """Return a function that is interrupted, as by Ctrl-C, after so many calls."""
    calls = []

    def run(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    return run


def test_decode_ended_early_tells_what_it_has(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = module("common")
    # of an uncompressed frame four ways: a warm-up of four, a round of four, and two more
    monkeypatch.setattr(common, "taken", interrupting(common.taken, 10))
    ended("decode", f"--rows 64 --columns 48 --noises 1 --syntaxes {RAW}")
    out, err = capsys.readouterr()
    assert out.count(" MP/s") == 4
    assert "round 1 of 7: " in err
    assert "what was measured until then is above; nothing is saved" in err
    assert not results.exists()


def test_scaling_ended_early_tells_what_it_has(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling = module("scaling")
    # two to begin with, then a batch of 1; not that of 2
    monkeypatch.setattr(scaling, "prepare", interrupting(scaling.prepare, 3))
    small = "--size 104x80 --output 64x32 --files 3 --steps 1 --counts 2 --resumed 2 --batches 1 2"
    ended("scaling", small)
    out, err = capsys.readouterr()
    assert "`convert`, workers: 1" in out
    assert "batch: 1" in out
    assert "batch: 2" not in out
    assert re.search(r"round 1: workers 1: [\d.]+ s, [\d.]+ images/s", err)
    assert re.search(r"about [\d.]+ (s|minutes) to go", err)
    assert not results.exists()


def test_a_conversion_that_took_the_ctrl_c_ends_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastmammo

    class Summary:
        signal = 2

    monkeypatch.setattr(fastmammo, "convert", lambda *_, **__: Summary())
    with pytest.raises(KeyboardInterrupt):
        module("scaling").convert(tmp_path, tmp_path / "out", fastmammo.Config(), 1)


def test_stages_ended_early_tell_what_they_have(tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import common, stages\n"
        "from pathlib import Path\n"
        "common.RESULTS = Path(sys.argv[1])\n"
        "common.script(lambda: stages.main(sys.argv[2:]))\n"
    )
    (tmp_path / "run.py").write_text(
        f"import sys\nsys.path.insert(0, {str(BENCH)!r})\n"
        "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines())
    )
    small = [
        "--size",
        "208x160",
        "--output",
        "64x32",
        "--copy-mb",
        "1",
        "--rounds",
        "999",
        "--save",
    ]
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "saved"), *small, "--save"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stderr is not None
            said = []
            for line in run.stderr:
                said.append(line)
                if line.startswith("round 1 of 999: "):
                    break
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130, "".join(said) + err
    assert any("999 rounds: about " in line for line in said)
    assert "find_breast" in out
    assert "nothing is saved" in err
    assert "Traceback" not in err
    assert not (tmp_path / "saved").exists()
