"""What do NVIDIA's decoders do on this GPU where their documentation is silent?

    python bench/gpu_questions.py [--rows 3328] [--columns 2560] [--only NAME ...] [--folder DIR]

Each question runs in a process of its own, with a time limit, so that one that fails, or loses the
device, does not stop the others; what it had found by then is kept. A case that fails is an answer
too, and the first failure of CUDA itself ends its question. The answers go to gpu_questions.json in
DIR, else in the folder that the environment's OUT names, else in bench/results. Four minutes at
most.
"""

from __future__ import annotations

import argparse
import contextlib
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

from fastmammo.decoding import cuda_runtime, dali, nvidia_libraries, nvimgcodec, openjpeg
from fastmammo.decoding.cuda_runtime import target_of
from fastmammo.decoding.frame_queue import Request
from fastmammo.decoding.frames_in_flight import DEVICE_PADDING, PINNED_PADDING, Decoder
from fastmammo.decoding.nvjpeg2000_library import Image, PixelType, Status, find_library
from fastmammo.decoding.nvjpeg2000_state import Handle, State, dtype_of, shape_of
from fastmammo.dicom import inspect_codestream
from fastmammo.errors import FastMammoError
from fastmammo.testing import encode, phantom
from fastmammo.testing.openjpeg import encode_jpeg2000

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastmammo.dicom import Codestream

SECONDS = {
    "levels": 50,
    "area": 25,
    "throughput": 50,
    "types": 15,
    "memory": 40,
    "damaged": 20,
    "lossless_jpeg": 15,
    "nvimgcodec_buffers": 20,
    "dali_stretch": 25,
}
"""The time limit of each question; encoding the frames counts."""
TOTAL = 240
"""Seconds for all of them: the last ones get what is left."""


class Stopped(Exception):
    """CUDA has failed: in this process nothing more can be asked."""


class Answer(dict[str, Any]):
    """What a question has found so far: one line of JSON after each case."""

    def print(self) -> None:
        print(json.dumps(self), flush=True)

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[dict[str, Any]]:
        """Give the dictionary of a case; an exception becomes its answer.

        Raises:
            Stopped: CUDA has failed.
        """
        part: dict[str, Any] = {}
        self[name] = part
        try:
            yield part
        except Exception as error:
            part["error"] = described(error)
            if is_fatal(error):
                self["stopped"] = f"{name}: {described(error)}"
                raise Stopped from error
        finally:
            self.print()


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def is_fatal(error: Exception) -> bool:
    """Whether CUDA itself has failed, and not a call for lack of memory."""
    try:
        import cupy

        cuda = cupy.cuda
        return isinstance(error, (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError))
    except ImportError:
        return False


def name_of(status: int) -> str:
    try:
        return Status(status).name
    except ValueError:
        return f"unknown status {status}"


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
        return name_of(status)

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


def levels(answer: Answer, rows: int, columns: int) -> None:
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
    for name, (data, c, timed) in sources.items():
        for level in range(c.levels + 1):
            with answer.case(f"{name}, level {level}") as found:
                found |= compare(bench.decode(data, c, level), openjpeg.decode(data, c, level))
                if timed:
                    with bench.stream:
                        pixels = bench.cupy.empty(shape_of(c, level), dtype_of(c))

                    def run(pixels: Any = pixels, level: int = level) -> None:
                        bench.into(pixels, data, c, level)  # noqa: B023

                    found |= bench.milliseconds(run)
        for label, count in (("0", 0), ("all", c.levels + 1)) if timed else ():
            with answer.case(f"{name}, DecodeTile, {label} resolutions") as found:
                with bench.stream:
                    pixels = bench.cupy.empty((c.rows, c.columns), dtype_of(c))
                found["status"] = bench.raw(data, c, pixels, PixelType.UINT16, count)
                found["equal"] = compare(bench.cupy.asnumpy(pixels), made)["equal"]


def area(answer: Answer, rows: int, columns: int) -> None:
    """Which coordinates does a decode area have with fewer resolutions, and what does it save?"""
    bench = Bench()
    made = phantom(rows, columns, seed=1).pixels
    data, c = coded(made, 12)
    library, params = bench.library, bench.library.new("DecodeParamsCreate")
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
            with answer.case(f"level {level}, given in {name}") as found_there:
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
                found_there |= {"status": status, "written": box, "equals": matches}
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

            with answer.case(f"{call}, area of side {side or 'all'}") as timed:
                timed["ms"] = bench.milliseconds(run, 5)["total_ms"]


