"""Declares and checks the fields of all settings: their help lines and allowed values."""

from __future__ import annotations

from dataclasses import field as _field
from dataclasses import fields
from typing import Any

from fastmammo.errors import ConfigError


def option(default: Any, help: str, *, choices: tuple[Any, ...] = (), **cli: Any) -> Any:
    """Declare a field with its help line and its allowed values: the CLI reads both.

    `cli` is for the command line, where the default does not tell (type, metavar), or whatever else
    a field's reader wants to know of it.
    """
    return _field(default=default, metadata={"help": help, "choices": choices, **cli})


def check_choices(config: Any) -> None:
    """Refuse a field whose value is not among its choices.

    Raises:
        ConfigError: field, got, allowed.
    """
    for each in fields(config):
        value, choices = getattr(config, each.name), each.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(
                f"{each.name}: got {value!r}, allowed are {', '.join(map(str, choices))}"
            )


def check_flags(config: Any) -> None:
    """Refuse a field that is neither True nor False where its default is one of them.

    Raises:
        ConfigError: field, got, wanted.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if isinstance(each.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{each.name}: got {value!r}, wanted True or False")


def check_range(config: Any, name: str, low: float, high: float, *, whole: bool = False) -> None:
    """Refuse a field that is not a number from low to high, both included.

    Raises:
        ConfigError: field, got, allowed.
    """
    value = getattr(config, name)
    kinds = (int,) if whole else (int, float)
    # NaN is neither more nor less; a bool is an int
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number " if whole else ""
        if not kind and (isinstance(value, bool) or not isinstance(value, kinds)):
            kind = "a number "
        raise ConfigError(f"{name}: got {value!r}, allowed is {kind}{low} to {high}")
