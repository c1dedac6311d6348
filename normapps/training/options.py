"""Options of supervised training and of its pictures; no torch here, the flags come from these."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..models.options import PictureOptions
from ..options import device_option, option, validate

_FREE = (
    "device",
    "workers",
    "max_bytes",
    "save_every",
    "stop_after",
    "validate_every",
    "eval_batch_size",
    "baseline",
    "overwrite",
)
"""Options that a resumed run may change; --steps is none, the rate falls towards their end."""

FITTING = ("sgd", "adam", "lars", "lamb", "adamp")
"""The optimizers of a training."""

GRADIENTS = ("plain", "centralized", "unit", "clipped")
"""What is done with gradients before a step."""

TRAINED = ("all", "norm", "head")
"""What learns: the whole network, norm layers and classifier, or the classifier alone."""


@dataclass(frozen=True)
class FitOptions:
    """How a network is trained, whatever for.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    train: str = option(
        "all",
        "what learns: all, norm (norm layers and classifier, the rest frozen), or head (the "
        "classifier)",
        choices=TRAINED,
    )
    steps: int = option(2000, "optimizer steps of the whole run", low=1)
    batch_size: int = option(64, "pictures a step, of each domain and process", low=2)
    optimizer: str = option(
        "sgd", "sgd (momentum 0.9), adam (AdamW), lars, lamb or adamp", choices=FITTING
    )
    gradient: str = option(
        "plain",
        "before each step: plain, centralized (no mean in a row), unit (of length 1, a tensor) or "
        "clipped (adaptively, rows at 0.01 of the weight's)",
        choices=GRADIENTS,
    )
    lr: float = option(0.01, "peak learning rate; 0.001 is usual for adam and adamp", low=0)
    head_lr: float = option(1.0, "factor of the rate for a classifier that starts anew", low=0)
    weight_decay: float = option(5e-4, "of weights, not of norm layers and biases", low=0)
    warmup: int = option(50, "steps in which the rate rises, of each stage", low=0)
    crop: float = option(
        0.8, "augmentation: smallest side of the window that is scaled up", low=0.05, high=1
    )
    shift: float = option(0.0, "augmentation: largest shift, share of the side", low=0, high=0.5)
    flip: float = option(0.5, "augmentation: probability of mirroring", low=0, high=1)
    jitter: float = option(
        0.2, "augmentation: of brightness, contrast, saturation", low=0, high=0.9
    )
    precision: str = option(
        "float32", "of the network, by autocast", choices=("float32", "bfloat16")
    )
    save_every: int = option(200, "steps between checkpoints", low=1)
    stop_after: int = option(0, "stop after this many steps of this call (0: at the end)", low=0)
    validate_every: int = option(
        0, "steps between accuracies on the held-out pictures (0: only at the end)", low=0
    )
    eval_batch_size: int = option(200, "pictures a batch where accuracy is measured", low=1)
    device: str = device_option()
    seed: int = option(0, "of new weights, order and augmentation", low=0)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a resumed run must share."""
        return tuple(each.name for each in fields(self) if each.name not in _FREE)


@dataclass(frozen=True)
class PoolOptions(PictureOptions):
    """How pictures are read into memory.

    Raises:
        InputError: a value out of range.
    """

    limit: int | None = option(None, "the most pictures of each place", low=1)
    max_bytes: int = option(4_000_000_000, "memory that the pictures of a place may take", low=1)
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)
