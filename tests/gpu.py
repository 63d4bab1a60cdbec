"""What the tests marked `gpu` share: the check for a device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def gpu_required() -> bool:
    """Whether FASTMAMMO_REQUIRE_GPU is set: to anything but 0."""
    return os.environ.get("FASTMAMMO_REQUIRE_GPU", "") not in ("", "0")


def gpu_missing() -> str:
    """Return what a CUDA device lacks, or "": asked in another process, CUDA begins in none."""
    program = "from fastmammo.decoding import cuda_runtime; print(cuda_runtime.missing() or '')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    said = done.stdout if done.returncode == 0 else done.stderr[-500:] or f"exit {done.returncode}"
    return " ".join(said.split())


def require_gpu() -> None:
    """Skip where CuPy has no CUDA device; fail instead under FASTMAMMO_REQUIRE_GPU."""
    try:
        import cupy

        reason = "" if cupy.is_available() else "CuPy sees no CUDA device"
    except ImportError as error:
        reason = f"CuPy is not installed ({error})"
    if not reason:
        return
    if gpu_required():
        pytest.fail(f"{reason}, and FASTMAMMO_REQUIRE_GPU wants one")
    pytest.skip(reason)
