"""How many images a second does the whole way give, against what most people run today?

    python bench/throughput.py                    # about four minutes on two cores
    python bench/throughput.py --full --save      # every set and contender: most of an hour
    python bench/throughput.py --root FOLDER      # of real files: at most 64, taken evenly

Who takes part stands in bench/contenders/__init__.py; who cannot is named with the reason. Outputs
are compared before anything is timed, and a contender whose output is wrong is not timed. The rest
take turns in every round, in another order each, with the same number of processes, and write PNG
files. Each gets so many files that a turn takes about --seconds; a ratio is that of images a second
within one round. Beside each figure, measured in the same round: what its decoder alone gives with
the same processes and levels, and what copying its bytes would.

fastmammo is `convert` as a user runs it: the start of its workers counts. The peers' processes are
warm, which favours them; the rate without a start stands in the JSON for all. Files are links to
four phantoms a set (6.5 to 10 bits a breast pixel in J2K), which are kept in the user's cache.
The system's cache of files is warm, or with --cold emptied of them before each turn.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, quartiles, save
from comparing import compare
from contenders import CONTENDERS, STAND_IN, YARDSTICK, Contender
from contenders.ordinary import load
from contenders.processes import KEEP_MEMORY, Processes
from contenders.turns import Job
from phantom_files import SETS, cache_folder, linked, phantoms, real_files, work_folder
from rounds import Settings, ranking, run
from usage import copy_rate, gpu_missing, gpu_name

from fastmammo.dicom import SYNTAXES


def available(wanted: list[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that can be run here, and why the others cannot."""
    reasons = {name: CONTENDERS[name].missing() for name in wanted}
    there = {name: CONTENDERS[name] for name, reason in reasons.items() if reason is None}
    return there, {name: reason for name, reason in reasons.items() if reason is not None}


def measure(
    uid: str,
    sources: list[Path],
    there: dict[str, Contender],
    settings: Settings,
    work: Path,
    pools: tuple[Processes, Processes],
    height: int,
) -> dict[str, Any]:
    """Return what one set of files gives."""
    refused = {name: each.refuses(uid) for name, each in there.items()}
    chosen = {name: each for name, each in there.items() if refused[name] is None}
    few = linked(sources, work / "few", len(sources))
    peers, own = pools
    job = Job(few, sources, work / "out", height, own.count, peers, own)
    compared = compare(chosen, job, lossless=SYNTAXES[uid].lossless)
    right = {name: each for name, each in chosen.items() if name in compared.turns}
    figures, failed = run(right, compared, job, settings, work)
    copied = [sum(own.everywhere(copy_rate, 0.2)) / 1e9 for _ in range(3)]
    return {
        "transfer_syntax_uid": uid,
        "megabytes_a_file": round(sum(p.stat().st_size for p in sources) / 1e6 / len(sources), 2),
        "contenders": figures,
        "ranking": ranking(figures),
        "copy_gigabytes_per_second": quartiles(copied),
        "refused": {name: reason for name, reason in refused.items() if reason},
        "wrong": {**compared.wrong, **failed},
    }


