"""Takes the loss and gradient norm of each step, stops a training that has diverged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastmammo.errors import DivergedError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EVERY = 16
"""Steps between two looks at the losses: each look waits for the GPU to finish its work."""

_MOST_SKIPPED = 30
"""Steps that fp16's scaler may skip in a row: its scale has then gone from 65,536 below 1e-4."""


class Watch:
    """The losses of one epoch, kept on the device and looked at every few steps.

    Under fp16 a gradient that is infinite is no divergence: the scaler skips that step and lowers
    its scale. A loss that is no number is one under every precision.
    """

    def __init__(self, fabric: Fabric, fold: int, epoch: int) -> None:
        self._fabric, self._fold, self._epoch = fabric, fold, epoch
        self._scaler: torch.amp.GradScaler | None = getattr(
            fabric.strategy.precision, "scaler", None
        )
        self._pending: list[tuple[torch.Tensor, torch.Tensor | None, float]] = []
        self._sum = 0.0
        self.steps = 0
        """Whose losses have been looked at."""
        self.skipped = 0
        self._skipped_in_a_row = 0
        self.latest = float("nan")
        """The last loss that was looked at, the mean over the ranks."""

    @property
    def mean(self) -> float:
        """The mean loss of all steps looked at."""
        return self._sum / max(1, self.steps)

    def scale(self) -> float:
        """Return fp16's loss scale; 1 under other precisions."""
        return self._scaler.get_scale() if self._scaler is not None else 1.0

    def add(
        self, loss: torch.Tensor, norm: torch.Tensor | None, lr: float, *, skipped: bool
    ) -> None:
        """Note a step: its mean loss, the norm of its gradient where it is known.

        Raises:
            DivergedError: see `look`; or the scaler has skipped too many steps in a row.
        """
        self._pending.append((loss, None if self._scaler is not None else norm, lr))
        self.skipped += skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if len(self._pending) == _EVERY or self._skipped_in_a_row == _MOST_SKIPPED:
            self.look()
        if self._skipped_in_a_row == _MOST_SKIPPED:
            raise DivergedError(
                f"{self._place(self.steps, lr)}: under 16-mixed the gradients of "
                f"{_MOST_SKIPPED} steps in a row were infinite or no numbers, at a loss scale of "
                f"{self.scale():g}. Take precision bf16-mixed or 32-true"
            )

    def look(self) -> None:
        """Look at what was noted since the last look.

        Raises:
            DivergedError: a loss or a gradient is infinite or no number: on every rank, for the
                same step.
        """
        if not self._pending:
            return
        zero = torch.zeros((), device=self._fabric.device)
        values = torch.stack(
            [
                torch.stack([loss.float(), zero if norm is None else norm.float()])
                for loss, norm, _ in self._pending
            ]
        )
        losses = self._fabric.all_reduce(values, reduce_op="mean").cpu()  # type: ignore[union-attr]
        bad = (~torch.isfinite(losses)).any(dim=1).nonzero().flatten().tolist()
        if bad:
            first = bad[0]
            loss, norm = losses[first].tolist()
            what = f"the loss is {loss}"
            if torch.isfinite(losses[first, 0]):
                what = f"the norm of the gradient is {norm} at a loss of {loss:.4g}"
            raise DivergedError(
                f"{self._place(self.steps + first + 1, self._pending[first][2])}: {what}. "
                f"{self._advice()}"
            )
        self._sum += float(losses[:, 0].sum())
        self.latest = float(losses[-1, 0])
        self.steps += len(self._pending)
        self._pending.clear()

    def _place(self, step: int, lr: float) -> str:
        return (
            f"training diverged in fold {self._fold}, epoch {self._epoch + 1}, step {step} of the "
            f"epoch, at a learning rate of {lr:.3g}"
        )

    def _advice(self) -> str:
        if self._scaler is not None:
            return (
                "The scaler of 16-mixed skips steps whose gradients overflow; this is the loss "
                "itself, so an activation has left fp16's range: take precision bf16-mixed or "
                "32-true, or a lower lr"
            )
        return "Take a lower lr, a longer warmup, or clip at a smaller norm; then start a new run"
