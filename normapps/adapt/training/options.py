"""Options of training over domains; no torch here, the flags come from these classes."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError, UsageError
from ...options import option
from ...training.options import FitOptions, PoolOptions

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

NEEDS_TARGET = ("adabn", "dsbn", "autodial", "dwt", "transnorm")
"""Methods that look at the target while they train, or after."""


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
