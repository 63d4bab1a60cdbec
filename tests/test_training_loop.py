"""The loop: repeatable, learns, stops where it should, and says so where it diverges."""

from __future__ import annotations

import csv
import math
import os
import sys
from dataclasses import fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from training_runs import frozen_norms, make_rows, make_set, small, write_converted

from fastmammo.errors import ConfigError, DivergedError
from fastmammo.testing import phantom
from fastmammo.training import devices, one_fold
from fastmammo.training.checkpoints import load_checkpoint
from fastmammo.training.devices import algorithms, on_first_rank, open_fabric, seed_epoch
from fastmammo.training.divergence import Watch
from fastmammo.training.evaluation import OnceEach
from fastmammo.training.logs import COLUMNS, Events
from fastmammo.training.run import train
from fastmammo.training.schedule import make_optimiser, make_schedule
from fastmammo.training.settings import LoopConfig, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from fastmammo.testing.lesions import Kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


def run(folder: Path, out: Path, settings: Settings, **more: Any) -> list[dict[str, Any]]:
    """Train, and return fold 0's history."""
    train(folder / "table.csv", folder / "images", out, settings, **more)
    history: list[dict[str, Any]] = load_checkpoint(out / "fold0" / "last.pt")["history"]
    return history


def test_the_same_seed_gives_the_same_losses(folder: Path, tmp_path: Path) -> None:
    one, two, other = (
        [row["train_loss"] for row in run(folder, tmp_path / name, small(seed=seed), fold=0)]
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one == two
    assert one != other


def test_thirty_two_phantoms_are_learnt_by_heart(tmp_path: Path) -> None:
    rows = make_rows(9, 9)  # the ninth patient is there to be validated on
    rows["fold"] = (rows["patient_id"] != "008").astype(int)
    kinds: list[Kind] = ["irregular mass", "calcifications"]
    drawn = [
        phantom(96, 64, seed=seed, lesions=kinds if cancer else (), lesion_contrast=0.5)
        for seed, cancer in enumerate(rows["cancer"])
    ]
    images = np.stack([each.pixels >> 4 for each in drawn]).astype(np.uint8)
    write_converted(tmp_path / "images", images, rows)
    rows.to_csv(tmp_path / "table.csv", index=False)
    settings = small(
        epochs=20, lr=4e-3, balance="none", augment="none", dropout=0.0, ema=0.0, batch_size=8
    )
    history = run(tmp_path, tmp_path / "run", settings, fold=0)
    assert history[0]["train_loss"] > 0.3
    assert history[-1]["train_loss"] < 0.01, [row["train_loss"] for row in history]


def test_accumulated_micro_batches_are_one_batch(folder: Path, tmp_path: Path) -> None:
    runs = [
        load_checkpoint(tmp_path / str(count) / "fold0" / "last.pt")
        for count in (1, 4)
        if run(folder, tmp_path / str(count), frozen_norms(accumulate=count), fold=0)
    ]
    assert runs[0]["step"] == runs[1]["step"]
    for name, each in runs[0]["module"].items():
        torch.testing.assert_close(runs[1]["module"][name], each, rtol=1e-3, atol=1e-4)


def test_a_fold_ends_when_nothing_gets_better(folder: Path, tmp_path: Path) -> None:
    # nothing changes at a learning rate of 0: the first epoch stays the best
    settings = frozen_norms(epochs=20, lr=0.0, ema=0.0, early_stop=3, monitor="loss")
    history = run(folder, tmp_path / "run", settings, fold=0)
    assert [row["best"] for row in history] == [1, 0, 0, 0]
    assert load_checkpoint(tmp_path / "run" / "fold0" / "best.pt")["epoch"] == 1
    assert load_checkpoint(tmp_path / "run" / "fold0" / "last.pt")["finished"]


def test_the_best_epoch_has_the_highest_metric(folder: Path, tmp_path: Path) -> None:
    for monitor in ("loss", "auc"):
        path = tmp_path / monitor
        history = run(folder, path, small(epochs=5, monitor=monitor), fold=0)
        values = [row[monitor] for row in history]
        best = values.index(min(values) if monitor == "loss" else max(values)) + 1
        assert load_checkpoint(path / "fold0" / "best.pt")["epoch"] == best
        assert [row["epoch"] for row in history if row["best"]][-1] == best


def test_the_log_has_a_row_an_epoch(folder: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    settings = small(positive_share=0.25, epochs=3)
    history = run(folder, tmp_path / "run", settings, progress=events.append)
    with open(tmp_path / "run" / "fold0" / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["positive_share"]) == 0.25 for row in rows)
    assert all(0 <= float(row["wait_seconds"]) <= float(row["seconds"]) for row in rows)
    assert float(rows[1]["train_loss"]) == pytest.approx(history[1]["train_loss"], rel=1e-5)
    names = [event["event"] for event in events]
    assert names.count("fold") == names.count("scored") == 2
    assert names.count("epoch") == 6
    assert names[-1] == "done"
    steps = [each for each in events if each["event"] == "step" and each["fold"] == 0]
    assert [each["step"] for each in steps[: steps[0]["steps"]]] == list(
        range(1, steps[0]["steps"] + 1)
    )
    assert math.isfinite(steps[-1]["waited"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_events_are_written_where_asked_for(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "run", small(tensorboard=True, epochs=1), fold=0)
    found = list((tmp_path / "run" / "fold0").glob("events.out.tfevents.*"))
    assert len(found) == 1
    assert b"pr_auc" in found[0].read_bytes()


def test_tensorboard_that_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match="tensorboard: asked for, but not installed"):
        Events(tmp_path, True, 0)
    Events(tmp_path, False, 0).close()


def nan_from(step: int) -> type:
    """A loss that is no number from a step on."""

    class Broken(one_fold.Loss):
        def __call__(self, outputs: Any, targets: Any) -> torch.Tensor:
            object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
            loss = super().__call__(outputs, targets)
            return loss * math.nan if self.calls >= step else loss  # type: ignore[attr-defined]

    return Broken


def test_a_loss_that_is_no_number_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_fold, "Loss", nan_from(8))
    with pytest.raises(DivergedError) as caught:
        run(folder, tmp_path / "run", small(), fold=0)
    # 5 steps an epoch
    assert "fold 0, epoch 2, step 3 of the epoch, at a learning rate of" in str(caught.value)
    assert "the loss is nan. Take a lower lr" in str(caught.value)
    last = load_checkpoint(tmp_path / "run" / "fold0" / "last.pt")
    assert last["epoch"] == 1
    assert all(each.isfinite().all() for each in last["weights"].values())


def watch(scaler: Any = None) -> Watch:
    fabric = SimpleNamespace(
        strategy=SimpleNamespace(precision=SimpleNamespace(scaler=scaler)),
        device=torch.device("cpu"),
        all_reduce=lambda values, reduce_op: values,
    )
    return Watch(fabric, 1, 4)  # type: ignore[arg-type]


def test_an_infinite_gradient_is_divergence_without_a_scaler() -> None:
    one = watch()
    one.add(torch.tensor(0.5), torch.tensor(1.0), 1e-3, skipped=False)
    one.add(torch.tensor(0.7), torch.tensor(math.inf), 1e-3, skipped=False)
    with pytest.raises(DivergedError, match=r"epoch 5, step 2 .* norm of the gradient is inf"):
        one.look()


def test_fp16_may_skip_steps_but_not_for_ever() -> None:
    scaler = SimpleNamespace(get_scale=lambda: 2.0**-14)
    one = watch(scaler)
    for _ in range(29):
        one.add(torch.tensor(0.5), torch.tensor(math.inf), 1e-3, skipped=True)
    one.add(torch.tensor(0.5), torch.tensor(1.0), 1e-3, skipped=False)
    one.look()
    assert (one.skipped, one.steps, one.mean) == (29, 30, 0.5)
    for _ in range(29):
        one.add(torch.tensor(0.5), torch.tensor(math.inf), 1e-3, skipped=True)
    with pytest.raises(DivergedError, match=r"of 30 steps in a row.*bf16-mixed or 32-true"):
        one.add(torch.tensor(0.5), torch.tensor(math.inf), 1e-3, skipped=True)


def test_a_loss_that_is_no_number_is_divergence_under_fp16_too() -> None:
    one = watch(SimpleNamespace(get_scale=lambda: 1.0))
    one.add(torch.tensor(math.nan), torch.tensor(math.nan), 1e-3, skipped=True)
    with pytest.raises(DivergedError, match="an activation has left fp16's range"):
        one.look()


def test_the_learning_rate_rises_and_falls() -> None:
    module = torch.nn.Linear(2, 2)
    courses = {}
    for schedule in ("cosine", "one_cycle", "constant"):
        loop = LoopConfig(lr=1.0, warmup=0.2, schedule=schedule)
        optimiser = make_optimiser(module, loop)
        course = make_schedule(optimiser, loop, 50)
        rates = []
        for _ in range(50):
            rates.append(course.get_last_lr()[0])
            optimiser.step()
            course.step()
        courses[schedule] = rates
        assert max(rates) == pytest.approx(1.0, abs=0.02)
        assert all(np.diff(rates[:9]) > 0)
        assert all(np.diff(rates[12:]) <= 0)
    assert courses["cosine"][-1] == pytest.approx(0.01, abs=0.01)
    assert courses["constant"][-1] == 1.0
    for schedule in ("cosine", "one_cycle"):  # of one step, without a rise
        loop = LoopConfig(lr=1.0, warmup=0.0, schedule=schedule)
        optimiser = make_optimiser(module, loop)
        course = make_schedule(optimiser, loop, 1)
        optimiser.step()
        course.step()


def test_biases_do_not_decay() -> None:
    optimiser = make_optimiser(torch.nn.Linear(2, 2), LoopConfig(weight_decay=0.3))
    decays = {each["params"][0].ndim: each["weight_decay"] for each in optimiser.param_groups}
    assert decays == {1: 0.0, 2: 0.3}


def test_settings_come_back_from_json() -> None:
    settings = small(lr=0.5, multiview="max", views="CC,MLO", rotation=3.0)
    assert Settings.from_dict(settings.to_dict()) == settings
    assert settings.digest() != small().digest()
    assert small(resume=True, storage="auto", device="auto").digest() == small().digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lop": {}}, "got a part 'lop', known are table, sampling"),
        ({"loop": {"learning_rate": 1}}, "settings of loop: got learning_rate, which this version"),
        ({"loop": {"lr": -1}}, "lr: got -1, allowed is 0"),
        ({"loop": {"lr": "0.1"}}, r"lr: got '0\.1', allowed is a number 0\.0 to 100\.0"),
        ({"loop": {"resume": "no"}}, "resume: got 'no', wanted True or False"),
        (
            {"loop": {"head": "metadata"}, "model": {"multiview": "max"}},
            "multiview: got 'max' with head 'metadata'",
        ),
    ],
)
def test_settings_that_this_version_does_not_know(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict(values)


def test_no_two_parts_have_a_field_of_one_name() -> None:
    parts = [getattr(Settings(), each.name) for each in fields(Settings)]
    names = [each.name for part in parts if part is not None for each in fields(part)]
    assert sorted(names) == sorted(set(names))
    assert all(each.metadata["help"] for part in parts if part is not None for each in fields(part))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"schedule": "steps"}, "schedule: got 'steps', allowed are cosine, one_cycle, constant"),
        ({"precision": "16-mixed", "device": "cpu"}, "precision: got '16-mixed' on a CPU"),
    ],
)
def test_settings_of_the_loop_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoopConfig(**values)


