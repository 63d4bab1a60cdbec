"""Takes what is known of a finished image, gives the columns that its row in a manifest carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.preprocess.geometry import EDGES

if TYPE_CHECKING:
    from fastmammo.decoding import FrameDecoder
    from fastmammo.preprocess.geometry import Geometry
    from fastmammo.preprocess.roi import Roi
    from fastmammo.preprocess.voi import VoiTable

RECORD_COLUMNS = (
    *("sop_instance_uid", "modality", "laterality", "laterality_content", "view_position"),
    *("view_modifiers", "manufacturer", "presentation_intent_type", "photometric_interpretation"),
    *("rows", "columns", "bits_stored", "transfer_syntax_uid", "precision", "decoder", "level"),
    *("roi_level", "window_rule", "threshold", "area_share", "mirrored"),
    *(f"{part}_{edge}" for part in ("box", "placed") for edge in EDGES),
    *("row_spacing_mm", "column_spacing_mm", "flags", "notes"),
)
"""The keys of `Prepared.record`, in order: a manifest has these columns."""

STAGES = ("read", "decode", "roi", "voi", "resample")
"""The keys of `Prepared.seconds`, in order."""


def make_record(
    decoder: FrameDecoder,
    roi: Roi,
    voi: VoiTable,
    geometry: Geometry,
    flags: tuple[str, ...],
    small_level: int,
) -> dict[str, str | int | float]:
    """Return what is known of a finished image: `RECORD_COLUMNS` and their values."""
    m, c = decoder.mammogram, decoder.codestream
    spacing = geometry.output_spacing_mm or ("", "")
    record: dict[str, str | int | float] = {
        "sop_instance_uid": m.sop_instance_uid,
        "modality": m.modality,
        "laterality": m.image_laterality,
        "laterality_content": roi.laterality,
        "view_position": m.view_position,
        "view_modifiers": "|".join(m.view_modifiers),
        "manufacturer": m.manufacturer,
        "presentation_intent_type": m.presentation_intent_type,
        "photometric_interpretation": m.photometric_interpretation,
        "rows": m.rows,
        "columns": m.columns,
        "bits_stored": m.bits_stored,
        "transfer_syntax_uid": m.transfer_syntax_uid,
        "precision": c.precision,
        "decoder": "+".join(decoder.used),
        "level": geometry.level,
        "roi_level": small_level,
        "window_rule": voi.rule,
        "threshold": roi.threshold,
        "area_share": round(float(roi.area_share), 6),
        "mirrored": int(geometry.mirrored),
    }
    for name, box in (("box", geometry.box), ("placed", geometry.placed)):
        for edge, value in zip(EDGES, box, strict=True):
            record[f"{name}_{edge}"] = value if isinstance(value, int) else round(value, 6)
    record["row_spacing_mm"], record["column_spacing_mm"] = (
        round(v, 6) if isinstance(v, float) else v for v in spacing
    )
    record["flags"] = "|".join(flags)
    record["notes"] = "|".join((*m.notes, *decoder.notes, *voi.notes))
    return record
