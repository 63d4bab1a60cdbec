"""Read a mammogram's header, decode its stored values, and a smaller version of them.

python examples/read_and_decode.py view.dcm
"""

from __future__ import annotations

import sys

import fastmammo


def main(path: str) -> None:
    mammogram = fastmammo.read(path)
    print(mammogram)
    codestream = mammogram.codestream()
    print(f"{codestream.format}, {codestream.precision} bits, {codestream.levels} wavelet levels")

    pixels = fastmammo.decode(mammogram)
    print("stored values:", pixels.dtype, pixels.shape, pixels.min(), pixels.max())

    small = fastmammo.decode(mammogram, level=2)  # a quarter of the size, a fraction of the time
    print("at 1/4:", small.dtype, small.shape)

    display = fastmammo.apply_voi(pixels, mammogram, bits=8)
    print("windowed:", display.dtype, display.min(), display.max())


if __name__ == "__main__":
    main(sys.argv[1])
