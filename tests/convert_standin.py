"""A stand-in for the preprocessor that obeys its input, and a run that is killed at a chosen point.

The input's bytes say what happens: "DICM" makes an image of noise from their digest, and further
words make it hang, abort, wait, kill and so on, or say what the header holds: view:CC, side:L,
modifiers:spot_compression, intent:FOR_PRESENTATION, maker:ACME. As a program it runs `convert` for
tests that kill it: SRC DST FORMAT [POINT COUNT [OPTIONS]], OPTIONS as JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmammo.errors import (
    CorruptCodestreamError,
    DeviceError,
    DeviceMemoryError,
    NotDicomError,
)
from fastmammo.preprocess import Config
from fastmammo.preprocess.geometry import EDGES

PREPROCESSOR = "convert_standin:StandIn"
SIZE = (24, 16)


FACTS = {
    "laterality": "side",
    "view_position": "view",
    "view_modifiers": "modifiers",
    "manufacturer": "maker",
    "presentation_intent_type": "intent",
}


def facts(data: bytes) -> dict[str, str]:
    """Return what the words of an input say of its header."""
    words = dict(word.partition(":")[::2] for word in data.decode().split()[1:])
    named = {name: words.get(word, "").replace("_", " ") for name, word in FACTS.items()}
    return {"sop_instance_uid": hashlib.sha256(data).hexdigest()[:8], **named}


@dataclass
class Image:
    image: np.ndarray
    record: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.25})


class StandIn:
    """Has what convert asks of a preprocessor."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, path: str) -> Image:
        data = Path(path).read_bytes()
        if b"DICM" not in data:
            raise NotDicomError(f"{path}: not DICOM")
        for word in data.decode().split()[1:]:
            name, _, value = word.partition(":")
            getattr(self, "do_" + name, lambda *_: None)(path, value)
        seed = int(hashlib.sha256(data).hexdigest()[:8], 16)
        kind = np.uint8 if self.config.bits == 8 else np.uint16
        noise = np.random.default_rng(seed).integers(0, 1 << self.config.bits, self.config.size)
        record = {"level": np.int64(1), "rule": "window 0", "share": 0.1}
        return Image(noise.astype(kind), record | facts(data) | self.geometry())

    def facts(self, path: str) -> dict[str, str] | None:
        data = Path(path).read_bytes()
        return facts(data) if b"DICM" in data else None

    def geometry(self) -> dict[str, Any]:
        """A crop of a frame of 100 x 80, mirrored, in the output's lower half."""
        rows, columns = self.config.size
        boxes = {"box": (10, 0, 90, 60), "placed": (rows // 2, 0, rows, columns)}
        edges = {
            f"{part}_{edge}": value
            for part, box in boxes.items()
            for edge, value in zip(EDGES, box, strict=True)
        }
        spacing = {"row_spacing_mm": "", "column_spacing_mm": ""}
        return {"rows": 100, "columns": 80, "mirrored": 1, **edges, **spacing}

    def do_broken(self, path: str, _: str) -> None:
        raise CorruptCodestreamError(f"{path}: frame 0: no end of codestream")

    def do_defect(self, *_: str) -> None:
        raise ZeroDivisionError("division by zero")

    def do_memory(self, *_: str) -> None:
        raise MemoryError

    def do_lines(self, path: str, _: str) -> None:
        raise CorruptCodestreamError("the codec says:\n  bad marker\r\n  at byte 7\n")

    def do_huge(self, *_: str) -> None:
        np.empty(5 << 30, np.uint8)  # no page of it is touched: harmless without a limit

    def do_shout(self, *_: str) -> None:
        os.write(2, b"warning: row\n" * 100_000)

    def do_hang(self, *_: str) -> None:
        time.sleep(600)

    def do_abort(self, *_: str) -> None:
        os.abort()

    def do_die_once(self, _: str, marker: str) -> None:
        if not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def do_gpu(self, path: str, value: str) -> None:
        """Note which GPU is this process's; lose it, so many times over all processes."""
        times, folder = value.split(",")
        seen = f"{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES')}-{Path(path).name}"
        Path(folder, f"seen-{seen}").touch()
        tries = len(list(Path(folder).glob(f"lost-{Path(path).name}-*")))
        if tries < int(times):
            Path(folder, f"lost-{Path(path).name}-{tries}").touch()
            raise DeviceError(f"{path}: an illegal memory access was encountered")

    def do_gpu_full(self, path: str, folder: str) -> None:
        """Have no device memory, and note each try."""
        tries = len(list(Path(folder).glob(f"full-{Path(path).name}-*")))
        device = self.config.device
        Path(folder, f"full-{Path(path).name}-{tries}-{device}-{os.getpid()}").touch()
        if device == "cuda":
            raise DeviceMemoryError(f"{path}: no memory left")

    def do_beside(self, path: str, value: str) -> None:
        """Wait until so many files are in hand at once."""
        count, folder = value.split(",")
        Path(folder, f"beside-{Path(path).name}").touch()
        end = time.monotonic() + 20
        while len(list(Path(folder).glob("beside-*"))) < int(count):
            assert time.monotonic() < end
            time.sleep(0.01)

    def do_beside_once(self, path: str, value: str) -> None:
        """As `beside`, the first time alone."""
        if not Path(value.split(",")[1], f"beside-{Path(path).name}").exists():
            self.do_beside(path, value)

    def do_pair(self, _: str, folder: str) -> None:
        """Wait until a second process has a file in hand too."""
        end = time.monotonic() + 60
        while len({p.name.split("-")[1] for p in Path(folder).glob("seen-*")}) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)

    def do_wait(self, _: str, folder: str) -> None:
        """Say that the file is in hand, and wait until the test lets it go."""
        Path(folder, f"started-{os.getpid()}").touch()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)

    def do_grow(self, path: str, _: str) -> None:
        with open(path, "ab") as file:
            file.write(b" more")

    def do_disk_full(self, _: str, marker: str) -> None:
        """Let the disk be full as long as the marker is there."""
        from fastmammo.conversion import writers

        def fsync(_: int) -> None:
            if os.path.exists(marker):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        writers.os = type("os", (), {**vars(os), "fsync": staticmethod(fsync)})

    def do_kill_parent(self, _: str, value: str) -> None:
        """Kill the run between write and rename, or between rename and journal, once."""
        from fastmammo.conversion import writers

        point, marker = value.split(",")

        def replace(source: str, target: str) -> None:
            if point == "renamed":
                os.replace(source, target)
            if not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)  # the worker does not outlive its parent
            if point == "written":
                os.replace(source, target)

        writers.os = type("os", (), {**vars(os), "replace": staticmethod(replace)})


