"""A training loop of your own, with table, images, sampler and metrics of fastmammo.

python examples/own_training_loop.py train.csv IMAGES [MODEL]

IMAGES is a folder of `fastmammo convert` (or of DICOMs: give `open_images` a Config), MODEL a name
of timm. `fastmammo.training.train` does this and much more; here every step is yours to change.
"""

from __future__ import annotations

import sys

import numpy as np
import timm
import torch

from fastmammo import training


def main(table_path: str, source: str, model_name: str = "resnet18", epochs: int = 2) -> None:
    table = training.read_table(table_path)
    fold = training.assign_folds(table, folds=2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with training.open_images(source, table, device=device) as images:
        rows = np.flatnonzero(fold != 0)
        labels = table["cancer"].to_numpy()
        batches = training.Batches(
            images,
            sampler=training.BalancedBatches(labels[rows], 8, positive_share=0.25, seed=0),
            rows=rows,
            labels=labels[rows],
            augment=training.Augmentation(training.AugmentConfig("light")),
            device=device,
        )
        torch.manual_seed(0)
        model = timm.create_model(model_name, in_chans=1, num_classes=1).to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for epoch in range(epochs):
            model.train()
            for batch in batches.epoch(epoch):  # float32 (n, 1, rows, columns) in [0, 1]
                wanted = torch.from_numpy(labels[batch.rows]).float().to(device)
                logits = model(batch.images)[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            print(f"epoch {epoch}: loss {loss:.3f}, waited {batches.waited_seconds:.2f} s for data")

        model.eval()
        held_out = np.flatnonzero(fold == 0)
        scale = 255 if images.bits == 8 else 65535
        with torch.inference_mode():
            parts = [
                model(images.fetch(part).float() / scale)[:, 0].sigmoid().cpu().numpy()
                for part in np.array_split(held_out, -(-len(held_out) // 8))
            ]
    scores = training.correct_prior(np.concatenate(parts), 0.25, float(labels[rows].mean()))
    found = training.evaluate(table.iloc[held_out].assign(score=scores), bootstrap=200)
    print(f"ROC AUC by breast {found['breast']['auc']:.3f}, 95 %: {found['intervals']['auc']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
