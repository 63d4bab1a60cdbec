"""Print the README's tables from the committed results: no figure there is typed by hand.

python bench/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    """Return one committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def throughput(result: dict[str, Any]) -> list[str]:
    """Return the table of images a second by syntax, and what it was measured on."""
    names = list(next(iter(result["sets"].values()))["contenders"])
    lines = [
        f"| images/s (times ordinary) | {' | '.join(names)} |",
        "| --- |" + " --- |" * len(names),
    ]
    for name, one in result["sets"].items():
        cells = [
            f"{figures['images_per_second']:.1f} ({figures['ratio_to_ordinary']:.2f})"
            for figures in one["contenders"].values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    files = next(iter(result["sets"].values()))["files"]
    rows, columns = result["phantom_size"]
    lines.append("")
    lines.append(
        f"{files} phantoms of {rows} x {columns}, {result['workers']} processes, start included; "
        f"{machine(result)}; `python bench/throughput.py --save`."
    )
    return lines


def fidelity(result: dict[str, Any]) -> list[str]:
    """Return how far resamplers lie from the exact area mean, and what it was measured on."""
    heads = {
        "auto": "auto",
        "full": "full",
        "pillow": "PIL bilinear",
        "cv2_linear": "cv2 INTER_LINEAR",
        "cv2_area": "cv2 INTER_AREA",
    }
    lines = [
        f"| PSNR, dB (median) | {' | '.join(heads.values())} |",
        "| --- |" + " --- |" * len(heads),
    ]
    for name, group in result["groups"].items():
        if name == "all" or name.startswith(("noise", "remaining")):
            cells = [f"{group[key]:.1f}" for key in heads]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    cases = result["groups"]["all"]["cases"]
    lines += ["", f"{cases} cases; {machine(result)}; `python bench/fidelity.py --save`."]
    return lines


def machine(result: dict[str, Any]) -> str:
    """Return CPU, cores and date in words."""
    found = result["machine"]
    return f"{found['cpu']}, {found['cores']} cores, {found['date']}"


def main() -> None:
    print("\n".join(throughput(load("throughput-3328x2560"))))
    print()
    print("\n".join(fidelity(load("fidelity"))))


if __name__ == "__main__":
    main()
