"""Takes the loop's settings, gives the devices and processes that train, by Lightning Fabric."""

from __future__ import annotations

import atexit
import os
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fastmammo import errors
from fastmammo.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    from fastmammo.training.settings import LoopConfig

T = TypeVar("T")


def speaks() -> bool:
    """Whether this process tells of the run: alone it does, of torchrun's processes the first."""
    return os.environ.get("RANK", "0") == "0"


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
        # each rank's BatchNorm follows its own images until `average_buffers`: DDP would overwrite
        # them with the first rank's at every step, and so forget what the others have seen
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        precision=_precision(loop.precision, cuda),  # type: ignore[arg-type]
    )
    fabric.launch()
    _leave_at_exit()
    return fabric


@lru_cache(maxsize=1)
def _leave_at_exit() -> None:
    """Have this process leave gloo's group when it ends.

    Threads of gloo that still run when the interpreter is taken down abort the process, now and
    then, after all its work is done.
    """

    def leave() -> None:
        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()

    atexit.register(leave)


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


def precision_of(fabric: Fabric) -> str:
    """Return what a Fabric computes in: "32-true", "bf16-mixed" or "16-mixed"."""
    return str(fabric.strategy.precision.precision)


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


def agree(fabric: Fabric, failure: Exception | None) -> None:
    """Raise on every rank what failed on one of them; return where nothing did.

    Every rank calls this at the same place. A rank that raised alone would leave the others waiting
    for its gradients, until they fail for want of it and tell nothing of the reason.

    Args:
        failure: what has failed on this rank.

    Raises:
        Exception: `failure`; or that of the first rank that has one, as its class of
            `fastmammo.errors` (else TrainingError) with its text.
    """
    if fabric.world_size == 1:
        if failure is not None:
            raise failure
        return
    # on the hosts alone: a GPU's queue would have to run empty for it
    group = _host_group(distributed.get_backend())
    failed = torch.tensor([failure is not None], dtype=torch.int32)
    distributed.all_reduce(failed, group=group)
    if not failed:
        return
    told: list[tuple[str, str] | None] = [None] * fabric.world_size
    own = None if failure is None else (type(failure).__name__, str(failure))
    distributed.all_gather_object(told, own, group=group)
    rank, (name, text) = next((at, each) for at, each in enumerate(told) if each is not None)
    if failure is not None and rank == fabric.global_rank:
        raise failure
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.FastMammoError):
        raise kind(f"{text} (in process {rank})") from failure
    raise TrainingError(f"process {rank} failed: {name}: {text}") from failure


def on_every_rank(fabric: Fabric, action: Callable[[], T]) -> T:
    """Return what the action returns on this rank, or raise on all what it raises on one.

    Raises:
        Exception: see `agree`.
    """
    outcome: T | None = None
    failure: Exception | None = None
    try:
        outcome = action()
    except Exception as error:  # raised below, on every rank
        failure = error
    agree(fabric, failure)
    return outcome  # type: ignore[return-value]


@lru_cache
def _host_group(backend: str) -> distributed.ProcessGroup | None:
    """Return the group in which the ranks' hosts talk: gloo's; None is the one that there is."""
    if backend == "gloo":
        return None
    group = distributed.new_group(backend="gloo")
    return group if isinstance(group, distributed.ProcessGroup) else None


def average_buffers(fabric: Fabric, modules: Iterable[nn.Module]) -> None:
    """Give every rank the mean over the ranks of the statistics that BatchNorm keeps.

    They follow each rank's own images. Without this the ranks would score their shares of the
    validation by models that differ, and last.pt would hold the first rank's.
    """
    if fabric.world_size == 1:
        return
    for module in modules:
        buffers = [each for norm in batch_norms(module) for each in norm.buffers(recurse=False)]
        buffers = [each for each in buffers if each.is_floating_point()]
        if not buffers:
            continue
        flat = torch.cat([each.detach().float().flatten() for each in buffers])
        mean: torch.Tensor = fabric.all_reduce(flat, reduce_op="mean")  # type: ignore[assignment]
        sizes = [each.numel() for each in buffers]
        for buffer, part in zip(buffers, torch.split(mean, sizes), strict=True):
            buffer.copy_(part.view_as(buffer))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a network that keep statistics of the batches they have seen."""
    return [each for each in module.modules() if isinstance(each, BatchNorm)]


@contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """Compute by deterministic algorithms alone within the block, where asked for.

    Else cuDNN measures which algorithm is the fastest for a shape, once for each.
    """
    was, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        # cuBLAS reads it when it starts: without it, its sums depend on how streams interleave
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
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
