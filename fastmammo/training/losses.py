"""Takes outputs and targets and gives the loss: missing targets masked, all sums in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from fastmammo.errors import ConfigError, ModelError
from fastmammo.training.model_config import AUXILIARY

KINDS = ("bce", "focal")


@dataclass(frozen=True)
class Loss:
    """The loss of cancer, plus those of the auxiliary heads times their weights.

    Each term is the sum over the targets that are known, divided by the number of all: so the
    gradient of a batch is the mean of those of its equal parts, wherever the unknown ones lie.

    Attributes:
        kind: "bce", or "focal" (Lin 2017, arXiv:1708.02002), which weighs easy images down.
        smoothing: labels become label * (1 - smoothing) + smoothing / 2.
        positive_smoothing: positives alone become 1 - positive_smoothing.
        pos_weight: factor of a positive's loss; not together with a sampler that balances.
        gamma: of "focal"; 0 is cross entropy.
        auxiliary: weight of every auxiliary head, or of each by its name (absent: 0).

    Raises:
        ConfigError: a value that is not allowed, or both smoothings at once.
    """

    kind: str = "bce"
    smoothing: float = 0.0
    positive_smoothing: float = 0.0
    pos_weight: float | None = None
    gamma: float = 2.0
    auxiliary: float | Mapping[str, float] = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"loss: got {self.kind!r}, allowed are {', '.join(KINDS)}")
        limits = {
            "smoothing": (self.smoothing, 0.5),
            "positive_smoothing": (self.positive_smoothing, 0.5),
            "gamma": (self.gamma, 10.0),
            "pos_weight": (1.0 if self.pos_weight is None else self.pos_weight, 1e6),
        }
        weights = self.auxiliary
        if isinstance(weights, Mapping):
            if unknown := sorted(set(weights) - set(AUXILIARY)):
                raise ConfigError(
                    f"auxiliary weights: got {', '.join(unknown)}, allowed are "
                    f"{', '.join(AUXILIARY)}"
                )
            limits |= {f"auxiliary weight of {k}": (v, 1e3) for k, v in weights.items()}
        else:
            limits["auxiliary weight"] = (weights, 1e3)
        for name, (value, high) in limits.items():
            if not 0 <= value <= high:  # NaN is refused too
                raise ConfigError(f"{name}: got {value!r}, allowed is 0 to {high:g}")
        if self.smoothing and self.positive_smoothing:
            raise ConfigError(
                "smoothing and positive_smoothing: got both, wanted one: positives would be "
                "smoothed twice"
            )

    def terms(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Give each head's loss, before its weight.

        Args:
            outputs: what `Model.forward` gave; what is no head's (the attention) is left out.
            targets: float, one an output; NaN where unknown. An auxiliary head without any entry
                here counts as unknown throughout.

        Returns:
            float32 scalars by head; exactly 0, with a gradient of 0, where no target is known.

        Raises:
            ModelError: no targets for cancer, or not as many as outputs.
        """
        if "cancer" not in targets:
            raise ModelError(f"loss: got targets for {sorted(targets)}, wanted cancer among them")
        found = {}
        for name, output in outputs.items():
            if name != "cancer" and name not in AUXILIARY:
                continue
            target = targets.get(name)
            if target is None:
                target = torch.full((len(output),), math.nan, device=output.device)
            if target.shape != output.shape[:1]:
                raise ModelError(
                    f"loss of {name}: got targets {tuple(target.shape)} for outputs "
                    f"{tuple(output.shape)}, wanted one target an output; a multi-view model "
                    "tells cancer by breast, the rest by image"
                )
            found[name] = self._term(name, output.float(), target.to(output.device).float())
        return found

    def __call__(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Give the weighted sum of all terms: a float32 scalar. See `terms`."""
        with torch.autocast(outputs["cancer"].device.type, enabled=False):
            terms = self.terms(outputs, targets)
        total = terms["cancer"]
        for name, term in terms.items():
            if name != "cancer":
                total = total + self.weight(name) * term
        return total

    def weight(self, name: str) -> float:
        """Give the weight of an auxiliary head's loss."""
        if isinstance(self.auxiliary, Mapping):
            return float(self.auxiliary.get(name, 0.0))
        return float(self.auxiliary)

    def _term(self, name: str, output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        target = target.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        kind = "cancer" if name == "cancer" else AUXILIARY[name].kind
        if kind == "cancer":
            each = self._cancer(output, target)
        elif kind == "binary":
            each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        elif kind == "classes":
            each = F.cross_entropy(output, target.long(), reduction="none")
        else:
            each = F.smooth_l1_loss(output, target, reduction="none")
        # `where`, not a selection: no wait for the device, and the graph stays where none is known
        return torch.where(known, each, 0.0).sum() / max(len(each), 1)

    def _cancer(self, output: Tensor, target: Tensor) -> Tensor:
        if self.smoothing:
            soft = target * (1 - self.smoothing) + self.smoothing / 2
        else:
            soft = target * (1 - self.positive_smoothing)
        if self.kind == "focal":
            each: Tensor = sigmoid_focal_loss(output, soft, alpha=-1, gamma=self.gamma)
        else:
            each = F.binary_cross_entropy_with_logits(output, soft, reduction="none")
        if self.pos_weight is not None:
            each = each * (1 + (self.pos_weight - 1) * target)
        return each