def throughput(answer: Answer, rows: int, columns: int) -> None:
    """How many frames a second by states, threads and padding?"""
    made = phantom(rows, columns, seed=1).pixels
    frames = [coded(np.roll(made, 64 * k, axis=0), 12) for k in range(2)]
    answer |= {"shape": [rows, columns], "bytes": [len(d) for d, _ in frames]}
    settings: list[dict[str, Any]] = [{"states": n} for n in (1, 2, 4, 8, 16)]
    settings += [{"states": 8, "threads": 4}, {"states": 16, "threads": 8}]
    settings.append({"states": 8, "device_padding": None, "pinned_padding": None})
    begun = time.monotonic()
    for level in (0, 2):
        for chosen in settings:
            label = ", ".join(f"{k} {v}" for k, v in chosen.items())
            with answer.case(f"level {level}, {label}") as timed:
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
                timed["frames_per_s"] = round(count / seconds, 1)
            if time.monotonic() - begun > SECONDS["throughput"] - 20:
                answer["cut short"] = True
                return


def types(answer: Answer, rows: int, columns: int) -> None:
    """Which output types take which samples, and with what values?"""
    bench, random = Bench(), np.random.default_rng(0)
    shape = (301, 234)
    for signed, bits in ((True, 16), (True, 12), (True, 8), (False, 8), (False, 12), (False, 16)):
        low = -(1 << (bits - 1)) if signed else 0
        values = random.integers(low, low + (1 << bits), shape).astype("i4")
        stored = values.astype("i2" if signed else "u2")
        data, c = coded(stored, bits)
        for kind, dtype in ((PixelType.UINT8, "u1"), (PixelType.UINT16, "u2"), (2, "i2")):
            name = f"{'signed' if signed else 'unsigned'} {bits} bit into {PixelType(kind).name}"
            with answer.case(name) as part:
                with bench.stream:
                    pixels = bench.cupy.zeros(shape, dtype)
                bench.stream.synchronize()
                part["status"] = bench.raw(data, c, pixels, PixelType(kind))
                found = bench.cupy.asnumpy(pixels).astype(np.int32)
                offsets = np.unique(found - values)
                part |= {
                    "equal": bool(np.array_equal(found, values)),
                    "equal_modulo_2^16": bool(np.array_equal(found & 0xFFFF, values & 0xFFFF)),
                    "constant_offset": int(offsets[0]) if len(offsets) == 1 else None,
                }


