"""The verbs on images: convert, transcode, inspect, verify, doctor; flags and calls."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from fastmammo.cli.flags import add_fields, device, size, take_fields
from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from fastmammo.conversion import Summary
    from fastmammo.preprocess import Config


# ---------------------------------------------------------------- convert


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    from fastmammo.conversion import ConvertOptions
    from fastmammo.preprocess import Config

    parser.add_argument(
        "src",
        help="a folder of DICOM files (any tree), one file, a list of paths (.txt), or a CSV with "
        "a path column or patient_id and image_id (RSNA's train.csv)",
    )
    parser.add_argument("dst", help="the folder for images, manifest.csv and config.json")
    add_fields(parser, Config, "image")
    add_fields(parser, ConvertOptions, "run")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def convert(parsed: argparse.Namespace) -> int:
    """Run `convert`."""
    from fastmammo.conversion import ConvertOptions
    from fastmammo.preprocess import Config

    config: Config = take_fields(parsed, Config)
    options = take_fields(parsed, ConvertOptions)
    summary = run_convert(parsed.src, parsed.dst, config, options, quiet=parsed.quiet)
    if parsed.json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print(summary.text())
    return summary.exit_code


def run_convert(src: str, dst: str, config: Config, options: Any, *, quiet: bool) -> Summary:
    """Convert, with progress on stderr unless `quiet`."""
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


# ---------------------------------------------------------------- transcode


def add_transcode(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `transcode`."""
    from fastmammo.conversion import TranscodeOptions

    parser.add_argument(
        "src",
        help="a folder of DICOM files (any tree), one file, a list of paths (.txt), or a CSV, as "
        "for convert",
    )
    parser.add_argument("dst", help="the folder for the new files, each at its path below SRC")
    add_fields(parser, TranscodeOptions, "run")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def transcode(parsed: argparse.Namespace) -> int:
    """Run `transcode`."""
    from fastmammo.conversion import TranscodeOptions, transcode

    options = take_fields(parsed, TranscodeOptions)
    if parsed.quiet:
        summary = transcode(parsed.src, parsed.dst, options=options)
    else:
        from fastmammo.report.progress import Progress

        with Progress("transcoding", "transcoded") as progress:
            summary = transcode(
                parsed.src,
                parsed.dst,
                options=options,
                progress=progress.update,
                note=lambda line: print(line, file=sys.stderr),
            )
    print(json.dumps(summary.to_dict(), indent=2) if parsed.json else summary.text())
    return summary.exit_code


# ---------------------------------------------------------------- inspect


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `inspect`."""
    from fastmammo.preprocess import Config

    parser.add_argument("files", nargs="+", metavar="FILE", help="DICOM files")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, a file")
    parser.add_argument(
        "--picture",
        default=None,
        metavar="PNG",
        help="write original, mask, crop box and result side by side (one FILE only)",
    )
    add_fields(parser, Config, "image")


def inspect(parsed: argparse.Namespace) -> int:
    """Run `inspect`."""
    from fastmammo.decoding import cuda_runtime
    from fastmammo.preprocess import Config
    from fastmammo.report.facts import facts, text

    if parsed.picture and len(parsed.files) > 1:
        raise ConfigError(f"--picture: takes one FILE, got {len(parsed.files)}")
    if parsed.picture and not os.path.isdir(os.path.dirname(parsed.picture) or "."):
        raise ConfigError(f"--picture: no such folder: {os.path.dirname(parsed.picture)}")
    config: Config = take_fields(parsed, Config)
    if config.resolved().device == "cuda":
        cuda_runtime.require()  # once, and not for each file
    failed = 0
    for path in parsed.files:
        found = facts(path, config, picture=parsed.picture)
        failed += "error" in found
        print(json.dumps(found, default=str) if parsed.json else text(found))
        if "error" in found and not parsed.json:
            print(f"{path}: {found['error']}", file=sys.stderr)
    return 1 if failed else 0


# ---------------------------------------------------------------- verify


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verify`."""
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
        type=size,
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
        type=device,
        choices=("cpu", "cuda", "auto"),
        help="cuda: verify the GPU's routes too, against the CPU's; auto: where there is a GPU",
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


def verify(parsed: argparse.Namespace) -> int:
    """Run `verify`."""
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


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def doctor(parsed: argparse.Namespace) -> int:
    """Run `doctor`."""
    from fastmammo.report.doctor import diagnose, markdown, text

    found = diagnose()
    if parsed.json:
        print(json.dumps(found, indent=2))
    else:
        print(markdown(found) if parsed.markdown else text(found))
    return 0 if found["ok"] else 1
