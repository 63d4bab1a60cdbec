"""bench/results/throughput.json → the README's tables, and its picture."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from disturbed import BEYOND, beyond

if TYPE_CHECKING:
    from pathlib import Path

BY_NAME = tuple(f"fastmammo auto, {name}" for name in ("numba", "openjpeg", "imagecodecs"))
BY_NAME += ("fastmammo auto, pylibjpeg",)
"""Left out of the picture: `fastmammo auto` is one of them."""

STAGES = {  # Okabe and Ito's colours, which the colour-blind tell apart
    "read": "#999999",
    "decode": "#0072b2",
    "read+decode": "#0072b2",
    "voi": "#e69f00",
    "roi": "#009e73",
    "resample": "#cc79a7",
    "image": "#cc79a7",
    "encode": "#56b4e9",
    "write": "#d55e00",
}
SHORT = {
    "JPEG 2000 Lossless": "J2K",
    "JPEG Lossless SV1": "JPEG lossless",
    "HTJ2K Lossless": "HTJ2K",
    "Explicit VR Little Endian": "raw",
}
"""Transfer syntaxes in the heads of columns."""
OURS, YARDSTICK, PEER = "#0072b2", "#444444", "#b0b0b0"


def order(result: dict[str, Any]) -> list[str]:
    """Return the contenders of all sets: ours, the yardstick, its relatives, the others."""
    names = dict.fromkeys(name for one in result["sets"].values() for name in one["contenders"])

    def rank(name: str) -> int:
        kinds = ("fastmammo", "ordinary")
        return next((i for i, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))

    return sorted(names, key=rank)


def short(name: str) -> str:
    """Return a set's name for the head of a column."""
    for syntax, word in SHORT.items():
        if syntax in name and f"{syntax} " not in name:  # "HTJ2K Lossless RPCL" is another one
            name = name.replace(syntax, word)
    return name.replace(", ", " ")


