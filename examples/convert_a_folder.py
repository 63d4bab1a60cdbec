"""Convert a folder of DICOM files to PNG files and read the manifest.

python examples/convert_a_folder.py SRC DST
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import fastmammo


def main(source: str, target: str) -> None:
    config = fastmammo.Config(size=(512, 256), flip="left")
    summary = fastmammo.convert(source, target, config=config)
    print(summary.text())
    with open(Path(target) / "manifest.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            print(row["path"], row["status"], row["output"] or row["reason"])


if __name__ == "__main__":
    main(*sys.argv[1:3])
