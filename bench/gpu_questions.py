"""What does nvJPEG2000 do on this GPU where its documentation is silent?

    python bench/gpu_questions.py [--rows 3328] [--columns 2560] [--only NAME ...] [--folder DIR]

Each question runs in a process of its own, with a time limit, so that one that fails, or loses the
device, does not stop the others. The answers go to gpu_questions.json in DIR, else in the folder
that the environment's OUT names, else in bench/results. Three minutes at most.
"""

from __future__ import annotations

import argparse
import ctypes as C
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import RESULTS, machine

from fastmammo.decoding import openjpeg
from fastmammo.decoding.cuda_runtime import target_of
from fastmammo.decoding.frames_in_flight import DEVICE_PADDING, PINNED_PADDING, Decoder, Request
from fastmammo.decoding.nvjpeg2000_library import Image, PixelType, Status, find_library
from fastmammo.decoding.nvjpeg2000_state import Handle, State, dtype_of, shape_of
from fastmammo.dicom import inspect_codestream
from fastmammo.errors import FastMammoError
from fastmammo.testing import phantom
from fastmammo.testing.openjpeg import encode_jpeg2000

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmammo.dicom import Codestream

SECONDS = {
    "levels": 50,
    "area": 25,
    "throughput": 50,
    "types": 15,
    "memory": 40,
    "damaged": 20,
}
"""The time limit of each question; encoding the frames counts."""
TOTAL = 175
"""Seconds for all of them: the last ones get what is left."""


class Bench:
    """One State and buffers on the device."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.handle = Handle(find_library())
        self.state = State(self.handle)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.library = self.handle.library

    def decode(self, data: bytes, c: Codestream, level: int = 0) -> np.ndarray:
        with self.stream:
            pixels = self.cupy.empty(shape_of(c, level), dtype_of(c))
        self.into(pixels, data, c, level)
        self.stream.synchronize()
        found: np.ndarray = self.cupy.asnumpy(pixels)
        return found

    def into(self, pixels: Any, data: bytes, c: Codestream, level: int) -> None:
        self.state.parse(data, c)
        target = target_of(pixels, shape_of(c, level), dtype_of(c))
        self.state.decode(c, level, target, self.stream.ptr)

    def raw(
        self,
        data: bytes,
        c: Codestream,
        pixels: Any,
        kind: PixelType,
        resolutions: int | None = None,
        params: Any = None,
    ) -> str:
        """Call DecodeImage (or DecodeTile with `resolutions`) and return the status's name."""
        self.state.parse(data, c)
        pitch = pixels.shape[1] * pixels.dtype.itemsize
        pointers, pitches = (C.c_void_p * 1)(pixels.data.ptr), (C.c_size_t * 1)(pitch)
        image = Image(pointers, pitches, kind, 1)
        state = self.state
        where = state._handle, state._state, state._bitstream, params
        if resolutions is None:
            status = self.library.quietly("DecodeImage", *where, C.byref(image), self.stream.ptr)
        else:
            tile = 0, resolutions, C.byref(image), self.stream.ptr
            status = self.library.quietly("DecodeTile", *where, *tile)
        self.stream.synchronize()
        return Status(status).name

    def milliseconds(self, run: Callable[[], object], rounds: int = 12) -> dict[str, float]:
        """Median time of the call alone and until the GPU is done, after two warm-up rounds."""
        calls, totals = [], []
        for number in range(rounds + 2):
            self.stream.synchronize()
            start = time.perf_counter()
            run()
            called = time.perf_counter()
            self.stream.synchronize()
            if number > 1:
                calls.append((called - start) * 1e3)
                totals.append((time.perf_counter() - start) * 1e3)
        return {
            "call_ms": round(statistics.median(calls), 3),
            "total_ms": round(statistics.median(totals), 3),
        }


def coded(values: np.ndarray, bits: int, **options: Any) -> tuple[bytes, Codestream]:
    data = encode_jpeg2000(values, precision=bits, **options)
    return data, inspect_codestream(data, "jpeg2000")