def test_fp16_is_refused_where_auto_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="precision: got '16-mixed' on a CPU"):
        open_fabric(LoopConfig(precision="16-mixed"))
    with pytest.raises(ConfigError, match="device: got 'cuda', but torch sees no GPU"):
        open_fabric(LoopConfig(device="cuda"))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes, but torch sees 1 GPUs"):
        open_fabric(LoopConfig(device="cuda"))


def test_bfloat16_is_taken_where_the_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, wanted in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **more: has)
        assert devices._precision("auto", True) == wanted
    assert devices._precision("auto", False) == "32-true"


def test_bfloat16_trains_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    history = run(folder, tmp_path / "run", small(precision="bf16-mixed", epochs=1), fold=0)
    assert math.isfinite(history[0]["train_loss"])


def test_what_the_first_rank_raises_is_raised() -> None:
    fabric = open_fabric(LoopConfig(device="cpu"))
    assert on_first_rank(fabric, lambda: 7) == 7
    with pytest.raises(DivergedError, match="far"):
        on_first_rank(fabric, lambda: (_ for _ in ()).throw(DivergedError("far")))


def test_deterministic_algorithms_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert not torch.are_deterministic_algorithms_enabled()
    with algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_cudnn_looks_for_the_fastest_algorithm_unless_it_is_to_be_the_same_one() -> None:
    was = torch.backends.cudnn.benchmark
    for deterministic in (False, True):
        with algorithms(deterministic):
            assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.backends.cudnn.benchmark is was


