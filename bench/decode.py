"""How long does each backend take to decode one mammogram, by transfer syntax and level?

    python bench/decode.py [--rows 3328] [--columns 2560] [--noises 1 2] [--rounds 7]
                           [--syntaxes UID ...] [--save]

One phantom in each syntax, lossless JPEG 2000 at each noise; one thread; the bytes in memory. Every
backend of the package's own table that decodes on the CPU takes part; what lossless ones give is
compared with the pixels, and their levels with the integer 5/3 transform of the pixels, before
anything is timed. Each level is decoded alone; "3, then 1" is what `convert` does: the small level
for the breast, then the output's. All take turns in every round, whatever their syntax.
Ctrl-C ends it with what was measured, and saves nothing.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
from arguments import Help, positive, whole
from common import end_early, interleaved, machine, save, say, script

from fastmammo.decoding import BACKENDS, FrameDecoder
from fastmammo.dicom import SYNTAXES, read
from fastmammo.errors import FastMammoError
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.dicom import Mammogram
    from fastmammo.testing import Phantom

    Ways = dict[tuple[str, tuple[int, ...]], Callable[[], object]]
    """(backend, levels in order) → what decodes them, with a decoder that knows nothing yet."""

JPEG2000 = "1.2.840.10008.1.2.4.90"
LEVELS = (0, 1, 2, 3)
STEPS = (3, 1)
"""Of a decoder that goes on from a coarser level."""


def written(made: Phantom, uid: str) -> Mammogram:
    """Return the phantom in one syntax: 12 bits, or 8 where that is all that the syntax holds."""
    bits = 8 if uid.endswith(".50") else 12
    values = (made.pixels >> 4).astype(np.uint8) if bits == 8 else made.pixels
    return read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits))


def references(made: Phantom) -> dict[int, np.ndarray]:
    """Return what each level is to hold: the integer 5/3 transform of the pixels."""
    decoder = FrameDecoder(written(made, "1.2.840.10008.1.2.1"))
    return {level: decoder.at(level) for level in LEVELS}


def ways(m: Mammogram, wanted: dict[int, np.ndarray]) -> tuple[Ways, dict[str, str]]:
    """Return the ways to decode one file, compared; and why other backends do not.

    Args:
        wanted: by level what a lossless syntax must give.
    """
    found: Ways = {}
    refused: dict[str, str] = {}
    raw = m.codestream().format == "raw"  # its levels are the integer reduction itself
    for name, backend in BACKENDS.items():
        if backend.DEVICE != "cpu" or m.codestream().format not in backend.FORMATS:
            continue
        try:
            decoder = FrameDecoder(m, backend=name)
            decoder.at(0)
        except FastMammoError as error:
            refused[name] = " ".join(str(error).split())
            continue
        own = LEVELS if raw else LEVELS[: decoder.codec_levels + 1]
        orders = [(level,) for level in own]
        if decoder.incremental and max(STEPS) in own:
            orders.append(STEPS)
        for levels in orders:

            def run(name: str = name, levels: tuple[int, ...] = levels) -> np.ndarray:
                decoder = FrameDecoder(m, backend=name)
                return [decoder.at(level) for level in levels][-1]

            if m.transfer_syntax.lossless and not np.array_equal(run(), wanted[levels[-1]]):
                raise SystemExit(f"{m.transfer_syntax}: {name} differs at level {levels[-1]}")
            found[name, levels] = run
    return found, refused


def label(backend: str, levels: tuple[int, ...]) -> str:
    """Return a way's name: "numba r=3, then 1"."""
    return f"{backend} r={', then '.join(map(str, levels))}"


def measure(
    rows: int, columns: int, noises: list[float], rounds: int, uids: list[str]
) -> dict[str, Any]:
    """Decode every file in every way and return the times."""
    frames: list[dict[str, Any]] = []
    runs: dict[str, Callable[[], object]] = {}
    parts: list[tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]] = []
    for noise in noises:
        made = phantom(rows, columns, seed=1, noise=noise)
        breast = int(made.mask.sum())
        wanted = references(made)
        for uid in uids:
            if noise != noises[0] and uid != JPEG2000:
                continue
            frame: dict[str, Any] = {"uid": uid, "name": SYNTAXES[uid].name, "noise": noise}
            try:
                m = written(made, uid)
            except FastMammoError as error:
                frames.append({**frame, "not_written": " ".join(str(error).split()), "ways": []})
                continue
            found, refused = ways(m, wanted)
            say(f"{frame['name']}, noise {noise:g}: {len(found)} ways, compared")
            size = len(m.frame(0).data)
            frame["family"] = m.transfer_syntax.family
            frame["megabytes"] = round(size / 1e6, 3)
            frame["bits_per_breast_pixel"] = round(size * 8 / breast, 2)
            frame["refused"] = refused
            frames.append(frame)
            parts.append((frame, list(found)))
            runs |= {f"{len(frames)} {label(*way)}": run for way, run in found.items()}
    times, ended = interleaved(runs, rounds)
    keys = iter(runs)
    for frame, listed in parts:
        timed = [(way, times.get(next(keys))) for way in listed]
        frame["ways"] = [way_figures(*way, own, rows * columns) for way, own in timed if own]
    return {
        **({"ended": True} if ended else {}),
        "machine": machine(),
        "rounds": rounds,
        "shape": [rows, columns],
        "frames": frames,
    }


