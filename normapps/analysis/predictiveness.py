"""Predictiveness: how well the gradient tells what a step will bring.

Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?": walk along the gradient
and look at the loss, at the distance that the gradient moves by, and at the largest ratio of that
to the way (effective β-smoothness). Differs from the paper: at one point of the weights rather than
along a training, and with the first-order prediction of the loss beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.outputs import logits_of
from .hooks import Batch, as_in_training, cross_entropy, gradients_of
from .start import Start

FACTORS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""Steps, as multiples of the learning rate."""


@dataclass(frozen=True)
class Step:
    """A step along the gradient.

    Attributes:
        size: s.
        loss: L(w − sg), mean over the pictures.
        predicted: L(w) − s‖g‖², what the gradient promises.
        distance: ‖g(w − sg) − g(w)‖/‖g(w)‖.
        cosine: between g(w − sg) and g(w).
        smoothness: ‖g(w − sg) − g(w)‖/‖sg‖, whose largest value is the effective β.
    """

    size: float
    loss: float
    predicted: float
    distance: float
    cosine: float
    smoothness: float


def predictiveness(
    model: nn.Module,
    batch: Batch,
    lr: float = 0.1,
    factors: Sequence[float] = FACTORS,
    progress: Callable[[], object] | None = None,
    start: Start | None = None,
) -> tuple[Step, ...]:
    """Walk along the gradient of one batch's mean loss, norm layers as in training.

    Args:
        model: a classifier; it comes back as it was.
        batch: two inputs or more, and labels.
        lr: η, the step that the factors multiply.
        factors: of the steps; a step of 0 comes before them.
        progress: called after each step.
        start: of the batch, where it is known.

    Returns:
        A row for 0 and one for each factor. A loss that overflows is inf, and so is what hangs
        on it.

    Raises:
        InputError: the model returns no logits, or the loss where it stands is not finite.
    """
    begun = start or Start.of(model, batch)
    with as_in_training(model):
        weights = {name: each.detach() for name, each in model.named_parameters()}
        here = begun.loss, _whole(begun.gradients, weights)
        length = _norm(here[1])
        rows = []
        for size in (0.0, *(lr * factor for factor in factors)):
            moved = {name: w - size * here[1][name] for name, w in weights.items()}
            there = _gradient(model, moved, begun.x, begun.labels) if size else here
            rows.append(_row(size, there, here, length))
            if progress is not None:
                progress()
    return tuple(rows)


Found = tuple[float, dict[str, Tensor]]
"""A loss and its gradient by parameter."""


def _gradient(model: nn.Module, weights: dict[str, Tensor], x: Tensor, labels: Tensor) -> Found:
    given = {name: w.detach().requires_grad_(w.is_floating_point()) for name, w in weights.items()}
    wanted = {name: w for name, w in given.items() if w.requires_grad}
    with torch.enable_grad():
        logits = logits_of(functional_call(model, given, (x.clone(),)))
        if not bool(torch.isfinite(logits.detach()).all()):
            return math.inf, {}
        loss = cross_entropy(logits, labels) / len(logits)
        found = zip(wanted, gradients_of(loss, list(wanted.values())), strict=True)
    return float(loss.detach()), _whole({n: g for n, g in found if g is not None}, weights)


def _whole(gradients: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With zeros for what the loss does not depend on."""
    return {n: gradients[n] if n in gradients else torch.zeros_like(w) for n, w in weights.items()}


def _row(size: float, there: Found, here: Found, length: float) -> Step:
    if not math.isfinite(there[0]):
        return Step(size, math.inf, here[0] - size * length**2, math.inf, math.nan, math.inf)
    far = _norm({name: there[1][name] - here[1][name] for name in here[1]})
    along = sum(float((there[1][name].double() * g.double()).sum()) for name, g in here[1].items())
    both = length * _norm(there[1])
    return Step(
        size,
        there[0],
        here[0] - size * length**2,
        far / length if length else 0.0,
        along / both if both else 1.0,
        far / (size * length) if size * length else 0.0,
    )


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
