"""The command line: one function a verb. Results on stdout, progress on stderr.

Exit codes: 0 fine, 1 some files failed (they are listed), 2 the command could not run, 130 and 143
where Ctrl-C or SIGTERM ended a run early.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from fastmammo import __version__
from fastmammo.errors import ConfigError, FastMammoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastmammo.conversion import Summary
    from fastmammo.preprocess import Config

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
        description="Mammography DICOMs to model-ready images.",
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
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        verb.set_defaults(run=run)
        verb.add_options = add
    return parser


class _Verb(argparse.ArgumentParser):
    """A verb's parser, whose options are added only when the verb is the one asked for.

    Those of `convert` and `inspect` come from the config classes, whose import takes numba along:
    `fastmammo --help` must not wait for it.
    """

    add_options: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.add_options is not None:
            add, self.add_options = self.add_options, None
            add(self)
        return super().parse_known_args(args, namespace)


def _add_fields(parser: argparse.ArgumentParser, config: type, group: str) -> None:
    """Add a flag for every field of a config dataclass, from its metadata."""
    options = parser.add_argument_group(group)
    for field in dataclasses.fields(config):
        meta = field.metadata
        if "help" not in meta:
            continue
        flag = "--" + field.name.replace("_", "-")
        default = field.default
        extra: dict[str, Any] = {"default": default, "help": meta["help"], "dest": field.name}
        if isinstance(default, bool):
            options.add_argument(flag, action=argparse.BooleanOptionalAction, **extra)
            continue
        if isinstance(default, tuple):
            extra |= {
                "type": _size,
                "metavar": "ROWSxCOLUMNS",
                "default": "x".join(map(str, default)),
            }
        elif isinstance(default, (int, float)):
            extra |= {"type": type(default), "metavar": type(default).__name__.upper()[:5]}
        else:
            extra |= {"type": meta.get("type", str), "metavar": meta.get("metavar", "TEXT")}
        if meta.get("choices"):
            extra["choices"] = meta["choices"]
            extra.pop("metavar")
        options.add_argument(flag, **extra)


def _take_fields(parsed: argparse.Namespace, config: type[Any]) -> Any:
    values = {
        field.name: getattr(parsed, field.name)
        for field in dataclasses.fields(config)
        if hasattr(parsed, field.name)
    }
    return config(**values)


def _size(text: str) -> tuple[int, int]:
    try:
        rows, columns = (int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted ROWSxCOLUMNS, like 1024x512") from None
    return rows, columns


# ---------------------------------------------------------------- convert


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from fastmammo.conversion import ConvertOptions
    from fastmammo.preprocess import Config

    parser.add_argument(
        "src",
        help="a folder of DICOM files (any tree), one file, a list of paths (.txt), or a CSV with "
        "a path column or patient_id and image_id (RSNA's train.csv)",
    )
    parser.add_argument("dst", help="the folder for images, manifest.csv and config.json")
    _add_fields(parser, Config, "image")
    _add_fields(parser, ConvertOptions, "run")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _convert(parsed: argparse.Namespace) -> int:
    from fastmammo.conversion import ConvertOptions
    from fastmammo.preprocess import Config

    config: Config = _take_fields(parsed, Config)
    options = _take_fields(parsed, ConvertOptions)
    summary = _run_convert(parsed.src, parsed.dst, config, options, quiet=parsed.quiet)
    if parsed.json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print(summary.text())
    return summary.exit_code


def _run_convert(src: str, dst: str, config: Config, options: Any, *, quiet: bool) -> Summary:
    from fastmammo.conversion import convert

    if quiet:
        return convert(src, dst, config=config, options=options)
    from fastmammo.report.progress import Progress

    with Progress() as progress:
        return convert(
            src,
            dst,
            config=config,
            options=options,
            progress=progress.update,
            note=lambda line: print(line, file=sys.stderr),
        )


# ---------------------------------------------------------------- inspect


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    from fastmammo.preprocess import Config

    parser.add_argument("files", nargs="+", metavar="FILE", help="DICOM files")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, a file")
    parser.add_argument(
        "--picture",
        default=None,
        metavar="PNG",
        help="write original, mask, crop box and result side by side (one FILE only)",
    )
    _add_fields(parser, Config, "image")


def _inspect(parsed: argparse.Namespace) -> int:
    from fastmammo.preprocess import Config
    from fastmammo.report.facts import facts, text

    if parsed.picture and len(parsed.files) > 1:
        raise ConfigError(f"--picture: takes one FILE, got {len(parsed.files)}")
    if parsed.picture and not os.path.isdir(os.path.dirname(parsed.picture) or "."):
        raise ConfigError(f"--picture: no such folder: {os.path.dirname(parsed.picture)}")
    config: Config = _take_fields(parsed, Config)
    failed = 0
    for path in parsed.files:
        found = facts(path, config, picture=parsed.picture)
        failed += "error" in found
        print(json.dumps(found, default=str) if parsed.json else text(found))
        if "error" in found and not parsed.json:
            print(f"{path}: {found['error']}", file=sys.stderr)
    return 1 if failed else 0


# ---------------------------------------------------------------- verify


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="a folder of DICOM files, one file, a list (.txt), or a CSV")
    parser.add_argument(
        "--limit",
        type=int,
        default=20,
        metavar="INT",
        help="files to verify, spread evenly over the sorted inputs; 0 for all",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default="1024x512",
        metavar="ROWSxCOLUMNS",
        help="rows and columns of the images that are compared",
    )
    parser.add_argument(
        "--reencode",
        action="store_true",
        help="write the pixels in every lossless syntax too, and prove that images are identical",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda: verify the GPU's routes too, against the CPU's",
    )
    parser.add_argument(
        "--picture", default=None, metavar="DIR", help="write a picture of each difference there"
    )
    parser.add_argument(
        "--image-root", default=None, metavar="DIR", help="folder that a list or CSV starts from"
    )
    parser.add_argument(
        "--path-column", default=None, metavar="TEXT", help="CSV column with the path"
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="follow links that lead out of SRC"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _verify(parsed: argparse.Namespace) -> int:
    from fastmammo.report.verify import verify

    def progress(done: int, total: int, path: str) -> None:
        print(f"verifying {done + 1}/{total}: {path}", file=sys.stderr, flush=True)

    found = verify(
        parsed.src,
        limit=parsed.limit,
        size=parsed.size,
        reencode=parsed.reencode,
        picture=parsed.picture,
        image_root=parsed.image_root,
        path_column=parsed.path_column,
        follow_links=parsed.follow_links,
        device=parsed.device,
        progress=None if parsed.quiet else progress,
    )
    print(json.dumps(found.to_dict(), indent=2) if parsed.json else found.text())
    return found.exit_code


# ---------------------------------------------------------------- doctor


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def _doctor(parsed: argparse.Namespace) -> int:
    from fastmammo.report.doctor import diagnose, markdown, text

    found = diagnose()
    if parsed.json:
        print(json.dumps(found, indent=2))
    else:
        print(markdown(found) if parsed.markdown else text(found))
    return 0 if found["ok"] else 1


# ---------------------------------------------------------------- demo


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="fastmammo-demo", help="where to work")
    parser.add_argument("--count", type=int, default=12, metavar="INT", help="phantoms to make")
    parser.add_argument(
        "--phantom-size", type=_size, default="1664x1280", metavar="ROWSxCOLUMNS", help="their size"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the phantoms")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _demo(parsed: argparse.Namespace) -> int:
    from fastmammo.report.demo import demo

    return demo(
        parsed.folder,
        count=parsed.count,
        size=parsed.phantom_size,
        seed=parsed.seed,
        quiet=parsed.quiet,
        run=_run_convert,
    )


VERBS: dict[str, tuple[str, Any, Any]] = {
    "convert": ("Convert a folder of mammogram DICOMs to images.", _add_convert, _convert),
    "inspect": ("Show a file's facts, its codestream and the plan for it.", _add_inspect, _inspect),
    "verify": ("Prove on your files that every route gives the same.", _add_verify, _verify),
    "doctor": ("Say what this machine can decode, and why not the rest.", _add_doctor, _doctor),
    "demo": ("Make phantom mammograms, convert them, show a contact sheet.", _add_demo, _demo),
}

if __name__ == "__main__":
    sys.exit(main())
