"""Takes scores and what `metrics.evaluate` made of them, gives sections of a page, and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from fastmammo.report import charts
from fastmammo.report.html import (
    Markup,
    card,
    cards,
    columns,
    element,
    join,
    number,
    section,
    svg,
    table,
)
from fastmammo.training.metrics import by_breast
from fastmammo.training.scored import CHOSEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

_ROUNDS = 200
"""Of the bands: a picture needs fewer than the figures' intervals."""

NAMES = {
    "auc": "ROC AUC",
    "pr_auc": "PR AUC (average precision)",
    "pf1": "probabilistic F1",
    "pf1_best": "best F1",
    "f1": "F1 at the threshold",
    "sensitivity": "sensitivity (recall)",
    "specificity": "specificity",
    "precision": "precision",
    "accuracy": "accuracy",
    "sensitivity_at_90": "sensitivity at 90 % specificity",
    "sensitivity_at_95": "sensitivity at 95 % specificity",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
"""Figures in the order in which people ask for them."""


def text(metrics: Mapping[str, Any]) -> str:
    """Return the figures as aligned text: by breast with its interval, by image."""
    count = metrics["counts"]
    spans = metrics["intervals"]
    lines = [
        f"{count['positive_breasts']:,} of {count['breasts']:,} breasts positive, "
        f"{count['patients']:,} patients, {count['images']:,} images",
        f"{'':34}{'by breast':>9}  {'95 % interval':17}{'by image':>9}",
    ]
    for name, title in NAMES.items():
        low_high = spans.get(name)
        span = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""
        breast, image = (_plain(metrics[unit].get(name)) for unit in ("breast", "image"))
        lines.append(f"{title:34}{breast:>9}  {span:17}{image:>9}")
    if metrics["threshold"] is not None:
        how = "chosen on these scores" if metrics.get("threshold_fitted") else "given"
        lines.append(f"threshold {metrics['threshold']:.4g}, {how}")
    lines += [f"note: {line}" for line in metrics["notes"]]
    return "\n".join(lines)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def headline(metrics: Mapping[str, Any], where: str) -> Markup:
    """Return the figures that count, with their intervals.

    Args:
        where: what the scores are of: "out of fold".
    """
    breast, spans = metrics["breast"], metrics["intervals"]

    def span(name: str) -> str:
        found = spans.get(name)
        return f"{found[0]:.3f} to {found[1]:.3f}" if found else "no interval"

    count = metrics["counts"]
    share = count["positive_breasts"] / max(1, count["breasts"])
    by = metrics.get("epoch_chosen_by")
    epoch = f"; {CHOSEN.format(by)}" if by else ""
    chosen = "chosen on these scores" if metrics.get("threshold_fitted") else "chosen elsewhere"
    return cards(
        card(f"ROC AUC by breast, {where}", number(breast["auc"]), f"95 %: {span('auc')}{epoch}",
             main=True),
        card("PR AUC", number(breast["pr_auc"]), f"{span('pr_auc')}; chance {share:.3f}"),
        card("sensitivity at 90 % specificity", number(breast["sensitivity_at_90"]),
             span("sensitivity_at_90")),
        card("probabilistic F1", number(breast["pf1"]), span("pf1")),
        card("F1 at the threshold", number(breast["f1"]), f"{span('f1')}; {chosen}"),
    )  # fmt: skip


def score_sections(metrics: Mapping[str, Any], frame: pd.DataFrame, seed: int = 0) -> list[Markup]:
    """Return the sections on scores: curves, threshold, calibration, figures, places.

    Args:
        metrics: what `evaluate` gives on the frame.
        frame: one row an image, as `evaluate` takes it.
        seed: of the bands.
    """
    breasts = by_breast(frame, metrics["reduce"])
    return [
        section(
            "How well it tells cancer",
            columns(*_curves(metrics, breasts, seed)),
            lead="Each breast has one score, made of those of its images. Bands and intervals come "
            "from drawing whole patients again and again. Grey lines: 90 and 95 % specificity.",
        ),
        section(
            "In figures, at the chosen threshold",
            columns(
                join((_confusion(metrics), svg(_histogram(metrics, breasts), "scores by label"))),
                _figures(metrics),
            ),
            lead="A breast is called positive from this score on. "
            + (
                "The threshold of the highest F1 was sought on these very scores: F1, sensitivity "
                "and specificity flatter it a little. Test it on other data."
                if metrics.get("threshold_fitted")
                else "The threshold was chosen on other data."
            ),
        ),
        section(
            "Can a score be read as a probability?",
            columns(_calibration(metrics), _tenths(metrics)),
            lead="Of breasts scored 0.1, one in ten should have cancer. Ten groups of equally many "
            "breasts; bars are 95 % intervals.",
        ),
        *_places(metrics),
    ]


def _curves(metrics: Mapping[str, Any], breasts: pd.DataFrame, seed: int) -> list[Markup]:
    curves, figures, spans = metrics["curves"], metrics["breast"], metrics["intervals"]
    found: list[Markup] = []
    bands = _bands(breasts, seed)
    chosen = {name: figures[name] for name in ("sensitivity", "specificity", "precision")}
    complete = all(value is not None for value in chosen.values())

    def label(name: str, title: str) -> str:
        span = f" [{spans[name][0]:.3f}, {spans[name][1]:.3f}]" if name in spans else ""
        return f"{title} {figures[name]:.3f}{span}"

    if curves["roc"] is not None:
        point = (1 - chosen["specificity"], chosen["sensitivity"]) if complete else None
        drawn = charts.roc(
            curves["roc"]["fpr"], curves["roc"]["tpr"], label("auc", "AUC"), bands.get("roc"), point
        )
        found.append(svg(drawn, f"ROC curve, AUC {figures['auc']:.3f}"))
    if curves["pr"] is not None:
        point = (chosen["sensitivity"], chosen["precision"]) if complete else None
        share = metrics["counts"]["positive_breasts"] / metrics["counts"]["breasts"]
        drawn = charts.precision_recall(
            curves["pr"]["recall"],
            curves["pr"]["precision"],
            label("pr_auc", "average precision"),
            share,
            bands.get("pr"),
            point,
        )
        found.append(svg(drawn, f"precision-recall curve, area {figures['pr_auc']:.3f}"))
    return found or [element("p", "No curve: it needs breasts with cancer and without.")]


def _bands(breasts: pd.DataFrame, seed: int) -> dict[str, charts.Band]:
    """Return the 95 % intervals of both curves, from drawing patients."""
    labels, scores = (breasts[name].to_numpy(np.float64) for name in ("cancer", "score"))
    if len(np.unique(labels)) < 2:
        return {}
    _, patient = np.unique(breasts["patient_id"].astype(str), return_inverse=True)
    count, random = int(patient.max()) + 1, np.random.default_rng(seed)
    grid = np.linspace(0, 1, 101)
    drawn: dict[str, list[NDArray[np.float64]]] = {"roc": [], "pr": []}
    for _ in range(_ROUNDS):
        weights = random.multinomial(count, np.full(count, 1 / count))[patient]
        if len(np.unique(labels[weights > 0])) < 2:
            continue
        false_share, true_share, _ = roc_curve(labels, scores, sample_weight=weights)
        drawn["roc"].append(np.interp(grid, false_share, true_share))
        precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
        # without the last point, (0, 1), which is scikit-learn's own and no threshold's
        drawn["pr"].append(np.interp(grid, recall[-2::-1], precision[-2::-1]))
    return {
        name: (grid, *np.quantile(rounds, (0.025, 0.975), axis=0))
        for name, rounds in drawn.items()
        if rounds
    }


def _histogram(metrics: Mapping[str, Any], breasts: pd.DataFrame) -> str:
    labels, scores = (breasts[name].to_numpy(np.float64) for name in ("cancer", "score"))
    return charts.score_histogram(labels, scores, metrics["threshold"])


def _confusion(metrics: Mapping[str, Any]) -> Markup:
    if metrics["confusion"] is None:
        return element("p", "No threshold: no breast is positive.")
    (tn, fp), (fn, tp) = metrics["confusion"]
    drawn = element(
        "table",
        element("caption", f"breasts, threshold {metrics['threshold']:.4g}"),
        element("tr", element("th", "", class_="text"), element("th", "called negative"),
                element("th", "called positive")),
        element("tr", element("td", "without cancer", class_="text"),
                element("td", number(tn), class_="good"), element("td", number(fp), class_="bad")),
        element("tr", element("td", "with cancer", class_="text"),
                element("td", number(fn), class_="bad"), element("td", number(tp), class_="good")),
    )  # fmt: skip
    return element("div", drawn, class_="wide")


def _span(metrics: Mapping[str, Any], name: str) -> Markup | str:
    found = metrics["intervals"].get(name)
    return f"{found[0]:.3f} to {found[1]:.3f}" if found else number(None)


def _calibration(metrics: Mapping[str, Any]) -> Markup:
    curve = metrics["curves"]["calibration"]
    error = metrics["breast"]["calibration_error"]
    drawn = charts.calibration(curve["mean_score"], curve["share"], curve["count"], error)
    return svg(drawn, f"calibration curve, mean distance {error:.3f}")


def _tenths(metrics: Mapping[str, Any]) -> Markup:
    curve = metrics["curves"]["calibration"]
    rows = [
        (f"{place}", count, score, share)
        for place, (count, score, share) in enumerate(
            zip(curve["count"], curve["mean_score"], curve["share"], strict=True), start=1
        )
    ]
    return table(("group", "breasts", "mean score", "share with cancer"), rows)


def _figures(metrics: Mapping[str, Any]) -> Markup:
    rows = [
        (title, metrics["breast"].get(name), _span(metrics, name), metrics["image"].get(name))
        for name, title in NAMES.items()
    ]
    return table(("", "by breast", "95 % interval", "by image"), rows, left=1)


def _places(metrics: Mapping[str, Any]) -> list[Markup]:
    found: list[Markup] = []
    for key, title in (("per_site", "site"), ("per_machine", "machine")):
        if metrics[key]:
            found += [element("h3", f"By {title}"), _place_table(metrics[key], title)]
    if not found:
        return []
    lead = (
        "By breast, at the one threshold of all. A site or machine with few positives has wide "
        "intervals: read differences with care."
    )
    return [section("Sites and machines", *found, lead=lead)]


def _place_table(places: Mapping[str, Mapping[str, Any]], title: str) -> Markup:
    heads = (title, "breasts", "positive", "share", "ROC AUC", "PR AUC", "sensitivity",
             "specificity", "precision", "Brier")  # fmt: skip
    names = ("auc", "pr_auc", "sensitivity", "specificity", "precision", "brier")
    rows = [
        (place, each["count"], each["positives"],
         Markup(f"{each['positives'] / max(1, each['count']):.2%}"),
         *(each[name] for name in names))
        for place, each in sorted(places.items(), key=lambda item: -item[1]["count"])
    ]  # fmt: skip
    return table(heads, rows)
