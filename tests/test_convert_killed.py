"""kill -9 over real images, worker and parent: one run to the end gives DST as if undisturbed."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import convert_killed
import numpy as np
import pytest
from PIL import Image

from fastmammo.conversion import ConvertOptions, Summary, convert
from fastmammo.testing import write_dataset

if TYPE_CHECKING:
    from pathlib import Path

JPEG2000 = "1.2.840.10008.1.2.4.90"
# The first run dies after 5 files, of which one has failed; the second does the others and that.
POINTS = {
    "png": ("5", "manifest.csv", "timings.csv", "config.json"),
    "packed": ("5", "images.npy", "manifest.csv"),
}


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("src")
    write_dataset(root, count=8, rows=332, columns=256, seed=3, transfer_syntax_uids=[JPEG2000])
    return root


def run(src: Path, dst: Path, kind: str) -> Summary:
    options = ConvertOptions(workers=1, format=kind)
    name = convert_killed.PREPROCESSOR
    return convert(src, dst, config=convert_killed.CONFIG, options=options, preprocessor=name)


def killed(src: Path, dst: Path, kind: str, markers: Path, point: str) -> None:
    """Run until the parent kills itself."""
    command = [sys.executable, convert_killed.__file__, *map(str, (src, dst, kind, markers, point))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def tree(dst: Path) -> dict[str, bytes]:
    """Return every file of DST that a user sees, times aside."""
    return {
        str(path.relative_to(dst)): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and ".fastmammo" not in path.parts and path.name != "timings.csv"
    }


@pytest.mark.parametrize("kind", POINTS)
def test_killed_over_real_images(src: Path, tmp_path: Path, kind: str) -> None:
    assert run(src, tmp_path / "calm", kind).ok == 8
    calm = tree(tmp_path / "calm")
    markers, dst = tmp_path / "markers", tmp_path / "dst"
    markers.mkdir()
    paths = sorted(path for path in src.rglob("*.dcm"))
    (markers / paths[0].name).write_text("written")  # between write and rename
    (markers / paths[3].name).write_text("decoded written")  # twice: the file has failed
    (markers / paths[6].name).write_text("decoded")  # in the middle of a file, as a run goes on
    for number, point in enumerate(POINTS[kind]):
        killed(src, dst, kind, markers, point)
        assert len(list(markers.iterdir())) == (0 if number else 1)  # each worker has died
        for path in dst.rglob("*.png"):
            with Image.open(path) as image:
                image.load()
        for name, data in tree(dst).items():
            assert data == calm[name], name  # whole or not there
        assert not (dst / "images.npy").exists() or np.load(dst / "images.npy").shape[0] == 8
    summary = run(src, dst, kind)
    assert (summary.ok, summary.kept) == (8, 8)
    assert tree(dst) == calm
    assert sorted(p.name for p in (dst / ".fastmammo").iterdir()) == ["journal.jsonl", "lock"]
