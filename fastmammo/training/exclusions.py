"""Names images that are not to be trained on: RSNA's known-bad ones, or a list of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastmammo.errors import TableError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


class Bad(NamedTuple):
    """One image, or all of a patient; an empty field fits every row."""

    reason: str
    patient_id: str = ""
    image_id: str = ""
    machine_id: str = ""
    """Another set may have a patient of this number: RSNA's machine tells them apart."""


_RSNA = (
    Bad("pixels exceed BitsStored", patient_id="27770", machine_id="49"),
    Bad("all pixels are 0", patient_id="822", image_id="1942326353", machine_id="210"),
)
_CROPS = tuple(
    Bad("the breast is not found without a crop by hand", image_id=image_id)
    for image_id in ("802890376", "936880795", "1074322983", "1249735234", "1839672250")
)

EXCLUSIONS: dict[str, tuple[Bad, ...]] = {"none": (), "rsna": _RSNA, "rsna+crops": _RSNA + _CROPS}
"""The named lists: public notes on the RSNA Screening Mammography set of 2022."""


def excluded(table: pd.DataFrame, exclude: str) -> tuple[NDArray[np.bool_], list[str]]:
    """Find the rows that a list excludes.

    Args:
        table: with patient_id, image_id and machine_id as text.
        exclude: a name in `EXCLUSIONS`, or a text file of image_ids, one a line; what follows a
            "#" is a comment.

    Returns:
        bool (N,), true where the row is excluded; and what to tell the user, a sentence each.

    Raises:
        TableError: neither a name nor a file that can be read.
    """
    found = np.zeros(len(table), np.bool_)
    notes = []
    if exclude not in EXCLUSIONS:
        wanted = _read_list(exclude)
        found = table["image_id"].isin(wanted).to_numpy(np.bool_)
        missing = len(wanted - set(table["image_id"]))
        notes.append(f"exclude: {found.sum()} images left out, as listed in {exclude}")
        if missing:
            notes.append(f"exclude: {missing} of {len(wanted)} ids of {exclude} are no image_id")
        return found, notes
    for bad in EXCLUSIONS[exclude]:
        match = np.ones(len(table), np.bool_)
        for name in ("patient_id", "image_id", "machine_id"):
            if value := getattr(bad, name):
                match &= (table[name] == value).to_numpy(np.bool_)
        if match.any():
            what = f"image {bad.image_id}" if bad.image_id else f"patient {bad.patient_id}"
            notes.append(f"exclude: {what} left out ({match.sum()} images): {bad.reason}")
        found |= match
    return found, notes


def _read_list(path: str) -> set[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.partition("#")[0].strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(
            f"exclude: {path!r} is no list that can be read ({error}). Allowed are "
            f"{', '.join(EXCLUSIONS)}, or a text file of image_ids, one a line"
        ) from error
    return {line for line in lines if line}