class SlowStart(StandIn):
    """Takes long over its first image, as one does whose kernels are to be compiled."""

    started = False

    def prepare(self, path: str) -> Image:
        if not self.started:
            self.started = True
            time.sleep(1.5)
        return super().prepare(path)


def kill_at(point: str, count: int) -> None:
    """Let this process die at the count-th call of a function of the run, before or after it."""
    from fastmammo.conversion import journal, packed, plan, run

    owners: dict[str, tuple[Any, str]] = {
        "add": (journal.Journal, "add"),
        "redo": (journal.Journal, "redo"),
        "add_packed": (journal.Journal, "add_packed"),
        "copy": (packed.Packed, "_copy"),
        "gather": (packed.Packed, "gather"),
        "load": (packed.Packed, "load"),
        "forget": (plan.Plan, "_forget"),
        "tables": (run, "write_tables"),
    }
    when, _, name = point.partition("-")
    owner, attribute = owners[name]
    original = getattr(owner, attribute)
    calls = 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, killing)


def main() -> int:
    from fastmammo.conversion import ConvertOptions, convert

    src, dst, kind, *point = sys.argv[1:]
    if point:
        kill_at(point[0], int(point[1]))
    settings = json.loads(point[2]) if len(point) > 2 else {}
    options = ConvertOptions(format=kind, workers=2, **settings)
    summary = convert(
        src, dst, config=Config(size=SIZE), options=options, preprocessor=PREPROCESSOR
    )
    print(json.dumps(summary.to_dict()))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main())
