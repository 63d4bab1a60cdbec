"""Takes a text, gives its pixels: the burnt-in label of a mammogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GLYPHS = {
    "C": " ### #   ##    #    #    #   # ### ",
    "L": "#    #    #    #    #    #    #####",
    "M": "#   ### ### # ## # ##   ##   ##   #",
    "O": " ### #   ##   ##   ##   ##   # ### ",
    "R": "#### #   ##   ##### # #  #  # #   #",
    " ": " " * 35,
}


def draw(text: str, scale: int) -> NDArray[np.bool_]:
    """The text as a bitmap, 7·scale rows high, letters of 5 by 7 with a gap of 1."""
    letters = [np.array(list(_GLYPHS[letter])).reshape(7, 5) == "#" for letter in text.upper()]
    spaced = [np.pad(letter, ((0, 0), (0, 1))) for letter in letters]
    return np.kron(np.hstack(spaced)[:, :-1], np.ones((scale, scale), dtype=np.bool_))
