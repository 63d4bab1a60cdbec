"""What does balancing bring where 2 % of the breasts are positive?

    python bench/balancing.py [--patients 600] [--seeds 3] [--steps 900] [--contrast 0.7 1.1]
                              [--work DIR] [--save]

Phantoms with lesions that are not easily seen. For each seed another choice of patients: a
training set in which 2 % of the breasts are positive, and a test set of other patients with many
more positives, so that the AUC, which does not depend on their share, is known well. Each method
(none, oversample to 1/8, pos_weight, undersample 1:1) trains the same small model from scratch for
the same number of optimiser steps of the same batch, with the same settings otherwise.

Told are ROC AUC and sensitivity at 90 % specificity by breast, mean and span over the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, save

import fastmammo
from fastmammo.testing import make_dataset
from fastmammo.training.augment import AugmentConfig
from fastmammo.training.models import ModelConfig
from fastmammo.training.run import train
from fastmammo.training.sampler import SamplingConfig
from fastmammo.training.settings import LoopConfig, Settings
from fastmammo.training.table import read_table

METHODS = ("none", "oversample", "pos_weight", "undersample")
FIGURES = ("auc", "sensitivity_at_90", "pr_auc")
SHARE = 0.02
"""Of positive breasts in training."""
TEST_SHARE = 0.8
"""Of the positive patients that are kept for the test."""

BASE = Settings(
    sampling=SamplingConfig(batch_size=16),
    augment=AugmentConfig(augment="none", flip_vertical=0.5),
    model=ModelConfig(model="small_cnn", pretrained=False, dropout=0.0),
    loop=LoopConfig(
        lr=3e-3, weight_decay=0.02, warmup=0.25, schedule="one_cycle", clip=5.0, device="cpu"
    ),
)


def prepare(root: Path, patients: int, contrast: tuple[float, float], seed: int) -> Path:
    """Draw the phantoms and convert them to one array; return the table."""
    table = make_dataset(
        root / "dicom",
        patients=patients,
        seed=seed,
        size=(256, 208),
        positive_share=0.1,
        nuisance_share=0.0,
        noise=0.3,
        lesion_kinds=("round mass", "irregular mass", "spiculated mass"),
        lesion_contrast=contrast,
        age_gap=0.0,
    )
    summary = fastmammo.convert(
        root / "dicom" / "train_images",
        root / "images",
        config=fastmammo.Config(size=(160, 80), flip="left"),
        options=fastmammo.ConvertOptions(format="packed"),
    )
    if summary.exit_code:
        raise SystemExit(summary.text())
    return table


def chosen(table: Any, seed: int) -> Any:
    """Return the table of one seed: fold -1 is trained on, fold 0 the test."""
    generator = np.random.default_rng(seed)
    by_patient = table.groupby("patient_id")["cancer"].max()
    positive = generator.permutation(by_patient.index[by_patient == 1].to_numpy(str))
    negative = generator.permutation(by_patient.index[by_patient == 0].to_numpy(str))
    tested = round(TEST_SHARE * len(positive))
    test = {*positive[:tested], *negative[:tested]}
    rest = negative[tested:]
    # a positive patient has one positive breast nearly always: of 2 n breasts, s are to be positive
    wanted = round(SHARE * 2 * len(rest) / (1 - SHARE))
    kept = {*rest, *positive[tested : tested + wanted]}
    found = table[table["patient_id"].isin(test | kept)].copy()
    found["fold"] = np.where(found["patient_id"].isin(test), 0, -1)
    return found.reset_index(drop=True)


def settings_of(method: str, table: Any, steps: int, seed: int) -> Settings:
    """Return the settings of a method with as many epochs as make up the steps."""
    labels = table.loc[table["fold"] < 0, "cancer"].to_numpy()
    sampling = dataclasses.replace(BASE.sampling, balance=method)
    if method == "undersample":
        count = 2 * int(labels.sum())
    else:
        count = len(labels)
    batches = sampling.sampler(labels, seed=seed)
    an_epoch = math.ceil(count / sampling.batch_size) if method == "undersample" else len(batches)
    epochs = max(1, round(steps / an_epoch))
    loop = dataclasses.replace(BASE.loop, epochs=epochs, seed=seed)
    return dataclasses.replace(BASE, sampling=sampling, loop=loop)


def measure(
    patients: int, seeds: int, steps: int, contrast: tuple[float, float], work: Path
) -> dict[str, Any]:
    """Train every method on every seed and return the figures."""
    path = work / "dicom" / "train.csv"
    if not path.exists():
        prepare(work, patients, contrast, 0)
    table = read_table(path)
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        rows = chosen(table, seed)
        trained = rows[rows["fold"] < 0]
        for method in METHODS:  # interleaved: what slows the machine slows them alike
            settings = settings_of(method, rows, steps, seed)
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=work) as folder:
                result = train(rows, work / "images", Path(folder) / "run", settings)
            found = result.metrics["breast"]
            runs.append(
                {
                    "seed": seed,
                    "method": method,
                    "epochs": settings.loop.epochs,
                    "training_images": len(trained),
                    "positive_training_images": int(trained["cancer"].sum()),
                    "test_breasts": found["count"],
                    "positive_test_breasts": found["positives"],
                    "seconds": round(time.perf_counter() - start, 1),
                    **{name: round(found[name], 4) for name in FIGURES},
                }
            )
            print(runs[-1], flush=True)
    return {
        "machine": machine(),
        "settings": {
            "patients": patients,
            "steps": steps,
            "contrast": list(contrast),
            "positive_share": SHARE,
        },
        "runs": runs,
        "methods": {method: summary(runs, method) for method in METHODS},
    }


def summary(runs: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Return mean, lowest and highest of each figure over the seeds."""
    own = [run for run in runs if run["method"] == method]
    return {
        name: {
            "mean": round(float(np.mean([run[name] for run in own])), 4),
            "low": min(run[name] for run in own),
            "high": max(run[name] for run in own),
        }
        for name in FIGURES
    }


def main() -> None:
    """Measure, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of 16 images")
    parser.add_argument("--contrast", type=float, nargs=2, default=(0.7, 1.1))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--work", type=Path, default=None, help="keep phantoms there")
    parser.add_argument("--save", action="store_true", help="write bench/results/balancing.json")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        contrast = (given.contrast[0], given.contrast[1])
        result = measure(given.patients, given.seeds, given.steps, contrast, work)
    for method, found in result["methods"].items():
        figures = ", ".join(
            f"{name} {value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
            for name, value in found.items()
        )
        print(f"{method:12} {figures}")
    if given.save:
        print(save("balancing", result))


if __name__ == "__main__":
    main()
