"""Options of quantization-aware finetuning; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..options import option
from ..training.options import FitOptions


@dataclass(frozen=True)
class QatOptions(FitOptions):
    """How a folded network is trained on while its weights and inputs are rounded.

    Raises:
        InputError: a value out of range; the line names the flag.
        UsageError: a part of the network alone is to learn.
    """

    steps: int = option(200, "optimizer steps of the whole run", low=1)
    optimizer: str = option("adam", "sgd (momentum 0.9) or adam (AdamW)", choices=("sgd", "adam"))
    lr: float = option(1e-5, "peak learning rate; more where bits are fewer than 8", low=0)
    weight_decay: float = option(0.0, "of weights, not of biases", low=0)
    warmup: int = option(10, "steps in which the rate rises", low=0)
    per_channel: bool = option(True, "a scale for each output channel, not one a layer")
    weight_bits: int = option(8, "bits of a weight; fewer than 8 to study", low=2, high=16)
    activation_bits: int = option(8, "bits of an input; fewer than 8 to study", low=2, high=16)
    weights_only: bool = option(False, "leave the inputs of layers float")
    learn_ranges: bool = option(True, "the ranges of inputs learn, too")
    learn_clips: bool = option(True, "the ranges of weights learn, and weights are cut off there")
    range_lr: float = option(0.01, "peak learning rate of the logarithm of a range", low=0)
    exclude: tuple[str, ...] = option((), "leave layers named like this pattern float; repeatable")
    temperature: float = option(
        1.0, "by which logits are divided before they are compared", low=0.1, high=100
    )
    label_weight: float = option(
        0.0, "weight of the labels' cross entropy beside the float network's answers", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train != "all":
            raise UsageError(f"--train {self.train}: every layer is rounded, so all must learn")
