"""Takes a folder and a number of patients, fills it with a set shaped like RSNA's.

In this order: `plan` decides patients, views, findings and files; `workers` draw the files that
differ; copies are linked; the tables are written; the folder appears whole.
"""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastmammo.dicom.syntax import SYNTAXES
from fastmammo.errors import ConfigError
from fastmammo.testing.lesions import KINDS
from fastmammo.testing.machines import stored_by
from fastmammo.testing.phantom import FIELD_HEIGHT, phantom
from fastmammo.testing.plan import AGE_GAP, LESION_CONTRAST, Recipe, Row, make_plan
from fastmammo.testing.workers import run_jobs
from fastmammo.testing.write import write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fastmammo.testing.lesions import Kind, Lesion

LESION_COLUMNS = (
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "kind",
    "row0",
    "column0",
    "row1",
    "column1",
    "contrast",
)


@dataclass(frozen=True)
class _Job:
    """One file to draw."""

    path: Path
    recipe: Recipe
    row: Row
    size: tuple[int, int] | None
    scale: float
    noise: float
    transfer_syntax_uid: str


def make_dataset(
    folder: str | Path,
    *,
    patients: int = 10,
    seed: int = 0,
    workers: int | None = None,
    size: tuple[int, int] | Literal["vendor"] = "vendor",
    scale: float = 1.0,
    transfer_syntax_uids: Sequence[str] | None = None,
    positive_share: float = 0.02,
    nuisance_share: float = 0.1,
    noise: float = 1.0,
    distinct: int | None = None,
    lesion_kinds: Sequence[Kind] = KINDS,
    lesion_contrast: tuple[float, float] = LESION_CONTRAST,
    age_gap: float = AGE_GAP,
    on_image: Callable[[int, int], object] | None = None,
) -> Path:
    """Writes an RSNA-shaped set of phantoms: a table, its images, and where the lesions are.

    `train_images/<patient_id>/<image_id>.dcm`, `train.csv` with the 14 columns of the RSNA
    Screening Mammography set, and `lesions.csv` (patient_id, image_id, laterality, view, kind,
    row0, column0, row1, column1, contrast; boxes half open, in pixels of the DICOM).

    As there: each breast has a CC and an MLO and every fifth one or two more; cancer is constant
    within a breast and every image of a positive breast shows its lesion (where nothing covers
    it); site 2 has no BIRADS and no density; machines belong to one site and differ in size,
    syntax, photometric interpretation, window function, padding and spacing (`machines`). About 3 %
    of site 1's patients have implants. As nowhere: the lesion is the only sign of cancer, so a
    detector can be right every time.

    The same arguments give the same files, whatever the number of workers. The folder appears
    whole at the end; until then a hidden one beside it is filled, which a later call replaces.

    Args:
        folder: must not exist, or be empty.
        patients: 1 or more, about 4.6 images each.
        seed: any non-negative integer.
        workers: processes; None for one a core. An image of 3328 × 2560 takes a core about 3 s.
        size: "vendor" for each machine's own, or (rows, columns) for all.
        scale: of the vendor's sizes: 0.1 makes 3328 × 2560 into 333 × 256.
        transfer_syntax_uids: None for each machine's own, or those that machines take in turn.
        positive_share: of the breasts, 0 to 1; above 0 there is at least one.
        nuisance_share: of the images that carry more than a label (`draw_nuisances`), 0 to 1.
        noise: of `phantom`.
        distinct: patients that are truly drawn; the others are hard links to their files (copies
            where the file system has no links), with ids and table rows of their own. A linked
            file's header has the PatientID and UIDs of the first. None draws all.
        lesion_kinds: of `lesions.KINDS`, drawn by breast in equal shares; calcifications are not
            seen where a pixel is many times their 0.2 to 0.6 mm.
        lesion_contrast: lowest and highest of `phantom`'s, drawn by breast, above 0, to 2.5;
            calcifications have twice as much.
        age_gap: years by which patients with cancer are older in the mean, -30 to 30. With 0 no
            column that is known before the biopsy tells cancer from none.
        on_image: called with (images drawn, images to draw) after each.

    Returns:
        The path of train.csv.

    Raises:
        ConfigError: a setting out of its range, a folder in use.
        WorkerError: a worker process died.
    """
    target = Path(folder).absolute()
    _check(
        patients=patients,
        size=size,
        scale=scale,
        transfer_syntax_uids=transfer_syntax_uids,
        positive_share=positive_share,
        nuisance_share=nuisance_share,
        distinct=distinct,
        lesion_kinds=lesion_kinds,
        lesion_contrast=lesion_contrast,
        age_gap=age_gap,
    )
    rows = make_plan(
        patients=patients,
        seed=seed,
        positive_share=positive_share,
        nuisance_share=nuisance_share,
        distinct=min(distinct or patients, patients),
        lesion_kinds=lesion_kinds,
        lesion_contrast=lesion_contrast,
        age_gap=age_gap,
    )
    with _filled(target) as partial:
        jobs: dict[Recipe, _Job] = {}
        links: list[tuple[Path, Path]] = []
        for row in rows:
            path = partial / "train_images" / row.patient_id / f"{row.image_id}.dcm"
            if row.recipe in jobs:
                links.append((jobs[row.recipe].path, path))
                continue
            uids = transfer_syntax_uids or [row.recipe.machine.transfer_syntax_uid]
            jobs[row.recipe] = _Job(
                path=path,
                recipe=row.recipe,
                row=row,
                size=None if size == "vendor" else size,
                scale=scale,
                noise=noise,
                transfer_syntax_uid=uids[row.recipe.machine_index % len(uids)],
            )
        for row in rows:
            (partial / "train_images" / row.patient_id).mkdir(parents=True, exist_ok=True)
        total = len(jobs)
        answers = run_jobs(
            "fastmammo.testing.archive:draw_file",
            list(jobs.values()),
            workers,
            None if on_image is None else lambda done: on_image(done, total),
        )
        found = dict(zip(jobs, answers, strict=True))
        for source, path in links:
            _link(source, path)
        _write_table(partial / "train.csv", list(rows[0].columns), (r.columns for r in rows))
        _write_table(partial / "lesions.csv", LESION_COLUMNS, _lesion_rows(rows, found))
    return target / "train.csv"


