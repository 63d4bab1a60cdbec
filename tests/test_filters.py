"""Filters: which files a run converts by their headers, and what other filters change later."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import convert_standin
import numpy as np
import pytest
from dicom_files import patched
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fastmammo.cli import main
from fastmammo.conversion import ConvertOptions, Summary, convert
from fastmammo.conversion.filters import (
    FACTS,
    SCREENING,
    Filters,
    guarded,
    header_facts,
    refusal,
)
from fastmammo.dicom import read
from fastmammo.errors import ConfigError, FastMammoError, FilteredError
from fastmammo.preprocess import Config
from fastmammo.testing import can_encode, phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = Config(size=convert_standin.SIZE)
FULL = {
    "laterality": "L",
    "view_position": "CC",
    "view_modifiers": "",
    "manufacturer": "HOLOGIC, Inc.",
    "presentation_intent_type": "FOR PRESENTATION",
}

# ---------------------------------------------------------------- what holds


@pytest.mark.parametrize(
    ("filters", "facts", "reason"),
    [
        ({}, {}, ""),
        ({"view": "cc, mlo"}, {}, ""),
        ({"view": "MLO,ml"}, {}, "View Position: got CC, wanted MLO or ML"),
        ({"view": "MLO"}, {"view_position": ""}, "View Position: got absent, wanted MLO"),
        ({"laterality": "l"}, {}, ""),
        ({"laterality": "R,B"}, {}, "Image Laterality: got L, wanted R or B"),
        ({"laterality": "L"}, {"laterality": ""}, "Image Laterality: got absent, wanted L"),
        ({"manufacturer": "ge,hologic"}, {}, ""),
        ({"manufacturer": "Siemens"}, {}, "Manufacturer: got HOLOGIC, Inc., wanted Siemens"),
        (
            {"manufacturer": "s"},
            {"manufacturer": ""},
            "Manufacturer: got absent, wanted s",
        ),
        ({"presentation_intent": "Presentation"}, {}, ""),
        ({"presentation_intent": "for processing,for presentation"}, {}, ""),
        (
            {"presentation_intent": "processing"},
            {},
            "Presentation Intent Type: got FOR PRESENTATION, wanted FOR PROCESSING",
        ),
        (
            {"presentation_intent": "processing"},
            {"presentation_intent_type": ""},
            "Presentation Intent Type: got absent, wanted FOR PROCESSING",
        ),
        ({"view_modifiers": "none"}, {}, ""),
        (
            {"view_modifiers": "none"},
            {"view_modifiers": "magnification|spot compression"},
            "View Modifier: got magnification, spot compression, wanted none",
        ),
        ({"view_modifiers": "none,Implant  Displaced"}, {}, ""),
        (
            {"view_modifiers": "none,implant displaced"},
            {"view_modifiers": "implant displaced"},
            "",
        ),
        # both must be among those that may occur
        (
            {"view_modifiers": "none,implant displaced"},
            {"view_modifiers": "implant displaced|magnification"},
            "View Modifier: got implant displaced, magnification, wanted none or implant displaced",
        ),
        ({"view_modifiers": "cleavage"}, {}, "View Modifier: got none, wanted cleavage"),
        ({"view_modifiers": "not magnification,not spot compression"}, {}, ""),
        (
            {"view_modifiers": "not magnification,not spot compression"},
            {"view_modifiers": "rolled lateral|spot compression"},
            "View Modifier: got rolled lateral, spot compression, wanted not magnification and not "
            "spot compression",
        ),
        ({"view_modifiers": "not none"}, {}, "View Modifier: got none, wanted not none"),
        ({"view_modifiers": "none"}, {"view_modifiers": "a maker's own"}, "View Modifier: got "),
        (
            {"view": "MLO", "laterality": "R"},
            {},
            "View Position: got CC, wanted MLO; Image Laterality: got L, wanted R",
        ),
    ],
)
def test_what_a_filter_lets_pass(
    filters: dict[str, str], facts: dict[str, str], reason: str
) -> None:
    found = Filters(**filters).refusal(FULL | facts)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
    assert refusal((Filters(**filters),), FULL | facts) == found


def test_standard_screening_views_are_one_option() -> None:
    assert SCREENING.refusal(FULL) == ""
    assert SCREENING.refusal(FULL | {"view_position": "XCCL"}) != ""
    assert SCREENING.refusal(FULL | {"view_modifiers": "implant displaced"}) != ""
    options = ConvertOptions(screening_views=True, view="CC")
    assert options.filters == (Filters(view="CC"), SCREENING)
    mlo = FULL | {"view_position": "MLO"}
    assert refusal(options.filters, mlo) == "View Position: got MLO, wanted CC"
    assert ConvertOptions(screening_views=True).filters == (SCREENING,)
    assert ConvertOptions().filters == ()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("view", "XYZ", "view: got 'XYZ', allowed are CC, MLO, ML, LM, LMO, FB, SIO, ISO, XCCL"),
        ("view", "CC,,MLO", "view: got 'CC,,MLO', an empty alternative; leave view out for any"),
        ("view", "", "view: got '', an empty alternative"),
        ("view", ("CC", "MLO"), "wanted text, alternatives separated by commas"),
        ("laterality", "left", "laterality: got 'left', allowed are L, R, B"),
        ("presentation_intent", "both", "presentation_intent: got 'both', allowed are FOR PRES"),
        ("view_modifiers", "spot", "view_modifiers: got 'spot', allowed are none, spot compr"),
        ("view_modifiers", "not spot", "view_modifiers: got 'not spot', allowed are none, spot"),
        ("view_modifiers", "none,not cleavage", "wanted names that may occur, or names that may n"),
        ("manufacturer", " ", "manufacturer: got ' ', an empty alternative"),
    ],
)
def test_filters_are_checked(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ConvertOptions(**{name: value})
    assert message in str(caught.value)


def test_one_spelling_for_one_choice() -> None:
    options = ConvertOptions(
        view="mlo, cc,MLO", presentation_intent="for presentation", view_modifiers="NOT Cleavage"
    )
    assert (options.view, options.presentation_intent) == ("MLO,CC", "FOR PRESENTATION")
    assert options.view_modifiers == "not cleavage"
    (filters,) = options.filters
    assert Filters(**filters.to_dict()) == filters


# ---------------------------------------------------------------- the header


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def as_record(path: Path) -> dict[str, str]:
    """Return what a record of the whole file says of what filters look at."""
    m = read(path)
    return {
        "sop_instance_uid": m.sop_instance_uid,
        "laterality": m.image_laterality,
        "view_position": m.view_position,
        "view_modifiers": "|".join(m.view_modifiers),
        "manufacturer": m.manufacturer,
        "presentation_intent_type": m.presentation_intent_type,
    }


SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]
SYNTAXES += ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"]


@pytest.mark.parametrize("uid", SYNTAXES)
@pytest.mark.parametrize("long", [False, True], ids=["short", "longer than is read first"])
def test_the_header_alone_says_what_the_record_does(tmp_path: Path, uid: str, long: bool) -> None:
    if not can_encode(uid):
        pytest.skip("no encoder")
    view = code("399368009", "medio-lateral oblique")
    view.ViewModifierCodeSequence = Sequence([code("399055006", ""), code("X", "My Own")])
    extra: dict[str, Any] = {"ViewPosition": None, "ViewCodeSequence": Sequence([view])}
    extra |= {
        "ImageLaterality": None,
        "Laterality": "r",
        "PresentationIntentType": "for processing",
    }
    if long:
        extra["ICCProfile"] = bytes(300_000)
    path = tmp_path / "a.dcm"
    data = write_dicom(phantom(64, 48).pixels, transfer_syntax_uid=uid, attributes=extra)
    path.write_bytes(data)
    found = header_facts(str(path))
    assert found == as_record(path)
    assert tuple(found) == FACTS
    assert found["view_modifiers"] == "spot compression|my own"
    assert (found["laterality"], found["view_position"]) == ("R", "MLO")


def test_of_the_shared_real_files_too(data: Path) -> None:
    compared = 0
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        found = header_facts(str(path))
        try:
            meant = as_record(path)
        except FastMammoError:
            continue
        assert found == meant, path
        compared += 1
    assert compared > 40


def test_no_pixel_is_read_of_what_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    whole = write_dicom(
        np.zeros((2000, 1000), np.uint16), transfer_syntax_uid="1.2.840.10008.1.2.1"
    )
    path.write_bytes(whole[: 1 << 18])  # cut off in the pixels: the header is whole
    prepared: list[str] = []

    class Recorder:
        prepare = staticmethod(prepared.append)

    check = guarded(Recorder, [{"view": "MLO"}], 0)
    with pytest.raises(FilteredError, match="View Position: got CC, wanted MLO") as caught:
        check(str(path))
    assert caught.value.facts["view_position"] == "CC"
    assert caught.value.reason == "filtered"
    assert prepared == []
    guarded(Recorder, [{"view": "CC"}], 0)(str(path))
    guarded(Recorder, [], 0)(str(path))
    # what has no header to judge by fails where it is read as a whole, with its own reason
    for text in (b"", b"not DICOM", whole[:700]):
        path.write_bytes(text)
        guarded(Recorder, [{"view": "MLO"}], 0)(str(path))
    assert len(prepared) == 5
    with pytest.raises(FileNotFoundError):
        check(str(tmp_path / "absent.dcm"))


# ---------------------------------------------------------------- runs


def run(src: Path, dst: Path, **options: Any) -> Summary:
    chosen = ConvertOptions(**{"workers": 1, **options})
    name = convert_standin.PREPROCESSOR
    return convert(src, dst, config=CONFIG, options=chosen, preprocessor=name)


def manifest(dst: Path) -> dict[str, dict[str, str]]:
    with open(dst / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def tree(dst: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file()
        and ".fastmammo" not in path.parts
        and path.name not in ("timings.csv", *without)
    }


def write(root: Path, words: Mapping[str, str]) -> Path:
    for name, text in words.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Both sides, three views and one without, one with a modifier, and files that are no image."""
    words = {
        f"p{n // 4}/{n}.dcm": f"DICM side:{side} view:{view} n:{n}"
        for n, (side, view) in enumerate(itertools.product("LR", ("CC", "MLO", "ML", "")))
    }
    words["p1/spot.dcm"] = "DICM side:L view:CC modifiers:spot_compression"
    words["p1/broken.dcm"] = "DICM side:R view:CC broken"
    words["notes.txt"] = "none"
    return write(tmp_path / "src", words)


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"view": "CC,MLO"}),
    ({"view": "CC,MLO"}, {}),
    ({"screening_views": True, "laterality": "L"}, {"laterality": "R"}),
    ({"laterality": "R"}, {"view": "FB"}),
    ({"view": "FB"}, {"screening_views": True}),
]


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_what_is_left_out_is_a_row(tmp_path: Path, src: Path, kind: str) -> None:
    summary = run(src, tmp_path / "dst", screening_views=True, format=kind)
    rows = manifest(tmp_path / "dst")
    assert (summary.ok, summary.failed, summary.skipped) == (4, 1, 6)
    assert summary.reasons["skipped: filtered"] == 5
    assert rows["p0/2.dcm"]["status"] == "skipped"
    assert rows["p0/2.dcm"]["reason"] == "filtered"
    assert rows["p0/2.dcm"]["message"] == "View Position: got ML, wanted CC or MLO"
    assert rows["p0/3.dcm"]["message"] == "View Position: got absent, wanted CC or MLO"
    assert rows["p1/spot.dcm"]["message"] == "View Modifier: got spot compression, wanted none"
    # the row has what the filters looked at, and nothing of the pixels
    assert (rows["p0/2.dcm"]["view_position"], rows["p0/2.dcm"]["laterality"]) == ("ML", "L")
    assert rows["p0/2.dcm"]["level"] == rows["p0/2.dcm"]["output"] == ""
    assert rows["p1/broken.dcm"]["status"] == "failed"
    told = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert told["filters"] == [{"view": "CC,MLO", "view_modifiers": "none"}]
    if kind == "packed":
        assert np.load(tmp_path / "dst" / "images.npy").shape[0] == 4
        assert [row["row"] for row in rows.values() if row["row"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ["png", "packed"])
@pytest.mark.parametrize(("first", "then"), CHANGES, ids=lambda f: "+".join(f) or "all")
def test_other_filters_give_what_one_run_with_them_gives(
    tmp_path: Path, src: Path, kind: str, first: dict[str, Any], then: dict[str, Any]
) -> None:
    dst, calm = tmp_path / "dst", tmp_path / "calm"
    before = run(src, dst, format=kind, **first)
    old = set(tree(dst))
    read_before = {path: row for path, row in manifest(dst).items() if row["status"] == "ok"}
    summary = run(src, dst, format=kind, **then)
    undisturbed = run(src, calm, format=kind, **then)
    rows = manifest(dst)
    kept = [path for path in read_before if rows[path]["status"] == "ok"]
    # what still passes is not made again, nor is what is left out read again
    assert summary.converted == summary.ok - len(kept)
    assert set(summary.again) <= {"no longer filtered", "failed before"}
    assert (summary.ok, summary.skipped) == (undisturbed.ok, undisturbed.skipped)
    assert summary.reasons == undisturbed.reasons
    # nothing is deleted: what was made and is left out now stays, and the summary names it
    gone = [read_before[path]["output"] for path in read_before if path not in kept]
    assert summary.orphans == (sorted(gone) if kind == "png" else [])
    assert ("filtered out, in no manifest row" in summary.text()) == bool(summary.orphans)
    assert old <= set(tree(dst))
    found = {name: data for name, data in tree(dst).items() if name not in summary.orphans}
    assert found == tree(calm)
    assert before.orphans == []
    # and once more: nothing is to be done but what fails
    again = run(src, dst, format=kind, **then)
    assert (again.converted, again.kept) == (0, again.files - again.failed)
    assert {n: d for n, d in tree(dst).items() if n not in again.orphans} == tree(calm)


def test_what_was_left_out_for_a_while_is_still_good(tmp_path: Path, src: Path) -> None:
    dst = tmp_path / "dst"
    first = run(src, dst)
    run(src, dst, view="FB")
    assert manifest(dst)["p0/0.dcm"]["reason"] == "filtered"
    back = run(src, dst)
    assert (back.converted, back.ok, back.orphans) == (0, first.ok, [])
    # but an input that has changed meanwhile is noticed
    run(src, dst, view="FB")
    (src / "p0/0.dcm").write_text("DICM side:L view:FB new")
    assert run(src, dst, view="FB").again == {"input changed": 1}
    assert manifest(dst)["p0/0.dcm"]["status"] == "ok"


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_other_settings_and_filters_at_once(tmp_path: Path, src: Path, kind: str) -> None:
    dst, calm = tmp_path / "dst", tmp_path / "calm"
    run(src, dst, format="packed" if kind == "png" else "png")
    run(src, dst, format=kind, view="CC")
    run(src, calm, format=kind, view="CC")
    assert tree(dst) == tree(calm)


POINTS = [
    ("png", "after-add", 2),
    ("png", "before-tables", 1),
    ("png", "after-redo", 1),
    ("packed", "after-redo", 1),
    ("packed", "after-add", 2),
    ("packed", "before-copy", 2),
    ("packed", "after-add_packed", 1),
    ("packed", "after-gather", 1),
    ("packed", "before-tables", 1),
]


@pytest.mark.parametrize(("kind", "point", "count"), POINTS)
def test_killed_while_other_filters_are_taken_up(
    tmp_path: Path, src: Path, kind: str, point: str, count: int
) -> None:
    """L of all views, then MLO and ML of both sides: some go, some stay, some come."""
    dst, then = tmp_path / "dst", {"view": "MLO,ML"}
    run(src, dst, format=kind, laterality="L")
    if point == "after-redo":
        (src / "p0/1.dcm").write_text("DICM side:L view:MLO changed")
    arguments = [str(src), str(dst), kind, point, str(count), json.dumps(then)]
    killed = subprocess.run(
        [sys.executable, convert_standin.__file__, *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if (dst / "manifest.csv").exists():  # it tells of nothing that is not there
        for row in manifest(dst).values():
            assert not row["output"] or (dst / row["output"]).exists()
            if row["row"] and "changed" not in (src / row["path"]).read_text():
                image = convert_standin.StandIn(CONFIG).prepare(str(src / row["path"])).image
                array = np.load(dst / "images.npy")
                np.testing.assert_array_equal(array[int(row["row"])], image)
    summary = run(src, dst, format=kind, **then)
    run(src, tmp_path / "calm", format=kind, **then)
    assert {n: d for n, d in tree(dst).items() if n not in summary.orphans} == tree(
        tmp_path / "calm"
    )


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "src"
    source.mkdir()
    made = phantom(96, 64)
    for n, (view, side, maker) in enumerate([("CC", "L", "A"), ("ML", "L", "A"), ("CC", "R", "B")]):
        data = write_dicom(made.pixels, view_position=view, laterality=side, seed=n)
        (source / f"{n}.dcm").write_bytes(patched(data, Manufacturer=f"Maker {maker}"))
    arguments = ["convert", str(source), str(tmp_path / "dst"), "--size", "48x32", "--quiet"]
    flags = ["--screening-views", "--laterality", "L,R", "--manufacturer", "maker b"]
    assert main([*arguments, *flags, "--presentation-intent", "presentation"]) == 0
    out = capsys.readouterr().out
    assert "1 converted, 0 failed, 2 skipped" in out
    assert "2 skipped: filtered" in out
    rows = manifest(tmp_path / "dst")
    assert rows["0.dcm"]["message"] == "Manufacturer: got Maker A, wanted maker b"
    assert main([*arguments, "--view", "XYZ"]) == 2
    assert "view: got 'XYZ', allowed are CC, MLO" in capsys.readouterr().err
