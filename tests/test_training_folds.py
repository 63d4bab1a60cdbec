"""Folds: no patient in two, whatever the table; positives and sites spread; leaks are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pd = pytest.importorskip("pandas")
model_selection = pytest.importorskip("sklearn.model_selection")

from fastmammo.errors import ConfigError, LeakError, TableError  # noqa: E402
from fastmammo.training.folds import (  # noqa: E402
    assign_folds,
    check_split,
    count_folds,
    hold_out,
    undersample,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_table(
    seed: int,
    patients: int = 60,
    positives: int = 12,
    sites: int = 2,
    *,
    by_machine: bool = False,
) -> Any:
    """Draw a table: 1 to 5 images a breast, some positive patients with cancer in both breasts."""
    random = np.random.default_rng(seed)
    with_cancer = set(random.permutation(patients)[:positives].tolist())
    rows = []
    for patient in range(patients):
        place = str(1 + patient % sites)
        both = random.random() < 0.2
        for side in "LR":
            cancer = float(patient in with_cancer and (both or side == "L"))
            for _ in range(random.integers(1, 6)):
                rows.append((f"p{patient}", f"p{patient}_{side}", cancer, place))
    table = pd.DataFrame(rows, columns=["patient_id", "prediction_id", "cancer", "site_id"])
    table["machine_id"] = table["site_id"] if by_machine else "m"
    if by_machine:
        table["site_id"] = ""
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def sides(table: Any, fold: NDArray[np.int64]) -> list[set[str]]:
    return [set(table["patient_id"][fold == number]) for number in np.unique(fold)]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    patients=st.integers(10, 40),
    share=st.floats(0.2, 0.8),
    sites=st.integers(1, 12),
    folds=st.integers(2, 5),
    by_machine=st.booleans(),
)
def test_no_patient_stands_in_two_folds(
    seed: int, patients: int, share: float, sites: int, folds: int, by_machine: bool
) -> None:
    positives = int(share * patients)
    table = make_table(seed, patients, positives, sites, by_machine=by_machine)
    try:
        fold = assign_folds(table, folds, seed)
    except TableError as error:
        assert "folds" in str(error)  # noqa: PT017
        return
    assert fold.dtype == np.int64
    assert fold.shape == (len(table),)
    parts = sides(table, fold)
    assert len(parts) == folds
    assert sum(map(len, parts)) == patients
    check_split(table, fold)
    for number in range(folds):
        assert set(table["cancer"][fold == number]) == {0, 1}
    assert (assign_folds(table, folds, seed) == fold).all()


@pytest.mark.parametrize("positives", [4, 5, 6, 8, 12, 20])
def test_few_positives_are_spread_evenly(positives: int) -> None:
    """By images, scikit-learn's greedy way put three of 8 into one fold and one into another."""
    for seed in range(3):
        table = make_table(seed, 60, positives)
        counts = count_folds(table, assign_folds(table, 4, seed))
        assert np.ptp(counts["positive_patients"]) <= 1
        assert np.ptp(counts["images"]) < 0.2 * counts["images"].mean()


@pytest.mark.parametrize("by_machine", [False, True])
def test_sites_are_spread_evenly(by_machine: bool) -> None:
    table = make_table(1, 120, 24, 3, by_machine=by_machine)
    place = table["machine_id" if by_machine else "site_id"]
    fold = assign_folds(table)
    for site in "123":
        for cancer in (0, 1):
            rows = (place == site) & (table["cancer"] == cancer)
            breasts = table[rows].groupby(fold[rows])["prediction_id"].nunique()
            assert np.ptp(breasts.reindex(range(4), fill_value=0)) <= (2 if cancer else 4)


def test_a_site_with_one_patient_is_no_stratum() -> None:
    table = make_table(2, 50, 10, 2)
    lonely = table["patient_id"] == table["patient_id"][0]
    table.loc[lonely, "site_id"] = "77"
    counts = count_folds(table, assign_folds(table, 5))  # scikit-learn would warn of it
    assert np.ptp(counts["positive_patients"]) == 0
    assert counts["site 77"].max() == lonely.sum()


def test_another_seed_gives_other_folds() -> None:
    table = make_table(3)
    assert (assign_folds(table, 4, 0) != assign_folds(table, 4, 1)).any()
    assert (hold_out(table, 0.25, 0) != hold_out(table, 0.25, 1)).any()