def way_figures(
    backend: str, levels: tuple[int, ...], times: dict[str, float], pixels: int
) -> dict[str, Any]:
    """Return the figures of one way; megapixels are the full frame's, whatever the level."""
    rate = pixels / 1e3 / max(times["median_ms"], 1e-3)
    return {
        "backend": backend,
        "levels": list(levels),
        **times,
        "megapixels_per_second": round(rate, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print every way with its quartiles."""
    for frame in result["frames"]:
        if "not_written" in frame:
            print(f"{frame['name']}: cannot be written here: {frame['not_written']}")
            continue
        print(
            f"{frame['name']}, noise {frame['noise']:g}: {frame['megabytes']} MB, "
            f"{frame['bits_per_breast_pixel']} bits a breast pixel"
        )
        for way in frame["ways"]:
            print(
                f"  {label(way['backend'], way['levels']):<28} {way['median_ms']:8.2f} ms "
                f"({way['lower_ms']:.2f} to {way['upper_ms']:.2f}), "
                f"{way['megapixels_per_second']:.0f} MP/s"
            )
        for name, reason in frame["refused"].items():
            print(f"  {name:<28} {reason[:120]}")


def table(result: dict[str, Any]) -> str:
    """Return milliseconds by syntax, backend and level in Markdown."""
    from table import machine as described
    from table import table as markdown

    steps = ", then ".join(map(str, STEPS))
    heads = ["transfer syntax", "bits a breast pixel", "decoder"]
    heads += [*(f"level {level}" for level in LEVELS), f"levels {steps}", "MP/s, level 0"]
    rows = []
    seen: set[str] = set()
    for frame in result["frames"]:
        ways = frame["ways"]
        if ways and frame["family"] == "native":
            if "native" in seen:
                continue  # four uncompressed syntaxes differ in their headers alone
            seen.add("native")
            frame = {**frame, "name": "uncompressed"}
        for backend in dict.fromkeys(way["backend"] for way in ways):
            own = {tuple(way["levels"]): way for way in ways if way["backend"] == backend}
            cells = [_cell(own.get((level,))) for level in LEVELS]
            full = own[(0,)]["megapixels_per_second"]
            facts = [frame["name"], f"{frame['bits_per_breast_pixel']:.1f}", backend]
            rows.append([*facts, *cells, _cell(own.get(STEPS)), _rate(full, frame)])
    height, width = result["shape"]
    return "\n".join(
        [
            *markdown(heads, rows),
            "",
            f"Milliseconds, median of {result['rounds']}, {height}x{width}, one thread. A dash: no "
            "such level in the decoder; it is then made of the frame in full, as that of "
            f"uncompressed pixels is; {described(result)}; `python bench/decode.py --save`.",
        ]
    )


def _cell(way: dict[str, Any] | None) -> str:
    return "–" if way is None else f"{way['median_ms']:.1f}"


def _rate(rate: float, frame: dict[str, Any]) -> str:
    # uncompressed pixels are a view of the file's bytes: nothing is decoded
    return "–" if frame["family"] == "native" else f"{rate:.0f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="transfer syntaxes:\n"
        + "\n".join(f"  {uid:<24} {each.name}" for uid, each in SYNTAXES.items()),
        formatter_class=Help,
    )
    parser.add_argument("--rows", type=whole, default=3328, help="of the phantom")
    parser.add_argument("--columns", type=whole, default=2560, help="of the phantom")
    parser.add_argument(
        "--noises",
        type=positive,
        nargs="+",
        default=[1.0, 2.0],
        help="of the phantom; others than the first: JPEG 2000 alone",
    )
    parser.add_argument("--rounds", type=whole, default=7, help="after one that warms up")
    parser.add_argument(
        "--syntaxes",
        nargs="+",
        metavar="UID",
        help="of the list below (default: all)",
    )
    parser.add_argument("--save", action="store_true", help="write bench/results/decode.json")
    options = parser.parse_args(arguments)
    uids = options.syntaxes or list(SYNTAXES)
    if unknown := [uid for uid in uids if uid not in SYNTAXES]:
        parser.error(f"--syntaxes: {', '.join(unknown)} are none; there are {', '.join(SYNTAXES)}")
    say(f"{len(uids)} transfer syntaxes: phantoms are written and compared first")
    result = measure(options.rows, options.columns, options.noises, options.rounds, uids)
    show(result)
    if result.pop("ended", False):
        end_early(any(frame["ways"] for frame in result["frames"]))
    if options.save:
        print(save("decode", result))


if __name__ == "__main__":
    script(main)
