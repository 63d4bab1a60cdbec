"""The command line: one function a verb. Results on stdout, progress on stderr.

Exit codes: 0 fine, 1 some files failed (they are listed), 2 the command could not run, 130 and 143
where Ctrl-C or SIGTERM ended a run early.

`imaging` has the verbs on images, `tables` and `training` those of the trainer, `demo` shows both;
`flags` makes their flags of config dataclasses.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from fastmammo import __version__
from fastmammo.cli import demo, imaging, tables, training
from fastmammo.errors import FastMammoError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EPILOG = (
    "Exit codes: 0 fine, 1 some files failed (listed), 2 could not run; 130 and 143 where Ctrl-C "
    "or SIGTERM ended a run early."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # pipes may come with an encoding that lacks our arrows
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")
    verb = ""
    try:
        parser = _parser()
        parsed = parser.parse_args(arguments)
        if not hasattr(parsed, "run"):
            parser.print_help()
            return 2
        verb = f" {parsed.verb}"
        run: Callable[[argparse.Namespace], int] = parsed.run
        return run(parsed)
    except BrokenPipeError:  # the reader of our output has gone: `fastmammo inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FastMammoError, OSError) as error:
        print(f"fastmammo{verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastmammo{verb}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmammo",
        description="Mammography DICOMs to model-ready images, and models trained on them.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"fastmammo {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Verb)
    for name, (help_line, add, run) in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=help_line,
            description=help_line,
            epilog=_EPILOG,
            formatter_class=_Help,
        )
        verb.set_defaults(run=run)
        verb.add_options = add
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a flag's default where there is one to say, and leaves indented examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(
            line if line.startswith("  ") else super(_Help, self)._fill_text(line, width, indent)
            for line in lines
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class _Verb(argparse.ArgumentParser):
    """A verb's parser, whose options are added only when the verb is the one asked for.

    Those of `convert` and `train` come from config classes, whose import takes numba or torch
    along: `fastmammo --help` must not wait for them.
    """

    add_options: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.add_options is not None:
            add, self.add_options = self.add_options, None
            try:
                add(self)
            except TrainingError as error:  # the settings' classes are not there without torch
                self.exit(2, f"{self.prog}: {error}\n")
            self.usage = self._short_usage()
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(self._not_understood(list(args or ()), left))
        return found, left

    def error(self, message: str) -> NoReturn:
        """Say what is wrong last, where it is read: the many options are in --help."""
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {message}\n")

    def _short_usage(self) -> str:
        """Return what must be given; the options are listed below it, or by --help."""
        words = []
        for action in self._actions:
            name = str(action.metavar or action.dest)
            if action.option_strings:
                if action.required:
                    words.append(f"{action.option_strings[0]} {name}")
            elif action.nargs == "?":
                words.append(f"[{name}]")
            else:
                words.append(f"{name} [{name} ...]" if action.nargs == "+" else name)
        return " ".join((self.prog, "[options]", *words)).replace("%", "%%")

    def _not_understood(self, given: list[str], left: list[str]) -> str:
        """Say which arguments are too many, and where one looks like the value of a flag."""
        for flag, value in itertools.pairwise(given):
            action = self._option_string_actions.get(flag)
            if value in left and action is not None and action.nargs == 0:
                return f"{flag} takes no value, got {value!r}"
        return f"not understood: {' '.join(left)}; {self.prog} --help lists the options"


VERBS: dict[str, tuple[str, Any, Any]] = {
    "convert": (
        "Convert a folder of mammogram DICOMs to images.",
        imaging.add_convert,
        imaging.convert,
    ),
    "transcode": (
        "Write mammogram DICOMs again as HTJ2K, with the same pixels, which decodes faster.",
        imaging.add_transcode,
        imaging.transcode,
    ),
    "inspect": (
        "Show a file's facts, its codestream and the plan for it.",
        imaging.add_inspect,
        imaging.inspect,
    ),
    "verify": (
        "Prove on your files that every route gives the same.",
        imaging.add_verify,
        imaging.verify,
    ),
    "doctor": (
        "Say what this machine can decode, and why not the rest.",
        imaging.add_doctor,
        imaging.doctor,
    ),
    "explore": (
        "Show a table of images: what is in it, what is missing, examples.",
        tables.add_explore,
        tables.explore,
    ),
    "split": (
        "Write a table again with folds: by patient, cancer and sites spread evenly.",
        tables.add_split,
        tables.split,
    ),
    "train": (
        "Train a model on a table and its images, fold by fold, and report on it.",
        training.add_train,
        training.train,
    ),
    "predict": (
        "Score images by trained runs.",
        training.add_predict,
        training.predict,
    ),
    "evaluate": (
        "Measure scores against labels.",
        tables.add_evaluate,
        tables.evaluate,
    ),
    "compare": (
        "Train several models with the same settings and tabulate them.",
        training.add_compare,
        training.compare,
    ),
    "demo": (
        "Make phantom mammograms, convert them, show a contact sheet; --train: learn from them.",
        demo.add_demo,
        demo.demo,
    ),
}