def _rows(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|" + " --- |" * len(heads), *lines[1:]]


def table(result: dict[str, Any]) -> str:
    """Return images a second by contender and set, and what bounds them in the first set."""
    names = order(result)
    sets, baseline = result["sets"], result["baseline"]
    rates = [
        [name, *(_rate(one["contenders"].get(name), baseline) for one in sets.values())]
        for name in names
    ]
    first, found = next(iter(sets.items()))
    bounds = [
        [name, *_bounds(found["contenders"][name])] for name in names if name in found["contenders"]
    ]
    machine = result["machine"]
    copied = found["copy_gigabytes_per_second"]["median"]
    marked = any(beyond(found["contenders"][row[0]]) for row in bounds)
    why = result.get("disturbed_why", [])
    absent = [*result["missing"], *(name for one in sets.values() for name in one["wrong"])]
    return "\n".join(
        [
            *_rows([f"images/s (times {baseline or 'nothing'})", *map(short, sets)], rates),
            "",
            f"Of {first}"
            + (f"; * faster than its decoder alone, above {BEYOND:.0%}: no limit" if marked else "")
            + ":",
            "",
            *_rows(
                [
                    *("", "images/s (quartiles)", "running", "decoder alone", "share of it"),
                    *("cores busy", "MB read + decoded + written", "copying alone"),
                    "hours for 54,706",
                ],
                bounds,
            ),
            "",
            f"{result['workers']} processes, {result['rounds']} rounds of {result['seconds']:g} s; "
            f"file cache {result['file_cache']}; memory copied at {copied:.1f} GB/s, reading and "
            "writing; "
            + (f"**not a quiet machine** ({'; '.join(why)}); " if why else "")
            + (f"not there: {', '.join(dict.fromkeys(absent))}; " if absent else "")
            + f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; "
            f"`{result['command']}`.",
        ]
    )


def _rate(figures: dict[str, Any] | None, baseline: str | None) -> str:
    if figures is None:
        return "–"
    rate = f"{figures['images_per_second']['median']:.1f}"
    if not figures["ratio"]:
        return rate
    to = "" if figures["ratio_to"] == baseline else f" to {figures['ratio_to']}"
    return f"{rate} ({figures['ratio']['median']:.2f}{to})"


def _bounds(each: dict[str, Any]) -> list[str]:
    rate, alone = each["images_per_second"], each["decode_only_per_second"]
    return [
        f"{rate['median']:.1f} ({rate['lower']:.1f} to {rate['upper']:.1f})",
        f"{each['running_per_second']['median']:.1f}",
        f"{alone['median']:.1f}" if alone else "–",
        f"{each['share_of_decode_only']['median']:.0%}{'*' * beyond(each)}" if alone else "–",
        f"{each['cpu_share']['median']:.0%}",
        " + ".join(f"{value / 1e6:.1f}" for value in each["bytes_an_image"].values()),
        f"{each['copy_bound_per_second']['median']:.0f}",
        f"{each['rsna_hours']['by_images']:.2f}",
    ]


def digest(result: dict[str, Any]) -> str:
    """Return the name that the picture carries of the result that it was drawn from."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw images a second by contender and set, and the stages of an image in the first sets.

    The same result gives the same bytes with one version of matplotlib.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    settings = {
        "svg.hashsalt": "fastmammo",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    sets = result["sets"]
    names = [name for name in reversed(order(result)) if name not in BY_NAME]
    each = [[n for n in names if n in one["contenders"]] for one in sets.values()]
    pairs = [each[i : i + 2] for i in range(0, len(each), 2)]
    heights = [max(map(len, pair)) for pair in pairs]
    heights.append(max(map(len, each[:2])))
    columns = min(2, len(sets))
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(
            len(heights),
            columns,
            figsize=(9.0, sum(0.24 * n + 0.95 for n in heights) + 0.5),
            height_ratios=[n + 2 for n in heights],
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat:
            axis.set_visible(False)
        for i, (name, found) in enumerate(sets.items()):
            _rates(axes[i // 2][i % 2], name, each[i], found["contenders"])
        for i, (name, found) in list(enumerate(sets.items()))[:columns]:
            _stages(axes[-1][i], name, each[i], found["contenders"])
        stages = list(dict.fromkeys(axes[-1][0].get_legend_handles_labels()[1]))
        handles = dict(zip(*reversed(axes[-1][0].get_legend_handles_labels()), strict=True))
        figure.legend(
            [handles[stage] for stage in stages],
            stages,
            loc="outside lower center",
            ncols=len(stages),
            frameon=False,
        )
        machine = result["machine"]
        figure.suptitle(
            f"{machine['cpu']}, {result['workers']} processes on {machine['cores']} cores, "
            f"{machine['date']}; fastmammo with the start of its workers, the others are warm"
            + ("\nnot a quiet machine" if result.get("disturbed") else ""),
            fontsize=9,
        )
        note = f"bench/results/throughput.json {digest(result)}"
        metadata = {"Date": None, "Creator": None, "Description": note}
        kind = path.suffix[1:]
        figure.savefig(path, metadata=metadata if kind == "svg" else None, facecolor="white")
        plt.close(figure)


def _rates(axis: Any, title: str, names: list[str], figures: dict[str, Any]) -> None:
    axis.set_visible(True)
    rates = [figures[name]["images_per_second"] for name in names]
    middle = [rate["median"] for rate in rates]
    reach = [
        [rate["median"] - rate["lower"] for rate in rates],
        [rate["upper"] - rate["median"] for rate in rates],
    ]
    colours = [
        OURS if name.startswith("fastmammo") else YARDSTICK if name == "ordinary" else PEER
        for name in names
    ]
    axis.barh(names, middle, color=colours, height=0.72)
    axis.errorbar(middle, names, xerr=reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    for i, rate in enumerate(rates):
        axis.annotate(
            f"{rate['median']:.1f}",
            (rate["upper"], i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axis.margins(x=0.16)
    axis.set_xlabel("images/s")
    axis.set_title(title, fontsize=9, fontweight="bold", loc="left")


def _stages(axis: Any, title: str, names: list[str], figures: dict[str, Any]) -> None:
    axis.set_visible(True)
    left = [0.0] * len(names)
    for stage, colour in STAGES.items():
        values = [figures[name]["stage_ms"].get(stage, 0.0) for name in names]
        if not any(values):
            continue
        axis.barh(names, values, left=left, color=colour, height=0.72, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        axis.annotate(
            f"{total:.0f}", (total, i), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axis.margins(x=0.12)
    axis.set_xlabel("ms an image, in one process")
    axis.set_title(title, fontsize=9, fontweight="bold", loc="left")
