"""Takes the texts of a column, gives them as numbers and codes, or says which rows are bad.

Sets write one thing in many ways: "1", "1.0", "True", "Positive"; "L", "Left"; "BI-RADS 4". What
is plainly one of these is read as such, anything else is refused: a guess would train on it.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from fastmammo.errors import TableError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import pandas as pd

MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "none", "null", "unknown"})
"""Texts, in any case, that say that nothing is known."""

_YES = frozenset({"1", "1.0", "true", "yes", "positive", "pos", "malignant", "cancer"})
_NO = frozenset({"0", "0.0", "false", "no", "negative", "neg", "benign", "normal"})
_OLDEST = 120


def read_flag(text: str) -> float | None:
    """Read yes or no as 1.0 or 0.0."""
    word = text.casefold()
    return 1.0 if word in _YES else 0.0 if word in _NO else None


def read_age(text: str) -> float | None:
    """Read years, as a number or as DICOM's Age String in years (PS3.5 6.2: "057Y")."""
    try:
        years = float(text.removesuffix("Y"))
    except ValueError:
        return None
    return years if 0 <= years <= _OLDEST else None


def read_birads(text: str) -> float | None:
    """Read a BI-RADS category 0 to 6; 4A, 4B and 4C are 4."""
    match = re.fullmatch(r"(?:bi-?rads)?[\s_]*(?:([0-6])(?:\.0)?|(4)[abc])", text.casefold())
    return float(match[1] or match[2]) if match else None


def read_density(text: str) -> str | None:
    """Read a BI-RADS density as A to D; 1 to 4 are the same, as older sets write them."""
    match = re.fullmatch(r"(?:density)?[\s_]*(?:([abcd])|([1-4])(?:\.0)?)", text.casefold())
    if not match:
        return None
    return match[1].upper() if match[1] else "ABCD"[int(match[2]) - 1]


def read_laterality(text: str) -> str | None:
    """Read a side as "L" or "R"."""
    return {"l": "L", "left": "L", "r": "R", "right": "R"}.get(text.casefold())


def read_fold(text: str) -> int | None:
    """Read a fold: a whole number from 0, or -1 for none."""
    match = re.fullmatch(r"(-1|\d{1,6})(?:\.0)?", text)
    return int(match[1]) if match else None


READERS: Mapping[str, tuple[Callable[[str], Any], Any, str]] = {
    "laterality": (read_laterality, "", "L or R"),
    "cancer": (
        read_flag,
        math.nan,
        "0 or 1, or a word like True, negative, malignant; other words by positive_labels",
    ),
    "age": (read_age, math.nan, f"years from 0 to {_OLDEST}"),
    "density": (read_density, "", "A to D, or 1 to 4"),
    "implant": (read_flag, math.nan, "0 or 1"),
    "biopsy": (read_flag, math.nan, "0 or 1"),
    "invasive": (read_flag, math.nan, "0 or 1"),
    "BIRADS": (read_birads, math.nan, "0 to 6"),
    "difficult_negative_case": (read_flag, math.nan, "0 or 1"),
    "fold": (read_fold, -1, "a whole number from 0, or -1 for none"),
}
"""Column → how to read one text, what stands for a missing one, and what is wanted, in words."""


def read_column(texts: pd.Series[Any], name: str, lines: Sequence[int], where: str) -> list[Any]:
    """Read every text of one column by its reader in `READERS`.

    Args:
        texts: (N,), stripped.
        name: the column.
        lines: (N,), the line of each row in the file.
        where: the file, for messages.

    Raises:
        TableError: values that are not allowed: how many, the first of them with their lines.
    """
    read, missing, wanted = READERS[name]
    known: dict[Hashable, Any] = {
        text: missing if text.casefold() in MISSING else read(text) for text in texts.unique()
    }
    values = [known[text] for text in texts]
    bad = [
        f"{text!r} (line {line})"
        for text, value, line in zip(texts, values, lines, strict=True)
        if value is None
    ]
    if bad:
        raise TableError(
            f"{where}: column {name}: {rows_have(len(bad))} a value that is not allowed: "
            f"{some(bad)}. Wanted {wanted}, or nothing where it is unknown; "
            f"columns='{name}=' leaves the column out"
        )
    return values


def read_ids(
    texts: pd.Series[Any], name: str, lines: Sequence[int], where: str
) -> tuple[list[str], str]:
    """Read ids: text that stays as it is, zeros in front too; what a spreadsheet did is undone.

    Returns:
        The ids, "" where missing; and what to tell the user, empty if nothing.

    Raises:
        TableError: ids that were rounded, and so lost.
    """
    ids = ["" if text.casefold() in MISSING else text for text in texts]
    lost = [
        f"{text} (line {line})"
        for text, line in zip(ids, lines, strict=True)
        if re.fullmatch(r"\d(\.\d+)?[eE]\+\d+", text)
    ]
    if lost:
        raise TableError(
            f"{where}: column {name}: {len(lost)} ids are rounded numbers, as spreadsheets write "
            f"them: {some(lost)}. Export the table again with this column as text"
        )
    given = [text for text in ids if text]
    # pandas writes whole numbers so, if one cell of their column was empty
    if given and all(re.fullmatch(r"\d+\.0", text) for text in given):
        note = f"{name}: numbers as {given[0]} are read as {given[0][:-2]}"
        return [text.removesuffix(".0") for text in ids], note
    return ids, ""


def some(values: Iterable[object], limit: int = 5) -> str:
    """Give the first few of many, and how many they are."""
    texts = [str(value) for value in values]
    more = f", ... ({len(texts)} in all)" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def rows_have(count: int) -> str:
    """Give the beginning of a message on some rows."""
    return "1 row has" if count == 1 else f"{count} rows have"


def words(text: str) -> list[str]:
    """Give the parts between commas, stripped, without empty ones."""
    return [word.strip() for word in text.split(",") if word.strip()]
