"""The optimizers of the test-time methods that have a gradient, as their papers set them."""

from __future__ import annotations

from math import inf
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...errors import InputError, unknown
from ...training.optimizers import create_optimizer as make

RATES = {"sgd": 2.5e-4, "adam": 1e-3}
"""Name → learning rate: TENT's for ImageNet (batches of 64) and for CIFAR (batches of 200)."""


def create_optimizer(
    model: nn.Module, name: str = "sgd", lr: float | None = None, momentum: float = 0.9
) -> Optimizer:
    """Make the optimizer of what a configured network trains, without weight decay.

    Args:
        model: as `configure_model` returns it.
        name: `sgd` or `adam` (β 0.9, 0.999).
        lr: None takes the one in `RATES`. It belongs to the size of the batches: papers that go
            down to small ones scale it, as SAR's lr·N/64.
        momentum: of SGD.

    Raises:
        InputError: an unknown name, a learning rate that is negative or not finite, a momentum
            outside of [0, 1).
    """
    if name not in RATES:
        raise unknown("optimizer", name, RATES)
    rate = RATES[name] if lr is None else lr
    if not 0 <= rate < inf or not 0 <= momentum < 1:
        raise InputError(f"lr {rate}, momentum {momentum}: must be from 0, and in [0, 1)")
    parameters = [each for each in model.parameters() if each.requires_grad]
    more: dict[str, Any] = {"momentum": momentum} if name == "sgd" else {}
    return make(name, parameters, lr=rate, **more)
