"""A second run of `transcode` costs no good output, whatever has become of the sources."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from test_transcode_run import LOSSY, fill, manifest, run, tree

from fastmammo.conversion.plan import STAYS
from fastmammo.encoding import missing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def outputs(dst: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(dst).items() if name.endswith(".dcm")}


@pytest.mark.parametrize("kind", ["list", "links"])
def test_sources_that_have_moved_away_cost_nothing(kind: str, tmp_path: Path) -> None:
    src, dst = fill(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    fill(src, "lossy.dcm", uid=LOSSY)
    given = tmp_path / ("list.txt" if kind == "list" else "links")
    if kind == "list":
        given.write_text("src/a.dcm\nsrc/b.dcm\nsrc/lossy.dcm\n")
    else:
        given.mkdir()
        for name in ("a.dcm", "b.dcm", "lossy.dcm"):
            os.symlink(src / name, given / name)
    run(given, dst, follow_links=True)
    held, journal = outputs(dst), dst / ".fastmammo" / "journal.jsonl"
    entries = journal.read_bytes()
    assert len(held) == 3
    src.rename(tmp_path / "gone")
    for _ in range(2):
        summary = run(given, dst, follow_links=True, others="skip")
        assert outputs(dst) == held
        assert (summary.ok, summary.failed, summary.exit_code) == (0, 3, 1)
        assert summary.stayed == sorted(held)
        assert "of inputs that have failed now: 3 outputs (" in summary.text()
        for row in manifest(dst).values():
            assert (row["status"], row["reason"], row["output"]) == ("failed", "file not found", "")
            assert row["message"].endswith(STAYS)
            assert str(tmp_path) not in row["message"]
    assert journal.read_bytes() == entries
    (tmp_path / "gone").rename(src)
    summary = run(given, dst, follow_links=True)
    assert (summary.kept, summary.failed, summary.stayed) == (3, 0, [])
    assert outputs(dst) == held


def test_a_source_that_is_damaged_since_costs_nothing(tmp_path: Path) -> None:
    names = ("cut.dcm", "empty.dcm", "none", "pipe.dcm", "headless.dcm")
    src, dst = fill(tmp_path / "src", *names), tmp_path / "dst"
    run(src, dst)
    held = tree(dst)
    data = (src / "cut.dcm").read_bytes()
    (src / "cut.dcm").write_bytes(data[:3000])
    headless = (src / "headless.dcm").read_bytes()
    (src / "headless.dcm").write_bytes(headless[: headless.index(b"\xe0\x7f\x10\x00O")])
    (src / "empty.dcm").write_bytes(b"")
    (src / "none").write_bytes(b"")
    (src / "pipe.dcm").unlink()
    os.mkfifo(src / "pipe.dcm")
    for _ in range(2):  # the journal of the first promises nothing of them any more
        summary = run(src, dst)
        assert (summary.ok, summary.copied, summary.failed, summary.skipped) == (0, 0, 4, 1)
        assert all((dst / name).read_bytes() == held[name] for name in names)
        assert summary.stayed == sorted(set(names) - {"none"})
        rows = manifest(dst)
        assert {name: rows[name]["reason"] for name in names} == {
            "cut.dcm": "truncated file",
            "empty.dcm": "not dicom",
            "headless.dcm": "not exact",
            "none": "not dicom",
            "pipe.dcm": "not a file",
        }
        assert all(row["message"].endswith(STAYS) for row in rows.values())
    (src / "cut.dcm").write_bytes(data)
    assert run(src, dst).ok == 1
    assert tree(dst)["cut.dcm"] == held["cut.dcm"]


def test_a_copy_goes_only_where_it_was_asked_for(tmp_path: Path) -> None:
    src, dst = fill(tmp_path / "src", "a.dcm", "b", uid=LOSSY), tmp_path / "dst"
    run(src, dst)
    (src / "b").write_bytes(b"no DICOM any more")
    summary = run(src, dst, others="skip")
    assert summary.reasons == {"skipped: lossy coding": 1, "skipped: not dicom": 1}
    assert not (dst / "a.dcm").exists()
    assert (dst / "b").exists()


def test_an_output_that_rots_is_noticed_by_content(tmp_path: Path) -> None:
    src, dst = fill(tmp_path / "src", "a.dcm"), tmp_path / "dst"
    fill(src, "lossy.dcm", uid=LOSSY)
    run(src, dst, compare="content")
    held = outputs(dst)
    for name, data in held.items():
        rotten = bytearray(data)
        rotten[-40] ^= 1
        (dst / name).write_bytes(rotten)
    assert run(src, dst).kept == 2  # sizes tell nothing
    summary = run(src, dst, compare="content")
    assert summary.again == {"output missing or changed": 2}
    assert outputs(dst) == held
    assert run(src, dst, compare="content").kept == 2
    entry = json.loads((dst / ".fastmammo" / "journal.jsonl").read_text().splitlines()[-1])
    assert isinstance(entry["output_crc32"], int)


def test_another_image_of_the_same_name_replaces_nothing(tmp_path: Path) -> None:
    first, dst = fill(tmp_path / "first", "a.dcm", "b.dcm"), tmp_path / "dst"
    run(first, dst)
    held = outputs(dst)
    second = tmp_path / "second"
    second.mkdir()
    (second / "a.dcm").write_bytes((first / "b.dcm").read_bytes())
    (second / "b.dcm").write_bytes((first / "b.dcm").read_bytes())  # the same: written again
    summary = run(second, dst)
    assert (summary.ok, summary.failed) == (1, 1)
    row = manifest(dst)["a.dcm"]
    assert (row["status"], row["reason"]) == ("failed", "another image")
    assert "its SOP Instance UID is" in row["message"]
    assert "Name another DST" in row["message"]
    assert outputs(dst) == held
    assert run(first, dst).ok == 2


def test_what_a_run_has_made_below_src_is_no_input(tmp_path: Path) -> None:
    src = fill(tmp_path / "src", "a.dcm", "b.dcm")
    assert run(src, src / "below").ok == 2
    summary = run(src, tmp_path / "other")
    assert (summary.ok, summary.reasons) == (2, {"skipped: made by fastmammo": 1})
    assert "unless it is named as SRC" in manifest(tmp_path / "other")["below"]["message"]
    # named as SRC it is taken, its tables aside
    summary = run(src / "below", tmp_path / "third")
    assert (summary.files, summary.copied) == (2, 2)
