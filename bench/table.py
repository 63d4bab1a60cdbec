"""Print the README's tables from the committed results: no figure there is typed by hand.

    python bench/table.py [--write README.md bench/README.md]
                          [--picture bench/results/throughput.svg]

A section is what stands between `<!-- table: NAME -->` and `<!-- end of NAME -->`; --write puts
each into the file that has it. --picture draws the throughput (it needs matplotlib).
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import throughput_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    """Return one committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine(result: dict[str, Any]) -> str:
    """Return CPU, cores and date in words."""
    found = result["machine"]
    return f"{found['cpu']}, {found['cores']} cores, {found['date']}"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    heads = list(heads)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|" + " --- |" * len(heads), *lines[1:]]


def throughput() -> list[str]:
    """Return images a second by contender and set, and what bounds them."""
    return throughput_tables.table(load("throughput")).splitlines()


def of_script(name: str) -> list[str]:
    """Return what the script of a result makes of it."""
    text: str = importlib.import_module(name).table(load(name))
    return text.splitlines()


def fidelity() -> list[str]:
    """Return how far resamplers lie from the exact area mean, and what it was measured on."""
    result = load("fidelity")
    heads = {
        "auto": "auto",
        "full": "full",
        "pillow": "PIL bilinear",
        "cv2_linear": "cv2 INTER_LINEAR",
        "cv2_area": "cv2 INTER_AREA",
    }
    rows = [
        [name, *(f"{group[key]:.1f}" for key in heads)]
        for name, group in result["groups"].items()
        if name == "all" or name.startswith(("noise", "remaining"))
    ]
    cases = result["groups"]["all"]["cases"]
    return [
        *table(["PSNR, dB (median)", *heads.values()], rows),
        "",
        f"{cases} cases; {machine(result)}; `python bench/fidelity.py --save`.",
    ]


def roi() -> list[str]:
    """Return how well the boxes hold the breast, a row a size of frame."""
    results = [load(path.stem) for path in RESULTS.glob("roi*.json")]
    results.sort(key=lambda result: result["rows"])
    rows = []
    for result in results:
        found = result["groups"]["all"]
        sides = [found[f"laterality_{name}"] for name in ("right", "wrong", "undecided")]
        rows.append(
            [
                f"{result['count']} of {result['rows']} rows",
                f"{found['coverage_reached']:.1%}",
                f"{found['coverage_lowest']:.2%}",
                f"{found['area_reached']:.1%}",
                f"{found['area_median']:.3f}",
                f"{found['area_largest']:.2f}",
                " / ".join(map(str, sides)),
            ]
        )
    heads = ["phantoms", "hold 99.9 % of the breast", "least held", "area at most 1.15"]
    heads += ["median area", "largest area", "side right / wrong / unknown"]
    return [
        *table(heads, rows),
        "",
        f"Area in that of the tight box; {machine(results[0])}; `python bench/roi.py --save`.",
    ]


def memory() -> list[str]:
    """Return the peaks of memory by number of files, and of frames of the vendors' sizes."""
    result = load("memory")
    peaks = ("parent_mib", "worker_mib", "all_mib")
    height, width = result["phantom_size"]
    runs = [
        (f"{run['files']:,} files of {height} x {width}, {run['format']}", run)
        for run in result["runs"]
    ]
    mixed = result["mixed"]
    largest = " x ".join(map(str, mixed["largest"]))
    runs.append((f"{mixed['files']} of vendors' sizes, up to {largest}, png", mixed))
    rows = [[name, *(f"{run[peak]:.0f}" for peak in peaks)] for name, run in runs]
    heads = ["peak memory of convert, MiB", "parent", "largest worker", "all processes"]
    return [
        *table(heads, rows),
        "",
        f"JPEG 2000, {result['workers']} workers; largest change with the number of files "
        f"{result['largest_change']:.1%}; {machine(result)}; `python bench/memory.py --save`.",
    ]


def phantom() -> list[str]:
    """Return the statistics of phantoms beside real images, the alike as ranges."""
    result = load("phantom")
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, row in result["images"].items():
        if name.startswith("phantom"):
            name = f"phantoms at noise {name.rpartition(' ')[2]}"
        elif name.startswith("M-SYNTH"):
            name = "M-SYNTH, simulated"
        else:
            name = f"{name}, real"
        groups.setdefault(name, []).append(row)
    heads = ["slope", "dark", "middle", "light", "entropy", "bits"]
    rows = [
        [
            name if len(each) == 1 else f"{len(each)} {name}",
            *(span([row[head] for row in each]) for head in heads),
        ]
        for name, each in groups.items()
    ]
    bits = [frame["bits_per_breast_pixel"] for frame in result["frames"].values()]
    return [
        *table(["8 bits, as displayed", *heads], rows),
        "",
        f"At 12 bits, frames of {len(bits)} vendors' sizes: {span(bits)} bits a breast pixel; "
        f"{machine(result)}; `python bench/phantom.py --save`.",
    ]


