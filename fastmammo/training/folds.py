"""Takes a table, gives every row its fold: no patient in two, positives and sites spread evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastmammo.errors import ConfigError, LeakError, TableError
from fastmammo.training.values import rows_have, some

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SHUFFLES = 20
_PATIENTS_SHUFFLED = 6000
"""Patients over all shuffles that are tried: scikit-learn takes 0.3 ms for each."""

_HOLD_OUT, _UNDERSAMPLE = 0x401D, 0x5A13
"""Keep the draws apart from other parts' draws by the same seed."""


def assign_folds(table: pd.DataFrame, folds: int = 4, seed: int = 0) -> NDArray[np.int64]:
    """Give every row a fold by scikit-learn's StratifiedGroupKFold over patients.

    What is spread evenly are breasts, the unit of the metrics, by cancer and site (by machine where
    no site is known). A site with fewer patients than folds joins the other small ones. The greedy
    spreading does badly on few positives: for small tables the best of several shuffles is taken.

    Args:
        table: of `read_table`, all rows labelled.
        folds: 2 or more.
        seed: 0 or more; the same table and seed give the same folds.

    Returns:
        int64 (N,), 0 to folds - 1.

    Raises:
        ConfigError: fewer than 2 folds.
        TableError: labels are missing, or a fold would have no positive or no negative breast.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise ConfigError(f"folds: got {folds}, wanted 2 or more")
    breasts = _breasts(table)
    for name, value in (("positive", True), ("negative", False)):
        count = breasts["patient_id"][breasts["positive"] == value].nunique()
        if count < folds:
            raise TableError(
                f"folds: {count} patients have a {name} breast, fewer than the {folds} folds: a "
                f"fold without one has no metrics. Take {max(count, 2)} folds or fewer, or more "
                "patients"
            )
    strata, patients = _strata(breasts, folds), breasts["patient_id"].to_numpy()

    def split(shuffle: int) -> NDArray[np.int64]:
        # seed + shuffle would try the same shuffles for neighbouring seeds, and find the same best
        state = int(np.random.SeedSequence([seed, shuffle]).generate_state(1)[0])
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
        found = np.empty(len(breasts), np.int64)
        for number, (_, held_out) in enumerate(splitter.split(strata, strata, patients)):
            found[held_out] = number
        return found

    shuffles = max(1, min(_SHUFFLES, _PATIENTS_SHUFFLED // breasts["patient_id"].nunique()))
    fold = min(map(split, range(shuffles)), key=lambda each: _rate(breasts, each, folds))
    for name, value in (("positive", True), ("negative", False)):
        empty = set(range(folds)) - set(fold[(breasts["positive"] == value).to_numpy()].tolist())
        if empty:
            raise TableError(
                f"folds: fold {min(empty)} of {folds} would have no {name} breast: the patients "
                "cannot be spread so. Take fewer folds, another split_seed, or more patients"
            )
    return _to_rows(table, breasts["patient_id"], fold)


def hold_out(table: pd.DataFrame, share: float, seed: int) -> NDArray[np.int64]:
    """Hold out a share of the patients once: 3:1 is a share of 0.25.

    Drawn evenly over the sites (or machines), patients with cancer and without apart.

    Args:
        table: of `read_table`, all rows labelled.
        share: of the patients, in (0, 1).
        seed: 0 or more.

    Returns:
        int64 (N,): 0 held out, -1 for training: in no validation, in every training.

    Raises:
        ConfigError: a share that is not inside of (0, 1).
        TableError: labels are missing, or fewer than two patients with, or without, cancer.
    """
    if not 0 < share < 1:
        raise ConfigError(f"hold_out: got {share!r}, wanted a share between 0 and 1")
    breasts = _breasts(table)
    patients = breasts.groupby("patient_id", sort=False).agg({"positive": "max", "place": "first"})
    random = np.random.default_rng([_HOLD_OUT, seed])
    held: list[str] = []
    for name, value in (("positive", True), ("negative", False)):
        group = patients[patients["positive"] == value]
        count = len(group)
        if count < 2:
            raise TableError(
                f"hold_out: {count} patients are {name}, wanted 2 or more: one to hold out, one to "
                "train on"
            )
        wanted = int(np.clip(round(share * count), 1, count - 1))
        # every n-th patient of the list sorted by site, each site in a random order
        order = np.lexsort((random.random(count), group["place"].to_numpy().astype(str)))
        chosen = np.floor((np.arange(wanted) + random.random()) * count / wanted).astype(np.int64)
        held += list(group.index[order[chosen]])
    return np.where(table["patient_id"].isin(held), 0, -1).astype(np.int64)


def check_split(table: pd.DataFrame, fold: ArrayLike) -> None:
    """Refuse a split in which a patient stands twice.

    Args:
        table: with patient_id.
        fold: (N,), any whole numbers.

    Raises:
        LeakError: patients with rows in several folds: how many, and the first of them.
        TableError: another number of folds than rows.
    """
    values = np.asarray(fold)
    if values.shape != (len(table),):
        raise TableError(f"fold: got shape {values.shape}, wanted ({len(table)},), one a row")
    pairs = pd.DataFrame({"patient": table["patient_id"].to_numpy(), "fold": values})
    pairs = pairs.drop_duplicates()
    twice = pairs[pairs.duplicated("patient", keep=False)]
    if len(twice):
        named = [
            f"patient {patient} (folds {', '.join(map(str, sorted(group)))})"
            for patient, group in twice.groupby("patient", sort=False)["fold"]
        ]
        raise LeakError(
            f"fold: {len(named)} patients stand in more than one fold: {some(named)}. A model "
            "would be tested on patients that it was trained on. Split by patient: `fastmammo "
            "split`, or leave the column out by columns='fold='"
        )


def check_both(table: pd.DataFrame) -> None:
    """Refuse a table without any positive, or without any negative.

    Raises:
        TableError: says which is absent.
    """
    for name, value, other in (("positive", 1, 0), ("negative", 0, 1)):
        if not (table["cancer"] == value).any():
            raise TableError(
                f"the table has no {name} at all (column cancer: all {other} in {len(table)} "
                "rows): nothing can be learnt or measured. Is it the right column (columns="
                "'cancer=...'), or are positives written in other words (positive_labels)?"
            )


def undersample(rows: ArrayLike, labels: ArrayLike, ratio: float, seed: int) -> NDArray[np.int64]:
    """Keep all positives, and for each of them `ratio` negatives drawn without replacement.

    Args:
        rows: (n,), table rows of the training.
        labels: (n,), 0 or 1 of these rows.
        ratio: negatives a positive, more than 0; 1 makes both equally many.
        seed: 0 or more.

    Returns:
        int64 (m,), the kept of `rows` in their order; all, where there are not so many negatives.

    Raises:
        ConfigError: a ratio that is not more than 0.
        TableError: labels that are not 0 or 1, or no positive.
    """
    if not ratio > 0:
        raise ConfigError(f"undersample_ratio: got {ratio!r}, wanted more than 0")
    numbers, values = np.asarray(rows, np.int64), np.asarray(labels)
    if numbers.shape != values.shape or not np.isin(values, (0, 1)).all():
        raise TableError(
            f"undersample: got labels of shape {values.shape} for rows of shape {numbers.shape}, "
            "wanted one 0 or 1 a row"
        )
    positives, negatives = np.flatnonzero(values == 1), np.flatnonzero(values == 0)
    if not len(positives):
        raise TableError(f"undersample: none of the {len(values)} training rows is positive")
    wanted = min(len(negatives), max(1, round(ratio * len(positives))))
    random = np.random.default_rng([_UNDERSAMPLE, seed])
    drawn = random.choice(negatives, wanted, replace=False)
    kept: NDArray[np.int64] = numbers[np.sort(np.concatenate((positives, drawn)))]
    return kept


def count_folds(table: pd.DataFrame, fold: ArrayLike) -> pd.DataFrame:
    """Count what is in each fold.

    Args:
        table: of `read_table`.
        fold: (N,).

    Returns:
        A row a fold, in order: fold, patients, breasts, images, positive_patients,
        positive_breasts, positive_images (int64), positive_share (of the images, float64); and for
        up to ten sites "site <id>" and "site <id> positive" (images, int64).
    """
    work = table[["patient_id", "prediction_id", "site_id"]].copy()
    work["fold"] = np.asarray(fold)
    positive = (table["cancer"] == 1).to_numpy(np.bool_)
    found = pd.DataFrame(index=pd.Index(sorted(work["fold"].unique()), name="fold"))

    def count(name: str, column: str | None, rows: NDArray[np.bool_]) -> None:
        groups = work[rows].groupby("fold")
        counts = groups.size() if column is None else groups[column].nunique()
        found[name] = counts.reindex(found.index, fill_value=0).astype(np.int64)

    everything = np.ones(len(work), np.bool_)
    for prefix, rows in (("", everything), ("positive_", positive)):
        count(f"{prefix}patients", "patient_id", rows)
        count(f"{prefix}breasts", "prediction_id", rows)
        count(f"{prefix}images", None, rows)
    found["positive_share"] = found["positive_images"] / found["images"]
    sites = sorted(set(work["site_id"]) - {""})
    for site in sites if len(sites) <= 10 else ():
        at_site = (work["site_id"] == site).to_numpy(np.bool_)
        count(f"site {site}", None, at_site)
        count(f"site {site} positive", None, at_site & positive)
    counted: pd.DataFrame = found.reset_index()
    return counted


def _breasts(table: pd.DataFrame) -> pd.DataFrame:
    """Give one row a breast: patient_id, positive, images, and its place: site or machine."""
    missing = int(table["cancer"].isna().sum())
    if missing:
        raise TableError(f"split: {rows_have(missing)} no label in cancer, wanted 0 or 1 in each")
    check_both(table)
    by_machine = (table["site_id"] == "").all()
    work = table[["patient_id", "prediction_id"]].copy()
    work["place"] = table["machine_id" if by_machine else "site_id"]
    work["positive"] = table["cancer"] == 1
    work["images"] = 1
    breasts: pd.DataFrame = (
        work.groupby(["patient_id", "prediction_id"], sort=False)
        .agg({"positive": "max", "place": "first", "images": "sum"})
        .reset_index()
    )
    return breasts


def _strata(breasts: pd.DataFrame, folds: int) -> NDArray[np.int64]:
    """Number the strata cancer x place, none with fewer patients than folds."""
    place = breasts["place"].to_numpy(dtype=object).copy()
    positive = breasts["positive"].to_numpy(np.bool_)
    for value in (True, False):
        counts = breasts[positive == value].groupby("place")["patient_id"].nunique().sort_values()
        small = list(counts.index[counts < folds])
        if small and counts[small].sum() < folds and len(small) < len(counts):
            # together they are too few still: the smallest of the others takes them in
            small.append(counts.index[len(small)])
        place[(positive == value) & breasts["place"].isin(small).to_numpy()] = "\0few"
    strata = pd.DataFrame({"place": place, "positive": positive})
    return np.asarray(strata.groupby(["place", "positive"], sort=True).ngroup(), np.int64)


def _rate(breasts: pd.DataFrame, fold: NDArray[np.int64], folds: int) -> tuple[float, float]:
    """Rate how unevenly a split spreads the positives, then the images: less is better."""
    positive = breasts["positive"].to_numpy(np.bool_)
    patients = breasts["patient_id"].to_numpy()
    unequal = 0.0
    places = breasts["place"].to_numpy()
    codes = pd.factorize(patients)[0]
    for place in (None, *pd.unique(places[positive])):
        rows = positive if place is None else positive & (places == place)
        unique = np.unique(np.stack((codes[rows], fold[rows])), axis=1)[1]
        for each in (unique, fold[rows]):
            counts = np.bincount(each, minlength=folds)
            # all positives together weigh more than those of one site
            unequal += (4 if place is None else 1) * max(0, int(np.ptp(counts)) - 1)
    images = np.bincount(fold, weights=breasts["images"].to_numpy(np.float64), minlength=folds)
    return unequal, float(np.ptp(images))


def _to_rows(
    table: pd.DataFrame, patients: pd.Series[str], fold: NDArray[np.int64]
) -> NDArray[np.int64]:
    by_patient = dict(zip(patients, fold.tolist(), strict=True))
    return np.array([by_patient[patient] for patient in table["patient_id"]], np.int64)
