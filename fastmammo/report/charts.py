"""Takes curves and counts of a training, gives them drawn: SVG text, by matplotlib."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

BLUE, WARM, SOFT, LINE = "#0b5cad", "#c2410c", "#5c6670", "#dfe3e8"
_FOLDS = ("#0b5cad", "#c2410c", "#2f855a", "#805ad5", "#b7791f", "#2c7a7b", "#97266d", "#4a5568")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it: letters become paths of this font
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": "#1c2127",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "fastmammo",  # the same figures, the same bytes
    "text.parse_math": False,  # a $ in a name is no formula
}


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """Give an empty figure, and where its SVG is put at the end; pyplot keeps nothing open."""
    drawn: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        yield figure, drawn
        text = io.StringIO()
        canvas.print_svg(  # type: ignore[no-untyped-call]
            text, metadata={"Date": None, "Creator": None}
        )
    drawn.append(text.getvalue())


def learning_curves(logs: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, str]:
    """Draw loss, ROC AUC and PR AUC by epoch: one colour a fold, the training loss dashed.

    Args:
        logs: fold → column of log.csv → (epochs,), NaN where unknown.

    Returns:
        What is to be seen → its drawing.
    """
    panels = {
        "loss": "loss: validation; dashed: training",
        "auc": "ROC AUC by breast",
        "pr_auc": "PR AUC by breast",
    }
    found = {}
    for name, title in panels.items():
        with _figure(3.9, 3.0) as (figure, drawn):
            axes = figure.subplots()
            for (fold, log), colour in zip(logs.items(), _colours(len(logs)), strict=True):
                epochs = np.asarray(log["epoch"], float)
                mark = "o" if len(epochs) < 20 else ""
                if name == "loss":
                    axes.plot(epochs, log["train_loss"], color=colour, lw=1.3, ls="--")
                axes.plot(
                    epochs, log[name], color=colour, lw=1.5, marker=mark, ms=3,
                    label=f"fold {fold}",
                )  # fmt: skip
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "loss":
                axes.legend()
            else:
                axes.set_ylim(top=1.005)
        found[title] = drawn[0]
    return found


def _colours(count: int) -> list[str]:
    return [_FOLDS[index % len(_FOLDS)] for index in range(count)]


def _legend_below(figure: Figure) -> None:
    """Put the legend below the axes, where no curve is."""
    figure.legend(loc="outside lower center", ncols=2)


Band = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]
"""Positions, and the lowest and highest values there: the interval of a curve."""


def roc(
    false_share: Sequence[float],
    true_share: Sequence[float],
    label: str,
    band: Band | None,
    chosen: tuple[float, float] | None,
) -> str:
    """Draw the ROC curve with its band, and the point of the chosen threshold."""
    with _figure(5.2, 4.6) as (figure, drawn):
        axes = figure.subplots()
        if band is not None:
            axes.fill_between(*band, color=BLUE, alpha=0.15, lw=0, label="95 % interval, patients")
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls=":")
        axes.plot(false_share, true_share, color=BLUE, lw=1.8, label=label)
        for specificity in (0.9, 0.95):
            axes.axvline(1 - specificity, color=LINE, lw=1.2, zorder=0)
        if chosen is not None:
            axes.plot(*chosen, "o", color=WARM, label="chosen threshold")
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1), ylim=(0, 1.01))
        axes.set_aspect("equal")
        axes.set_title("ROC, by breast")
        _legend_below(figure)
    return drawn[0]


def precision_recall(
    recall: Sequence[float],
    precision: Sequence[float],
    label: str,
    prevalence: float,
    band: Band | None,
    chosen: tuple[float, float] | None,
) -> str:
    """Draw the precision-recall curve; chance is the share of positives."""
    with _figure(5.2, 4.6) as (figure, drawn):
        axes = figure.subplots()
        if band is not None:
            axes.fill_between(*band, color=BLUE, alpha=0.15, lw=0, label="95 % interval, patients")
        axes.axhline(prevalence, color=SOFT, lw=1, ls=":", label=f"chance: {prevalence:.3f}")
        # the last point is scikit-learn's own, (0, 1): no threshold has it
        axes.step(recall[:-1], precision[:-1], where="post", color=BLUE, lw=1.8, label=label)
        if chosen is not None:
            axes.plot(*chosen, "o", color=WARM, label="chosen threshold")
        axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.01, 1))
        axes.set_ylim(0, 1.01)
        axes.set_aspect("equal")
        axes.set_title("Precision and recall, by breast")
        _legend_below(figure)
    return drawn[0]


def calibration(
    mean_score: Sequence[float], share: Sequence[float], count: Sequence[int], error: float
) -> str:
    """Draw the share of positives against the mean score, with Wilson's 95 % intervals."""
    scores, shares, counts = (np.asarray(each, float) for each in (mean_score, share, count))
    with np.errstate(all="ignore"):
        z = 1.96
        centre = (shares + z**2 / (2 * counts)) / (1 + z**2 / counts)
        root = np.sqrt(shares * (1 - shares) / counts + z**2 / (4 * counts**2))
        reach = z / (1 + z**2 / counts) * root
    low, high = np.maximum(0, shares - (centre - reach)), np.maximum(0, centre + reach - shares)
    top = min(1.0, 1.08 * float(max(scores.max(), (shares + high).max(), 1e-3)))
    with _figure(5.2, 4.6) as (figure, drawn):
        axes = figure.subplots()
        axes.plot([0, top], [0, top], color=SOFT, lw=1, ls=":", label="as it should be")
        axes.errorbar(
            scores, shares, yerr=np.stack((low, high)), fmt="o-", color=BLUE, ms=4, lw=1.4,
            elinewidth=1, label=f"tenths of the breasts; mean distance {error:.3f}",
        )  # fmt: skip
        axes.set(xlabel="mean score", ylabel="share with cancer", xlim=(0, top), ylim=(0, top))
        axes.set_aspect("equal")
        axes.set_title("Calibration, by breast")
        _legend_below(figure)
    return drawn[0]


