"""Figures of bench/throughput.py → what the terminal says: time ahead, tables, limits, warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disturbed import beyond

if TYPE_CHECKING:
    from rounds import Settings

FEWEST_ROUNDS = 3
"""With fewer, quartiles tell nothing, and no ranking is claimed."""
MOST_START = 0.3
"""Of a turn: above it the rate tells of the start more than of the work."""
LIMITS = 0.5
"""Of the time: what takes more of it is called the limit."""

HEADS = (
    *("images/s", "quartiles", "ratio", "running", "decoder alone", "share", "cores"),
    *("copy bound", "RSNA, hours"),
)

LEGEND = """How to read the tables:
  images/s       files by seconds of a whole turn; for fastmammo with the start of its workers
  quartiles      of images/s, over the rounds
  ratio          to {base}: the median of the ratios within a round, not a ratio of medians
  running        images/s once all processes are at work, without the start
  decoder alone  images/s where the same files are decoded, and nothing else is done
  share          running, of decoder alone: at 100% the rest of the way costs nothing
  cores          busy, of the time of all cores; what a peer leaves idle it waits for
  copy bound     images/s if the bytes read, decoded and written were copied, and nothing else
  RSNA, hours    start and running rate, for the 54,706 images of RSNA's challenge"""


def minutes(contenders: int, sources: int, file_seconds: float, settings: Settings) -> float:
    """Return about how long a set takes.

    Args:
        file_seconds: that fastmammo takes to convert a file in full; 0 where that is not known.
    """
    # every turn has each source once at least; the usual pipeline takes some twice as long
    turn = max(settings.seconds, 2 * file_seconds * sources / settings.cores)
    turns = settings.rounds + min(2, settings.rounds)  # the decoder alone in two of the rounds
    compared = 5 + 2 * file_seconds * sources / settings.cores
    return contenders * (turns * turn + settings.rounds * 1.5 + compared) / 60


def show(name: str, found: dict[str, Any], baseline: str | None, rounds: int) -> None:
    """Print a set's table."""
    figures = found["contenders"]
    print(f"\n{name}: files of {found['megabytes_a_file']:.2f} MB")
    order = [each for group in found["ranking"] for each in group]
    rows = [["", *HEADS], *([each, *_cells(figures[each])] for each in order)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("   ".join((f"  {row[0]:<{widths[0]}}", *cells)))
    for contender in order:
        each = figures[contender]
        stages = ", ".join(f"{k} {v:g}" for k, v in each["stage_ms"].items())
        like = each["compared"]
        near = "equal" if like.get("equal") else f"{like.get('psnr_db')} dB"
        held = f"; images {near} to {like['image_like']}" if "image_like" in like else ""
        print(f"  {contender}: limited by {limit(each)}")
        print(f"    ms {stages}; stored values {like['stored_values']}{held}")
    for kind in ("refused", "wrong"):
        for contender, reason in found[kind].items():
            print(f"  not timed: {contender}: {reason}")
    if any(map(beyond, figures.values())):
        print("  * faster than its decoder alone: that was disturbed, and is no limit here")
    for reason in found["disturbed"]:
        print(f"  DISTURBED: {reason}")
    for reason in warnings(figures, rounds):
        print(f"  WARNING: {reason}")
    if rounds >= FEWEST_ROUNDS and order:
        ties = [" = ".join(group) for group in found["ranking"]]
        print(f"  fastest first (= where quartiles overlap): {' > '.join(ties)}")
    bases = {each["ratio_to"] for each in figures.values()} - {baseline}
    for base in bases:  # the yardstick itself was wrong, or cannot take this syntax
        print(f"  ratios here are to {base or 'nothing: no yardstick was timed'}")


def _cells(each: dict[str, Any]) -> list[str]:
    rate, ratio = each["images_per_second"], each["ratio"]
    alone, share = each["decode_only_per_second"], each["share_of_decode_only"]
    return [
        f"{rate['median']:.2f}",
        f"{rate['lower']:.2f}-{rate['upper']:.2f}",
        f"{ratio['median']:.2f}" if ratio else "",
        f"{each['running_per_second']['median']:.2f}",
        f"{alone['median']:.2f}" if alone else "-",
        f"{share['median']:.0%}{'*' * beyond(each)}" if share else "-",
        f"{each['cpu_share']['median']:.0%}",
        f"{each['copy_bound_per_second']['median']:.0f}",
        f"{each['rsna_hours']['by_images']:.2f}",
    ]


def limit(each: dict[str, Any]) -> str:
    """Return what takes most of a contender's time while it runs: decoder, copying or the rest."""
    running = each["running_per_second"]["median"]
    copying = running / each["copy_bound_per_second"]["median"]
    share = each["share_of_decode_only"]
    if beyond(each):
        return "nothing that can be told: the time of its decoder alone was disturbed"
    decoding = min(1.0, share["median"]) if share else 0.0
    if copying > LIMITS and copying > decoding:
        return f"copying: its bytes alone would take {copying:.0%} of the time"
    if decoding > LIMITS:
        return f"the decoder: {decoding:.0%} of the time; copying would take {copying:.1%}"
    rest = {
        name: taken
        for name, taken in each["stage_ms"].items()
        if name != "total" and not (share and "decode" in name)
    }
    most = f", most of it {max(rest, key=lambda name: rest[name])}" if rest else ""
    part = f"the decoder takes {decoding:.0%} of the time" if share else "nothing is to decode"
    return f"the rest{most}: {part}, copying would take {copying:.1%}"


def warnings(figures: dict[str, Any], rounds: int) -> list[str]:
    """Return why figures are not to be trusted, in words."""
    found = []
    if rounds < FEWEST_ROUNDS:
        found.append(
            f"--rounds {rounds}: no ranking is told of fewer than {FEWEST_ROUNDS}; one sample "
            "proves nothing"
        )
    starts = {name: _start(each) for name, each in figures.items() if each["start_included"]}
    if long := [f"{name} ({share:.0%})" for name, share in starts.items() if share > MOST_START]:
        found.append(
            f"more than {MOST_START:.0%} of the turn is the start: {', '.join(long)}: compare "
            '"running", or give more --seconds'
        )
    return found


def _start(each: dict[str, Any]) -> float:
    """Return the share of a turn that is its start."""
    working = each["files"] / each["running_per_second"]["median"]
    return float(each["start_seconds"] / (each["start_seconds"] + working))
