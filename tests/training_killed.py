"""A training that kills itself: SET RUN FOLD EPOCH STEP, where an optimiser step has just ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from training_runs import small

from fastmammo.training.run import train

CHANGES: dict[str, Any] = {"epochs": 3, "positive_share_start": 0.25, "share_epochs": 2}
"""Of `small`: with dropout, augmentation and a schedule of the share, all that could go astray."""


def main() -> None:
    folder, run = Path(sys.argv[1]), sys.argv[2]
    point = tuple(map(int, sys.argv[3:6]))

    def die(event: dict[str, Any]) -> None:
        if event["event"] == "step" and (event["fold"], event["epoch"], event["step"]) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder / "table.csv", folder / "images", run, small(**CHANGES), progress=die)


if __name__ == "__main__":
    main()