def test_what_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(4, 30, 3)
    with pytest.raises(
        TableError, match=r"3 patients have a positive breast, fewer than the 4 fol"
    ):
        assign_folds(table, 4)
    for split in (assign_folds, lambda each: hold_out(each, 0.5, 0)):
        with pytest.raises(TableError, match=r"no positive at all \(column cancer: all 0"):
            split(table.assign(cancer=0.0))
        with pytest.raises(TableError, match=r"no negative at all \(column cancer: all 1"):
            split(table.assign(cancer=1.0))
    with pytest.raises(ConfigError, match="folds: got 1"):
        assign_folds(table, 1)
    with pytest.raises(TableError, match="rows have no label in cancer"):
        assign_folds(table.assign(cancer=np.nan))

    class Unlucky(model_selection.StratifiedGroupKFold):  # type: ignore[misc]
        def split(self, x: Any, y: Any, groups: Any) -> Any:
            rows = np.arange(len(y))
            return [(rows, rows), (rows, rows[:0]), (rows, rows[:0])]

    monkeypatch.setattr(model_selection, "StratifiedGroupKFold", Unlucky)
    with pytest.raises(TableError, match="fold 1 of 3 would have no positive breast"):
        assign_folds(table, 3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    patients=st.integers(6, 60),
    share=st.floats(0.05, 0.9),
    sites=st.integers(1, 5),
)
def test_hold_out(seed: int, patients: int, share: float, sites: int) -> None:
    table = make_table(seed, patients, max(2, patients // 3), sites)
    fold = hold_out(table, share, seed)
    check_split(table, fold)
    assert set(fold) == {0, -1}
    held = set(table["patient_id"][fold == 0])
    assert abs(len(held) - share * patients) <= 1 + 2  # rounded, and at least one of each kind
    for number in (0, -1):
        assert set(table["cancer"][fold == number]) == {0, 1}


def test_hold_out_takes_its_share_of_every_site() -> None:
    table = make_table(8, 120, 24, 3)
    positive = set(table["patient_id"][table["cancer"] == 1])
    for seed in range(5):
        held = table[hold_out(table, 0.25, seed) == 0].drop_duplicates("patient_id")
        assert len(held) == 30
        for rows in (held["patient_id"].isin(positive), ~held["patient_id"].isin(positive)):
            counts = held[rows]["site_id"].value_counts().reindex(list("123"), fill_value=0)
            assert np.ptp(counts) <= 2


def test_hold_out_is_refused() -> None:
    table = make_table(5, 30, 1)
    with pytest.raises(TableError, match="hold_out: 1 patients are positive, wanted 2 or more"):
        hold_out(table, 0.25, 0)
    with pytest.raises(ConfigError, match="hold_out: got 0"):
        hold_out(table, 0, 0)


def test_leaks_are_named() -> None:
    table = make_table(6, 8, 4)
    fold = np.arange(len(table)) % 2
    with pytest.raises(
        LeakError, match=r"patients stand in more than one fold: patient p\d \(folds"
    ):
        check_split(table, fold)
    first = np.flatnonzero(table["patient_id"] == "p0")[0]
    with pytest.raises(LeakError, match=r"1 patients .*patient p0 \(folds -1, 2\)"):
        check_split(table, np.where(np.arange(len(table)) == first, -1, 2))
    with pytest.raises(TableError, match=r"got shape \(2,\), wanted"):
        check_split(table, [0, 1])


def test_counts_of_a_split() -> None:
    table = make_table(7, 40, 8)
    fold = assign_folds(table)
    counts = count_folds(table, fold)
    assert counts["images"].sum() == len(table)
    assert counts["breasts"].sum() == 80
    assert counts["positive_images"].sum() == (table["cancer"] == 1).sum()
    assert counts["site 1"].sum() == (table["site_id"] == "1").sum()
    share = counts["positive_images"] / counts["images"]
    assert counts["positive_share"].tolist() == share.tolist()
    positive = (table["site_id"] == "2") & (table["cancer"] == 1) & (fold == 2)
    assert counts["site 2 positive"][2] == positive.sum()
    many = table.assign(site_id=table["patient_id"])
    assert not [name for name in count_folds(many, fold).columns if name.startswith("site")]


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 1), min_size=1, max_size=60), ratio=st.floats(0.01, 20))
def test_undersample(labels: list[int], ratio: float) -> None:
    rows = np.arange(len(labels)) * 3
    values = np.array(labels)
    positives, negatives = (values == 1).sum(), (values == 0).sum()
    if not positives:
        with pytest.raises(TableError, match="rows is positive"):
            undersample(rows, values, ratio, 0)
        return
    kept = undersample(rows, values, ratio, 0)
    assert (np.diff(kept) > 0).all()
    assert set(rows[values == 1]) <= set(kept)
    assert len(kept) - positives == min(negatives, max(1, round(ratio * positives)))
    assert (kept == undersample(rows, values, ratio, 0)).all()


def test_undersample_is_refused() -> None:
    with pytest.raises(ConfigError, match="undersample_ratio: got 0"):
        undersample([0, 1], [0, 1], 0, 0)
    with pytest.raises(TableError, match="wanted one 0 or 1 a row"):
        undersample([0, 1], [0, np.nan], 1, 0)
    draws = {tuple(undersample(np.arange(50), np.arange(50) < 5, 1, seed)) for seed in range(5)}
    assert len(draws) == 5