def demo() -> list[str]:
    """Return what the demo's model and what its baselines reach, by the phantoms' seed."""
    result = load("demo")
    names = ("model", "mean intensity", "breast area", "metadata")
    rows = [
        [str(run["seed"]), *(f"{run[name]:.3f}" for name in names), f"{run['seconds']:.0f}"]
        for run in result["runs"]
    ]
    heads = ["phantoms' seed", "the model", *(f"{name} alone" for name in names[1:]), "seconds"]
    counts = result["runs"][0]["counts"]
    return [
        *table(heads, rows),
        "",
        f"ROC AUC of {counts['breasts']} breasts, {counts['positive_breasts']} positive, out of 4 "
        f"folds; {machine(result)}; `python bench/demo.py --save`.",
    ]


def balancing() -> list[str]:
    """Return what each way of balancing reaches where positives are rare."""
    result = load("balancing")
    figures = {"auc": "ROC AUC", "sensitivity_at_90": "sensitivity at 90 % specificity"}
    rows = [
        [method, *(mean_and_ends(found[name]) for name in figures)]
        for method, found in result["methods"].items()
    ]
    runs = result["runs"]
    one = runs[0]
    seeds = len({run["seed"] for run in runs})
    return [
        *table(["balance", *figures.values()], rows),
        "",
        f"Mean (lowest to highest) of {seeds} seeds; {one['training_images']:,} training images, "
        f"{one['positive_training_images']} positive, {result['settings']['steps']} steps of 16; "
        f"{one['test_breasts']} test breasts, {one['positive_test_breasts']} positive; "
        f"{machine(result)}; `python bench/balancing.py --save`.",
    ]


def mean_and_ends(found: dict[str, float]) -> str:
    """Return a mean, and the lowest and highest value behind it."""
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def training_data() -> list[str]:
    """Return how fast the data path is beside the models, and how long they wait for it."""
    result = load("training_data")
    rows = []
    for model, found in result["models"].items():
        for source, epochs in found["training"].items():
            alone = result["sources"][source]["data_alone_images_per_second"]
            first, later = epochs[0], epochs[1:]
            step = sorted(each["step_seconds"] for each in later)[len(later) // 2]
            wait = max(each["wait_seconds_a_step"] for each in later)
            rows.append(
                [
                    f"{model}, {source}",
                    f"{alone[0]:.0f} / {max(alone[1:]):.0f}",
                    f"{found['model_alone_images_per_second']:.1f}",
                    f"{first['wait_share']:.1%}",
                    f"{step:.2f} s",
                    f"{wait * 1e3:.1f} ms ({max(each['wait_share'] for each in later):.2%})",
                ]
            )
    heads = ["", "data alone, images/s: first / later epochs", "model alone, images/s"]
    heads += ["wait, first epoch", "step, later", "wait a step, later epochs (most)"]
    size = "x".join(map(str, result["settings"]["size"]))
    return [
        *table(heads, rows),
        "",
        f"{size}, batches of {result['settings']['batch']}, augmentation `standard`; "
        f"{machine(result)}; `python bench/training_data.py --save`.",
    ]


def span(values: list[Any]) -> str:
    """Return a value, or the range of several; a dash where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = [
        f"{end:.2f}" if isinstance(end, float) else str(end) for end in (min(known), max(known))
    ]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "throughput": throughput,
    "fidelity": fidelity,
    "roi": roi,
    "memory": memory,
    "phantom": phantom,
    "demo": demo,
    "balancing": balancing,
    "training-data": training_data,
}
for _name in ("transcode", "decode", "stages", "scaling"):  # whose scripts make their tables
    if (RESULTS / f"{_name}.json").is_file():
        SECTIONS[_name] = partial(of_script, _name)


def section(name: str, text: str) -> re.Match[str] | None:
    """Return the match of a section in a text; group 1 is what it holds."""
    return re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end of {name} -->", text, re.S)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", type=Path, nargs="+", default=[], help="files whose sections to bring up to date"
    )
    parser.add_argument("--picture", type=Path, help="an SVG or PNG to draw of the throughput")
    options = parser.parse_args(arguments)
    if options.picture:
        throughput_tables.picture(load("throughput"), options.picture)
        if not options.write:
            return
    texts = {path: path.read_text(encoding="utf-8") for path in options.write}
    for name, make in SECTIONS.items():
        lines = "\n".join(make()) + "\n"
        if not texts:
            print(f"<!-- table: {name} -->\n{lines}<!-- end of {name} -->\n")
            continue
        homes = [path for path, text in texts.items() if section(name, text)]
        if not homes:
            raise SystemExit(f"no section {name} in {', '.join(map(str, texts))}")
        for path in homes:
            found = section(name, texts[path])
            assert found
            texts[path] = texts[path][: found.start(1)] + lines + texts[path][found.end(1) :]
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
