"""What benchmarks take on the command line: text → numbers, or an error that names the option."""

from __future__ import annotations

import argparse
import math


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Tells the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default is None:  # a switch, or told in its own words
            return action.help
        if isinstance(action.default, (list, tuple)):
            mark = "x" if action.type is pair else " "
            return f"{action.help} (default: {mark.join(map(str, action.default))})"
        return super()._get_help_string(action)


def whole(text: str) -> int:
    """Return a whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted 1 or more, a whole number")
    return number


def positive(text: str) -> float:
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a number above 0")
    return number


def pair(text: str) -> tuple[int, int]:
    """Return (rows, columns) of "3328x2560"."""
    try:
        rows, columns = (int(part) for part in text.lower().split("x"))
    except ValueError:
        rows = columns = 0
    if min(rows, columns) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted rows x columns, as 3328x2560")
    return rows, columns
