"""Takes a table and its images, writes a page: what is in it, what is missing, examples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastmammo.report.examples import COUNTED, draw_examples, texts_of
from fastmammo.report.gallery import single_gallery
from fastmammo.report.html import (
    Markup,
    bars,
    card,
    cards,
    columns,
    element,
    notes,
    number,
    page,
    section,
    table,
    write_page,
)
from fastmammo.training.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastmammo.preprocess import Config
    from fastmammo.report.gallery import Case
    from fastmammo.training.table import TableOptions

_MOST = 25
"""Values of a column that get a bar of their own."""


@dataclass(frozen=True)
class Exploration:
    """What a table holds.

    counts: images, breasts, patients, positive_images, positive_breasts, positive_patients.
    values: column → value → {"images", "positive"}; "" where it is unknown.
    missing: column → rows that know nothing.
    sizes: "rows x columns" of the DICOMs → images, where a manifest tells them.
    notes: what was left out, and why.
    page: the HTML page.
    """

    counts: dict[str, int]
    values: dict[str, dict[str, dict[str, int]]]
    missing: dict[str, int]
    sizes: dict[str, int]
    notes: tuple[str, ...]
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        found = {"counts": self.counts, "values": self.values, "missing": self.missing}
        more = {"sizes": self.sizes, "notes": list(self.notes), "page": os.fspath(self.page)}
        return {**found, **more}

    def text(self) -> str:
        """Return what counts of it as lines."""
        count = self.counts
        lines = [
            f"{count['images']:,} images, {count['breasts']:,} breasts, {count['patients']:,} "
            "patients",
            f"positive: {count['positive_images']:,} images "
            f"({_share(count['positive_images'], count['images'])}), "
            f"{count['positive_breasts']:,} breasts, {count['positive_patients']:,} patients",
        ]
        for name in ("site_id", "machine_id", "view", "density"):
            values = self.values.get(name, {})
            if values and set(values) != {""}:
                shown = [f"{value or 'unknown'} {each['images']:,} ({each['positive']:,} positive)"
                         for value, each in list(values.items())[:6]]  # fmt: skip
                more = f", and {len(values) - 6} more" if len(values) > 6 else ""
                lines.append(f"{name}: {', '.join(shown)}{more}")
        unknown = [f"{name} {number:,}" for name, number in self.missing.items() if number]
        if unknown:
            lines.append(f"unknown: {', '.join(unknown)}")
        return "\n".join([*lines, *(f"note: {each}" for each in self.notes), f"page: {self.page}"])


def explore(
    table_path: str | os.PathLike[str],
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    options: TableOptions | None = None,
    examples: int = 6,
    seed: int = 0,
    config: Config | None = None,
    note: Callable[[str], None] | None = None,
) -> Exploration:
    """Write a page on a table of images.

    Args:
        table_path: a CSV as `read_table` takes it; labels may be missing.
        source: a folder of `convert`, or of DICOMs, for examples; None: none are shown.
        out: the page.
        options: how the table is read.
        examples: images of each group.
        seed: of the examples.
        config: how DICOMs become images; by default small ones.
        note: called with each sentence that the user should read.

    Raises:
        TableError: the table is not fit for it.
        OSError: a file cannot be read or written.
    """
    rows = read_table(table_path, options, labelled=False, note=note)
    said = list(rows.attrs["notes"])
    values = {name: _values(rows, name) for name in COUNTED}
    missing = {name: _missing(rows, name) for name in COUNTED}
    sizes = _sizes(source, said)
    shown = draw_examples(rows, source, examples, seed, config, said) if source is not None else []
    found = Exploration(_counts(rows), values, missing, sizes, tuple(said), Path(out))
    write_page(found.page, _page(found, rows, Path(table_path), shown))
    return found


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    positive = rows[rows["cancer"] == 1]
    units = {"images": None, "breasts": "prediction_id", "patients": "patient_id"}
    found = {}
    for prefix, part in (("", rows), ("positive_", positive)):
        for name, column in units.items():
            found[prefix + name] = len(part) if column is None else int(part[column].nunique())
    return found


def _values(rows: pd.DataFrame, name: str) -> dict[str, dict[str, int]]:
    """Return how many images, and how many positive, have each value."""
    texts = texts_of(rows, name)
    groups = pd.DataFrame({"value": texts, "positive": rows["cancer"] == 1}).groupby("value")
    found = groups["positive"].agg(["size", "sum"])
    # machines and sites by how many, what has an order by it; what is unknown comes last
    if name in ("site_id", "machine_id", "view"):
        found = found.sort_values("size", ascending=False, kind="stable")
    order = sorted(found.index, key=lambda value: value == "")
    return {
        str(value): {"images": int(found["size"][value]), "positive": int(found["sum"][value])}
        for value in order
    }


def _missing(rows: pd.DataFrame, name: str) -> int:
    column = rows[name]
    return int((column.isna() | (column.astype(str) == "")).sum())


def _sizes(source: str | os.PathLike[str] | None, said: list[str]) -> dict[str, int]:
    """Return how many DICOMs have which size, where the manifest of `convert` tells."""
    path = None if source is None else Path(source) / "manifest.csv"
    if path is None or not path.is_file():
        return {}
    manifest = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"rows", "columns", "status"} <= set(manifest.columns):
        return {}
    good = manifest[manifest["status"] == "ok"]
    if len(good) < len(manifest):
        said.append(f"{len(manifest) - len(good)} of {len(manifest)} files were not converted")
    counts = (good["rows"] + " × " + good["columns"]).value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def _page(
    found: Exploration,
    rows: pd.DataFrame,
    path: Path,
    shown: list[tuple[str, list[Case]]],
) -> str:
    count = found.counts
    per_breast = rows.groupby("prediction_id").size().value_counts().sort_index()
    known = {name: values for name, values in found.values.items() if set(values) - {""}}
    labelled = "" not in found.values["cancer"] or len(found.values["cancer"]) > 1
    parts = [
        element("div", element("h3", COUNTED[name]), _bars(values, labelled and name != "cancer"))
        for name, values in known.items()
    ]
    content: list[object] = [
        cards(
            card("images", number(count["images"]), f"most breasts have "
                 f"{per_breast.idxmax()}", main=True),
            card("breasts", number(count["breasts"])),
            card("patients", number(count["patients"])),
            card("positive breasts", number(count["positive_breasts"]),
                 _share(count["positive_breasts"], count["breasts"])),
            card("positive patients", number(count["positive_patients"]),
                 _share(count["positive_patients"], count["patients"])),
        ),
        section(
            "What is in it",
            columns(*parts),
            lead="Images by value; dark: positive ones. Where the share of positives differs "
            "between sites or machines, a model can score the place instead of the breast.",
        ),
        section("What is missing", _missing_table(found, rows)),
        section("How many images a breast has", bars(
            {f"{k}": int(v) for k, v in per_breast.items()}, unit="breasts")),
    ]  # fmt: skip
    if found.sizes:
        sizes = dict(list(found.sizes.items())[:_MOST])
        content.append(section("Sizes of the DICOMs, rows × columns", bars(sizes)))
    if shown:
        galleries = [
            element("div", element("h3", title), single_gallery(cases)) for title, cases in shown
        ]
        content.append(
            section("Examples", *galleries, lead="Drawn at random from each group, as the model "
                    "would see them.")
        )  # fmt: skip
    if found.notes:
        content.append(section("Notes", notes(found.notes)))
    return page(f"Table: {path.name}", path.resolve(), *content)


def _bars(values: Mapping[str, Mapping[str, int]], labelled: bool) -> Markup:
    shown = dict(list(values.items())[:_MOST])
    counts = {name: each["images"] for name, each in shown.items()}
    parts = {name: each["positive"] for name, each in shown.items()}
    total = sum(each["images"] for each in values.values())
    drawn = bars(counts, parts=parts if labelled else None, total=total)
    if len(values) > _MOST:
        left = sum(each["images"] for each in list(values.values())[_MOST:])
        more = f"and {len(values) - _MOST} more values, {left:,} images"
        return Markup(drawn + element("p", more, class_="lead"))
    return drawn


def _missing_table(found: Exploration, rows: pd.DataFrame) -> Markup:
    """Return for each column how many rows know nothing, by site: what is known betrays a site."""
    sites = [site for site in found.values["site_id"] if site][:6]
    heads = ["column", "unknown", "of all", *(f"site {site}" for site in sites)]
    lines: list[list[object]] = []
    for name, title in COUNTED.items():
        line: list[object] = [title, found.missing[name], _part(found.missing[name], len(rows))]
        for site in sites:
            part = rows[rows["site_id"] == site]
            line.append(_part(_missing(part, name), len(part)))
        lines.append(line)
    return table(heads, lines)


def _part(part: int, whole: int) -> Markup:
    """Return a share that stands back where it is nothing."""
    return Markup(_share(part, whole)) if part else Markup('<span class="none">0</span>')


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"
