"""The verb demo: all the way from phantoms to pictures, or to a trained model and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmammo.cli.extra import trainer
from fastmammo.cli.flags import size
from fastmammo.cli.imaging import run_convert
from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demo`."""
    parser.add_argument("folder", nargs="?", default="fastmammo-demo", help="where to work")
    parser.add_argument(
        "--train",
        action="store_true",
        help="train a small model on phantoms with and without lesions, and report on it (minutes; "
        "needs the extra train; makes as many phantoms as that takes)",
    )
    parser.add_argument("--count", type=int, metavar="INT", help="phantoms to make (default: 12)")
    parser.add_argument(
        "--phantom-size",
        type=size,
        metavar="ROWSxCOLUMNS",
        help="their size (default: 1664x1280)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="INT", help="of the phantoms (default: 0; with --train 7)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def demo(parsed: argparse.Namespace) -> int:
    """Run `demo`."""
    if parsed.train:
        if parsed.count is not None or parsed.phantom_size is not None:
            raise ConfigError(
                "--count and --phantom-size: not with --train, which makes the phantoms that its "
                "model can learn from"
            )
        with trainer():
            from fastmammo.report.demo_training import SEED, demo_training
        return demo_training(
            parsed.folder,
            seed=SEED if parsed.seed is None else parsed.seed,
            quiet=parsed.quiet,
            run=run_convert,
        )
    from fastmammo.report.demo import demo

    return demo(
        parsed.folder,
        count=12 if parsed.count is None else parsed.count,
        size=parsed.phantom_size or (1664, 1280),
        seed=parsed.seed or 0,
        quiet=parsed.quiet,
        run=run_convert,
    )
