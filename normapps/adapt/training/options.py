"""Options of training over domains; no torch here, the flags come from these classes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...errors import InputError, UsageError
from ...models.options import PictureOptions
from ...options import device_option, option, validate

METHODS = (
    "source",
    "adabn",
    "dsbn",
    "autodial",
    "dwt",
    "transnorm",
    "ibn",
    "bin",
    "mixstyle",
)
"""What `--method` takes; `methods.METHODS` has the class of each."""

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

NEEDS_TARGET = ("adabn", "dsbn", "autodial", "dwt", "transnorm")
"""Methods that look at the target while they train, or after."""


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
    optimizer: str = option("sgd", "sgd (momentum 0.9) or adam (AdamW)", choices=("sgd", "adam"))
    lr: float = option(0.01, "peak learning rate; 0.001 is usual for adam", low=0)
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
class RecipeOptions(FitOptions):
    """How a network is trained on labelled sources and unlabelled targets.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    method: str = option("dsbn", "what the domains do to the norm layers", choices=METHODS)
    stage_steps: int = option(0, "steps of dsbn's first stage (0: half of them)", low=0)
    entropy_weight: float = option(0.1, "of the target's entropy or consensus", low=0)
    pseudo_weight: float = option(1.0, "of the target's pseudo-labels (dsbn)", low=0)
    diversity_weight: float = option(
        0.1,
        "of the entropy of the target's mean prediction, which keeps all classes alive (dsbn)",
        low=0,
    )
    appearance: str = option(
        "none",
        "give each source picture the look of a random target picture: its histogram, or the low "
        "frequencies of its spectrum (fda)",
        choices=("none", "histogram", "fda"),
    )
    fda_beta: float = option(0.05, "of fda: how low, as a share of the short side", low=0, high=0.5)
    baseline: str = option("", "model folder to compare with, such as RUN/model of --method source")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_steps >= self.steps:
            raise InputError(
                f"--stage-steps {self.stage_steps}: must be below --steps {self.steps}"
            )

    @property
    def needs_target(self) -> bool:
        """Whether training, or what follows it, looks at the target."""
        return self.method in NEEDS_TARGET or self.appearance != "none"


@dataclass(frozen=True)
class PoolOptions(PictureOptions):
    """How pictures are read into memory.

    Raises:
        InputError: a value out of range.
    """

    limit: int | None = option(None, "the most pictures of each place", low=1)
    max_bytes: int = option(4_000_000_000, "memory that the pictures of a place may take", low=1)
    workers: int | None = option(None, "threads that decode (default: one a core, up to 8)", low=0)


@dataclass(frozen=True)
class TrainOptions(RecipeOptions, PoolOptions):
    """`adapt train`: the recipe, and which pictures.

    Raises:
        UsageError: no source, or a method that needs a target and has none.
        InputError: a value out of range.
    """

    source: tuple[str, ...] = option((), "labelled pictures (class folders, list); repeatable")
    target: tuple[str, ...] = option(
        (), "pictures to adapt to; labels only serve to measure; repeatable"
    )
    test: tuple[str, ...] = option(
        (), "labelled pictures of each target to measure on; else a part is held out"
    )
    hold_out: int = option(
        5, "without --test: measure on every n-th target picture, not trained on (0: on all)", low=0
    )
    overwrite: bool = option(False, "start the run anew if the folder holds one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise UsageError("--source is missing; give the labelled pictures")
        if self.needs_target and not self.target:
            raise UsageError(f"{needy_flag(self)}: needs the target's pictures, --target")
        if self.test and len(self.test) != len(self.target):
            raise UsageError(f"--test: give one for each of {len(self.target)} --target, or none")


def needy_flag(options: RecipeOptions) -> str:
    """Return the flag and value that make a target necessary."""
    if options.method in NEEDS_TARGET:
        return f"--method {options.method}"
    return f"--appearance {options.appearance}"
