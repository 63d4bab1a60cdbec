"""A second run of `convert` over inputs that are not there, or cannot be read, at this moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from test_convert import make, manifest, run, tree

from fastmammo.conversion import one_file, plan
from fastmammo.conversion.plan import STAYS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_inputs_that_have_moved_away_cost_nothing(kind: str, tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm", "c.dcm"), tmp_path / "dst"
    (tmp_path / "list.txt").write_text("src/a.dcm\nsrc/b.dcm\nsrc/c.dcm\nsrc/new.dcm\n")
    run(tmp_path / "list.txt", dst, format=kind)
    calm = tree(dst)
    (src / "b.dcm").rename(tmp_path / "b.dcm")
    make(src, "new.dcm")  # the array is made anew with the row of what has gone
    summary = run(tmp_path / "list.txt", dst, format=kind)
    assert (summary.ok, summary.failed, summary.kept) == (3, 1, 2)
    row = manifest(dst)["src/b.dcm"]
    assert (row["status"], row["reason"], row["row"]) == ("failed", "file not found", "")
    assert row["message"] == f"no such file: src/b.dcm; {STAYS}"
    if kind == "png":
        assert summary.stayed == ["src/b.png"]
        assert tree(dst)["src/b.png"] == calm["src/b.png"]
    else:
        assert summary.stayed == ["images.npy"]
        assert np.load(dst / "images.npy").shape[0] == 4
    (tmp_path / "b.dcm").rename(src / "b.dcm")
    summary = run(tmp_path / "list.txt", dst, format=kind)
    assert (summary.ok, summary.kept, summary.stayed) == (4, 4, [])
    run(tmp_path / "list.txt", tmp_path / "calm", format=kind)
    assert tree(dst) == tree(tmp_path / "calm")


def test_a_packed_array_of_other_settings_keeps_no_rows(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    (tmp_path / "list.txt").write_text("src/a.dcm\nsrc/b.dcm\n")
    run(tmp_path / "list.txt", dst, format="packed")
    (src / "b.dcm").unlink()
    summary = run(tmp_path / "list.txt", dst, format="packed", size=(8, 8))
    assert summary.stayed == []
    assert np.load(dst / "images.npy").shape == (1, 8, 8)


def test_images_of_other_settings_stay_until_they_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    run(src, dst)
    old = tree(dst)
    there: list[list[str]] = []

    def sees(*_: Any) -> None:
        there.append(sorted(path.name for path in dst.glob("*.png")))
        assert not any(dst.glob("manifest.csv"))

    original = plan.Plan.tasks
    monkeypatch.setattr(plan.Plan, "tasks", lambda self: (sees(), original(self))[1])
    assert run(src, dst, size=(8, 8)).again == {"settings changed": 2}
    assert there == [["a.png", "b.png"]]
    assert tree(dst)["a.png"] != old["a.png"]


def test_an_input_that_cannot_be_read_now_keeps_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "b.dcm"), tmp_path / "dst"
    run(src, dst, compare="content")
    calm = tree(dst)

    def refused(path: str) -> str:
        if path.endswith("a.dcm"):
            raise PermissionError(13, "Permission denied", path)
        return one_file.sha256(path)

    with monkeypatch.context() as patch:  # root may read anything
        patch.setattr(plan, "sha256", refused)
        summary = run(src, dst, compare="content")
    assert (summary.kept, summary.failed, summary.stayed) == (1, 1, ["a.png"])
    row = manifest(dst)["a.dcm"]
    assert (row["reason"], row["message"]) == (
        "unreadable file",
        f"Permission denied; {STAYS}",
    )
    assert run(src, dst, compare="content").kept == 2
    assert tree(dst) == calm


def test_an_output_that_rots_is_noticed_by_content(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm"), tmp_path / "dst"
    run(src, dst, compare="content")
    calm = (dst / "a.png").read_bytes()
    (dst / "a.png").write_bytes(calm[:-1] + b"!")
    assert run(src, dst).kept == 1
    summary = run(src, dst, compare="content")
    assert summary.again == {"output missing or changed": 1}
    assert (dst / "a.png").read_bytes() == calm


def test_a_name_that_another_input_has_taken_is_not_kept_for_the_first(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    make(src, "a")
    (tmp_path / "list.txt").write_text("src/a\nsrc/a.dcm\n")
    run(tmp_path / "list.txt", dst)
    os.rename(src / "a", tmp_path / "a")
    make(src, "a.dcm")
    summary = run(tmp_path / "list.txt", dst)
    assert summary.stayed == []
    os.rename(tmp_path / "a", src / "a")
    (src / "a.dcm").unlink()
    assert run(tmp_path / "list.txt", dst).kept == 0


def test_folders_called_as_a_table_of_the_run(tmp_path: Path) -> None:
    src, dst = make(tmp_path / "src", "a.dcm", "manifest.csv/b.dcm"), tmp_path / "dst"
    make(src, "Config.json/c")
    for kept in (0, 3):
        summary = run(src, dst)
        assert (summary.ok, summary.kept) == (3, kept)
    assert (dst / "_manifest.csv" / "b.png").is_file()
    assert len(manifest(dst)) == 3
