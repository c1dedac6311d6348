"""Options of `normapps compress`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError, UsageError
from ..models.options import PictureOptions
from ..options import device_option, flag, option

AMOUNTS = ("target_flops", "target_params", "ratio")
"""Ways to say how much goes: one of them at most."""

FLOPS = 0.6
"""The share of the multiplications that stays where nothing else is said."""

_FREE = ("device", "latency", "overwrite")
"""Options that may change from one call to the next; the others are what OUT is made of."""

_ARGUMENTS = ("model", "data", "weights")


@dataclass(frozen=True)
class CompressOptions(PictureOptions):
    """What the chain makes of a network, and what it is judged with.

    Raises:
        InputError: a value out of range, or more than one way to say how much; the line names
            the flags.
        UsageError: options that contradict each other.
    """

    target_flops: float | None = option(
        None,
        f"share of the multiplications that stays ({FLOPS} unless you say how much)",
        low=0.01,
        high=1,
    )
    target_params: float | None = option(
        None, "share of the parameters that stays", low=0.01, high=1
    )
    ratio: float | None = option(None, "share of the channels that goes", low=0, high=0.99)
    test: str | None = option(
        None, "pictures that judge and do nothing else; without it a part of DATA does"
    )
    hold_out: int = option(4, "without --test: every n-th picture of a class judges", low=2)
    limit: int | None = option(None, "take this many pictures of DATA, evenly spread", low=3)
    sparse_steps: int = option(
        400, "steps of training with a penalty on the scales; 0 leaves the stage out", low=0
    )
    target_sparsity: float | None = option(
        None,
        "share of zero scales to train for (as many as the cut takes, unless --strength is given)",
        low=0.01,
        high=0.99,
    )
    strength: float | None = option(
        None, "λ of the penalty, in the place of --target-sparsity", low=0
    )
    sparse_lr: float = option(5e-4, "peak learning rate of the sparse training", low=0)
    head_lr: float = option(5.0, "there, factor of it for a classifier that starts anew", low=0)
    finetune_steps: int = option(
        400, "steps of training after the cut; 0 leaves the stage out", low=0
    )
    finetune_lr: float = option(5e-4, "peak learning rate of the finetuning", low=0)
    optimizer: str = option(
        "adam",
        "adam (AdamW), or sgd (momentum 0.9) with rates about twenty times as high",
        choices=("sgd", "adam"),
    )
    batch_size: int = option(32, "pictures a step", low=2)
    int8: bool = option(True, "make an int8 file for ONNX Runtime at the end")
    per_channel: bool = option(
        True, "a scale for each output channel of a weight, or one for it all", no="--per-tensor"
    )
    bias_correction: bool = option(True, "take back what rounded weights shift on average")
    qat_steps: int = option(
        0, "steps of training with rounded weights, for which no labels are needed", low=0
    )
    max_drop: float = option(
        0.01, "accuracy, or share of the answers, that the whole chain may lose", low=0, high=1
    )
    baseline: str = option("", "model folder to compare with, in the place of MODEL")
    latency: bool = option(True, "time MODEL and the result at batch 1 and 8")
    device: str = device_option()
    overwrite: bool = option(False, "start anew where OUT holds another compression")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [flag(name) for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' '.join(given)}: say how much in one way, not {len(given)}")
        if self.strength is not None and self.target_sparsity is not None:
            raise UsageError("--strength --target-sparsity: one finds the other; give one of them")
        for name in ("strength", "target_sparsity"):
            if getattr(self, name) is not None and not self.sparse_steps:
                raise UsageError(f"{flag(name)} --sparse-steps 0: there is no sparse training")
        if self.qat_steps and not self.int8:
            raise UsageError(f"--qat-steps {self.qat_steps} --no-int8: there is nothing to round")

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the options that a call has to share with the one that it goes on from."""
        return tuple(each.name for each in fields(self) if each.name not in (*_FREE, *_ARGUMENTS))

    @property
    def amount(self) -> dict[str, Any]:
        """How much is cut, by the name of the option, as `slim prune` takes it."""
        for name in AMOUNTS:
            if getattr(self, name) is not None:
                return {name: getattr(self, name)}
        return {"target_flops": FLOPS}


@dataclass(frozen=True)
class CompressJob(CompressOptions):
    """What OUT is made of: the options, the two arguments, and what tells MODEL's weights."""

    model: str = ""
    data: str = ""
    weights: str = ""
