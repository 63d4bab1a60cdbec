"""Figures of one set → what tells that the machine did other work meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

LEAST_CPU_SHARE = 0.8
"""Of the cores that they may use: warm processes that only compute use nearly all of it."""
MOST_CHANGE = 0.25
"""Of the yardstick's rate from round to round: it does the same work each time."""
BEYOND = 1.05
"""The share of its decoder alone from which on that is no limit of the whole way."""


def disturbed(
    figures: dict[str, Any], computing: Collection[str], base: str | None, possible: float
) -> list[str]:
    """Return what speaks against a quiet machine, in words.

    Args:
        computing: contenders that are warm and wait for nothing but the CPU.
        base: the contender that the ratios are to.
        possible: share of the cores that as many processes can use.
    """
    found = []
    shares = {
        name: figures[name]["cpu_share"]["median"] / possible
        for name in computing
        if name in figures
    }
    if low := {name: share for name, share in shares.items() if share < LEAST_CPU_SHARE}:
        least = min(low, key=lambda name: low[name])
        found.append(
            f"{len(low)} of {len(shares)} warm contenders had less than {LEAST_CPU_SHARE:.0%} of "
            f"their cores' time ({least}: {low[least]:.0%})"
        )
    rates = figures[base]["rates"] if base in figures else []
    if len(rates) > 1 and (change := max(rates) / min(rates) - 1) > MOST_CHANGE:
        found.append(f"{base} changed by {change:.0%} from round to round")
    return found


def beyond(each: dict[str, Any]) -> bool:
    """Return whether a contender's whole way was faster than its decoder alone."""
    share = each["share_of_decode_only"]
    return share is not None and share["median"] > BEYOND