def memory(answer: Answer, rows: int, columns: int) -> None:
    """How much device memory does a State take, and which status says that there is none left?"""
    bench = Bench()
    cupy = bench.cupy
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
                with answer.case(f"{size[0]} x {size[1]}, level {level}, {label}") as part:
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
                    part |= {
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
    with answer.case("with the memory full") as full:
        full["free_bytes"] = free()
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
    with answer.case("after the memory was full") as after_it:
        small, facts = coded_frames[(1024, 832)]
        after_it |= compare(bench.decode(small, facts), openjpeg.decode(small, facts))


def damaged(answer: Answer, rows: int, columns: int) -> None:
    """What becomes of bytes changed in the packets: a status, other values, a lost device?"""
    bench, random = Bench(), np.random.default_rng(5)
    values = phantom(601, 433, seed=2).pixels
    data, c = coded(values, 12)
    start = data.index(b"\xff\x93") + 2
    answer |= {"statuses": {}, "as_openjpeg": 0, "beyond_12_bits": 0}
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
        answer.print()
    with answer.case("afterwards") as found_then:
        found_then |= compare(bench.decode(data, c), values)


def nvimgcodec_buffers(answer: Answer, rows: int, columns: int) -> None:
    """Does nvImageCodec decode into a caller's memory, and what do GRAY and UNCHANGED cost?"""
    import cupy

    library = nvidia_libraries.nvimgcodec()
    made = phantom(rows, columns, seed=1).pixels
    data, _ = coded(made, 12)
    kinds = library.BackendKind
    decoder = library.Decoder(device_id=0, backends=[library.Backend(kinds.GPU_ONLY)])
    for color, formats in (("GRAY", ("P_Y", "I_Y")), ("UNCHANGED", ("P_UNCHANGED", "I_UNCHANGED"))):
        for sample_format in formats:
            params = library.DecodeParams(
                apply_exif_orientation=False,
                color_spec=getattr(library.ColorSpec, color),
                allow_any_depth=True,
                sample_format=getattr(library.SampleFormat, sample_format),
            )
            for into in ("its own memory", "as_image"):
                with answer.case(f"{color}, {sample_format}, {into}") as part:
                    shape = (1, rows, columns) if sample_format[0] == "P" else (rows, columns, 1)
                    canvas = cupy.zeros(shape, np.uint16)
                    given = {"image": library.as_image(canvas)} if into == "as_image" else {}

                    def run(params: Any = params, given: Any = given) -> Any:
                        stream = library.CodeStream(data)
                        return decoder.decode(stream, params=params, **given)

                    image = run()
                    cupy.cuda.Device().synchronize()
                    if image is None:
                        part["image"] = None
                        continue
                    part["shape"] = list(image.shape)
                    found = cupy.asnumpy(canvas if given else cupy.asarray(image))
                    part |= compare(found.reshape(-1), made.reshape(-1))
                    times = []
                    for _ in range(8):
                        start = time.perf_counter()
                        run()
                        cupy.cuda.Device().synchronize()
                        times.append((time.perf_counter() - start) * 1e3)
                    part["total_ms"] = round(statistics.median(times), 3)


def dali_stretch(answer: Answer, rows: int, columns: int) -> None:
    """By which rule does DALI's "mixed" decoder stretch samples of 2 to 16 bits?"""
    import cupy

    for bits in range(2, 17):
        with answer.case(f"{bits} bits") as part:
            side = 1 << (bits + 1) // 2
            values = np.arange(side * side).reshape(side, side) % (1 << bits)
            values = np.kron(values, np.ones((-(-64 // side), -(-64 // side)), np.int64))
            values = values.astype(np.uint8 if bits <= 8 else np.uint16)
            data, c = coded(values, bits)
            decoder = dali.Decoder(0, batch_size=1)
            pipeline = decoder._start([(data, c)])
            if isinstance(pipeline, Exception):
                raise pipeline
            (output,) = pipeline.share_outputs()
            found = cupy.asnumpy(cupy.asarray(output[0]))[..., 0].astype(np.int64)
            pipeline.release_outputs()
            full, most = (1 << 8 * values.dtype.itemsize) - 1, (1 << bits) - 1
            stretched = (values.astype(np.int64) * full * 2 + most) // (2 * most)
            part["as it is"] = bool(np.array_equal(found, values))
            part["round(v * full / most)"] = bool(np.array_equal(found, stretched))
            part["furthest from it"] = int(np.abs(found - stretched).max())
            part["undone"] = bool(
                np.array_equal(cupy.asnumpy(dali.decode(data, c)).astype(np.int64), values)
            )


def lossless_jpeg(answer: Answer, rows: int, columns: int) -> None:
    """Does nvJPEG decode lossless JPEG of 9 to 16 bits right, and which does it decode to zeros?"""
    import cupy

    answer["nvjpeg"] = str(nvidia_libraries.nvjpeg_version())
    decoder = nvimgcodec.Decoder(0)
    for bits in range(9, 17):
        with answer.case(f"{bits} bits") as part:
            values = phantom(601, 433, seed=bits, bits_stored=bits).pixels
            data = encode(values, "1.2.840.10008.1.2.4.70", bits_stored=bits)
            # past our own refusals, which are what is asked about
            (image,) = decoder._images([decoder._library.CodeStream(data)])
            cupy.cuda.Device().synchronize()
            if image is None or isinstance(image, Exception):
                part["image"] = str(image)
                continue
            found = cupy.asnumpy(cupy.asarray(image)).reshape(values.shape)
            part |= {"zeros": not found.any(), **compare(found, values)}


QUESTIONS = {
    f.__name__: f
    for f in (
        *(levels, types, damaged, memory, area, throughput),
        *(lossless_jpeg, nvimgcodec_buffers, dali_stretch),
    )
}


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
        answer = last_answer(done.stdout)
        if done.returncode:
            answer.setdefault("error", f"exit {done.returncode}: {_last_line(done.stderr)}")
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        answer = last_answer(said.decode() if isinstance(said, bytes) else said)
        answer["error"] = f"cut short after {limit:.0f} s"
    question = (QUESTIONS[name].__doc__ or "").strip()
    return {"question": question, "seconds": round(time.monotonic() - start, 1), **answer}


def last_answer(text: str) -> dict[str, Any]:
    """Return the last line that is JSON: whatever ended the process came after it."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


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
        answer = Answer()
        try:
            QUESTIONS[options.answer](answer, options.rows, options.columns)
        except Stopped:
            pass  # it is written in the answer
        except Exception as error:
            answer["error"] = described(error)
        answer.print()
        return
    if (need := cuda_runtime.missing()) is not None:
        raise SystemExit(f"gpu_questions: missing {need}")
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
        found = ask(name, size, min(SECONDS[name], left))
        result["answers"][name] = found
        print(name, json.dumps(found, indent=1), flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
