"""How many images a second does the whole way give, against what most people run today?

    python bench/throughput.py                    # under four minutes on two quiet cores
    python bench/throughput.py --full --save      # every set and contender: most of an hour
    python bench/throughput.py --root FOLDER      # of real files: at most 64, evenly

Who takes part stands in bench/contenders/__init__.py; who cannot is named with the reason. Outputs
are compared before anything is timed, and a contender whose output is wrong is not timed. The rest
take turns in every round, in another order each, with the same number of processes, and write PNG
files. Each gets so many files that a turn takes about --seconds, each source equally often; a ratio
is that of images a second within one round. Right beside the turns of the first and last round the
decoder alone takes the same files with the same processes and levels: it is the limit of the whole
way. What copying the bytes would give is told too.

The default run is short by leaving out, not by turns too short to be fair: turns of 2.5 s, three
rounds, the limit in two of them, and peers that are not slower than the usual pipeline; of a syntax
without levels only the fastest of them, and no half height, which is no other work there. It ends
with a warning where the machine had other work meanwhile; the JSON and the tables then say so.

fastmammo is `convert` as a user runs it: the start of its workers counts. The peers' processes are
warm, which favours them; the rate without a start stands in the JSON for all. Files are links to
four phantoms a set (6.5 to 10 bits a breast pixel in J2K), which are kept in the user's cache; of
real ones each is tried once before, and what fastmammo does not take is named and left out.
The system's cache of files is warm, or with --cold emptied of them before each turn.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from arguments import Help, pair, positive, whole
from common import machine, quartiles, save
from comparing import compare
from contenders import CONTENDERS, STAND_IN, YARDSTICK, Contender
from contenders.ordinary import load
from contenders.processes import KEEP_MEMORY, Processes
from contenders.turns import Job
from phantom_files import (
    SETS,
    Files,
    cache_folder,
    even,
    linked,
    phantoms,
    real_files,
    work_folder,
)
from rounds import Settings, ranking, run
from throughput_text import LEGEND, minutes, show
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
    sources = even(sources, pools[1].count)
    refused = {name: each.refuses(uid) for name, each in there.items()}
    chosen = {name: each for name, each in there.items() if refused[name] is None}
    few = linked(sources, work / "few", len(sources))
    peers, own = pools
    job = Job(few, sources, work / "out", height, own.count, peers, own)
    compared = compare(chosen, job, lossless=SYNTAXES[uid].lossless)
    right = {name: each for name, each in chosen.items() if name in compared.turns}
    figures, failed, why = run(right, compared, job, settings, work)
    copied = [sum(own.everywhere(copy_rate, 0.2)) / 1e9 for _ in range(3)]
    return {
        "transfer_syntax_uid": uid,
        "megabytes_a_file": round(sum(p.stat().st_size for p in sources) / 1e6 / len(sources), 2),
        "contenders": figures,
        "sources": len(sources),
        "ranking": ranking(figures),
        "disturbed": why,
        "copy_gigabytes_per_second": quartiles(copied),
        "refused": {name: reason for name, reason in refused.items() if reason},
        "wrong": {**compared.wrong, **failed},
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; `sets` and `contenders` are those themselves and names."""
    listed = "\n".join(f"  {i}  {each.name}{'  *' * each.quick}" for i, each in enumerate(SETS))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"sets (* in the default run):\n{listed}\ncontenders: {'; '.join(CONTENDERS)}",
        formatter_class=Help,
    )
    parser.add_argument("--full", action="store_true", help="every set and contender, long turns")
    parser.add_argument(
        "--sets", help="numbers from the list below, as 0,3 (default: those with *; --full: all)"
    )
    parser.add_argument(
        "--contenders",
        help="names from the list below, separated by ; (default: some that differ by syntax; "
        "--full: all)",
    )
    parser.add_argument(
        "--size",
        type=pair,
        help="other rows x columns, for every set: 832x640 (default: as in the list)",
    )
    parser.add_argument(
        "--seconds", type=positive, help="a turn takes, about (default: 2.5; --full: 8)"
    )
    parser.add_argument("--rounds", type=whole, default=3, help="turns of each contender")
    parser.add_argument(
        "--workers", type=whole, default=len(os.sched_getaffinity(0)), help="processes"
    )
    parser.add_argument(
        "--height", type=whole, default=1024, help="of the output; its width is half"
    )
    parser.add_argument(
        "--root", type=Path, help="a folder of real files (default: phantoms, made once)"
    )
    parser.add_argument(
        "--cache", type=Path, default=cache_folder(), help="where phantoms are kept"
    )
    parser.add_argument("--cold", action="store_true", help="drop files from the system's cache")
    parser.add_argument("--save", action="store_true", help="write bench/results/throughput.json")
    options = parser.parse_args(arguments)
    if options.height < 2:
        parser.error(f"--height {options.height}: wanted 2 or more")
    if options.root and not options.root.is_dir():
        parser.error(f"--root {options.root}: no such folder")
    if options.seconds is None:
        options.seconds = 8.0 if options.full else 2.5
    gpu = gpu_missing() is None
    names = [
        n for n, each in CONTENDERS.items() if options.full or each.quick or (gpu and each.gpu)
    ]
    options.every = options.full or bool(options.contenders)
    if options.contenders:
        names = [name.strip() for name in options.contenders.split(";")]
        if unknown := [name for name in names if name not in CONTENDERS]:
            parser.error(f"--contenders: no {unknown}; there are: {'; '.join(CONTENDERS)}")
    options.contenders = names
    sets = [each for each in SETS if options.full or each.quick]
    if options.sets:
        numbers = [number.strip() for number in options.sets.split(",")]
        if wrong := [each for each in numbers if each not in map(str, range(len(SETS)))]:
            parser.error(f"--sets: no {', '.join(wrong)}; there are 0 to {len(SETS) - 1}")
        sets = [SETS[int(number)] for number in dict.fromkeys(numbers)]
    if options.size:
        rows, columns = options.size
        sets = [each._replace(rows=rows, columns=columns) for each in sets]
    options.sets = sets
    return options


