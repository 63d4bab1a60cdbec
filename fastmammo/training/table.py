"""Takes a CSV of images and labels, gives it typed and checked: one row an image."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from fastmammo.conversion.writers import write_atomic
from fastmammo.errors import ConfigError, TableError
from fastmammo.options import check_choices, check_range, option
from fastmammo.training.columns import COLUMNS, FLOATS, GIVEN, find_columns, read_csv, typed
from fastmammo.training.exclusions import EXCLUSIONS, excluded
from fastmammo.training.folds import assign_folds, check_split, count_folds, hold_out
from fastmammo.training.values import rows_have, some, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TableOptions:
    """How a table is read, what is left out of it, and how it is split."""

    columns: str = option(
        "",
        "columns of other names, as cancer=malignant,patient_id=study_id; an empty one (age=) is "
        "not read",
    )
    positive_labels: str = option(
        "",
        "values of the cancer column that are positive, as MALIGNANT or 'BI-RADS 4,BI-RADS 5'; all "
        "others are negative. Empty: 0 and 1, or plain words for them",
    )
    mixed_breasts: str = option(
        "error",
        "images of one breast that differ in cancer: an error, or any: all are positive if any is",
        choices=("error", "any"),
    )
    exclude: str = option(
        "rsna",
        "images to leave out: rsna (the two known broken ones of the RSNA set), rsna+crops (and "
        "five whose breast is not found), none, or a text file of image_ids",
    )
    views: str = option("", "views to keep, as CC,MLO; empty: all")
    folds: int = option(4, "parts of the cross-validation, where the table has no column fold")
    hold_out: float = option(
        0.0, "share of the patients that is held out once, instead of folds (3:1 is 0.25); 0: folds"
    )
    split_seed: int = option(0, "seed of folds, hold-out and undersampling")

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "folds", 2, 1000, whole=True)
        check_range(self, "hold_out", 0, 0.9)
        check_range(self, "split_seed", 0, 2**31 - 1, whole=True)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(each.default, str) and not isinstance(value, str):
                raise ConfigError(f"{each.name}: got {value!r}, wanted text")
        if not self.exclude:
            raise ConfigError(
                f"exclude: got nothing, allowed are {', '.join(EXCLUSIONS)}, or a text file"
            )
        _ = self.mapping

    @property
    def mapping(self) -> dict[str, str]:
        """The CSV's name of each column that has another one; "" for one that is not read."""
        found: dict[str, str] = {}
        for pair in words(self.columns):
            ours, equals, theirs = (part.strip() for part in pair.partition("="))
            if not equals or ours not in GIVEN:
                near = difflib.get_close_matches(ours, GIVEN, 1)
                hint = f" (did you mean {near[0]}?)" if near and ours not in GIVEN else ""
                raise ConfigError(
                    f"columns: got {pair!r}{hint}, wanted OURS=THEIRS, as cancer=malignant; OURS "
                    f"is one of {', '.join(GIVEN)}"
                )
            if ours in found:
                raise ConfigError(f"columns: {ours} is named twice, wanted once")
            found[ours] = theirs
        return found