def test_a_gpu_steps_in_one_kernel_but_where_fp16_has_to_clip() -> None:
    module = torch.nn.Linear(2, 2)
    for device, precision, fused in (
        ("cpu", "auto", None),
        ("cuda", "auto", True),
        ("cuda", "bf16-mixed", True),
        ("cuda", "16-mixed", None),
    ):
        loop = LoopConfig(precision=precision)
        optimiser = make_optimiser(module, loop, torch.device(device))
        assert optimiser.defaults["fused"] is fused


def test_every_epoch_and_rank_has_random_numbers_of_its_own() -> None:
    seen = set()
    for seed, fold, epoch, rank in (*np.eye(4, dtype=int).tolist(), [0] * 4, [0, 0, -1, 0]):
        seed_epoch(seed, fold, epoch, rank)
        seen.add(float(torch.rand(())))
    assert len(seen) == 6


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_share_positions_without_twins(ranks: int) -> None:
    for count in (1, 4, 17):
        samplers = [OnceEach(count, 3, rank, ranks) for rank in range(ranks)]
        found = [list(each.epoch(0)) for each in samplers]
        assert [len(each) for each in samplers] == [len(each) for each in found]
        assert all(found)  # no rank has nothing: it would not know a value's shape
        own = [
            int(position)
            for rank, batches in enumerate(found)
            for batch in batches
            for position in batch
            if position % ranks == rank
        ]
        assert sorted(own) == list(range(count))


def test_settings_want_their_parts() -> None:
    with pytest.raises(ConfigError, match=r"model: got 'small_cnn', wanted ModelConfig: Settings"):
        Settings(model="small_cnn")  # type: ignore[arg-type]
