"""What `fastmammo doctor` finds: devices, versions, and syntax by backend, each really tried."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fastmammo import __version__
from fastmammo.decoding import (
    BACKENDS,
    PREFERENCE,
    FrameDecoder,
    choose,
    cuda_runtime,
    nvjpeg2000,
)
from fastmammo.decoding.twins import twins
from fastmammo.dicom import SYNTAXES, Codestream, read
from fastmammo.errors import FastMammoError
from fastmammo.report.gpu_parts import UNTRIED, gpu_parts, visible_devices
from fastmammo.report.gpu_parts import lines as gpu_lines
from fastmammo.report.references import low_pass
from fastmammo.testing import can_encode

_PACKAGES = (
    "numpy",
    "numba",
    "pydicom",
    "imagecodecs",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "pillow",
    "torch",
    "timm",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-nvjpeg2k-cu13",
    "nvidia-nvjpeg2k-cu12",
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)


def diagnose() -> dict[str, Any]:
    """Return device, versions, backends and what each makes of a test frame in each syntax.

    The GPU's backends are tried only where there is a CUDA device; "cuda" says what is lacking, and
    the command that installs it, and of each part whether it is there and loads.

    A cell is "exact" or "within 16 (lossy)" where the backend gave
    the test frame's values, and levels 1 to 3 where it decodes them; else the reason why not, or
    "exact, but ..." with what a GPU's levels lack, which are then not used. "ok" is False where no
    backend decodes one of the syntaxes.
    """
    cuda = _cuda()
    tried = [n for n, b in BACKENDS.items() if b.DEVICE == "cpu" or cuda["devices"]]
    backends = {}
    for name in tried:
        backend = BACKENDS[name]
        need = backend.missing()
        backends[name] = {"version": None if need else backend.version(), "missing": need}
    table: dict[str, dict[str, str]] = {}
    chosen: dict[str, str] = {}
    for uid in SYNTAXES:
        if not can_encode(uid):
            table[uid] = {name: _untried(uid, name) for name in tried}
            chosen[uid] = choose(_htj2k(uid)).NAME
            continue
        pixels, data = _test_file(uid)
        mammogram = read(data)
        table[uid] = {name: _try(mammogram, pixels, name) for name in tried}
        order = PREFERENCE[mammogram.codestream().format, "cpu"]
        works = [n for n in order if table[uid][n].startswith(("exact", "within"))]
        chosen[uid] = works[0] if works else "none"
    return {
        "fastmammo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {"cpu": _cpu(), "cuda": "; ".join(cuda["devices"]) or "none that can be used"},
        "cuda": cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
        "backends": backends,
        "syntaxes": {uid: syntax.name for uid, syntax in SYNTAXES.items()},
        "table": table,
        "chosen": chosen,
        "ok": "none" not in chosen.values(),
    }


def text(found: dict[str, Any]) -> str:
    """Return the findings as lines for a terminal."""
    lines = [
        f"fastmammo {found['fastmammo']}, Python {found['python']}, {found['platform']}",
        *(f"device {name}: {what}" for name, what in found["devices"].items()),
        "packages: "
        + ", ".join(f"{name} {v}" for name, v in found["packages"].items() if v is not None),
        "not installed (optional): "
        + ", ".join(name for name, v in found["packages"].items() if v is None),
        "",
        *(
            f"backend {name}: {b['version'] or 'missing: ' + b['missing']}"
            for name, b in found["backends"].items()
        ),
        "",
        *gpu_lines(found["cuda"]),
        "",
        "what each backend made of a test frame (* is the one that `auto` takes):",
    ]
    width = max(len(name) for name in found["syntaxes"].values())
    for uid, row in found["table"].items():
        cells = [
            f"{name}{'*' if name == found['chosen'][uid] else ''}: {cell}"
            for name, cell in row.items()
            if not cell.startswith("does not decode")
        ]
        lines.append(f"  {found['syntaxes'][uid]:<{width}}  {'; '.join(cells)}")
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> str:
    """Return the table of syntaxes and backends as Markdown, and below it the GPU's parts."""
    names = list(found["backends"])
    lines = [
        f"| transfer syntax | UID | {' | '.join(names)} |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for uid, row in found["table"].items():
        cells = []
        for name in names:
            cell = "–" if row[name].startswith("does not decode") else row[name]
            cells.append(f"**{cell}**" if name == found["chosen"][uid] else cell)
        lines.append(f"| {found['syntaxes'][uid]} | {uid} | {' | '.join(cells)} |")
    head, *parts = gpu_lines(found["cuda"])
    lines += ["", head, "", *(f"- {part.strip()}" for part in parts)]
    return "\n".join(lines)


def _htj2k(uid: str) -> Codestream:
    """Return the header facts of a test frame that no encoder is here for."""
    wavelet: Any = "5/3" if SYNTAXES[uid].lossless else "9/7"
    return Codestream("htj2k", 96, 80, 12, False, levels=5, wavelet=wavelet)


def _untried(uid: str, name: str) -> str:
    codestream = _htj2k(uid)
    if codestream.format not in BACKENDS[name].FORMATS:
        return f"does not decode {codestream.format}"
    return BACKENDS[name].refuses(codestream) or "not tried: no encoder here for a test frame"


def _test_file(uid: str) -> tuple[np.ndarray, bytes]:
    """Return a small phantom's stored values and its DICOM file in one syntax."""
    from fastmammo.testing import phantom, write_dicom

    bits = 8 if uid == "1.2.840.10008.1.2.4.50" else 12
    pixels = phantom(96, 80, seed=1, bits_stored=bits).pixels
    if bits == 8:
        pixels = pixels.astype(np.uint8)
    return pixels, write_dicom(pixels, transfer_syntax_uid=uid, bits_stored=bits)


def _try(mammogram: Any, pixels: np.ndarray, backend: str) -> str:
    codestream = mammogram.codestream()
    if codestream.format not in BACKENDS[backend].FORMATS:
        return f"does not decode {codestream.format}"
    try:
        return _tried(mammogram, pixels, backend)
    except FastMammoError as error:
        return str(error).splitlines()[-1].strip().removeprefix(f"{backend}: ")
    except Exception as error:  # a library's own failure is what is asked for here
        return f"fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _tried(mammogram: Any, pixels: np.ndarray, backend: str) -> str:
    def decoder() -> FrameDecoder:
        return FrameDecoder(mammogram, device=BACKENDS[backend].DEVICE, backend=backend)

    difference = _distance(cuda_runtime.host_copy(decoder().at(0)), pixels)
    if not mammogram.transfer_syntax.lossless:
        return f"within {difference} (lossy)"
    if difference:
        return f"WRONG by up to {difference}"
    alone = decoder()  # it holds no level 0, from which it would make the others
    expected = pixels.astype(np.int32)
    for level in range(1, min(3, alone.codec_levels) + 1):
        expected = low_pass(expected)
        found = cuda_runtime.host_copy(alone.at(level))
        difference = _distance(found, np.clip(expected, alone.first, alone.last))
        if difference:
            return f"WRONG at level {level} by up to {difference}"
    if backend == nvjpeg2000.NAME and (fault := nvjpeg2000.levels_fault()):
        return f"exact, but {fault}"
    return "exact"


def _distance(found: np.ndarray, wanted: np.ndarray) -> int:
    if found.shape != wanted.shape:
        raise ValueError(f"got {found.shape} samples, wanted {wanted.shape}")
    return int(np.abs(found.astype(np.int32) - wanted).max())


def _cuda() -> dict[str, Any]:
    """Return the CUDA devices, what is missing for each part of the way on the GPU, and remarks."""
    parts = gpu_parts()
    missing = {}
    if (need := cuda_runtime.missing()) is not None:
        missing["device"] = need
    devices = []
    if not missing:
        import cupy

        for index in range(cupy.cuda.runtime.getDeviceCount()):
            facts = cupy.cuda.runtime.getDeviceProperties(index)
            name = facts["name"]
            devices.append(
                f"{name.decode() if isinstance(name, bytes) else name}, "
                f"{facts['totalGlobalMem'] >> 20} MiB"
            )
    for name, backend in BACKENDS.items():
        need = backend.missing() if backend.DEVICE == "cuda" else None
        if need is not None and need not in missing.values():  # a device they all lack
            missing[name] = need
    remarks = [each for each in (twins(), cuda_runtime.compiler_note()) if each]
    return {
        "devices": devices,
        "parts": parts,
        "missing": missing,
        "remarks": remarks,
        "cuda_visible_devices": visible_devices(),
        "untried": UNTRIED,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{model}, {cores} cores"
