"""Options of `slim train`, `slim finetune` and `slim scratch`; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, UsageError
from ..options import flag, option
from ..training.options import FitOptions, PoolOptions

PENALTIES = ("proximal", "subgradient", "polarization")
"""What makes scales sparse: exact zeros, the paper's subgradient, or two clusters."""

BUDGETS = ("steps", "flops")
"""How long `slim scratch` trains: scratch-E and scratch-B of Liu et al. 2019."""


@dataclass(frozen=True)
class SupervisedOptions(FitOptions, PoolOptions):
    """How a network is trained on labelled pictures, and what it is measured on.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: options that contradict each other.
    """

    epochs: float = option(0.0, "rounds over the pictures, in the place of --steps", low=0)
    label_smoothing: float = option(
        0.0, "share of a label that goes to all classes", low=0, high=0.9
    )
    sync_norm: bool = option(
        False, "under torchrun: batch norms take the batches of all processes together"
    )
    test: str | None = option(None, "labelled pictures to measure on; else a part is held out")
    hold_out: int = option(
        5, "without --test: measure on every n-th picture, not trained on (0: on all)", low=0
    )
    baseline: str = option("", "model folder to compare with, in the place of the given network")
    overwrite: bool = option(False, "start the run anew if the folder holds one")


@dataclass(frozen=True)
class SparseOptions(SupervisedOptions):
    """`slim train`: which penalty on the scales, and how strong.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: options that contradict each other.
    """

    penalty: str = option(
        "proximal",
        "on the scales: proximal (exact zeros), subgradient (the paper) or polarization",
        choices=PENALTIES,
    )
    strength: float = option(1e-4, "λ of the penalty, beside the mean cross entropy", low=0)
    sr: bool = option(False, "the paper's flag: --penalty subgradient", short="-sr")
    s: float | None = option(None, "the paper's λ: --strength", low=0)
    target_sparsity: float | None = option(
        None, "find λ for this share of zero scales", low=0.01, high=0.99
    )
    group: bool = option(
        False, "the penalty is on scale and shift together, so that a dead channel is silent"
    )
    flops_weighted: bool = option(
        False, "a scale is penalized by the multiplications that its channel costs"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train == "head":
            raise UsageError("--train head: leaves the scales as they are; give all or norm")
        if self.sr and self.penalty == "polarization":
            raise UsageError(f"-sr --penalty {self.penalty}: -sr is --penalty subgradient")
        if self.target_sparsity is not None and self.kind == "subgradient":
            raise UsageError(
                "--target-sparsity: a subgradient reaches no exact zeros; give --penalty proximal"
            )
        if self.group and self.kind != "proximal":
            raise UsageError(f"--group: is of --penalty proximal, not of {self.kind}")

    @property
    def kind(self) -> str:
        """The penalty: of `--penalty`, or of `-sr`."""
        return "subgradient" if self.sr else self.penalty

    @property
    def weight(self) -> float:
        """λ: of `--s` where that is given, else of `--strength`."""
        return self.strength if self.s is None else self.s


@dataclass(frozen=True)
class FinetuneOptions(SupervisedOptions):
    """`slim finetune`: a pruned network is trained on.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    lr: float = option(0.001, "peak learning rate; less than a training from scratch takes", low=0)
    freeze_stats: bool = option(
        False, "keep the running statistics, and normalize by them while training"
    )


@dataclass(frozen=True)
class ScratchOptions(SupervisedOptions):
    """`slim scratch`: the shapes of a pruned network, trained from fresh weights.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: a part of the network would stay as random as it begins.
    """

    lr: float = option(0.1, "peak learning rate", low=0)
    budget: str = option(
        "steps",
        "steps (scratch-E), or flops (scratch-B): more steps, as the network takes fewer"
        " multiplications than the one it was cut from",
        choices=BUDGETS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train != "all":
            raise UsageError(f"--train {self.train}: fresh weights must all be trained")


def steps_of(options: SupervisedOptions, pictures: int, processes: int) -> int:
    """Return the steps of a run: those given, or those of so many rounds over the pictures.

    Args:
        options: of the run.
        pictures: in the training set.
        processes: that take a batch each in a step.

    Raises:
        InputError: `--epochs` that are less than one step.
    """
    if not options.epochs:
        return options.steps
    steps = round(options.epochs * pictures / (options.batch_size * processes))
    if steps < 1:
        raise InputError(
            f"{flag('epochs')} {options.epochs:g}: {pictures} pictures in batches of"
            f" {options.batch_size} are less than a step; give more, or {flag('steps')}"
        )
    return steps