def compare(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    if found.shape != wanted.shape:
        return {"shape": list(found.shape), "wanted": list(wanted.shape)}
    difference = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
    return {
        "equal": bool((difference == 0).all()),
        "largest_difference": int(difference.max()),
        "differing": int(np.count_nonzero(difference)),
        "range": [int(found.min()), int(found.max())],
        "wanted_range": [int(wanted.min()), int(wanted.max())],
    }


def levels(rows: int, columns: int) -> dict[str, Any]:
    """Does DecodeTile with fewer resolutions equal OpenJPEG's, and what time does it take?"""
    bench, made = Bench(), phantom(rows, columns, seed=1).pixels
    random = np.random.default_rng(0)
    harsh = (random.integers(0, 2, (601, 433)) * 4095).astype(np.uint16)
    sources = {
        "phantom 12 bit": (*coded(made, 12), True),
        "black and white noise 12 bit": (*coded(harsh, 12), False),
        "black and white noise 12 bit in precision 16": (*coded(harsh, 16), False),
        "signed noise 12 bit": (*coded((harsh.astype(np.int32) - 2048).astype("i2"), 12), False),
        "black and white noise 8 bit": (*coded((harsh >> 4).astype(np.uint8), 8), False),
        "9/7 phantom 12 bit": (
            *coded(made[:1024, :768].copy(), 12, reversible=False, psnr=60.0),
            False,
        ),
    }
    answer: dict[str, Any] = {}
    for name, (data, c, timed) in sources.items():
        answer[name] = part = {"bytes": len(data), "shape": [c.rows, c.columns]}
        for level in range(c.levels + 1):
            found = compare(bench.decode(data, c, level), openjpeg.decode(data, c, level))
            if timed:
                with bench.stream:
                    pixels = bench.cupy.empty(shape_of(c, level), dtype_of(c))

                def run(pixels: Any = pixels, level: int = level) -> None:
                    bench.into(pixels, data, c, level)  # noqa: B023

                found |= bench.milliseconds(run)
            part[f"level {level}"] = found
        if timed:
            with bench.stream:
                pixels = bench.cupy.empty((c.rows, c.columns), dtype_of(c))
            for label, count in (("0", 0), ("all", c.levels + 1)):
                status = bench.raw(data, c, pixels, PixelType.UINT16, count)
                same = compare(bench.cupy.asnumpy(pixels), made)["equal"]
                part[f"DecodeTile, {label} resolutions"] = {"status": status, "equal": same}
    return answer


def area(rows: int, columns: int) -> dict[str, Any]:
    """Which coordinates does a decode area have with fewer resolutions, and what does it save?"""
    bench = Bench()
    made = phantom(rows, columns, seed=1).pixels
    data, c = coded(made, 12)
    library, params = bench.library, bench.library.new("DecodeParamsCreate")
    answer: dict[str, Any] = {"shape": [rows, columns]}
    with bench.stream:  # as large as the frame, whatever the library writes
        canvas = bench.cupy.zeros((rows, columns), np.uint16)
    y0, y1, x0, x1 = rows // 4 + 3, rows // 2 + 6, columns // 8 + 1, columns // 2 - 2
    for level in (0, 1, 2):
        reference = openjpeg.decode(data, c, level)
        scale = 1 << level
        hypotheses = {
            "full-resolution coordinates": (y0, y1, x0, x1),
            "the level's coordinates": (y0 // scale, y1 // scale, x0 // scale, x1 // scale),
        }
        for name, (top, bottom, left, right) in hypotheses.items():
            library("DecodeParamsSetDecodeArea", params, left, right, top, bottom)
            canvas.fill(0xABCD)
            bench.cupy.cuda.Device().synchronize()
            status = bench.raw(data, c, canvas, PixelType.UINT16, c.levels + 1 - level, params)
            found = bench.cupy.asnumpy(canvas)
            written = found != 0xABCD
            ys, xs = np.flatnonzero(written.any(1)), np.flatnonzero(written.any(0))
            box = [int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1] if len(ys) else []
            box_given = (top, bottom, left, right)
            matches = []
            for what, (y, y_end, x, x_end) in {
                "full-resolution, rounded up": tuple(-(-v // scale) for v in box_given),
                "full-resolution, rounded down": tuple(v // scale for v in box_given),
                "the level's": box_given,
            }.items():
                wanted = reference[y:y_end, x:x_end]
                if wanted.size and np.array_equal(found[: y_end - y, : x_end - x], wanted):
                    matches.append(f"{what}; written from the buffer's corner")
                if wanted.size and np.array_equal(found[y:y_end, x:x_end], wanted):
                    matches.append(f"{what}; written in place")
            answer[f"level {level}, given in {name}"] = {
                "status": status,
                "written": box,
                "equals": matches,
            }
    for side in (32, 64, 65, 128, 256, 512, 1024, 2048, 0):
        if side > min(rows, columns):
            continue
        edge = (0, 0, 0, 0) if not side else (64, 64 + side, 64, 64 + side)
        if side and 64 + side > min(rows, columns):
            continue
        library("DecodeParamsSetDecodeArea", params, *edge)
        for call, count in (("DecodeImage", None), ("DecodeTile", c.levels + 1)):

            def run(count: int | None = count) -> None:
                bench.raw(data, c, canvas, PixelType.UINT16, count, params)

            found = bench.milliseconds(run, 5)["total_ms"]
            answer[f"{call}, area of side {side or 'all'}"] = {"ms": found}
    return answer


def throughput(rows: int, columns: int) -> dict[str, Any]:
    """How many frames a second by states, threads and padding?"""
    made = phantom(rows, columns, seed=1).pixels
    frames = [coded(np.roll(made, 64 * k, axis=0), 12) for k in range(2)]
    answer: dict[str, Any] = {"shape": [rows, columns], "bytes": [len(d) for d, _ in frames]}
    settings: list[dict[str, Any]] = [{"states": n} for n in (1, 2, 4, 8, 16)]
    settings += [{"states": 8, "threads": 4}, {"states": 16, "threads": 8}]
    settings.append({"states": 8, "device_padding": None, "pinned_padding": None})
    begun = time.monotonic()
    for level in (0, 2):
        for chosen in settings:
            with Decoder(**chosen) as decoder:
                warm = 2 * chosen["states"]
                requests = [Request(*frames[k % 2], level) for k in range(warm)]
                for found in decoder.map(requests):
                    if isinstance(found, Exception):
                        raise found
                count = 48
                requests = [Request(*frames[k % 2], level) for k in range(count)]
                start = time.perf_counter()
                for found in decoder.map(requests, ahead=2 * chosen["states"]):
                    if isinstance(found, Exception):
                        raise found
                seconds = time.perf_counter() - start
            label = ", ".join(f"{k} {v}" for k, v in chosen.items())
            answer[f"level {level}, {label}"] = {"frames_per_s": round(count / seconds, 1)}
            if time.monotonic() - begun > SECONDS["throughput"] - 20:
                answer["cut short"] = True
                return answer
    return answer


def types(rows: int, columns: int) -> dict[str, Any]:
    """Which output types take which samples, and with what values?"""
    bench, random = Bench(), np.random.default_rng(0)
    shape = (301, 234)
    answer: dict[str, Any] = {}
    for signed, bits in ((True, 16), (True, 12), (True, 8), (False, 8), (False, 12), (False, 16)):
        low = -(1 << (bits - 1)) if signed else 0
        values = random.integers(low, low + (1 << bits), shape).astype("i4")
        stored = values.astype("i2" if signed else "u2")
        data, c = coded(stored, bits)
        for kind, dtype in ((PixelType.UINT8, "u1"), (PixelType.UINT16, "u2"), (2, "i2")):
            with bench.stream:
                pixels = bench.cupy.zeros(shape, dtype)
            bench.stream.synchronize()
            status = bench.raw(data, c, pixels, PixelType(kind))
            found = bench.cupy.asnumpy(pixels).astype(np.int32)
            offsets = np.unique(found - values)
            name = f"{'signed' if signed else 'unsigned'} {bits} bit into {PixelType(kind).name}"
            answer[name] = {
                "status": status,
                "equal": bool(np.array_equal(found, values)),
                "equal_modulo_2^16": bool(np.array_equal(found & 0xFFFF, values & 0xFFFF)),
                "constant_offset": int(offsets[0]) if len(offsets) == 1 else None,
            }
    return answer


def memory(rows: int, columns: int) -> dict[str, Any]:
    """How much device memory does a State take, and which status says that there is none left?"""
    bench = Bench()
    cupy, answer = bench.cupy, {}
    made = phantom(rows, columns, seed=1).pixels

    def free() -> int:
        cupy.cuda.Device().synchronize()
        return int(cupy.cuda.runtime.memGetInfo()[0])

    coded_frames = {}
    for size in ((1024, 832), (rows, columns), (4096, 3328), (5624, 4096)):
        tiled = np.tile(made, (-(-size[0] // rows), -(-size[1] // columns)))[: size[0], : size[1]]
        coded_frames[size] = coded(np.ascontiguousarray(tiled), 12)
    paddings = {"no padding": (None, None), "padding": (DEVICE_PADDING, PINNED_PADDING)}
    for size, (data, c) in coded_frames.items():
        for level in (0, 2):
            for label, padding in paddings.items():
                pixels = cupy.empty(shape_of(c, level), dtype_of(c))
                start = free()
                handle = Handle(bench.library, *padding)
                state = State(handle)
                created = free()
                state.parse(data, c)
                state.decode(c, level, target_of(pixels, pixels.shape, dtype_of(c)), 0)
                after = free()
                state.close()
                handle.close()
                answer[f"{size[0]} x {size[1]}, level {level}, {label}"] = {
                    "state_bytes": start - created,
                    "decoded_bytes": start - after,
                    "bytes_a_pixel": round((start - after) / (size[0] * size[1]), 2),
                    "bytes_kept_after_close": start - free(),
                }
    data, c = coded_frames[(5624, 4096)]
    pixels = cupy.empty((c.rows, c.columns), dtype_of(c))
    held = []
    for step in (1 << 30, 1 << 26, 1 << 23):
        while free() > step + (96 << 20):
            try:
                held.append(cupy.cuda.runtime.malloc(min(step * 8, free() - (96 << 20))))
            except cupy.cuda.runtime.CUDARuntimeError:
                break
    full: dict[str, Any] = {"free_bytes": free()}
    handle = Handle(bench.library)
    try:
        state = State(handle)
        state.parse(data, c)
        state.decode(c, 0, target_of(pixels, pixels.shape, dtype_of(c)), 0)
        cupy.cuda.Device().synchronize()
        full["status"] = "SUCCESS"
    except FastMammoError as error:
        full["status"] = str(error)
    for address in held:
        cupy.cuda.runtime.free(address)
    try:
        small, facts = coded_frames[(1024, 832)]
        full["afterwards"] = compare(bench.decode(small, facts), openjpeg.decode(small, facts))
    except Exception as error:
        full["afterwards"] = str(error)
    return {**answer, "with the memory full": full}


def damaged(rows: int, columns: int) -> dict[str, Any]:
    """What becomes of bytes changed in the packets: a status, other values, a lost device?"""
    bench, random = Bench(), np.random.default_rng(5)
    values = phantom(601, 433, seed=2).pixels
    data, c = coded(values, 12)
    start = data.index(b"\xff\x93") + 2
    answer: dict[str, Any] = {"statuses": {}, "as_openjpeg": 0, "beyond_12_bits": 0}
    for _ in range(60):
        changed = bytearray(data)
        for at in random.integers(start, len(data) - 2, int(random.choice([1, 4, 40]))):
            changed[at] = int(random.integers(0, 255))
        try:
            found = bench.decode(bytes(changed), c)
            word = "SUCCESS"
            answer["beyond_12_bits"] += int(found.max() > 4095)
        except FastMammoError as error:
            found, word = None, str(error).split(":")[1]
            bench.state.close()
            bench.state = State(bench.handle)
        answer["statuses"][word] = answer["statuses"].get(word, 0) + 1
        try:
            other = openjpeg.decode(bytes(changed), c)
        except FastMammoError:
            other = None
        same = (found is None) == (other is None)
        if same and found is not None and other is not None:
            same = bool(np.array_equal(found, other))
        answer["as_openjpeg"] += int(same)
    answer["afterwards"] = compare(bench.decode(data, c), values)
    return answer


QUESTIONS = {f.__name__: f for f in (levels, types, damaged, memory, area, throughput)}


def gpu() -> dict[str, Any]:
    """Return the GPU's name and the versions."""
    try:
        import cupy

        facts = cupy.cuda.runtime.getDeviceProperties(0)
        return {
            "name": facts["name"].decode(),
            "memory_bytes": facts["totalGlobalMem"],
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "cupy": cupy.__version__,
            "nvjpeg2000": find_library().version(),
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def ask(name: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Return the answer of a question, from a process of its own."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, __file__, *arguments, "--answer", name],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            answer: dict[str, Any] = json.loads(lines[-1])
        else:
            answer = {"error": f"exit {done.returncode}: {_last_line(done.stderr)}"}
    except subprocess.TimeoutExpired:
        answer = {"error": f"no answer in {limit:.0f} s"}
    question = (QUESTIONS[name].__doc__ or "").strip()
    return {"question": question, "seconds": round(time.monotonic() - start, 1), **answer}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:500] if lines else "no word"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3328)
    parser.add_argument("--columns", type=int, default=2560)
    parser.add_argument("--only", nargs="*", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("OUT") or RESULTS))
    parser.add_argument("--answer", choices=QUESTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.answer:
        print(json.dumps(QUESTIONS[options.answer](options.rows, options.columns)))
        return
    result: dict[str, Any] = {"machine": machine(), "gpu": gpu(), "answers": {}}
    size = ["--rows", str(options.rows), "--columns", str(options.columns)]
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "gpu_questions.json"
    begun = time.monotonic()
    for name in options.only:
        left = TOTAL - (time.monotonic() - begun)
        if left < 5:
            result["answers"][name] = {"error": "no time left"}
            continue
        answer = ask(name, size, min(SECONDS[name], left))
        result["answers"][name] = answer
        print(name, json.dumps(answer, indent=1), flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
