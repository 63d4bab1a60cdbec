"""Typed look-ups in a pydicom data set: takes a keyword, gives a plain value, never an exception.

Real headers carry empty values, text where numbers belong, and values hidden in functional groups.
An unreadable value counts as absent and is noted, so that one bad tag costs only itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmammo.dicom.mammogram import LookupTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

_VIEWS = {  # PS3.16 CID 4014: code value (SNOMED CT, SNOMED RT) → View Position
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
    "399099002": "LMO",
    "R-10230": "LMO",
    "399196006": "FB",
    "R-10244": "FB",
    "399188001": "SIO",
    "R-102D0": "SIO",
    "441555000": "ISO",
    "399192008": "XCCL",
    "R-1024A": "XCCL",
    "399101009": "XCCM",
    "R-1024B": "XCCM",
}
VIEWS = tuple(dict.fromkeys(_VIEWS.values()))
"""The views of PS3.16 CID 4014, as View Position has them."""

_MODIFIERS = {  # PS3.16 CID 4015, by code: meanings are spelt in many ways, or left empty
    "399055006": "spot compression",
    "R-102D7": "spot compression",
    "399163009": "magnification",
    "R-102D6": "magnification",
    "399209000": "implant displaced",
    "R-102D5": "implant displaced",
    "399161006": "cleavage",
    "R-102D2": "cleavage",
    "399011000": "axillary tail",
    "R-102D1": "axillary tail",
    "442580003": "axillary tissue",
    "R-40AB2": "axillary tissue",
    "415670009": "rolled superior",
    "R-102C9": "rolled superior",
    "414493004": "rolled inferior",
    "R-102CA": "rolled inferior",
    "399197002": "rolled lateral",
    "R-102D3": "rolled lateral",
    "399226006": "rolled medial",
    "R-102D4": "rolled medial",
    "399110001": "tangential",
    "R-102C2": "tangential",
    "442581004": "nipple in profile",
    "R-40AB3": "nipple in profile",
    "441752004": "anterior compression",
    "P2-00161": "anterior compression",
    "442593008": "infra-mammary fold",
    "R-40ABE": "infra-mammary fold",
}
MODIFIERS = tuple(dict.fromkeys(_MODIFIERS.values()))
"""The view modifiers of PS3.16 CID 4015."""


_LEAST_SPACING_MM, _MOST_SPACING_MM = 1e-3, 100.0


class Attributes:
    """Look-ups in a data set and its functional groups; collects notes on what was unreadable."""

    def __init__(self, dataset: Dataset, frame: int = 0) -> None:
        self._dataset = dataset
        self._frame = frame
        self.notes: list[str] = []

    def raw(self, keyword: str) -> Any:
        """Return the element's value at the top level, or None."""
        return self._value(self._dataset, keyword)

    def deep(self, keyword: str) -> Any:
        """Return the value at the top level or else in the functional groups (PS3.3 C.7.6.16).

        Of per-frame groups those of the frame at hand count.
        """
        value = self.raw(keyword)
        if value is not None:
            return value
        for groups, item in (
            ("SharedFunctionalGroupsSequence", 0),
            ("PerFrameFunctionalGroupsSequence", self._frame),
        ):
            for macro in self._sequence(self._dataset, groups)[item : item + 1]:
                for name in macro.dir():
                    for inner in self._sequence(macro, name)[:1]:
                        value = self._value(inner, keyword) if hasattr(inner, "dir") else None
                        if value is not None:
                            return value
        return None

    def element(self, group: int, element: int) -> int | None:
        """Return a whole-number element by its tag, for repeating groups that have no keyword."""
        try:
            return int(self._dataset[group, element].value)
        except Exception:  # absent, empty, or whatever pydicom makes of damaged bytes
            return None

    def text(self, keyword: str) -> str:
        value = self.deep(keyword)
        return "" if value is None else str(value).strip()

    def number(self, keyword: str) -> float | None:
        values = self.numbers(keyword)
        return values[0] if values else None

    def integer(self, keyword: str) -> int | None:
        value = self.number(keyword)
        if value is None:
            return None
        if value != int(value):
            self.notes.append(f"{keyword} is {value}, not a whole number: ignored")
            return None
        return int(value)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        return tuple(self._numbers(self.deep(keyword), keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        value = self.deep(keyword)
        if value is None:
            return ()
        return tuple(str(v).strip() for v in _listed(value))

    def spacing(self, keyword: str) -> tuple[float, float] | None:
        values = self.numbers(keyword)
        if not values:
            return None
        if len(values) != 2 or min(values) <= 0:
            self.notes.append(f"{keyword} is {list(values)}, wanted two positive numbers: ignored")
            return None
        if not all(_LEAST_SPACING_MM <= value <= _MOST_SPACING_MM for value in values):
            self.notes.append(f"{keyword} is {list(values)} mm, no detector's: ignored")
            return None
        return values[0], values[1]

    def age_years(self) -> float | None:
        """Return Patient's Age (0010,1010) in years; PS3.5 6.2 gives the units D, W, M, Y."""
        text = self.text("PatientAge")
        units = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
        if len(text) < 2 or text[-1].upper() not in units or not text[:-1].isdecimal():
            return None
        return round(int(text[:-1]) / units[text[-1].upper()], 3)

    def image_laterality(self) -> str:
        """Return L, R, B or "": Image Laterality, else Laterality, else Frame Laterality."""
        named = ("ImageLaterality", "Laterality", "FrameLaterality")
        return next((text for each in named if (text := self.text(each))), "").upper()[:1]

    def presentation_intent_type(self) -> str:
        """Return Presentation Intent Type (0008,0068) in capitals."""
        return self.text("PresentationIntentType").upper()

    def view_position(self) -> str:
        """Return View Position (0018,5101), else the code of View Code Sequence (0054,0220)."""
        if text := self.text("ViewPosition"):
            return text.upper()
        for item in self._sequence(self._dataset, "ViewCodeSequence"):
            code = str(self._value(item, "CodeValue") or "")
            if code in _VIEWS:
                return _VIEWS[code]
            return str(self._value(item, "CodeMeaning") or "")
        return ""

    def view_modifiers(self) -> tuple[str, ...]:
        """Return the meanings of View Modifier Code Sequence (0054,0222), in lower case."""
        holders = [self._dataset, *self._sequence(self._dataset, "ViewCodeSequence")]
        names = []
        for holder in holders:
            for item in self._sequence(holder, "ViewModifierCodeSequence"):
                code = str(self._value(item, "CodeValue") or "")
                name = _MODIFIERS.get(code) or str(self._value(item, "CodeMeaning") or code)
                names.append(name.strip().lower())
        return tuple(names)

    def lookup_tables(self, sequence: str, *, signed: bool) -> tuple[LookupTable, ...]:
        """Return the usable items of a LUT sequence; unusable ones are noted and left out."""
        value = self.deep(sequence)
        tables = []
        for i, item in enumerate(value if hasattr(value, "__iter__") else ()):
            try:
                tables.append(_lookup_table(item, signed=signed))
            except Exception as error:  # pydicom converts values lazily: any of its errors
                self.notes.append(f"{sequence} item {i} ignored: {error}")
        return tuple(tables)

    def _sequence(self, dataset: Dataset, keyword: str) -> Sequence[Dataset]:
        value = self._value(dataset, keyword)
        return value if value is not None and hasattr(value, "__getitem__") else ()

    def _value(self, dataset: Dataset, keyword: str) -> Any:
        try:
            value = dataset.get(keyword)
        except Exception as error:  # pydicom converts values lazily and raises what the value asks
            self.notes.append(f"{keyword} is unreadable and ignored: {error}")
            return None
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if hasattr(value, "__len__") and len(value) == 0:
            return None
        return value

    def _numbers(self, value: Any, keyword: str) -> list[float]:
        numbers = []
        for v in _listed(value):
            try:
                number = float(v)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                self.notes.append(f"{keyword} holds {v!r}, not a number: ignored")
                return []
            numbers.append(number)
        return numbers


def _listed(value: Any) -> list[Any]:
    """Return the values of a multi-valued element; a single one as a list of one."""
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return [value]
    return list(value)


def _lookup_table(item: Dataset, *, signed: bool) -> LookupTable:
    """Read one LUT item (PS3.3 C.11.1.1.1): entries 0 means 65536, data may be bytes or words."""
    descriptor = [int(v) for v in item.LUTDescriptor]
    if len(descriptor) != 3:
        raise ValueError(f"LUTDescriptor has {len(descriptor)} values, wanted 3")
    entries = descriptor[0] % 65536 or 65536
    first = descriptor[1]
    if signed and first > 32767:  # US where SS was meant: the same 16 bits
        first -= 65536
    bits = descriptor[2]
    if not 1 <= bits <= 16:
        raise ValueError(f"LUTDescriptor gives {bits} bits an entry, allowed are 8 to 16")
    value = item.LUTData
    if isinstance(value, (bytes, bytearray)):
        little = "<" if getattr(item, "original_encoding", (None, True))[1] is not False else ">"
        if len(value) >= 2 * entries:
            data = np.frombuffer(value, f"{little}u2", entries).astype(np.uint16)
        elif len(value) >= entries and bits <= 8:
            data = np.frombuffer(value, np.uint8, entries).astype(np.uint16)
        else:
            raise ValueError(f"LUTData holds {len(value)} bytes, too few for {entries} entries")
    else:
        words = [int(v) & 0xFFFF for v in _listed(value)]
        if len(words) == (entries + 1) // 2 and bits <= 8:  # two 8-bit entries a word
            data = np.array(words, "<u2").view(np.uint8)[:entries].astype(np.uint16)
        elif len(words) >= entries:
            data = np.array(words[:entries], np.uint16)
        else:
            raise ValueError(f"LUTData holds {len(words)} values, wanted {entries}")
    highest = int(data.max())
    if highest >= 1 << bits:
        # Some writers declare fewer bits than they use: the data decides.
        bits = highest.bit_length()
    data.setflags(write=False)
    return LookupTable(first, data, bits, str(item.get("LUTExplanation", "") or "").strip())
