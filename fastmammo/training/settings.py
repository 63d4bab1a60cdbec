"""Takes the settings of all parts, gives them as one: checked together, written, read, compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from fastmammo.errors import ConfigError
from fastmammo.options import check_choices, check_flags, check_range, option
from fastmammo.preprocess.config import Config
from fastmammo.training.augment_config import AugmentConfig
from fastmammo.training.images_config import ImagesConfig
from fastmammo.training.model_config import ModelConfig
from fastmammo.training.sampler import SamplingConfig
from fastmammo.training.table import TableOptions


@dataclass(frozen=True)
class LoopConfig:
    """How a model is trained; what it is trained on and what it is are the other parts'."""

    epochs: int = option(10, "times that every negative image is seen")
    lr: float = option(1e-4, "highest learning rate (AdamW)")
    weight_decay: float = option(1e-2, "weight decay; biases and normalisation layers have none")
    warmup: float = option(0.05, "share of all steps in which the learning rate rises")
    schedule: str = option(
        "cosine",
        "learning rate after the warm-up: cosine to a hundredth, one_cycle, or constant",
        choices=("cosine", "one_cycle", "constant"),
    )
    accumulate: int = option(
        1, "micro-batches a step: the batch size stays what it is, memory falls"
    )
    clip: float = option(1.0, "longest gradient that is not shortened to this norm; 0: none is")
    precision: str = option(
        "auto",
        "auto: bf16-mixed on a GPU that computes in bfloat16, else 32-true",
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
    )
    ema: float = option(
        0.999,
        "decay a step of the averaged weights that are evaluated and kept; in short runs less, so "
        "that they span at most a tenth of the run; 0: no average",
    )
    loss: str = option("bce", "loss of the cancer label", choices=("bce", "focal"))
    smoothing: float = option(0.0, "label smoothing: labels become s/2 and 1 - s/2")
    positive_smoothing: float = option(0.0, "positives' labels become 1 - s, negatives stay 0")
    focal_gamma: float = option(2.0, "focal loss: power of what is missing to certainty")
    auxiliary_weight: float = option(0.1, "weight of each auxiliary head's loss")
    correct_prior: bool = option(
        True,
        "undo in the scores that balancing has shown positives more often than they are, and what "
        "label smoothing and a focal loss do to them; logits are written as they are",
    )
    monitor: str = option(
        "pr_auc",
        "validation metric by breast that chooses the best epoch",
        choices=("pr_auc", "auc", "loss"),
    )
    early_stop: int = option(
        0, "epochs without a better monitored metric after which a fold ends; 0: never"
    )
    score_weights: str = option(
        "auto",
        "epoch whose weights give the scores: last, best, or auto: best with early_stop, else "
        "last. best was chosen on the fold it is scored on, which flatters it",
        choices=("auto", "last", "best"),
    )
    reduce: Literal["mean", "max"] = option(
        "mean", "a breast's score from its images'", choices=("mean", "max")
    )
    head: str = option(
        "network",
        "network: the network's own scores; metadata: its features as they come (pretrained "
        "weights, or --weights) with age, view, laterality, implant and density in a logistic "
        "regression: the network is not trained, and epochs, lr and augment are not used",
        choices=("network", "metadata"),
    )
    channels_last: bool = option(True, "keep tensors channels-last in memory on a GPU")
    compile: bool = option(False, "compile the model by torch.compile")
    deterministic: bool = option(False, "deterministic algorithms alone: slower on a GPU")
    device: str = option("auto", "device that trains", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "seed of weights, batches, augmentation and dropout")
    resume: bool = option(False, "go on in a run folder where an earlier run stopped")
    tensorboard: bool = option(False, "write TensorBoard events beside log.csv")

    def __post_init__(self) -> None:
        check_flags(self)
        check_choices(self)
        for name, low, high in (
            ("epochs", 1, 100_000),
            ("accumulate", 1, 4096),
            ("early_stop", 0, 100_000),
            ("seed", 0, 2**31 - 1),
        ):
            check_range(self, name, low, high, whole=True)
        for name, top in (
            ("lr", 100.0),
            ("weight_decay", 100.0),
            ("warmup", 0.9),
            ("clip", 1e9),
            ("ema", 0.999999),
            ("smoothing", 0.5),
            ("positive_smoothing", 0.5),
            ("focal_gamma", 10.0),
            ("auxiliary_weight", 100.0),
        ):
            check_range(self, name, 0.0, top)
        if self.precision == "16-mixed" and self.device == "cpu":
            raise ConfigError("precision: got '16-mixed' on a CPU, allowed are 32-true, bf16-mixed")

    @property
    def scored_weights(self) -> str:
        """Whose weights give the scores: "last" or "best", see `score_weights`."""
        if self.score_weights != "auto":
            return self.score_weights
        return "best" if self.early_stop else "last"

    @property
    def epoch_chosen_by(self) -> str | None:
        """The metric that chose, on the fold it is scored on, which epoch's weights count."""
        if self.head != "network" or not (self.early_stop or self.scored_weights == "best"):
            return None
        return self.monitor

    @property
    def has_posterior(self) -> bool:
        """Whether the loss's optimum tells the probability of cancer: see prior.py."""
        return self.loss != "focal" or not (self.smoothing or self.positive_smoothing)

    @property
    def score_notes(self) -> list[str]:
        """What is to be known of how scores come from logits."""
        if not self.correct_prior:
            return []
        if not self.has_posterior:
            return [
                "scores are plain sigmoids: the optimum of a focal loss with label smoothing tells "
                "no probability, so neither the balancing nor the smoothing is undone"
            ]
        found = []
        if self.loss == "focal" and self.focal_gamma:
            found.append(
                "focal loss: scores are the probabilities at which it has its optimum, not sigmoids"
            )
        if self.smoothing or self.positive_smoothing:
            found.append("label smoothing is undone in the scores")
        return found