def files_of(options: argparse.Namespace) -> dict[str, tuple[str, Files]]:
    """Return {name: (transfer syntax, files)} of every set; phantoms are made where they lack."""
    if options.root:
        return {
            f"{options.root.name}, {SYNTAXES[uid].name}": (uid, files)
            for uid, files in real_files(options.root).items()
        }
    return {each.name: (each.uid, Files(phantoms(options.cache, each), 0)) for each in options.sets}


def taking_part(
    there: dict[str, Contender], uid: str, options: argparse.Namespace
) -> dict[str, Contender]:
    """Return the contenders of one transfer syntax; of those that refuse it the table tells."""
    return {name: each for name, each in there.items() if options.every or each.default(uid)}


def tell_time(
    sets: dict[str, tuple[str, Files]],
    there: dict[str, Contender],
    options: argparse.Namespace,
    settings: Settings,
) -> None:
    """Say how many sets there are, and about how long they take."""
    total = 0.0
    for uid, files in sets.values():
        wanted = taking_part(there, uid, options).values()
        timed = sum(each.refuses(uid) is None for each in wanted)
        count = len(even(files.paths, options.workers))
        total += minutes(timed, count, files.seconds, settings)
    print(
        f"{len(sets)} set{'s' * (len(sets) != 1)} of files ({'; '.join(sets)}): about "
        f"{max(1, round(total))} minute{'s' * (round(total) > 1)} on a quiet machine",
        flush=True,
    )


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
    settings = Settings(options.seconds, options.rounds, cores, options.cold)
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
    sets = files_of(options)
    tell_time(sets, there, options, settings)
    print(LEGEND.format(base=baseline or "nothing, as no yardstick is there"), flush=True)
    with (
        work_folder(options.cache) as folder,
        Processes(options.workers, load=load) as peers,
        Processes(options.workers, KEEP_MEMORY) as own,
    ):
        for i, (name, (uid, files)) in enumerate(sets.items()):
            work = folder / str(i)
            wanted = taking_part(there, uid, options)
            if left := there.keys() - wanted.keys():
                print(f"{name}: without {', '.join(sorted(left))} (--full has all)")
            found = measure(uid, files.paths, wanted, settings, work, (peers, own), options.height)
            result["sets"][name] = found
            show(name, found, baseline, options.rounds)
    result["minutes"] = round((time.monotonic() - begun) / 60, 1)
    result["disturbed_why"] = [
        f"{name}: {reason}"
        for name, found in result["sets"].items()
        for reason in found["disturbed"]
    ]
    result["disturbed"] = bool(result["disturbed_why"])
    print(f"\n{result['minutes']} minutes")
    if result["disturbed"]:
        print("DISTURBED: the machine had other work meanwhile; run it again when it is quiet:")
        print("\n".join(f"  {reason}" for reason in result["disturbed_why"]))
    if options.save:
        print(save("throughput", result))


def script() -> None:
    """Run `main`; what ends it early has it save nothing, and tidy up behind it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except KeyboardInterrupt:
        print("ended by Ctrl-C: nothing is saved", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    script()