def score_histogram(labels: NDArray[np.float64], scores: NDArray[np.float64],
                    threshold: float | None) -> str:  # fmt: skip
    """Draw how the scores of breasts with cancer and without are spread."""
    with _figure(5.2, 3.4) as (figure, drawn):
        axes = figure.subplots()
        low, high = float(scores.min()), float(scores.max())
        edges = np.linspace(low, max(high, low + 1e-6), 31).tolist()
        for value, name, colour in ((0, "without cancer", SOFT), (1, "with cancer", WARM)):
            chosen = scores[labels == value]
            if len(chosen):
                weights = np.full(len(chosen), 1 / len(chosen))
                axes.hist(
                    chosen, edges, weights=weights, color=colour, alpha=0.55,
                    label=f"{name} ({len(chosen):,})",
                )  # fmt: skip
        if threshold is not None:
            axes.axvline(threshold, color="#1c2127", lw=1, ls="--", label="threshold")
        axes.set(xlabel="score", ylabel="share of each")
        axes.set_title("Scores, by breast")
        axes.legend()
    return drawn[0]


def models(names: Sequence[str], values: Sequence[float], spans: Sequence[Sequence[float]],
           label: str) -> str:  # fmt: skip
    """Draw one figure of several models with its interval."""
    with _figure(6.4, 0.9 + 0.42 * len(names)) as (figure, drawn):
        axes = figure.subplots()
        places = np.arange(len(names))[::-1]
        found = np.asarray(values, float)
        ends = np.asarray(spans, float)
        reach = np.maximum(0, np.stack((found - ends[:, 0], ends[:, 1] - found)))
        axes.errorbar(found, places, xerr=reach, fmt="o", color=BLUE, ms=6, elinewidth=1.6)
        axes.set_yticks(places, list(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    return drawn[0]
