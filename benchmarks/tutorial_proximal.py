"""Tutorial: the proximal view, in which conditioned inputs make a gradient step an implicit one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tutorial_common import (
    Claim,
    Found,
    Part,
    Report,
    curves,
    digits,
    draws,
    final,
    geometric,
    mlp,
    powers,
    train,
    vectors,
)

DEPTH = 8
STRENGTH = 10.0
"""Step size of the proximal problem, as a multiple of the inverse mean eigenvalue."""

NETWORKS = {"none": None, "layer": "layer", "batch": "batch", "zca": "zca"}
TRAINED = ("none", "batch")
RATES = (0.1, 0.3, 1.0)
STEPS = 80


def _measure(seed: int) -> dict[str, float]:
    data = vectors(digits()[0])
    found = {}
    for name, norm in NETWORKS.items():
        torch.manual_seed(seed)
        for layer, value in enumerate(_cosines(mlp(norm, DEPTH), data), 1):
            found[f"{name}/{layer}"] = value
    for name in TRAINED:
        for is_implicit in (False, True):
            runs = [_trained(name, rate, is_implicit, seed) for rate in RATES]
            found[f"{name} loss/{is_implicit}"] = min(runs)
    return found


def _cosines(model: nn.Sequential, data: tuple[Tensor, Tensor]) -> list[float]:
    """How far the gradient of each layer points where the proximal step goes."""
    layers = [each for each in model if isinstance(each, nn.Linear)][:-1]
    implicit = Implicit(layers)
    F.cross_entropy(model(data[0]), data[1]).backward()
    plain = [layer.weight.grad.clone() for layer in layers if layer.weight.grad is not None]
    implicit.apply_()
    return [
        float(F.cosine_similarity(one.flatten(), layer.weight.grad.flatten(), dim=0))
        for one, layer in zip(plain, layers, strict=True)
        if layer.weight.grad is not None
    ]


def _trained(name: str, rate: float, is_implicit: bool, seed: int) -> float:
    torch.manual_seed(seed)
    model = mlp(NETWORKS[name], DEPTH)
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    optimizer_hook: Callable[[], None] | None = None
    if is_implicit:
        optimizer_hook = Implicit([each for each in model if isinstance(each, nn.Linear)]).apply_
    batches = draws(vectors(digits()[0]), 128, STEPS, seed)
    return final(train(model, batches, groups, before=optimizer_hook, lr=rate))


class Implicit:
    """Turns gradients of linear layers into the implicit steps of Frerix et al. 2018.

    W' = argmin ½E‖Wx − (z − ∂L/∂z)‖² + ‖W − W₀‖²/2τ moves along G(Σx + I/τ)⁻¹, with G the gradient
    and Σx = E[xxᵀ] of the batch. Multiplied by the mean eigenvalue + 1/τ, so that it is the
    gradient itself where the inputs are white.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.layers, self.moments = layers, {}
        for layer in layers:
            layer.register_forward_pre_hook(self._note)

    def _note(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0].detach()
        self.moments[layer] = x.T @ x / len(x)

    @torch.no_grad()
    def apply_(self) -> None:
        """Replace the gradients."""
        for layer in self.layers:
            moment, gradient = self.moments[layer], layer.weight.grad
            if gradient is None:
                continue
            mean = float(moment.diagonal().mean())
            ridge = mean / STRENGTH * torch.eye(len(moment))
            solved = torch.linalg.solve(moment + ridge, gradient.T).T
            gradient.copy_(solved * (mean + mean / STRENGTH))


def _report(found: Found) -> Report:
    from results import table

    plot = curves(
        found,
        list(NETWORKS),
        range(1, DEPTH + 1),
        ("layer", "cosine of gradient and proximal step"),
        marks=True,
    )
    rows = [
        [name, *(powers(found, f"{name} loss/{kind}") for kind in (False, True))]
        for name in TRAINED
    ]
    return Report(
        "To Frerix et al. 2018 backpropagation is a gradient step on each layer's own problem, "
        "min ½E‖Wx − (z − ∂L/∂z)‖² over W, and the implicit, proximal, step goes along "
        "G(Σx + I/τ)⁻¹ instead of the gradient G; both are one direction where Σx = E[xxᵀ] is a "
        f"multiple of I. The plot: the cosine between the two in {DEPTH} hidden layers before "
        f"training, τ = {STRENGTH:.0f} over the mean eigenvalue. The table: the loss after {STEPS} "
        "steps of either kind with batches of 128, at the better of the rates "
        f"{', '.join(map(str, RATES))}.",
        plot,
        "Cosine between gradient and proximal step by layer, a line a norm",
        _claims(found),
        table([f"loss after {STEPS} steps", "gradient step", "proximal step"], rows),
    )


def _claims(found: Found) -> list[Claim]:
    deep = {name: found[f"{name}/{DEPTH}"] for name in NETWORKS}
    none, batch = (
        [geometric(found, f"{name} loss/{kind}") for kind in (False, True)] for name in TRAINED
    )
    return [
        Claim(
            "Normalization over the batch turns the gradient towards the proximal step: at layer "
            f"{DEPTH} the cosine is {deep['none'].mean:.2f} without, {deep['batch'].mean:.2f} with "
            f"batch normalization and {deep['zca'].mean:.2f} with whitening, short of 1 because "
            "ReLU stands between the norm and the next layer and moves the mean.",
            deep["none"].high < deep["batch"].low < deep["batch"].high < deep["zca"].low,
        ),
        Claim(
            "The two make up for each other, as the tutorial's proximal view has it: without "
            f"normalization the proximal step takes the loss from {none[0]:.2f} to {none[1]:.3f}, "
            f"with batch normalization there is little left for it ({batch[0]:.3f} and "
            f"{batch[1]:.3f}).",
            none[1] < none[0] / 3 and 0.7 * batch[0] < batch[1] and batch[0] < none[0] / 3,
        ),
        Claim(
            f"Layer normalization leaves the cosine at {deep['layer'].mean:.2f}: whatever it does "
            "for training, it is not this.",
            deep["layer"].high < deep["batch"].low,
        ),
    ]


PROXIMAL = Part("The proximal view", _measure, _report)
