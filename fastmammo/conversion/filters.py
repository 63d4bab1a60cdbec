"""Takes what a user asks for and a file's header, says which files a run leaves out, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fastmammo.dicom.attributes import MODIFIERS, VIEWS, Attributes
from fastmammo.dicom.source import load, looks_like_dicom, parse_header
from fastmammo.errors import ConfigError, FilteredError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Facts = dict[str, str]

FACTS = (
    *("sop_instance_uid", "laterality", "view_position", "view_modifiers"),
    *("manufacturer", "presentation_intent_type"),
)
"""The columns of a record that the header alone gives, and that filters look at; a file that is
filtered out has no others."""

VIEW_NAMES = (*VIEWS, "AT")
"""What `view` may ask for: PS3.16 CID 4014, and AT (axillary tail), a modifier there, which
archives have as View Position."""

_INTENTS = {"presentation": "FOR PRESENTATION", "processing": "FOR PROCESSING"}
_HEAD_BYTES = 1 << 18
"""Read of a file before anything else: the headers of mammograms have 4 to 60 KB."""


@dataclass(frozen=True)
class Filters:
    """Which files a run converts: each field that is given must hold. None asks for nothing.

    Alternatives within a field are separated by commas. An attribute that is absent or empty in the
    header matches nothing, except that no view modifier is one of the answers to `view_modifiers`.

    Raises:
        ConfigError: a value that can never match, or none.
    """

    view: str | None = None
    """View Position (0018,5101), or the code of View Code Sequence: see `VIEW_NAMES`."""
    view_modifiers: str | None = None
    """View Modifier Code Sequence (0054,0222; PS3.16 CID 4015). Names are those that may occur,
    "none" allows views without a modifier; or, each with "not " in front, those that may not."""
    presentation_intent: str | None = None
    """Presentation Intent Type (0008,0068)."""
    laterality: str | None = None
    """Image Laterality (0020,0062), or what stands for it."""
    manufacturer: str | None = None
    """Parts of Manufacturer (0008,0070), in any case."""

    def __post_init__(self) -> None:
        for name, spell in (
            ("view", _spell(VIEW_NAMES)),
            ("view_modifiers", _modifier),
            ("presentation_intent", _intent),
            ("laterality", _spell(("L", "R", "B"))),
            ("manufacturer", str.strip),
        ):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, ",".join(_parts(name, text, spell)))
        modifiers = _listed(self.view_modifiers)
        negative = [each for each in modifiers if each.startswith("not ")]
        if negative and len(negative) != len(modifiers):
            raise ConfigError(
                f"view_modifiers: got {self.view_modifiers!r}, wanted names that may occur, or "
                'names that may not, each with "not " in front; not both'
            )

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))

    def to_dict(self) -> dict[str, str]:
        """Return the fields that are given; `Filters(**values)` restores them."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in named if value is not None}

    def refusal(self, facts: Mapping[str, Any]) -> str:
        """Return why a file is left out: attribute, got, wanted; "" if it is not.

        Args:
            facts: a record, or its `FACTS`.
        """
        reasons = [
            f"{attribute}: got {got or 'absent'}, wanted {_shown(wanted)}"
            for attribute, got, wanted, holds in self._checks(facts)
            if not holds
        ]
        return "; ".join(reasons)

    def _checks(self, facts: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
        """Return (attribute, got, wanted, whether it holds) of every field that is given."""
        found = []
        for name, attribute, column in (
            ("view", "View Position", "view_position"),
            ("presentation_intent", "Presentation Intent Type", "presentation_intent_type"),
            ("laterality", "Image Laterality", "laterality"),
        ):
            wanted = getattr(self, name)
            if wanted is not None:
                got = str(facts.get(column, ""))
                found.append((attribute, got, wanted, got in _listed(wanted)))
        if self.manufacturer is not None:
            got = str(facts.get("manufacturer", ""))
            parts = [each.casefold() for each in _listed(self.manufacturer)]
            holds = any(part in got.casefold() for part in parts)
            found.append(("Manufacturer", got, self.manufacturer, holds))
        if self.view_modifiers is not None:
            names = [each for each in str(facts.get("view_modifiers", "")).split("|") if each]
            names = names or ["none"]
            holds = _modifiers_hold(names, _listed(self.view_modifiers))
            found.append(("View Modifier", ", ".join(names), self.view_modifiers, holds))
        return found


def refusal(filters: tuple[Filters, ...], facts: Mapping[str, Any]) -> str:
    """Return why a file is left out by filters of which all must hold; "" if it is not."""
    return "; ".join(text for each in filters if (text := each.refusal(facts)))


def guarded(preprocessor: Any, filters: list[dict[str, str]], frame: int) -> Callable[[str], Any]:
    """Return the preprocessor's `prepare`, which then raises `FilteredError` before any decoding.

    Args:
        preprocessor: has `prepare(path)`; where a file's header does not tell what filters look at,
            it has `facts(path)` too.
        filters: the values of `Filters`, all of which must hold.
        frame: whose functional groups count, in multi-frame files.
    """
    prepare: Callable[[str], Any] = preprocessor.prepare
    if not filters:
        return prepare
    chosen = tuple(Filters(**each) for each in filters)
    facts_of = getattr(preprocessor, "facts", None) or (lambda path: header_facts(path, frame))

    def checked(path: str) -> Any:
        facts = facts_of(path)
        # a file whose header cannot be read fails where it is read as a whole, with its reason
        if facts is not None and (reason := refusal(chosen, facts)):
            raise FilteredError(reason, facts)
        return prepare(path)

    return checked


def header_facts(path: str, frame: int = 0) -> Facts | None:
    """Return a file's `FACTS`, or None where it is no DICOM image or its header is damaged.

    Only the file's beginning is read, as a filter may leave out most of an archive of gigabytes; a
    header that is longer, or deflated, takes the whole file.

    Raises:
        ReadError, DecodeError: it is larger than any mammogram.
        OSError: the file cannot be opened or read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        if not looks_like_dicom(head[:132]):
            return None
        found = _facts(head, frame)
        if found is None and len(head) < os.fstat(file.fileno()).st_size:
            found = _facts(load(path), frame)
    return found


def _facts(data: bytes | memoryview, frame: int) -> Facts | None:
    try:
        dataset, body, position = parse_header(data)
        if position + 8 > len(body) or dataset.get("Rows") is None:
            return None  # cut off before Pixel Data, or no image
        attributes = Attributes(dataset, frame)
        return {
            "sop_instance_uid": attributes.text("SOPInstanceUID"),
            "laterality": attributes.image_laterality(),
            "view_position": attributes.view_position(),
            "view_modifiers": "|".join(attributes.view_modifiers()),
            "manufacturer": attributes.text("Manufacturer"),
            "presentation_intent_type": attributes.presentation_intent_type(),
        }
    except Exception:  # pydicom raises whatever damaged or cut-off bytes lead it to
        return None


def _listed(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _parts(name: str, text: Any, spell: Callable[[str], str]) -> list[str]:
    """Return the alternatives of an option, each spelt in one way."""
    if not isinstance(text, str):
        raise ConfigError(f"{name}: got {text!r}, wanted text, alternatives separated by commas")
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{name}: got {text!r}, an empty alternative; leave {name} out for any")
    try:
        return list(dict.fromkeys(spell(part) for part in parts))
    except KeyError as error:
        raise ConfigError(f"{name}: got {text!r}, {error.args[0]}") from None


def _spell(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def spelt(part: str) -> str:
        if part.upper() not in allowed:
            raise KeyError(f"allowed are {', '.join(allowed)}")
        return part.upper()

    return spelt


def _intent(part: str) -> str:
    name = part.casefold().removeprefix("for ").strip()
    if name not in _INTENTS:
        raise KeyError("allowed are FOR PRESENTATION, FOR PROCESSING, presentation, processing")
    return _INTENTS[name]


def _modifier(part: str) -> str:
    spelt = " ".join(part.lower().split())
    if spelt.removeprefix("not ") not in ("none", *MODIFIERS):
        raise KeyError(f'allowed are none, {", ".join(MODIFIERS)}, or each with "not " in front')
    return spelt


def _modifiers_hold(got: list[str], wanted: list[str]) -> bool:
    """Whether a view's modifiers are all allowed, or none of them is ruled out."""
    ruled_out = {each.removeprefix("not ") for each in wanted if each.startswith("not ")}
    return not ruled_out & set(got) if ruled_out else set(got) <= set(wanted)


def _shown(wanted: str) -> str:
    """Return alternatives as a person would say them."""
    return wanted.replace(",", " and " if wanted.startswith("not ") else " or ")


SCREENING = Filters(view="CC,MLO", view_modifiers="none")
"""The standard views of screening."""
