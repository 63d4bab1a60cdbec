"""How long does each backend take to decode one mammogram, by transfer syntax and level?

    python bench/decode.py [--rows 3328] [--columns 2560] [--rounds 5] [--save]

One phantom (lossless J2K at about 7 bits a breast pixel) in each syntax; one thread; the bytes in
memory. Outputs are compared before anything is timed. Contenders take turns in every round.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
from common import interleaved, machine, save

from fastmammo.decoding import BACKENDS, FrameDecoder
from fastmammo.dicom import SYNTAXES, read
from fastmammo.errors import FastMammoError
from fastmammo.testing import phantom, write_dicom

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = (0, 1, 2, 3)


def contenders(
    pixels: np.ndarray, uid: str
) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Return the ways to decode the phantom in one syntax, and facts of its file."""
    bits = 8 if uid.endswith(".50") else 12
    values = (pixels >> 4).astype(np.uint8) if bits == 8 else pixels
    m = read(write_dicom(values, transfer_syntax_uid=uid, bits_stored=bits))
    wanted: dict[int, np.ndarray] = {}
    found: dict[str, Callable[[], object]] = {}
    for name in BACKENDS:
        for level in LEVELS:

            def run(name: str = name, level: int = level) -> np.ndarray:
                return FrameDecoder(m, backend=name).at(level)

            try:
                decoded = run()
            except FastMammoError:
                continue
            if level and not FrameDecoder(m, backend=name).codec_levels:
                continue  # the frame in full, then the integer reduction: shown once, below
            reference = wanted.setdefault(level, decoded)
            if m.transfer_syntax.lossless and not np.array_equal(decoded, reference):
                raise SystemExit(f"{uid}: {name} differs at level {level}")
            found[f"{name} r={level}"] = run
    full = FrameDecoder(m).at(0)

    def reduce() -> object:
        decoder = FrameDecoder(m)
        decoder._levels[0] = full
        return decoder.at(1)

    found["integer 5/3 r=1, after decoding"] = reduce
    megabytes = len(m.frame(0).data) / 1e6
    return found, {"megabytes": round(megabytes, 3), "shape": list(values.shape)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3328)
    parser.add_argument("--columns", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write bench/results/decode.json")
    options = parser.parse_args(arguments)
    made = phantom(options.rows, options.columns, seed=1)
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "syntaxes": {}}
    breast = int(made.mask.sum())
    for uid, syntax in SYNTAXES.items():
        runs, facts = contenders(made.pixels, uid)
        times = interleaved(runs, options.rounds)
        facts["bits_per_breast_pixel"] = round(facts["megabytes"] * 8e6 / breast, 2)
        result["syntaxes"][uid] = {"name": syntax.name, **facts, "times": times}
        print(f"{syntax.name} ({facts['megabytes']} MB); in brackets: relative to the fastest r=0")
        fastest = min(t["median_ms"] for name, t in times.items() if name.endswith("r=0"))
        for name, t in times.items():
            print(f"  {name:<34} {t['median_ms']:8.1f} ms  ({t['median_ms'] / fastest:.2f})")
    if options.save:
        print(save("decode", result))


if __name__ == "__main__":
    main()
