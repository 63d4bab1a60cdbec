"""Takes a number of patients and a seed, gives the rows of an RSNA-shaped table.

Shares follow the table of the RSNA Screening Mammography set (54,706 images of 11,913 patients).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.testing.lesions import KINDS, Kind
from fastmammo.testing.machines import MACHINES, Machine
from fastmammo.testing.nuisances import NONE, Nuisances, draw_nuisances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastmammo.testing.phantom import Density, Laterality, ViewPosition

LESION_CONTRAST = (0.2, 0.6)
"""Lowest and highest, see `phantom`: 0.1 is subtle, 0.3 plain, 0.6 glaring."""

AGE_GAP = 6.0
"""Years by which patients with cancer are older in the mean, about as in the RSNA set."""

_RARE_VIEWS = ("AT", "LM", "ML")


@dataclass(frozen=True)
class Recipe:
    """What decides the pixels of a file; equal recipes share one.

    view: as the table and the header say; geometry: the view that is drawn for it.
    """

    template: int
    machine_index: int
    laterality: Laterality
    view: str
    geometry: ViewPosition
    seed: int
    density: Density
    lesions: tuple[Kind, ...]
    lesion_contrast: float
    lesion_seed: int
    nuisances: Nuisances

    @property
    def machine(self) -> Machine:
        """The machine that made it."""
        return MACHINES[self.machine_index]


@dataclass(frozen=True)
class Row:
    """One image: columns of train.csv as text, and its recipe."""

    columns: dict[str, str]
    recipe: Recipe

    @property
    def patient_id(self) -> str:
        """Its column."""
        return self.columns["patient_id"]

    @property
    def image_id(self) -> str:
        """Its column."""
        return self.columns["image_id"]


def make_plan(
    *,
    patients: int,
    seed: int,
    positive_share: float,
    nuisance_share: float,
    distinct: int,
    lesion_kinds: Sequence[Kind] = KINDS,
    lesion_contrast: tuple[float, float] = LESION_CONTRAST,
    age_gap: float = AGE_GAP,
) -> list[Row]:
    """The rows, by patient_id, then side and view.

    Args:
        patients: how many.
        seed: of everything.
        positive_share: of the breasts; above 0 there is at least one.
        nuisance_share: of the images.
        distinct: templates; patient n is drawn as template n mod distinct.
        lesion_kinds: of `KINDS`, drawn by breast in equal shares.
        lesion_contrast: lowest and highest, drawn by breast; calcifications have twice as much.
        age_gap: years by which patients with cancer are older in the mean.
    """
    generator = np.random.default_rng([seed, 101])
    ids = np.sort(_unique(generator, patients, 10_000, max(65_536, 3 * patients + 10_000)))
    count = max(round(positive_share * 2 * patients), 1) if positive_share > 0 else 0
    chosen = generator.permutation(2 * patients)[:count]
    positive = {(int(breast) // 2, "LR"[int(breast) % 2]) for breast in chosen}
    templates = [
        _template(seed, index, nuisance_share, lesion_kinds, lesion_contrast)
        for index in range(distinct)
    ]
    order = generator.permutation(patients)  # ids are sorted; templates must not follow them
    total = sum(len(templates[int(n) % distinct]) for n in order)
    image_ids = iter(_unique(generator, total, 100_000, 2_147_483_647).tolist())
    rows: list[Row] = []
    for index, patient_id in enumerate(ids.tolist()):
        recipes = templates[int(order[index]) % distinct]
        person = np.random.default_rng([seed, 102, index])
        with_cancer = {side for side in "LR" if (index, side) in positive}
        rows += _patient(person, patient_id, recipes, with_cancer, image_ids, age_gap)
    return rows


def _unique(generator: np.random.Generator, count: int, low: int, high: int) -> Any:
    """Different integers of a range, in random order."""
    found = np.empty(0, np.int64)
    while len(found) < count:
        more = generator.integers(low, high, 2 * count + 16)
        _, first = np.unique(np.concatenate([found, more]), return_index=True)
        found = np.concatenate([found, more])[np.sort(first)]
    return found[:count]


def _template(
    seed: int,
    index: int,
    nuisance_share: float,
    lesion_kinds: Sequence[Kind],
    lesion_contrast: tuple[float, float],
) -> list[Recipe]:
    """The images of one patient, as they are where the breast is positive."""
    generator = np.random.default_rng([seed, 103, index])
    # the golden ratio spreads few templates over the machines better than chance
    ladder = np.cumsum([machine.share for machine in MACHINES])
    at = (index * 0.6180339887 + np.random.default_rng([seed, 104]).random()) % 1 * ladder[-1]
    machine_index = int(np.searchsorted(ladder, at, side="right"))
    site = MACHINES[machine_index].site_id
    density: Density = generator.choice(np.array(["A", "B", "C", "D"]), p=[0.11, 0.43, 0.41, 0.05])
    implant = generator.uniform(0.2, 1.0) if site == 1 and generator.random() < 0.029 else 0.0
    recipes = []
    for laterality in ("L", "R"):
        views = ["CC", "MLO"]
        # 22.8 % of the breasts have more than two images, most of them at site 1
        if generator.random() < (0.39 if site == 1 else 0.066):
            views += generator.choice(["CC", "MLO"], generator.integers(1, 3)).tolist()
            if generator.random() < 0.01:
                views[-1] = str(generator.choice(_RARE_VIEWS))
        kind = lesion_kinds[int(generator.integers(len(lesion_kinds)))]
        contrast = generator.uniform(*lesion_contrast) * (2 if kind == "calcifications" else 1)
        for number, view in enumerate(sorted(views)):
            nuisances = NONE
            if generator.random() < nuisance_share:
                # the implants of a set belong to patients, not to images
                drawn = draw_nuisances(int(generator.integers(1 << 31)))
                nuisances = replace(drawn, implant=0.0)
            recipes.append(
                Recipe(
                    template=index,
                    machine_index=machine_index,
                    laterality="L" if laterality == "L" else "R",
                    view=view,
                    geometry="CC" if view == "CC" else "MLO",
                    seed=(seed * 1_000_003 + index) * 16 + number,
                    density=str(density),  # type: ignore[arg-type]
                    lesions=(kind,),
                    lesion_contrast=float(contrast),
                    lesion_seed=(seed * 1_000_003 + index) * 2 + int(laterality == "R"),
                    nuisances=replace(nuisances, implant=float(implant)),
                )
            )
    return recipes


def _patient(
    generator: np.random.Generator,
    patient_id: int,
    recipes: list[Recipe],
    with_cancer: set[str],
    image_ids: Any,
    age_gap: float,
) -> list[Row]:
    """The rows of one patient."""
    site = recipes[0].machine.site_id
    mean = 58 + age_gap if with_cancer else 58
    age = int(np.clip(generator.normal(mean, 10), 26, 89))
    known_age = generator.random() >= 0.0007
    known_density = site == 1 and generator.random() >= 0.0017
    rows = []
    for side in ("L", "R"):
        cancer = side in with_cancer
        biopsy = cancer or generator.random() < 0.034
        invasive = cancer and generator.random() < 0.71
        difficult = not cancer and generator.random() < 0.144
        birads = "0" if cancer else _birads(generator)
        for recipe in recipes:
            if recipe.laterality != side:
                continue
            columns = {
                "site_id": str(site),
                "patient_id": str(patient_id),
                "image_id": str(next(image_ids)),
                "laterality": side,
                "view": recipe.view,
                "age": f"{age}.0" if known_age else "",
                "cancer": str(int(cancer)),
                "biopsy": str(int(biopsy)),
                "invasive": str(int(invasive)),
                "BIRADS": f"{birads}.0" if birads and site == 1 else "",
                "implant": str(int(recipe.nuisances.implant > 0)),
                "density": recipe.density if known_density else "",
                "machine_id": str(recipe.machine.machine_id),
                "difficult_negative_case": str(difficult),
            }
            rows.append(
                Row(columns, recipe if cancer else replace(recipe, lesions=(), lesion_seed=0))
            )
    return rows


def _birads(generator: np.random.Generator) -> str:
    """0 recalled, 1 negative, 2 benign, "" missing, of a breast without cancer at site 1."""
    return str(generator.choice(np.array(["0", "1", "2", ""]), p=[0.26, 0.55, 0.08, 0.11]))
