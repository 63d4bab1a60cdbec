"""What bench/throughput.py calls fair: even turns, limits of the same files, a quiet machine."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"
J2K, SV1 = (f"1.2.840.10008.1.2.{end}" for end in ("4.90", "4.70"))


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def job(workers: int, sources: int) -> Any:
    paths = [Path(f"{i:05d}.dcm") for i in range(sources)]
    return module("contenders.turns").Job(paths, paths, Path("out"), 64, workers, None, None)


@pytest.mark.parametrize(("workers", "sources"), [(1, 4), (2, 4), (3, 4), (6, 4), (16, 4), (2, 64)])
@pytest.mark.parametrize("seconds", [0.03, 0.81, 1.7])
def test_turns_have_all_sources_and_work_for_all_processes(
    workers: int, sources: int, seconds: float
) -> None:
    rounds = module("rounds")
    first = module("contenders.turns").Turn([{"total": seconds}, {"total": 2 * seconds}], 1.0)
    count = rounds._count(job(workers, sources), first, rounds.Settings(2.5, 3, 2))
    assert count % workers == 0
    assert count % sources == 0
    assert count >= 3 * workers
    if seconds < 0.1 and sources < 64:
        assert 0.8 < count * seconds / workers / 2.5 < 1.2


def test_sources_are_shared_evenly_and_the_largest_come_first(tmp_path: Path) -> None:
    files = module("phantom_files")
    sizes = [5, 9, 2, 7, 1, 4, 8]
    paths = [tmp_path / f"{i}.dcm" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    for workers, count in ((1, 7), (2, 6), (4, 4), (7, 7), (8, 7)):
        chosen = [path.stat().st_size for path in files.even(paths, workers)]
        assert len(set(chosen)) == count
        assert chosen == sorted(chosen, reverse=True)
    copies = files.linked(paths, tmp_path / "copies", 20, copies=True)
    assert len(copies) == 14  # whole cycles: no source more often than another


class Spied:
    """A way that notes what it is asked for, and takes a second a frame alone."""

    start_included = False

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def turn(self, job: Any) -> Any:
        self.calls.append(["turn"])
        for path in job.files:
            (job.out / f"{path.stem}.png").write_bytes(b"image")
        return module("contenders.turns").Turn([{"total": 1.0}], 1.0)

    def decode_only(self, job: Any, turn: Any, seconds: float) -> tuple[int, float]:
        self.calls.append([path.stem for path in job.files])
        return len(job.files), float(len(job.files))

    def digests(self, job: Any) -> None: ...


class Here:
    """Processes that are this one."""

    start_seconds = 0.0

    def everywhere(self, function: Any, *arguments: Any) -> list[Any]:
        return [function(*arguments)] * 2


@pytest.mark.parametrize(("count", "half"), [(8, 4), (12, 6), (4, 2), (6, 2), (2, 0)])
def test_the_decoder_alone_has_the_files_of_the_turn_beside_it(
    count: int, half: int, tmp_path: Path
) -> None:
    rounds, way = module("rounds"), Spied()
    contender = module("contenders").Contender(way)
    given = replace(job(2, count), out=tmp_path / "out", peers=Here(), own=Here())
    first = way.turn(replace(given, files=[]))
    settings = rounds.Settings(0.1, 3, 2)
    sample = rounds._sample(contender, given, first, settings, True)
    names = [f"{i:05d}" for i in range(count)]
    parts = [part for part in (names[:half], ["turn"], names[half:]) if part]
    assert way.calls[1:] == parts
    assert sample.decode_only == 1.0
    assert rounds._sample(contender, given, first, settings, False).decode_only is None


def test_frames_side_by_side() -> None:
    assert module("contenders.turns").side_by_side([1.0, 2.0, 3.0, 2.0], 2) == (4, 4.0)


def figures(share: float, rates: list[float], alone: float | None = 0.9) -> dict[str, Any]:
    return {
        "cpu_share": {"median": share},
        "rates": rates,
        "share_of_decode_only": None if alone is None else {"median": alone},
    }


def test_a_disturbed_machine_is_told() -> None:
    find = module("disturbed").disturbed
    quiet = {"ordinary": figures(0.97, [2.0, 2.2, 2.4]), "ours": figures(0.5, [3.0, 9.0])}
    assert find(quiet, ["ordinary"], "ordinary", 1.0) == []
    assert find(quiet, ["ordinary", "gone"], None, 1.0) == []
    assert find(quiet, ["ordinary", "ours"], "ordinary", 1.0) == [
        "1 of 2 warm contenders had less than 80% of their cores' time (ours: 50%)"
    ]
    assert find(quiet, ["ours"], "ordinary", 0.5) == []  # half of the cores are all it can use
    changing = {"ordinary": figures(0.97, [2.0, 2.2, 2.6])}
    assert find(changing, ["ordinary"], "ordinary", 1.0) == [
        "ordinary changed by 30% from round to round"
    ]


def test_above_its_limit_is_marked() -> None:
    beyond = module("disturbed").beyond
    assert [beyond(figures(1, [], share)) for share in (None, 0.9, 1.05, 1.06)] == [
        False,
        False,
        False,
        True,
    ]


def six_sets() -> dict[str, Any]:
    """Return the committed result, made into one of six sets."""
    result: dict[str, Any] = json.loads((BENCH / "results" / "throughput.json").read_text())
    one = next(iter(result["sets"].values()))
    names = [each.name for each in module("phantom_files").SETS]
    assert len(names) == 6
    result["sets"] = {name: copy.deepcopy(one) for name in names}
    result |= {"disturbed": False, "disturbed_why": []}
    return result


def test_the_table_says_what_was_disturbed() -> None:
    tables, result = module("throughput_tables"), six_sets()
    own = next(iter(result["sets"].values()))["contenders"]
    for each in own.values():
        each["share_of_decode_only"] = {"median": 0.9}
    quiet = tables.table(result)
    assert "quiet" not in quiet
    assert "*" not in quiet
    own["fastmammo auto"]["share_of_decode_only"] = {"median": 1.43}
    result |= {"disturbed": True, "disturbed_why": ["J2K: ordinary changed by 30%"]}
    text = tables.table(result)
    assert "| 143%* |" in text
    assert "; * faster than its decoder alone, above 105%: no limit:" in text
    assert "**not a quiet machine** (J2K: ordinary changed by 30%); " in text


def test_six_sets_are_readable(tmp_path: Path) -> None:
    tables, result = module("throughput_tables"), six_sets()
    heads = tables.table(result).splitlines()[0].strip("| ").split(" | ")
    assert heads[1:3] == ["J2K 3328x2560", "JPEG lossless 3328x2560"]
    assert max(map(len, heads)) < 26
    assert tables.short("HTJ2K Lossless RPCL, 64x48") == "HTJ2K Lossless RPCL 64x48"
    pytest.importorskip("matplotlib")
    from PIL import Image

    tables.picture(result, tmp_path / "six.png")
    with Image.open(tmp_path / "six.png") as image:
        width, height = image.size
    assert width == 900
    assert height > width  # rows of sets, two in each


def test_the_default_run_has_fewer_peers_of_a_syntax_without_levels() -> None:
    contenders = module("contenders").CONTENDERS

    def default(uid: str) -> list[str]:
        return [name for name, each in contenders.items() if each.default(uid) and not each.gpu]

    assert default(SV1) == [
        "ordinary",
        "fastmammo auto",
        "fastmammo full",
        "ordinary + imagecodecs",
    ]
    assert set(default(SV1)) < set(default(J2K))
    assert len(default(J2K)) <= 6
    assert module("throughput").parse([]).seconds == 2.5
