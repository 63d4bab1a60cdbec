"""Two real processes train as one does: the same gradient and run, every image scored once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from training_rank import LIVE, gradient
from training_runs import frozen_norms, make_set, small, table_of

from fastmammo.training.checkpoints import load_checkpoint, load_weights
from fastmammo.training.devices import open_fabric
from fastmammo.training.images import open_images
from fastmammo.training.one_fold import Parts, prepare
from fastmammo.training.run import split, train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left: the set, gradient0.pt, gradient1.pt, run, oof0.csv..."""
    folder = make_set(tmp_path_factory.mktemp("ranks"), patients=11)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(HERE / "training_rank.py"), str(folder), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_two_processes_have_the_gradient_of_one(ranks: Path) -> None:
    """Two ranks with two micro-batches each, against one process with the whole batch at once."""
    alone = gradient(ranks, 1)
    largest = max(float(each.abs().max()) for each in alone.values())
    for rank in range(2):
        found = torch.load(ranks / f"gradient{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, each in alone.items():
            torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-6 * largest)


def test_a_run_of_two_processes_is_that_of_one(ranks: Path, tmp_path: Path) -> None:
    train(ranks / "table.csv", ranks / "images", tmp_path / "run", frozen_norms())
    for fold in range(2):
        one, two = (
            load_checkpoint(each / "run" / f"fold{fold}" / "last.pt") for each in (tmp_path, ranks)
        )
        assert one["step"] == two["step"]
        for mine, theirs in zip(one["history"], two["history"], strict=True):
            for name in ("train_loss", "loss", "auc", "positive_share"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
        for name, each in one["module"].items():
            torch.testing.assert_close(two["module"][name], each, rtol=1e-3, atol=1e-4)


def test_every_image_is_scored_once_by_two_processes(ranks: Path) -> None:
    table = pd.read_csv(ranks / "table.csv", dtype={"image_id": str})
    written = [pd.read_csv(ranks / name) for name in ("run/oof.csv", "oof0.csv", "oof1.csv")]
    for each in written:
        assert sorted(each["image_id"]) == sorted(table["image_id"])
    assert written[1].equals(written[2])


def test_every_process_sees_why_the_first_cannot_start(ranks: Path) -> None:
    for rank in range(2):
        text = (ranks / f"error{rank}.txt").read_text()
        assert text.startswith("CheckpointError: the run folder")
        assert "is not empty" in text


@pytest.mark.parametrize("name", ["training", "validation"])
def test_every_process_tells_why_the_second_failed(ranks: Path, name: str) -> None:
    own, other = ((ranks / f"{name}{rank}.txt").read_text() for rank in (1, 0))
    assert own == "TableError: row 5 cannot be decoded"
    assert other == "TableError: row 5 cannot be decoded (in process 1)"


def test_processes_validate_one_model_though_each_has_seen_other_images(ranks: Path) -> None:
    """The logged loss is that of the weights and statistics that last.pt holds."""
    settings = small(**LIVE)
    fabric = open_fabric(settings.loop)
    table = split(table_of(ranks), settings)
    state = load_checkpoint(ranks / "live" / "fold0" / "last.pt")
    with open_images(ranks / "images", table, settings.images) as images:
        parts = Parts(fabric, settings, table, images, {}, lambda event: None, lambda line: None)
        training = prepare(parts, 0, ranks)
        load_weights(ranks, training.module, state["weights"])
        found = training.validate(training.module, state["prior_offset"])
    assert found["loss"] == pytest.approx(state["history"][-1]["loss"], rel=1e-4)
    assert (
        "takes its statistics from the 4 images that a process"
        in (ranks / "notes0.txt").read_text()
    )
    assert (ranks / "notes1.txt").read_text() == ""
