"""Does `fastmammo demo --train` learn the lesion, and nothing else, and how long does it take?

    python bench/demo.py [--seeds 7] [--save]

The command as a user runs it, on phantoms of some seeds. Told are the AUC by breast, out of
fold, of the model and of what can be told without looking for a lesion, and the seconds. Seed 7 is
the command's own: it was chosen among twelve because its metadata tell nothing. The others show
what chance does: with 88 positive breasts an AUC of 0.5 has a standard error of 0.04.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, save

BASELINES = ("mean intensity", "breast area", "metadata")


def measure(seed: int, work: Path) -> dict[str, Any]:
    """Run the command and return its figures."""
    command = [sys.executable, "-m", "fastmammo", "demo", str(work), "--train", "--quiet"]
    start = time.perf_counter()
    subprocess.run([*command, "--seed", str(seed)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    metrics = json.loads((work / "run" / "metrics.json").read_text(encoding="utf-8"))
    others = json.loads((work / "run" / "baselines.json").read_text(encoding="utf-8"))
    found = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "counts": metrics["counts"],
        "model": round(metrics["breast"]["auc"], 4),
        "model_interval": metrics["intervals"]["auc"],
    }
    return found | {name: round(others[name]["auc"], 4) for name in BASELINES}


def main() -> None:
    """Measure, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--save", action="store_true", help="write bench/results/demo.json")
    given = parser.parse_args()
    runs = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(seed, Path(folder) / "demo"))
        print(runs[-1], flush=True)
    if given.save:
        print(save("demo", {"machine": machine(), "runs": runs}))


if __name__ == "__main__":
    main()
