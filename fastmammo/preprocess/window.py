"""Takes a wish and a header, gives the window or VOI LUT that counts, and by which rule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmammo.dicom.mammogram import LookupTable, Window
from fastmammo.errors import ConfigError, WindowError

if TYPE_CHECKING:
    from fastmammo.dicom.mammogram import Mammogram

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""The values of VOI LUT Function (0028,1056)."""

_WIDTHS = "WIDTH is at least 1 for LINEAR, above 0 for the others"
_KINDS = ("auto", "none", "minmax", "given", "window", "lut", "explanation")
_ALLOWED = (
    "allowed are auto, none, minmax, CENTER,WIDTH[,FUNCTION], window:INDEX, lut:INDEX, "
    f"explanation:TEXT (FUNCTION is one of {', '.join(FUNCTIONS)}; {_WIDTHS}; INDEX counts from 0)"
)


@dataclass(frozen=True)
class WindowChoice:
    """Which window a user asks for; `parse` reads it, `str` writes it back.

    auto: the file's first VOI LUT, else its first usable window, else as minmax.
    none: the whole range of stored values, after the modality step, without a window.
    minmax: from the darkest to the brightest value found in the image.
    CENTER,WIDTH[,FUNCTION]: this window, in modality units; LINEAR unless said.
    window:INDEX, lut:INDEX: that window or VOI LUT of the file, counted from 0.
    explanation:TEXT: the VOI LUT or window whose explanation is TEXT, whatever its case.
    """

    kind: str = "auto"
    """auto, none, minmax, given, window, lut or explanation."""
    index: int = 0
    explanation: str = ""
    window: Window | None = None
    """The window of kind "given"."""
    function: str = "LINEAR"
    """The VOI LUT Function of kind "given"."""

    def __post_init__(self) -> None:
        given = self.window is not None
        if self.kind not in _KINDS or (self.kind == "given") != given or self._impossible():
            raise ConfigError(f"window: got kind {self.kind!r} with {self.window}; {_ALLOWED}")

    def _impossible(self) -> bool:
        if self.window is None:
            return False
        return self.function not in FUNCTIONS or _impossible(self.window, self.function) != ""

    @classmethod
    def parse(cls, text: str | WindowChoice) -> WindowChoice:
        """Return the choice that `text` names.

        Raises:
            ConfigError: it names none, or a window that PS3.3 C.11.2.1.2 rules out.
        """
        if isinstance(text, WindowChoice):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"window: got {text!r}, wanted a string; {_ALLOWED}")
        stripped = text.strip()
        if stripped.lower() in ("auto", "none", "minmax"):
            return cls(stripped.lower())
        if item := re.fullmatch(r"(window|lut):\s*([0-9]{1,6})", stripped, re.IGNORECASE):
            return cls(item[1].lower(), index=int(item[2]))
        prefix, _, rest = stripped.partition(":")
        if prefix.lower() == "explanation" and rest.strip():
            return cls("explanation", explanation=rest.strip())
        center, _, rest = stripped.partition(",")
        width, _, function = rest.partition(",")
        function = function.strip().upper() or "LINEAR"
        try:
            window = Window(float(center), float(width))
        except ValueError:
            raise ConfigError(f"window: got {text!r}; {_ALLOWED}") from None
        if function not in FUNCTIONS:
            raise ConfigError(f"window: got {text!r}, no such function; {_ALLOWED}")
        if reason := _impossible(window, function):
            raise ConfigError(f"window: got {text!r}, {reason}; {_ALLOWED}")
        return cls("given", window=window, function=function)

    def __str__(self) -> str:
        if self.window is not None:
            text = f"{_number(self.window.center)},{_number(self.window.width)}"
            return text if self.function == "LINEAR" else f"{text},{self.function}"
        if self.kind == "explanation":
            return f"explanation:{self.explanation}"
        return f"{self.kind}:{self.index}" if self.kind in ("window", "lut") else self.kind


@dataclass(frozen=True)
class Formula:
    """A window with its VOI LUT Function (PS3.3 C.11.2.1.2 and .3)."""

    window: Window
    function: str


@dataclass(frozen=True)
class Ramp:
    """A straight line over the values found in the image, or over all that it could hold."""

    found: bool


