"""How far is each stage on the CPU from the speed at which memory can be copied?

    python bench/stages.py [--size 3328x2560] [--output 1024x512] [--rounds 7] [--save]

Each stage of one image alone, its input made beforehand: milliseconds, the bytes that it must read
and write at least (its input and output, each once), GB/s, and the share of what copying a block
reaches, as bytes read and written, in the same process and run. A stage whose arrays fit the
processor's cache may exceed 100 %. First one process works while the others wait, then all
--processes (two) do the same stage at once: they share the memory's speed, as workers of `convert`
do. glibc keeps freed memory in these processes, as in a worker. Stages take turns in every round.
Ctrl-C ends it after the round under way, with what was measured; nothing is saved.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from arguments import Help, pair, whole
from common import end_early, machine, quartiles, save, say, script, span
from stage_calls import COPY, stages, write_files

if TYPE_CHECKING:
    from stage_calls import Stage

_LAP_SECONDS = 0.02
"""Short stages are repeated to fill it: two processes then truly work at once."""
_LOST_SECONDS = 600.0
_barrier: Any = None
"""Of this process and the others."""
_stop: Any = None
"""Set by the one that started them, to have all end after the round under way."""
_last: Any = None
"""Whether the round that begins is not to be run: rank 0 decides, for all."""
_ENVIRONMENT = {  # as `conversion.worker` asks glibc for; one thread each
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
    **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
}


def take_part(
    rank: int, folder: Path, size: tuple[int, int], rounds: int, copy_bytes: int
) -> dict[str, Any]:
    """Run every stage, alone (rank 0) and together with the others; return milliseconds."""
    try:
        return _samples(rank, stages(folder, size, copy_bytes), rounds)
    except BaseException:
        _barrier.abort()  # nobody waits for this one
        raise


def _samples(rank: int, chosen: dict[str, Stage], rounds: int) -> dict[str, Any]:
    repeats, found = {}, {}
    for name, stage in chosen.items():
        stage.run()  # compiles, and loads what is loaded late
        start = time.perf_counter()
        stage.run()
        taken = time.perf_counter() - start
        repeats[name] = max(1, min(100, round(_LAP_SECONDS / max(taken, 1e-6))))
        found[name] = {"read": stage.read, "written": stage.written, "alone": [], "together": []}
        found[name]["first"] = taken
    lap = sum(max(_LAP_SECONDS, each["first"]) for each in found.values())
    if not rank:
        # alone, then together, and each waits for the slowest
        say(f"{len(found)} stages, {rounds} rounds: about {span(2.2 * lap * rounds)}")
    for number in range(rounds):
        if not rank:
            _last.value = _stop.is_set()
        _barrier.wait(_LOST_SECONDS)
        if _last.value:
            break
        begun = time.perf_counter()
        for name, stage in chosen.items():
            for kind in ("alone", "together"):
                _barrier.wait(_LOST_SECONDS)
                if kind == "alone" and rank:
                    continue
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    stage.run()
                found[name][kind].append((time.perf_counter() - start) / repeats[name] * 1e3)
        if not rank:
            say(_told(number + 1, rounds, time.perf_counter() - begun, found))
    return found


def _told(number: int, rounds: int, seconds: float, found: dict[str, Any]) -> str:
    """Return a round's line: its seconds, and how fast memory was copied."""
    own = found[COPY]
    rates = (
        f"{(own['read'] + own['written']) / own[kind][-1] / 1e6:.1f} GB/s {kind}"
        for kind in ("alone", "together")
    )
    return f"round {number} of {rounds}: {seconds:.1f} s; memory copied at {', '.join(rates)}"


def _join(barrier: Any, stop: Any, last: Any) -> None:
    global _barrier, _stop, _last
    _barrier, _stop, _last = barrier, stop, last
    # a Ctrl-C reaches the whole group: who has started us tells us when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def measure(
    rows: int, columns: int, size: tuple[int, int], rounds: int, processes: int, copy_mb: int
) -> dict[str, Any]:
    """Time the stages in processes of their own and return the figures."""
    context = multiprocessing.get_context("spawn")  # glibc reads its variables at the start
    stop = context.Event()
    with (
        tempfile.TemporaryDirectory() as name,
        patch.dict(os.environ, _ENVIRONMENT),
        ProcessPoolExecutor(
            processes,
            context,
            initializer=_join,
            initargs=(context.Barrier(processes), stop, context.Value("b", False)),
        ) as pool,
    ):
        write_files(Path(name), rows, columns)
        given = (Path(name), size, rounds, copy_mb << 20)
        # who takes the first waits for the others: each process has one
        parts = [pool.submit(take_part, rank, *given) for rank in range(processes)]
        try:
            wait(parts)
        except KeyboardInterrupt:
            stop.set()
            say("ending after this round")
            wait(parts)
            if any(part.exception() for part in parts):
                raise  # they had not begun: such processes end by Ctrl-C themselves
        parts.sort(key=lambda part: isinstance(part.exception(), threading.BrokenBarrierError))
        samples = [part.result() for part in parts]  # its own error before those of who waited
    if not any(each[COPY]["alone"] for each in samples):
        raise KeyboardInterrupt  # before the first round
    return {
        **({"ended": True} if stop.is_set() else {}),
        "machine": machine(),
        "rounds": rounds,
        "processes": processes,
        "shape": [rows, columns],
        "output": list(size),
        "copy_megabytes": copy_mb,
        "stages": figures(samples),
    }


