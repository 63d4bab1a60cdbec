"""What the tests marked `gpu` share: the check for a device."""

from __future__ import annotations

import os

import pytest


def require_gpu() -> None:
    """Skip where CuPy has no CUDA device; fail instead under FASTMAMMO_REQUIRE_GPU=1."""
    try:
        import cupy

        reason = "" if cupy.is_available() else "CuPy sees no CUDA device"
    except ImportError as error:
        reason = f"CuPy is not installed ({error})"
    if not reason:
        return
    if os.environ.get("FASTMAMMO_REQUIRE_GPU") == "1":
        pytest.fail(f"{reason}, and FASTMAMMO_REQUIRE_GPU=1 wants one")
    pytest.skip(reason)