def choose(
    choice: WindowChoice, m: Mammogram, *, found: bool, notes: list[str]
) -> tuple[str, LookupTable | Formula | Ramp]:
    """Return (the rule, what it gives) for a choice and a header.

    Args:
        choice: what the user asks for.
        m: the header facts.
        found: whether the extremes of the image are known.
        notes: takes a sentence for everything that had to be settled.

    Raises:
        WindowError: the window or VOI LUT asked for is not in the file, or is impossible.
        ConfigError: minmax without known extremes.
    """
    if choice.kind == "none":
        return "none", Ramp(found=False)
    if choice.kind == "minmax":
        if not found:
            raise ConfigError(
                "window: got minmax without extremes, wanted the darkest and brightest stored "
                "value of the image; give them, or choose another window"
            )
        return "min-max", Ramp(found=True)
    if choice.window is not None:
        return f"given {choice}", Formula(choice.window, choice.function)
    function = _function(m, notes)
    _compare_counts(m, notes)
    if choice.kind == "auto":
        return _auto(m, function, found, notes)
    return _item(choice, m, function)


def _auto(
    m: Mammogram, function: str, found: bool, notes: list[str]
) -> tuple[str, LookupTable | Formula | Ramp]:
    """The first VOI LUT, as pydicom prefers it, else the first possible window, else min-max."""
    if m.voi_luts:
        rule = "VOI LUT 0: preferred to the windows" if m.windows else "VOI LUT 0"
        return rule, m.voi_luts[0]
    reasons: list[str] = []
    for index, window in enumerate(m.windows):
        reason = _impossible(window, function)
        if not reason:
            skipped = f": {'; '.join(reasons)}" if reasons else ""
            rule = f"window {index} {function}{skipped}"
            return rule, Formula(window, function)
        reasons.append(f"window {index} impossible ({reason})")
        notes.append(f"window {index} is impossible for {function}: {reason}")
    why = "; ".join(reasons) or "no window in the file"
    return f"{'min-max' if found else 'none'}: {why}", Ramp(found=found)


def _item(choice: WindowChoice, m: Mammogram, function: str) -> tuple[str, LookupTable | Formula]:
    """The VOI LUT or window that was asked for by index or explanation."""
    kind, index = choice.kind, choice.index
    if kind == "explanation":
        names = {
            "lut": [lut.explanation for lut in m.voi_luts],
            "window": [window.explanation for window in m.windows],
        }
        wanted = choice.explanation.casefold()
        for each, texts in names.items():
            folded = [text.strip().casefold() for text in texts]
            if wanted in folded:
                kind, index = each, folded.index(wanted)
                break
        else:
            raise WindowError(
                f"{choice} is not in {m.path or 'the image'}: its VOI LUTs are explained as "
                f"{names['lut']}, its windows as {names['window']}; ask for one of these, or auto"
            )
    items: tuple[LookupTable | Window, ...] = m.voi_luts if kind == "lut" else m.windows
    if index >= len(items):
        raise WindowError(
            f"{choice} is not in {m.path or 'the image'}: it has {len(m.windows)} window(s) and "
            f"{len(m.voi_luts)} VOI LUT(s), counted from 0; ask for one of these, or auto"
        )
    item = items[index]
    if isinstance(item, LookupTable):
        return f"VOI LUT {index}", item
    if reason := _impossible(item, function):
        raise WindowError(
            f"{choice} of {m.path or 'the image'} is impossible for {function}: {reason} "
            f"({_WIDTHS}); ask for another window, or auto"
        )
    return f"window {index} {function}", Formula(item, function)


def _impossible(window: Window, function: str) -> str:
    """Return why no image can be made with a window, or "" (PS3.3 C.11.2.1.2.1, C.11.2.1.3)."""
    center, width = window.center, window.width
    if not (math.isfinite(center) and math.isfinite(width)):
        return f"center {_number(center)}, width {_number(width)}"
    if width <= 0 or (function == "LINEAR" and width < 1):
        return f"width {_number(width)}"
    return ""


def _function(m: Mammogram, notes: list[str]) -> str:
    name = m.voi_lut_function.strip().upper()
    if name and name not in FUNCTIONS:
        notes.append(
            f"VOI LUT Function (0028,1056) is {name!r}, none of {', '.join(FUNCTIONS)}: LINEAR"
        )
    return name if name in FUNCTIONS else "LINEAR"


def _compare_counts(m: Mammogram, notes: list[str]) -> None:
    centers, widths = len(m.window_center), len(m.window_width)
    if centers != widths:
        notes.append(
            f"Window Center (0028,1050) has {centers} value(s), Window Width (0028,1051) has "
            f"{widths}: {len(m.windows)} window(s) made of them"
        )


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