def show(name: str, found: dict[str, Any], baseline: str | None) -> None:
    """Print a set's table."""
    print(f"\n{name}: files of {found['megabytes_a_file']:.2f} MB")
    heads = ("images/s", "quartiles", "ratio", "running", "decoder alone", "share", "cores")
    print(f"  {'':<29}" + "".join(f"{head:>14}" for head in heads) + "  RSNA, hours")
    order = [each for group in found["ranking"] for each in group]
    for contender in order:
        each = found["contenders"][contender]
        rate, ratio = each["images_per_second"], each["ratio"]
        alone, share = each["decode_only_per_second"], each["share_of_decode_only"]
        cells = (
            f"{rate['median']:.2f}",
            f"{rate['lower']:.2f}-{rate['upper']:.2f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{each['running_per_second']['median']:.2f}",
            f"{alone['median']:.2f}" if alone else "-",
            f"{share['median']:.0%}" if share else "-",
            f"{each['cpu_share']['median']:.0%}",
        )
        hours = each["rsna_hours"]["by_images"]
        print(f"  {contender:<29}" + "".join(f"{cell:>14}" for cell in cells) + f"{hours:>13.2f}")
    for contender in order:
        each = found["contenders"][contender]
        stages = ", ".join(f"{k} {v:g}" for k, v in each["stage_ms"].items())
        like = each["compared"]
        near = "equal" if like.get("equal") else f"{like.get('psnr_db')} dB"
        held = f"; images {near} to {like['image_like']}" if "image_like" in like else ""
        print(f"  {contender}: ms {stages}; stored values {like['stored_values']}{held}")
    for kind in ("refused", "wrong"):
        for contender, reason in found[kind].items():
            print(f"  not timed: {contender}: {reason}")
    ties = [" = ".join(group) for group in found["ranking"]]
    print(f"  fastest first (= where quartiles overlap): {' > '.join(ties)}")
    bases = {each["ratio_to"] for each in found["contenders"].values()} - {baseline}
    for base in bases:  # the yardstick itself was wrong, or cannot take this syntax
        print(f"  ratios here are to {base or 'nothing: no yardstick was timed'}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every set and contender, long turns")
    parser.add_argument("--sets", help="numbers of phantom_files.SETS, from 0: 0,3 for example")
    parser.add_argument("--contenders", help="names, separated by ;")
    parser.add_argument("--size", help="other rows x columns, for every set: 832x640")
    parser.add_argument("--seconds", type=float, help="that a turn takes, about: 3; with --full 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=1024, help="of the output; its width is half")
    parser.add_argument("--root", type=Path, help="real files, instead of phantoms")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(), help="where phantoms are kept"
    )
    parser.add_argument("--cold", action="store_true", help="drop files from the system's cache")
    parser.add_argument("--save", action="store_true", help="write bench/results/throughput.json")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.workers) < 1:
        parser.error(f"--rounds {options.rounds}, --workers {options.workers}: wanted 1 or more")
    if options.seconds is None:
        options.seconds = 8.0 if options.full else 3.0
    gpu = gpu_missing() is None
    names = [
        n for n, each in CONTENDERS.items() if options.full or each.quick or (gpu and each.gpu)
    ]
    if options.contenders:
        names = [name.strip() for name in options.contenders.split(";")]
        if unknown := [name for name in names if name not in CONTENDERS]:
            parser.error(f"--contenders: no {unknown}; there are: {'; '.join(CONTENDERS)}")
    options.contenders = names
    sets = [each for each in SETS if options.full or each.quick]
    if options.sets:
        sets = [SETS[int(number)] for number in options.sets.split(",")]
    if options.size:
        rows, columns = map(int, options.size.split("x"))
        sets = [each._replace(rows=rows, columns=columns) for each in sets]
    options.sets = sets
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    begun = time.monotonic()
    there, missing = available(options.contenders)
    for name, reason in missing.items():
        print(f"missing: {name}: {reason if len(reason) < 120 else reason[:117] + '...'}")
    if not there:
        raise SystemExit("none of the contenders can be run here")
    baseline = next((name for name in (YARDSTICK, STAND_IN) if name in there), None)
    if baseline != YARDSTICK:
        print(f"the ordinary pipeline takes no part: ratios are to {baseline or 'nothing'}")
    cores = len(os.sched_getaffinity(0))
    limit = min(1.0, options.seconds / 8)
    settings = Settings(options.seconds, options.rounds, limit, cores, options.cold)
    result: dict[str, Any] = {
        "machine": {**machine(), "gpu": gpu_name()},
        "command": shlex.join(["python", "bench/throughput.py", *(arguments or sys.argv[1:])]),
        "workers": options.workers,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "output": [options.height, options.height // 2],
        "file_cache": "dropped before each turn (posix_fadvise)" if options.cold else "warm",
        "baseline": baseline,
        "missing": missing,
        "sets": {},
    }
    print(f"file cache: {result['file_cache']}; {options.workers} processes on {cores} cores")
    if options.root:
        sets = {
            f"{options.root.name}, {SYNTAXES[uid].name}": (uid, files)
            for uid, files in real_files(options.root).items()
        }
    else:
        sets = {each.name: (each.uid, phantoms(options.cache, each)) for each in options.sets}
    with (
        work_folder(options.cache) as folder,
        Processes(options.workers, load=load) as peers,
        Processes(options.workers, KEEP_MEMORY) as own,
    ):
        for i, (name, (uid, sources)) in enumerate(sets.items()):
            work = folder / str(i)
            found = measure(uid, sources, there, settings, work, (peers, own), options.height)
            result["sets"][name] = found
            show(name, found, baseline)
    result["minutes"] = round((time.monotonic() - begun) / 60, 1)
    print(f"\n{result['minutes']} minutes")
    if options.save:
        print(save("throughput", result))


if __name__ == "__main__":
    main()
