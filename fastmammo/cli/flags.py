"""Takes the fields of config dataclasses, gives the command line's flags, and their values back."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from fastmammo.errors import ConfigError


def add_fields(
    parser: argparse.ArgumentParser,
    config: type,
    group: str | argparse._ArgumentGroup,
    *,
    only: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    only_given: bool = False,
) -> None:
    """Add a flag for every field of a config dataclass, from its metadata.

    Args:
        group: the heading that `--help` gives these flags, or a group that has one.
        only: fields that get a flag; by default all.
        leave_out: fields that have no flag of their own.
        only_given: set nothing where the flag is not given, so that `given_fields` can tell.
    """
    options = parser.add_argument_group(group) if isinstance(group, str) else group
    for field in dataclasses.fields(config):
        meta = field.metadata
        if "help" not in meta or field.name in leave_out or (only and field.name not in only):
            continue
        flag = "--" + field.name.replace("_", "-")
        default = field.default
        text = meta["help"].replace("%", "%%")  # argparse fills in what follows a % sign
        extra: dict[str, Any] = {"default": default, "help": text, "dest": field.name}
        if isinstance(default, bool):
            extra["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, tuple):
            extra |= {"type": size, "metavar": "ROWSxCOLUMNS"}
            extra["default"] = "x".join(map(str, default))
        elif isinstance(default, (int, float)):
            extra |= {"type": type(default), "metavar": type(default).__name__.upper()[:5]}
        else:
            kind = meta.get("type", str)
            fallback = "TEXT" if kind is str else kind.__name__.upper()[:5]
            extra |= {"type": kind, "metavar": meta.get("metavar", fallback)}
        if meta.get("choices"):
            extra["choices"] = meta["choices"]
            extra.pop("metavar")
        if field.name == "device":
            extra["type"] = device
        if only_given:
            extra["help"] += f" (default: {extra['default']})"
            extra["default"] = argparse.SUPPRESS
        options.add_argument(flag, **extra)


def given_fields(parsed: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the values of those fields of a config that the command line has set."""
    return {
        field.name: getattr(parsed, field.name)
        for field in dataclasses.fields(config)
        if hasattr(parsed, field.name)
    }


def take_fields(parsed: argparse.Namespace, config: type[Any]) -> Any:
    """Make a config of what the command line has set.

    Raises:
        ConfigError: a value that the config refuses.
    """
    return config(**given_fields(parsed, config))


def device(text: str) -> str:
    """Read cpu, cuda or auto; say how to choose among several GPUs."""
    from fastmammo.decoding.backends import check_device

    try:
        check_device(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device: ")) from None
    return text


def size(text: str) -> tuple[int, int]:
    """Read ROWSxCOLUMNS."""
    try:
        rows, columns = (int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted ROWSxCOLUMNS, like 1024x512") from None
    return rows, columns
