"""What `fastmammo inspect` tells of a file: header facts, codestream, and the plan for it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from fastmammo.decoding import FrameDecoder
from fastmammo.dicom import Codestream, Mammogram, read
from fastmammo.errors import FastMammoError
from fastmammo.preprocess import Preprocessor

if TYPE_CHECKING:
    from fastmammo.preprocess import Config

_HIDDEN = {"path", "frames", "notes", "transfer_syntax", "patient_id", "modality_lut", "voi_luts"}


def facts(path: str, config: Config, *, picture: str | None = None) -> dict[str, Any]:
    """Return what is known of a file as JSON-able values; "error" says why no more is known.

    Patient ID is left out: the output of `inspect` is made to be pasted into reports.
    """
    found: dict[str, Any] = {"path": path}
    try:
        mammogram = read(path, frame=config.frame)
        found["header"] = _header(mammogram)
        codestream = mammogram.codestream(config.frame)
        found["codestream"] = _codestream(codestream)
        resolved, why = config.resolved_why()
        preprocessor = Preprocessor(resolved, workers=1)
        device = resolved.device
        decoder = FrameDecoder(
            mammogram,
            device=device,
            backend=config.backend,
            frame=config.frame,
            strict=config.strict,
        )
        prepared = preprocessor.prepare(mammogram)
        found["plan"] = {
            "device": device,
            "device_reason": why,
            "decoder": prepared.record["decoder"],
            "codec_levels_that_serve": decoder.codec_levels,
            "level": prepared.geometry.level,
            "roi_level": prepared.record["roi_level"],
            "window": prepared.voi.rule,
            "inverted": prepared.voi.inverted,
            "box": list(prepared.geometry.box),
            "output": list(prepared.geometry.size),
            "placed": list(prepared.geometry.placed),
            "mirrored": prepared.geometry.mirrored,
            "laterality_by_content": prepared.roi.laterality,
            "otsu_threshold": prepared.roi.threshold,
            "breast_share_of_frame": round(float(prepared.roi.area_share), 4),
            "flags": list(prepared.flags),
        }
        found["notes"] = [*mammogram.notes, *decoder.notes, *prepared.voi.notes]
        if device != "cpu":  # the GPU may have failed on the frame only when it decoded it
            found["notes"] = [note for note in str(prepared.record["notes"]).split("|") if note]
        found["seconds"] = {k: round(v, 4) for k, v in prepared.seconds.items()}
        if picture:
            from fastmammo.report.pictures import explain

            explain(prepared, picture, frame=config.frame)
            found["picture"] = picture
    except (FastMammoError, OSError) as error:
        found["error"] = str(error)
        found["error_kind"] = type(error).__name__
    return found


def text(found: dict[str, Any]) -> str:
    """Return the facts as indented lines for a terminal."""
    lines = [found["path"]]
    for section in ("header", "codestream", "plan", "seconds"):
        if section in found:
            lines.append(f"  {section}")
            for name, value in found[section].items():
                if value is not None and str(value) not in ("", "[]", "()"):
                    lines.append(f"    {name.replace('_', ' ')}: {_shown(value)}")
    for note in found.get("notes", ()):
        lines.append(f"  note: {note}")
    if "picture" in found:
        lines.append(f"  picture: {found['picture']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _header(mammogram: Mammogram) -> dict[str, Any]:
    header: dict[str, Any] = {"transfer_syntax": str(mammogram.transfer_syntax)}
    for field in dataclasses.fields(mammogram):
        if field.name not in _HIDDEN:
            header[field.name] = getattr(mammogram, field.name)
    header["modality_lut"] = _table(mammogram.modality_lut)
    header["voi_luts"] = [_table(lut) for lut in mammogram.voi_luts]
    header["spacing_mm"] = mammogram.spacing_mm
    return header


def _table(lut: Any) -> dict[str, Any] | None:
    if lut is None:
        return None
    return {
        "entries": len(lut.data),
        "first_value": lut.first_value,
        "bits": lut.bits,
        "explanation": lut.explanation,
    }


def _codestream(codestream: Codestream) -> dict[str, Any]:
    """Return the fields that mean something for the codestream's format."""
    shown = ["format", "rows", "columns", "precision", "signed", "length", "reversible"]
    if codestream.format in ("jpeg2000", "htj2k"):
        shown += ["boxed", "tiles", "levels", "wavelet", "progression", "layers", "codeblock"]
        shown += ["styles", "origin", "region_of_interest"]
    elif codestream.format == "jpeg-lossless":
        shown += ["process", "predictor", "point_transform", "restart_interval"]
    elif codestream.format == "jpeg-ls":
        shown += ["near", "restart_interval"]
    elif codestream.format == "jpeg":
        shown += ["process", "restart_interval"]
    return {name: getattr(codestream, name) for name in shown}