def figures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return bytes, milliseconds, GB/s and share of copying, by stage, alone and together."""
    found: dict[str, Any] = {}
    for name, own in samples[0].items():
        moved = own["read"] + own["written"]
        found[name] = {"bytes_read": own["read"], "bytes_written": own["written"]}
        for kind in ("alone", "together"):
            values = [value for each in samples for value in each[name][kind]]
            times = {f"{key}_ms": value for key, value in quartiles(values).items()}
            rate = moved / 1e6 / max(times["median_ms"], 1e-3)
            copy = found[COPY].get(kind, {}).get("gigabytes_per_second", rate)
            found[name][kind] = {
                **times,
                "gigabytes_per_second": round(rate, 3),
                "share_of_copy": round(rate / copy, 4) if copy else 0.0,
            }
    return found


def show(result: dict[str, Any]) -> None:
    """Print every stage."""
    print(f"{'':<28}{'MB':>8}{'ms':>9}{'GB/s':>8}{'copy':>7}   {result['processes']} at once:")
    for name, stage in result["stages"].items():
        moved = (stage["bytes_read"] + stage["bytes_written"]) / 1e6
        cells = "  ".join(
            f"{own['median_ms']:9.3f}{own['gigabytes_per_second']:8.2f}{own['share_of_copy']:7.0%}"
            for own in (stage["alone"], stage["together"])
        )
        print(f"{name:<28}{moved:8.2f}{cells}")


def table(result: dict[str, Any]) -> str:
    """Return milliseconds, GB/s and share of copying by stage in Markdown."""
    from table import machine as described
    from table import table as markdown

    count = result["processes"]
    rows = []
    for name, stage in result["stages"].items():
        moved = (stage["bytes_read"] + stage["bytes_written"]) / 1e6
        alone, together = stage["alone"], stage["together"]
        rows.append(
            [
                f"copy of {result['copy_megabytes']} MiB" if name == COPY else name,
                f"{moved:.2f}",
                f"{alone['median_ms']:.2f} ({alone['lower_ms']:.2f} to {alone['upper_ms']:.2f})",
                f"{alone['gigabytes_per_second']:.2f}",
                f"{alone['share_of_copy']:.0%}",
                f"{together['median_ms']:.2f}",
                f"{together['share_of_copy']:.0%}",
            ]
        )
    heads = ["stage", "MB read and written", "ms (quartiles)", "GB/s", "of copying"]
    heads += [f"ms, {count} processes at once", "of copying, at once"]
    height, width = result["shape"]
    to = "x".join(map(str, result["output"]))
    return "\n".join(
        [
            *markdown(heads, rows),
            "",
            f"{height}x{width} to {to}, one core each; {described(result)}; "
            "`python bench/stages.py --save`.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=Help)
    parser.add_argument("--size", type=pair, default=(3328, 2560), help="of the phantom")
    parser.add_argument("--output", type=pair, default=(1024, 512), help="rows x columns")
    parser.add_argument("--rounds", type=whole, default=7, help="of all stages")
    parser.add_argument("--processes", type=whole, default=2, help="that work at once")
    parser.add_argument("--copy-mb", type=whole, default=64, help="MiB of the block that is copied")
    parser.add_argument("--save", action="store_true", help="write bench/results/stages.json")
    options = parser.parse_args(arguments)
    say("files are written, and every stage is run once: a few seconds")
    result = measure(
        *options.size, options.output, options.rounds, options.processes, options.copy_mb
    )
    show(result)
    if result.pop("ended", False):
        end_early(measured=True)
    if options.save:
        print(save("stages", result))


if __name__ == "__main__":
    script(main)
