"""Scale invariance: which weights a normalization makes directions, and how fast they turn.

A weight w in front of a normalization can be multiplied by any α > 0 without a change of the
output. Its gradient then is orthogonal to it and shrinks by 1/α, so that a learning rate η works as
η/‖w‖² (van Laarhoven 2017), the growth of ‖w‖ is a schedule (Arora et al. 2019), and weight decay λ
ends in an equilibrium in which w turns by √(2ηλ) a step (Wan et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.convert.sites import find_sites
from .hooks import Batch, as_in_training, cross_entropy, gradients_of, kind_of, weighted_layers
from .start import Start

FACTOR = 3.0
"""α, by which each weight is multiplied."""

THRESHOLD = 1e-3
"""Relative change of the output below which a weight is scale-invariant."""

YES, UP_TO_EPS, NO, IDLE = "yes", "up to eps", "no", "idle"

_LESS = 1e-6
"""What eps is multiplied by to find out whether it alone is what breaks the invariance."""


@dataclass(frozen=True)
class Invariance:
    """A weight, multiplied by α = `FACTOR`, and what one step of SGD does to it.

    Attributes:
        layer: its name.
        kind: in words.
        invariant: `YES`; `UP_TO_EPS` where it is once the eps of the norm layers is next to
            nothing; `NO`, also of a weight that the output hardly depends on but whose gradient
            does not shrink (ratio); `IDLE`: the output does not depend on it, as behind a scale
            of 0.
        change: ‖F(αw) − F(w)‖/‖F(w)‖ of the logits.
        cosine: |⟨w, g⟩|/(‖w‖‖g‖) with the gradient g of the batch's mean loss.
        ratio: ‖g(αw)‖·α/‖g(w)‖, 1 where the weight is scale-invariant.
        variance: median over the channels of the variance of what the layer makes; eps changes
            the output by about (eps/2σ²)(1 − α⁻²).
        norm: ‖w‖.
        effective: η/‖w‖².
        angle: ∠(w, w − ηg) in radians, the angular update of one step.
    """

    layer: str
    kind: str
    invariant: str
    change: float
    cosine: float
    ratio: float
    variance: float
    norm: float
    effective: float
    angle: float


def equilibrium(lr: float, weight_decay: float) -> float:
    """Return √(2ηλ), the angle that SGD turns a scale-invariant weight by a step in equilibrium."""
    return math.sqrt(2 * lr * weight_decay)


def scale_invariance(
    model: nn.Module,
    batch: Batch,
    lr: float = 0.1,
    *,
    few: int = 8,
    progress: Callable[[], object] | None = None,
    start: Start | None = None,
) -> tuple[Invariance, ...]:
    """Scale the weight of every convolution and linear layer, one after the other.

    The norm layers work as in training: with fixed statistics nothing is scale-invariant.
    Layers whose weight is computed of others (parametrizations) and those that the network does not
    come to are left out.

    Args:
        model: a classifier; it comes back as it was.
        batch: two inputs or more, and labels; the step is that of all of them.
        lr: η.
        few: inputs, the first ones, on which weights are scaled; all where a layer needs more.
        progress: called after each weight.
        start: of the batch, where it is known.

    Raises:
        InputError: the model returns no logits, the loss is not finite, or no weight is left.
    """
    begun = start or Start.of(model, batch)
    with as_in_training(model):
        trial = _Trial(model, begun, few)
        rows = []
        for layer in trial.layers:
            rows.append(trial.row(layer, lr))
            if progress is not None:
                progress()
    return tuple(rows)


class _Trial:
    """What becomes of a few inputs of a batch when a weight is scaled."""

    def __init__(self, model: nn.Module, start: Start, few: int) -> None:
        self.model, self.variances = model, start.variances
        modules = weighted_layers(model)
        self.weights = {
            layer: weight.detach()
            for layer, module in modules.items()
            if (weight := module._parameters.get("weight")) is not None
        }
        model.requires_grad_(False)
        self.gradients = {
            layer: start.gradients[key]
            for layer in self.weights
            if (key := _key(layer)) in start.gradients
        }
        self.x, self.labels = start.x[:few], start.labels[:few]
        try:
            self.logits, found = self._run(self.weights)
        except InputError:  # a layer that whitens vectors has too few samples
            self.x, self.labels = start.x, start.labels
            self.logits, found = self._run(self.weights)
        self.slopes = {name: float(each.norm()) for name, each in found.items() if each is not None}
        self.layers = {name: modules[name] for name in self.weights if name in self.gradients}
        if not self.layers:
            raise InputError(f"{type(model).__name__} has no convolution or linear layer to scale")

    def row(self, layer: str, lr: float) -> Invariance:
        """Measure one weight."""
        w, g = self.weights[layer], self.gradients[layer]
        logits, found = self._run({layer: FACTOR * w})
        change = _relative(logits, self.logits)
        norm, slope = float(w.norm()), float(g.norm())
        along = float((w.double() * g.double()).sum())
        before, scaled = self.slopes.get(layer), found[layer]
        ratio = (
            FACTOR * float(scaled.norm()) / before if scaled is not None and before else math.nan
        )
        return Invariance(
            layer,
            kind_of(self.layers[layer]),
            self._verdict(layer, change, ratio),
            change,
            abs(along) / (norm * slope) if norm * slope else 0.0,
            ratio,
            self.variances.get(layer, math.nan),
            norm,
            lr / norm**2 if norm else math.inf,
            _angle(norm, slope, along, lr),
        )

    def _run(self, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Logits with other weights, and the gradients of the mean loss with respect to these."""
        given = {_key(layer): w.clone().requires_grad_() for layer, w in weights.items()}
        with torch.enable_grad():
            logits = logits_of(functional_call(self.model, given, (self.x.clone(),)))
            loss = cross_entropy(logits, self.labels) / len(logits)
            found = gradients_of(loss, list(given.values()))
        return logits.detach(), dict(zip(weights, found, strict=True))

    def _verdict(self, layer: str, change: float, ratio: float) -> str:
        if change == 0 and math.isnan(ratio):
            return IDLE
        if change >= THRESHOLD:
            return self._without_eps(layer)
        return YES if abs(math.log(ratio or math.inf)) < math.log(FACTOR) / 2 else NO

    @torch.no_grad()
    def _without_eps(self, layer: str) -> str:
        with _small_eps(self.model):
            one, other = (
                logits_of(
                    functional_call(
                        self.model, {_key(layer): factor * self.weights[layer]}, (self.x.clone(),)
                    )
                )
                for factor in (1.0, FACTOR)
            )
        return UP_TO_EPS if _relative(other, one) < THRESHOLD else NO


def _key(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _angle(norm: float, slope: float, along: float, lr: float) -> float:
    """∠(w, w − ηg) of ‖w‖, ‖g‖ and ⟨w, g⟩."""
    across = math.sqrt(max(0.0, (norm * slope) ** 2 - along**2))
    return math.atan2(lr * across, norm**2 - lr * along)


@contextmanager
def _small_eps(model: nn.Module) -> Iterator[None]:
    """Multiply the eps of all norm layers by `_LESS`."""
    sites: list[Any] = [site.module for site in find_sites(model)]
    kept = [(layer, layer.eps) for layer in sites if isinstance(getattr(layer, "eps", None), float)]
    try:
        for layer, eps in kept:
            layer.eps = _LESS * eps
        yield
    finally:
        for layer, eps in kept:
            layer.eps = eps
