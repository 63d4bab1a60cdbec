"""Takes a seed, gives what disturbs a mammogram besides the breast: the settings of all of it.

`overlays` draws them. Severities follow what archives hold: artificial borders, bright stripes,
high backgrounds, implants of low contrast and pacemakers are all known of the RSNA set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np

from fastmammo.errors import ConfigError

Side = Literal["top", "far", "bottom", "wall"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Sides of the frame: `wall` is the chest wall's, `far` the one the nipple points to."""


@dataclass(frozen=True)
class Nuisances:
    """What lies in the image besides the breast; the default is nothing.

    ============= ===== ============ ====================================================
    field         none  drawn        what
    ============= ===== ============ ====================================================
    lead_letters  False half         the view in lead on a clip: saturated, blurred, in the air
    markers       0     0 to 2       balls of lead of 2 mm taped on the skin, first at the nipple
    paddle        0     0.3 to 1     compression paddle: fills with 0.03 and draws edges of 0.17
    implant       0     0.2 to 1     half ellipse at the wall: brightness 0.45 (saline) to 1
    pacemaker     False rare         case, connector and lead below the collar bone; MLO alone
    air           0     0.03 to 0.10 brightness of air that is not suppressed, with quantum noise
    air_slope     0     0 to 0.5     its rise from top to bottom, relative
    padding       0     0 or to 0.3  constant brightness of suppressed air and of what is hidden
    collimation   0     4 to 16      mm hidden by the collimator along `collimation_sides`
    border        0     1 to 8       mm of film border along `border_sides`, white, uneven by 2 %
    stripe        0     0.5 to 4     mm of bright stripe along `stripe_side`, 0.85 and falling off
    ============= ===== ============ ====================================================

    Brightness is relative: 1 is the most that the stored bits hold, fat is at about 0.2. With
    air, nothing is suppressed: padding is then only what the collimator hides. What collimator,
    border and stripe cover is not in the true mask; an implant or a pacemaker is part of it.
    """

    lead_letters: bool = False
    markers: int = 0
    paddle: float = 0.0
    implant: float = 0.0
    pacemaker: bool = False
    air: float = 0.0
    air_slope: float = 0.0
    padding: float = 0.0
    collimation: float = 0.0
    collimation_sides: tuple[Side, ...] = ("top", "bottom", "far")
    border: float = 0.0
    border_sides: tuple[Side, ...] = SIDES
    stripe: float = 0.0
    stripe_side: Side = "wall"

    def check(self) -> None:
        """Refuses settings out of their range.

        Raises:
            ConfigError: which, and what was wanted.
        """
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ConfigError(f"Nuisances: {name} {value!r}; wanted 0 to {most}")
        for name in ("collimation_sides", "border_sides", "stripe_side"):
            value = getattr(self, name)
            sides = (value,) if isinstance(value, str) else value
            if not set(sides) <= set(SIDES):
                raise ConfigError(f"Nuisances: {name} {value!r}; wanted of {list(SIDES)}")

    @property
    def names(self) -> tuple[str, ...]:
        """What there is, by field name: for tables and file names."""
        skip = {"collimation_sides", "border_sides", "stripe_side", "air_slope"}
        return tuple(f.name for f in fields(self) if f.name not in skip and getattr(self, f.name))


_MOST = {
    "markers": 8,
    "paddle": 1.0,
    "implant": 1.0,
    "air": 0.15,
    "air_slope": 1.0,
    "padding": 0.5,
    "collimation": 25.0,
    "border": 15.0,
    "stripe": 8.0,
}

NONE = Nuisances()


def draw_nuisances(seed: int) -> Nuisances:
    """Nuisances at the severities of the table of `Nuisances`, as a mixed archive has them.

    Each is drawn on its own: lead letters 0.5, markers 0.3, a paddle 0.15, air 0.15, padding that
    is not zero 0.15, collimation 0.15, a border 0.12, a stripe 0.08, an implant 0.08, a pacemaker
    0.02. About one image in six has none.

    Args:
        seed: any non-negative integer; the same seed gives the same nuisances.
    """
    generator = np.random.default_rng([seed, 17])
    vary = generator.uniform
    (letters, markers, paddle, air, padding, collimation, border, stripe, implant, pacemaker) = (
        generator.random(10) < (0.5, 0.3, 0.15, 0.15, 0.15, 0.15, 0.12, 0.08, 0.08, 0.02)
    ).tolist()

    def some(candidates: tuple[Side, ...]) -> tuple[Side, ...]:
        """One to all of the sides, in their order."""
        count = int(generator.integers(1, len(candidates) + 1))
        chosen = generator.permutation(len(candidates))[:count]
        return tuple(candidates[index] for index in sorted(chosen.tolist()))

    found = Nuisances(lead_letters=letters, pacemaker=pacemaker)
    if markers:
        found = replace(found, markers=int(generator.integers(1, 3)))
    if paddle:
        found = replace(found, paddle=vary(0.3, 1.0))
    if implant:
        found = replace(found, implant=vary(0.2, 1.0))
    if air:
        found = replace(found, air=vary(0.03, 0.10), air_slope=vary(0.0, 0.5))
    if padding:
        high = generator.random() < 0.5
        found = replace(found, padding=vary(0.15, 0.30) if high else vary(0.005, 0.05))
    if collimation:
        sides = some(("top", "bottom", "far"))
        found = replace(found, collimation=vary(4.0, 16.0), collimation_sides=sides)
    if border:
        found = replace(found, border=vary(1.0, 8.0), border_sides=some(SIDES))
    if stripe:
        side: Side = "wall" if generator.random() < 0.7 else "top"
        found = replace(found, stripe=vary(0.5, 4.0), stripe_side=side)
    return found