_CHANGES_NO_NUMBERS = frozenset(
    {"device", "strict", "resume", "tensorboard", "storage", "image_cache", "budget_gb", "prefetch"}
)
"""Fields that may differ when a run goes on: where images lie and what is written beside."""

PARTS: dict[str, type[Any]] = {
    "table": TableOptions,
    "sampling": SamplingConfig,
    "images": ImagesConfig,
    "augment": AugmentConfig,
    "model": ModelConfig,
    "loop": LoopConfig,
    "preprocess": Config,
}
"""The parts of `Settings` and their classes."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, but table and images themselves.

    `preprocess` says what becomes of DICOM files where they are the source; by default `Config()`.
    The images of a `convert` folder are as that folder's config.json says: None takes them so.
    """

    table: TableOptions = field(default_factory=TableOptions)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    preprocess: Config | None = None

    def __post_init__(self) -> None:
        for name, kind in PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "preprocess" and value is None):
                raise ConfigError(
                    f"settings: {name}: got {value!r}, wanted {kind.__name__}: "
                    f"Settings({name}={kind.__name__}(...))"
                )
        if self.loop.head == "metadata" and self.model.multiview != "none":
            raise ConfigError(
                f"multiview: got {self.model.multiview!r} with head 'metadata', whose network is "
                "not trained and scores each image by itself: take multiview none, or head network"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by part, as JSON-able values; `from_dict` gives them back."""
        given = {part.name: getattr(self, part.name) for part in fields(self)}
        parts = {name: None if part is None else asdict(part) for name, part in given.items()}
        plain: dict[str, Any] = json.loads(json.dumps(parts))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Return the settings that `to_dict` has written.

        Raises:
            ConfigError: a part or a field that this version does not know, or a value that it
                does not allow.
        """
        parts: dict[str, Any] = {}
        for name, given in values.items():
            kind = PARTS.get(name)
            if name == "preprocess" and given is None:
                continue
            if kind is None or not isinstance(given, dict):
                raise ConfigError(f"settings: got a part {name!r}, known are {', '.join(PARTS)}")
            known = {each.name for each in fields(kind)}
            unknown = sorted(set(given) - known)
            if unknown:
                raise ConfigError(
                    f"settings of {name}: got {', '.join(unknown)}, which this version does not "
                    "know. Was it written by a later one?"
                )
            parts[name] = kind(**{key: _tuples(value) for key, value in given.items()})
        return cls(**parts)

    def numbers(self) -> dict[str, Any]:
        """Return "part.field": value of all that decides the trained weights and scores."""
        return {
            f"{part}.{name}": value
            for part, values in self.to_dict().items()
            for name, value in (values or {}).items()
            if name not in _CHANGES_NO_NUMBERS
        }

    def digest(self) -> str:
        """Return 16 hex digits over `numbers`."""
        text = json.dumps(self.numbers(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into the tuples that frozen settings hold."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
