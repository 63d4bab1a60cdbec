"""Takes a folder and a count, fills it with phantoms as an archive of screening holds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastmammo.dicom.syntax import SYNTAXES
from fastmammo.errors import ConfigError
from fastmammo.testing.encode import can_encode
from fastmammo.testing.phantom import Laterality, ViewPosition, phantom
from fastmammo.testing.write import write_dicom

if TYPE_CHECKING:
    from collections.abc import Sequence

VIEWS: tuple[tuple[Laterality, ViewPosition], ...] = (
    ("L", "CC"),
    ("R", "CC"),
    ("L", "MLO"),
    ("R", "MLO"),
)

LOSSLESS = tuple(uid for uid, syntax in SYNTAXES.items() if syntax.lossless)


def write_dataset(
    folder: str | Path,
    *,
    count: int = 8,
    rows: int = 1664,
    columns: int = 1280,
    seed: int = 0,
    transfer_syntax_uids: Sequence[str] | None = None,
) -> list[Path]:
    """Writes `count` phantoms to `folder/<patient_id>/<image_id>.dcm`, four views a patient.

    Every second patient comes from another "vendor": MONOCHROME1 with a SIGMOID window in place of
    MONOCHROME2 with a LINEAR one. The syntaxes are taken in turn. The same arguments give the same
    files.

    Args:
        folder: made where it does not exist.
        count: files to write.
        rows, columns: of each image.
        seed: of the first patient; the others count up from it.
        transfer_syntax_uids: to choose from; None for every lossless one that can be written here.

    Returns:
        The paths, in the order of patients and views.

    Raises:
        ConfigError: a setting out of its range.
    """
    if transfer_syntax_uids is None:
        transfer_syntax_uids = [uid for uid in LOSSLESS if can_encode(uid)]
    if count < 0 or not transfer_syntax_uids:
        raise ConfigError(
            f"write_dataset: count {count}, {len(transfer_syntax_uids)} transfer_syntax_uids; "
            "wanted a count of 0 or more and at least one syntax"
        )
    paths = []
    for index in range(count):
        patient, view = divmod(index, len(VIEWS))
        laterality, view_position = VIEWS[view]
        image = phantom(
            rows,
            columns,
            seed=seed + patient,
            laterality=laterality,
            view_position=view_position,
        )
        patient_id = str(10001 + seed + patient)
        path = Path(folder) / patient_id / f"{(seed + patient) * 10 + view + 100000001}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        inverted = patient % 2 == 1
        photometric_interpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        # both windows show tissue alike: the second is the first, mirrored
        center = image.window_center
        write_dicom(
            image.stored(photometric_interpretation),
            path=path,
            transfer_syntax_uid=transfer_syntax_uids[index % len(transfer_syntax_uids)],
            bits_stored=image.bits_stored,
            photometric_interpretation=photometric_interpretation,
            window_center=(1 << image.bits_stored) - 1 - center if inverted else center,
            window_width=image.window_width,
            voi_lut_function="SIGMOID" if inverted else "LINEAR",
            laterality=laterality,
            view_position=view_position,
            patient_id=patient_id,
            seed=seed,
            pixel_spacing=image.pixel_spacing,
            attributes={"BurnedInAnnotation": "YES"} if image.label_box else None,
        )
        paths.append(path)
    return paths
