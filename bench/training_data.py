"""How long does training wait for data, and how fast does the data path alone deliver?

    python bench/training_data.py [--models small_cnn efficientnet_b0] [--size 512x256]
                                  [--images 96] [--batch 16] [--epochs 3] [--save]

Phantoms in lossless JPEG 2000 are trained on from the packed array of `convert` and straight from
the DICOM files (whose first epoch decodes and keeps the images), with the augmentation `standard`.
For each: images/s of the data path alone, of the model alone on a batch that is there already, and
of the training; and, epoch by epoch, the share of the time in which the loop waited for data.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import machine, save

import fastmammo
from fastmammo.testing import make_dataset
from fastmammo.training.augment import Augmentation, AugmentConfig
from fastmammo.training.batches import Batches
from fastmammo.training.images import ImagesConfig, open_images
from fastmammo.training.losses import Loss
from fastmammo.training.models import ModelConfig, build_model
from fastmammo.training.run import train
from fastmammo.training.sampler import SamplingConfig
from fastmammo.training.settings import LoopConfig, Settings
from fastmammo.training.table import TableOptions, read_table


def prepare(root: Path, images: int, size: tuple[int, int]) -> pd.DataFrame:
    """Draw phantoms, convert them to a packed array, return a table of so many rows."""
    path = make_dataset(
        root / "dicom",
        patients=max(2, images // 4),
        seed=0,
        scale=0.5,
        positive_share=0.25,
        transfer_syntax_uids=["1.2.840.10008.1.2.4.90"],
    )
    fastmammo.convert(
        root / "dicom" / "train_images",
        root / "images",
        config=fastmammo.Config(size=size, flip="left"),
        options=fastmammo.ConvertOptions(format="packed"),
    )
    return read_table(path).head(images)


def data_alone(
    table: pd.DataFrame, source: Path, config: Any, batch: int, epochs: int
) -> list[float]:
    """Return images/s of each epoch where nobody waits for a model."""
    sampling = SamplingConfig(batch_size=batch, balance="none")
    rates = []
    with open_images(source, table, ImagesConfig(), config=config) as images:
        batches = Batches(
            images,
            sampler=sampling.sampler(table["cancer"], seed=0),
            rows=np.arange(len(table)),
            labels=table["cancer"].to_numpy(),
            augment=Augmentation(AugmentConfig()),
        )
        for epoch in range(epochs):
            start = time.perf_counter()
            count = sum(len(each.rows) for each in batches.epoch(epoch))
            rates.append(round(count / (time.perf_counter() - start), 1))
    return rates


def model_alone(name: str, size: tuple[int, int], batch: int, steps: int = 4) -> float:
    """Return images/s of forward, backward and step on a batch that is there already."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(model=name, pretrained=False), image_size=size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss, images = Loss(), torch.rand(batch, 1, *size)
    targets = {"cancer": torch.arange(batch).remainder(8).eq(0).float()}
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimiser.zero_grad()
        loss(model(images), targets).backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
    return round(batch / float(np.median(seconds[1:])), 2)


def trained(
    table: pd.DataFrame, source: Path, config: Any, name: str, batch: int, epochs: int, work: Path
) -> list[dict[str, float]]:
    """Train and return each epoch's images/s, seconds a step and share of waiting."""
    settings = Settings(
        table=TableOptions(hold_out=0.15),
        sampling=SamplingConfig(batch_size=batch, balance="none"),
        model=ModelConfig(model=name, pretrained=False),
        loop=LoopConfig(epochs=epochs, device="cpu"),
        preprocess=config,
    )
    with tempfile.TemporaryDirectory(dir=work) as folder:
        result = train(table, source, Path(folder) / "run", settings)
        log = pd.read_csv(result.folder / "fold0" / "log.csv")
    steps = np.diff(log["steps"], prepend=0)
    return [
        {
            "images_per_second": round(float(row.images_per_second), 2),
            "step_seconds": round(float(row.seconds) / int(count), 4),
            "wait_seconds_a_step": round(float(row.wait_seconds) / int(count), 5),
            "wait_share": round(float(row.wait_seconds / row.seconds), 5),
        }
        for row, count in zip(log.itertuples(), steps, strict=True)
    ]


def measure(
    models: list[str], size: tuple[int, int], images: int, batch: int, epochs: int
) -> dict[str, Any]:
    """Measure each model from each source."""
    found: dict[str, Any] = {
        "machine": machine(),
        "settings": {
            "size": list(size),
            "images": images,
            "batch": batch,
            "torch_threads": torch.get_num_threads(),
        },
        "sources": {},
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        table = prepare(work, images, size)
        sources = {
            "packed array": (work / "images", None),
            "DICOM": (
                work / "dicom" / "train_images",
                fastmammo.Config(size=size, flip="left"),
            ),
        }
        for label, (source, config) in sources.items():
            rates = data_alone(table, source, config, batch, epochs)
            found["sources"][label] = {"data_alone_images_per_second": rates}
            print(label, "data alone, images/s by epoch:", rates, flush=True)
        for name in models:
            alone = model_alone(name, size, batch)
            found["models"][name] = {"model_alone_images_per_second": alone, "training": {}}
            print(name, "model alone, images/s:", alone, flush=True)
            for label, (source, config) in sources.items():
                rows = trained(table, source, config, name, batch, epochs, work)
                found["models"][name]["training"][label] = rows
                print(name, label, *rows, sep="\n  ", flush=True)
    return found


def main() -> None:
    """Measure, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["small_cnn", "efficientnet_b0"])
    parser.add_argument("--size", default="512x256")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--save", action="store_true", help="write bench/results/training_data.json"
    )
    given = parser.parse_args()
    rows, columns = map(int, given.size.split("x"))
    found = measure(given.models, (rows, columns), given.images, given.batch, given.epochs)
    if given.save:
        print(save("training_data", found))


if __name__ == "__main__":
    main()
