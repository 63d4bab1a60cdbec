"""The frame and scan headers of JPEG (ITU-T T.81) and JPEG-LS (T.87) codestreams."""

from __future__ import annotations

from fastmammo.dicom.facts import Codestream, Format, u16
from fastmammo.errors import CorruptCodestreamError

_PROCESSES = {
    0xC0: "baseline",
    0xC1: "extended sequential",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC9: "extended sequential, arithmetic",
    0xCA: "progressive, arithmetic",
    0xCB: "lossless, arithmetic",
    0xF7: "JPEG-LS",
}


def read_jpeg(view: memoryview) -> Codestream:
    """Return what SOF, DRI and the first SOS say (T.81 B.2, T.87 C.2).

    Raises:
        CorruptCodestreamError: the headers break off or are impossible.
    """
    position, end = 2, len(view)
    frame: dict[str, int] | None = None
    process, restart = 0, 0
    try:
        while True:
            if view[position] != 0xFF:
                raise CorruptCodestreamError(
                    f"no marker at byte {position} of the JPEG header: {view[position]:02X}"
                )
            while view[position + 1] == 0xFF:  # fill bytes (T.81 B.1.1.2)
                position += 1
            marker = view[position + 1]
            position += 2
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:
                continue
            if marker == 0xD9:
                raise CorruptCodestreamError("the JPEG ends (EOI) before its scan begins")
            length = u16(view, position)
            if length < 2:
                raise CorruptCodestreamError(f"JPEG marker FF{marker:02X} with length {length}")
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                process = marker
                frame = {
                    "precision": view[position + 2],
                    "rows": u16(view, position + 3),
                    "columns": u16(view, position + 5),
                    "components": view[position + 7],
                }
            elif marker == 0xDD:
                restart = u16(view, position + 2)
            elif marker == 0xDA:
                break
            position += length
        if frame is None:
            raise CorruptCodestreamError("the JPEG has a scan (SOS) but no frame header (SOF)")
        scan = position + 3 + 2 * view[position + 2]
        first, last, shift = view[scan], view[scan + 1], view[scan + 2] & 15
    except IndexError:
        raise CorruptCodestreamError(
            f"the JPEG header breaks off: {end} bytes; the file may be truncated"
        ) from None
    del last
    if process == 0xF7:
        kind: Format = "jpeg-ls"
    else:
        kind = "jpeg-lossless" if process in (0xC3, 0xCB) else "jpeg"
    return Codestream(
        format=kind,
        rows=frame["rows"],
        columns=frame["columns"],
        precision=frame["precision"],
        signed=False,
        components=frame["components"],
        length=end,
        # Entropy-coded data never holds FF D9: after FF comes 00 (T.81 F.1.2.3) or a 0 bit (T.87).
        complete=bytes(view[position:]).rfind(b"\xff\xd9") >= 0,
        process=_PROCESSES.get(process, f"SOF{process - 0xC0}"),
        predictor=first if kind == "jpeg-lossless" else 0,
        point_transform=shift if kind == "jpeg-lossless" else 0,
        near=first if kind == "jpeg-ls" else 0,
        restart_interval=restart,
    )