def draw_file(job: _Job) -> tuple[Lesion, ...]:
    """Draws one file and writes it; gives its lesions. A worker runs this."""
    recipe, machine = job.recipe, job.recipe.machine
    if job.size is None:
        rows, columns = (max(16, round(n * job.scale)) for n in machine.size[:2])
        field_height = machine.size.rows * machine.size.pixel_spacing
    else:
        (rows, columns), field_height = job.size, FIELD_HEIGHT
    image = phantom(
        rows,
        columns,
        seed=recipe.seed,
        view_position=recipe.geometry,
        laterality=recipe.laterality,
        noise=job.noise,
        field_height=field_height,
        density=recipe.density,
        lesions=recipe.lesions,
        lesion_contrast=recipe.lesion_contrast,
        lesion_seed=recipe.lesion_seed,
        nuisances=recipe.nuisances,
    )
    pixels, header = stored_by(machine, image)
    age = job.row.columns["age"]
    if age:
        header["attributes"]["PatientAge"] = f"{int(float(age)):03d}Y"
    family = SYNTAXES[job.transfer_syntax_uid].family
    write_dicom(
        pixels,
        path=job.path,
        transfer_syntax_uid=job.transfer_syntax_uid,
        laterality=recipe.laterality,
        view_position=recipe.view,
        patient_id=job.row.patient_id,
        seed=int(job.row.image_id),
        **header,
        **(machine.coding if family == "jpeg2000" else {}),
    )
    return image.lesions


def _check(
    *,
    patients: int,
    size: object,
    scale: float,
    transfer_syntax_uids: Sequence[str] | None,
    positive_share: float,
    nuisance_share: float,
    distinct: int | None,
    lesion_kinds: Sequence[str],
    lesion_contrast: tuple[float, float],
    age_gap: float,
) -> None:
    """Refuses settings out of their range."""
    uids = transfer_syntax_uids
    drawable = len(lesion_kinds) > 0 and set(lesion_kinds) <= set(KINDS)
    low, high = lesion_contrast
    known = uids is None or (len(uids) > 0 and all(uid in SYNTAXES for uid in uids))
    for name, value, good, wanted in (
        ("patients", patients, 1 <= patients <= 500_000, "1 to 500000"),
        ("size", size, size == "vendor" or isinstance(size, tuple), '"vendor" or (rows, columns)'),
        ("scale", scale, 0 < scale <= 2, "above 0, to 2"),
        ("transfer_syntax_uids", uids, known, f"None, or some of {list(SYNTAXES)}"),
        ("positive_share", positive_share, 0 <= positive_share <= 1, "0 to 1"),
        ("nuisance_share", nuisance_share, 0 <= nuisance_share <= 1, "0 to 1"),
        ("distinct", distinct, distinct is None or distinct >= 1, "None, or 1 or more"),
        ("lesion_kinds", lesion_kinds, drawable, f"some of {list(KINDS)}"),
        ("lesion_contrast", lesion_contrast, 0 < low <= high <= 2.5, "0 < low <= high <= 2.5"),
        ("age_gap", age_gap, -30 <= age_gap <= 30, "-30 to 30 years"),
    ):
        if not good:
            raise ConfigError(f"make_dataset: {name} {value!r}; wanted {wanted}")


@contextmanager
def _filled(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target that takes its name once it is filled."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial"
    with open(target.parent / f".{target.name}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"make_dataset: another process is filling {target}") from None
        # under the lock: another process may have filled it a moment ago
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"make_dataset: {target} is not empty; give a new folder")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        try:
            yield partial
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                os.unlink(lock.name)


def _link(source: Path, path: Path) -> None:
    """A hard link, or a copy where the file system has none or the file has too many."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _write_table(path: Path, names: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    """A CSV file with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _lesion_rows(
    rows: Sequence[Row], found: dict[Recipe, tuple[Lesion, ...]]
) -> Iterator[dict[str, Any]]:
    """A line for each lesion of each image, linked ones too."""
    for row in rows:
        for lesion in found[row.recipe]:
            values = (
                row.patient_id,
                row.image_id,
                row.recipe.laterality,
                row.recipe.view,
                lesion.kind,
                *lesion.box,
                round(lesion.contrast, 3),
            )
            yield dict(zip(LESION_COLUMNS, values, strict=True))
