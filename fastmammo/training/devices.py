"""Takes the loop's settings, gives the devices and processes that train, by Lightning Fabric."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from lightning_fabric import Fabric

from fastmammo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastmammo.training.settings import LoopConfig

T = TypeVar("T")


def open_fabric(loop: LoopConfig) -> Fabric:
    """Return a launched Fabric: one process, or as many as `torchrun` has started.

    Each process of torchrun takes one GPU, or works on the CPU by gloo, and gradients are averaged
    by DistributedDataParallel.

    Raises:
        ConfigError: no GPU where one is asked for, fewer GPUs than processes, or a precision that
            the device does not compute in.
    """
    cuda = torch.cuda.is_available() if loop.device == "auto" else loop.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError(
            "device: got 'cuda', but torch sees no GPU on this machine. Set device to cpu or auto, "
            "or install a build of torch with CUDA"
        )
    # torchrun tells each of its processes how many there are, here and in all
    processes, world = (_environment(name) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if cuda and processes > torch.cuda.device_count():
        raise ConfigError(
            f"{processes} processes, but torch sees {torch.cuda.device_count()} GPUs on this "
            "machine. Start torchrun with as many processes as there are GPUs"
        )
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=processes,
        num_nodes=max(1, world // processes),
        strategy="ddp" if world > 1 else "auto",
        precision=_precision(loop.precision, cuda),  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _environment(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 1


def _precision(asked: str, cuda: bool) -> str:
    if asked == "auto":
        # emulated bfloat16, on older GPUs, is slower than float32
        fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if fast else "32-true"
    if asked == "16-mixed" and not cuda:
        raise ConfigError(
            "precision: got '16-mixed' on a CPU, allowed are auto, 32-true, bf16-mixed"
        )
    return asked


def on_first_rank(fabric: Fabric, action: Callable[[], T]) -> T:
    """Return on every rank what the first rank's action returns, or raise there what it raises.

    Without this a rank that fails alone leaves the others waiting for it.
    """
    outcome: tuple[T | None, Exception | None] = (None, None)
    if fabric.is_global_zero:
        try:
            outcome = (action(), None)
        except Exception as error:  # raised below, on every rank
            outcome = (None, error)
    if fabric.world_size > 1:
        outcome = fabric.broadcast(outcome)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


@contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """Compute by deterministic algorithms alone within the block, where asked for."""
    if not deterministic:
        yield
        return
    was, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    # cuBLAS reads it when it starts: without it, its sums depend on how streams interleave
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        torch.backends.cudnn.benchmark = benchmark


def seed_epoch(seed: int, fold: int, epoch: int, rank: int) -> None:
    """Seed torch's generators for one epoch of one fold on one rank.

    Dropout and drop-path then depend on the epoch, not on what ran before it: a run that goes on
    after a kill draws what it would have drawn, and no generator's state has to be kept.
    """
    mixed = 0
    for value in (seed, fold + 1, epoch + 1, rank):
        # the multiplier of Knuth's MMIX generator: neighbours must not give one stream
        mixed = (mixed * 6364136223846793005 + value + 1442695040888963407) % 2**63
    torch.manual_seed(mixed)