def read_table(
    path: str | os.PathLike[str],
    options: TableOptions | None = None,
    *,
    labelled: bool = True,
    note: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Read RSNA's train.csv or test.csv, or any CSV with a row an image.

    Needed are the columns patient_id, image_id (or one with paths), and cancer where `labelled`;
    names match in any case, `options.columns` maps others. Ids are text and keep zeros in front.

    Args:
        path: UTF-8; separated by commas, semicolons or tabs.
        options: by default `TableOptions()`.
        labelled: whether every row must have a label.
        note: called with each sentence that the user should read (what was left out and why). They
            stand in `.attrs["notes"]` too.

    Returns:
        Rows 0 to N - 1 in the order of the CSV, with `columns.COLUMNS`: text, "" where unknown:
        patient_id, image_id, laterality (L, R), view, site_id, machine_id, density (A to D),
        prediction_id (patient_laterality: the breast), path; float64, NaN where unknown: cancer
        (0, 1), age in years, implant, biopsy, invasive, difficult_negative_case (0, 1), BIRADS;
        int64: fold, -1 where there is none. Other columns of the CSV follow as text.

    Raises:
        TableError: no CSV; a column is missing or stands twice; an id, label or number is not
            allowed; an image has two rows; a breast both labels; nothing is left.
        LeakError: the column fold has a patient in two folds.
        OSError: the file cannot be read.
    """
    return _read(path, options or TableOptions(), labelled, note, folds=True)[1]


def check_typed(table: pd.DataFrame) -> None:
    """Refuse a DataFrame that is not as `read_table` gives it.

    Raises:
        TableError: names the columns that are absent or of another type.
    """
    wrong = [f"no column {name}" for name in COLUMNS if name not in table]
    wrong += [
        f"{name} of type {table[name].dtype}"
        for name in COLUMNS
        if name in table and ((name in FLOATS and table[name].dtype.kind != "f")
                              or (name == "fold" and table[name].dtype.kind not in "iu"))
    ]  # fmt: skip
    if wrong:
        raise TableError(
            f"table: the DataFrame is not as read_table gives it: {some(wrong)}. Write it as a CSV "
            "and name that, or give what read_table makes of it"
        )


def split_table(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: TableOptions | None = None,
    *,
    note: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Write the CSV again, its own columns as they are, with a column fold.

    Folds are `assign_folds`', or with `options.hold_out` 0 for held out and -1 for training (in
    no validation, in every training), which `train` takes as the one fold that it is. Rows that
    `exclude` and `views` leave out are not written. A column fold of the CSV is replaced.

    Args:
        path: the CSV, as `read_table` takes it.
        out: the new CSV; it appears whole or not at all.
        options: by default `TableOptions()`.
        note: as of `read_table`.

    Returns:
        Counts by fold, as `count_folds` gives them.

    Raises:
        TableError: as of `read_table`, or too few patients for such a split.
        ConfigError: `out` is the CSV itself.
        OSError: a file cannot be read or written.
    """
    options = options or TableOptions()
    target = os.path.abspath(out)
    if os.path.realpath(target) == os.path.realpath(path):
        raise ConfigError(f"out: {target} is the table itself, wanted another file")
    raw, table = _read(path, options, True, note, folds=False)
    if options.hold_out:
        fold = hold_out(table, options.hold_out, options.split_seed)
    else:
        fold = assign_folds(table, options.folds, options.split_seed)
    check_split(table, fold)
    written = raw.drop(columns=[name for name in raw.columns if name.casefold() == "fold"])
    written["fold"] = fold
    text = written.to_csv(index=False, lineterminator="\n")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    write_atomic(target, [text.encode()], f"{target}.{os.getpid()}.partial")
    return count_folds(table, fold)


def _read(
    path: str | os.PathLike[str],
    options: TableOptions,
    labelled: bool,
    note: Callable[[str], None] | None,
    folds: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the rows that are kept: as the CSV has them, and typed."""
    where = os.fspath(path)
    raw, lines = read_csv(where)
    notes: list[str] = []
    names = find_columns(raw, options.mapping, where, labelled)
    if not folds and "fold" in names:
        del names["fold"]
        notes.append("fold: the column of the table is replaced")
    table = typed(raw, names, lines, where, options.positive_labels, notes)
    _check_ids(table, lines, where)
    kept = _keep(table, options, where, notes)
    raw, table = (each[kept].reset_index(drop=True) for each in (raw, table))
    kept_lines = [line for line, keep in zip(lines, kept, strict=True) if keep]
    if labelled:
        _check_labels(table, kept_lines, where)
    _settle_breasts(table, options, where, notes)
    if (table["laterality"] == "").any():
        count = (table["laterality"] == "").sum()
        notes.append(f"laterality: unknown in {count} rows: their scores are by patient")
    check_split(table, table["fold"])
    for line in notes:
        if note is not None:
            note(line)
    table.attrs["notes"] = notes
    return raw, table


def _check_ids(table: pd.DataFrame, lines: Sequence[int], where: str) -> None:
    line = np.asarray(lines)
    for name in ("patient_id", "image_id"):
        empty = (table[name] == "").to_numpy(np.bool_)
        if empty.any():
            raise TableError(
                f"{where}: column {name}: {rows_have(empty.sum())} none: lines {some(line[empty])}"
            )
    with_path = table[table["path"] != ""]
    for frame, keys, what in (
        (table, ["patient_id", "image_id"], "images"),
        (with_path, ["path"], "files"),
    ):
        twice = frame[frame.duplicated(keys, keep=False)]
        if len(twice):
            named = [
                f"{' '.join(map(str, key))} (lines {some(line[group.index], 3)})"
                for key, group in twice.groupby(keys, sort=False)
            ]
            raise TableError(
                f"{where}: {len(named)} {what} have more than one row: {some(named)}. Wanted one "
                "row an image; is it a table of lesions?"
            )


def _keep(
    table: pd.DataFrame, options: TableOptions, where: str, notes: list[str]
) -> NDArray[np.bool_]:
    """Find the rows that are neither excluded nor of another view."""
    out, said = excluded(table, options.exclude)
    notes += said
    kept = ~out
    views = [view.upper() for view in words(options.views)]
    absent = [view for view in views if not (table["view"] == view).any()]
    if absent:
        have = some(sorted({view or "(unknown)" for view in table["view"]}), 20)
        raise TableError(f"{where}: views: no row has {', '.join(absent)}; there are {have}")
    if views:
        fits = table["view"].isin(views).to_numpy(np.bool_)
        notes.append(f"views: {(kept & ~fits).sum()} images of other views left out")
        kept &= fits
    if not kept.any():
        raise TableError(f"{where}: no row is left: exclude and views leave all {len(table)} out")
    return kept


def _check_labels(table: pd.DataFrame, lines: Sequence[int], where: str) -> None:
    missing = table["cancer"].isna().to_numpy()
    if missing.any():
        raise TableError(
            f"{where}: column cancer: {rows_have(missing.sum())} no label: lines "
            f"{some(np.asarray(lines)[missing])}. Label them, or take these rows out of the table"
        )


def _settle_breasts(
    table: pd.DataFrame, options: TableOptions, where: str, notes: list[str]
) -> None:
    """See to it that a breast has one label: metrics are by breast."""
    labels = table.groupby("prediction_id", sort=False)["cancer"].nunique()
    mixed = labels.index[labels > 1]
    if not len(mixed):
        return
    if options.mixed_breasts == "error":
        raise TableError(
            f"{where}: column cancer: the images of {len(mixed)} breasts (patient_laterality) "
            f"differ: {some(mixed)}. mixed_breasts='any' labels all images of such a breast "
            "positive; where the table has no laterality, map one by columns"
        )
    rows = table["prediction_id"].isin(mixed) & table["cancer"].notna()
    table.loc[rows, "cancer"] = 1.0
    notes.append(f"cancer: {len(mixed)} breasts with both labels are positive: {some(mixed)}")
