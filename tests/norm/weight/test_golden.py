"""Weights and gradients against public reference code, where it is right; see `golden/make.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.norm.gradient import normalize_gradients_
from normapps.norm.undo import Undo
from normapps.norm.weight.manifold import constrain_, polar_rows, stiefel_tangent
from normapps.norm.weight.oni import oni_
from normapps.norm.weight.own import own_
from normapps.norm.weight.penalties import orthogonal_penalty

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "weights.json").read_text(encoding="utf-8")
)
LAYERS: dict[str, Callable[[nn.Module], Undo]] = {
    "own": lambda layer: own_(layer, scale=1.0, group_size=2),
    "oni": lambda layer: oni_(layer, scale=1.0, iterations=2),
}
PENALTIES: dict[str, Callable[[nn.Module], Tensor]] = {
    "so": lambda layer: orthogonal_penalty(layer, "so"),
    "srip": lambda layer: orthogonal_penalty(layer, "srip").square(),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "polar": polar_rows,
    "tangent": lambda x: stiefel_tangent(_tensor(GOLDEN["stiefel"]["start"]), x),
}
OPTIMIZERS: dict[str, Callable[[torch.optim.Optimizer, nn.Module], Undo]] = {
    "centralize": lambda optimizer, layer: normalize_gradients_(optimizer, layer, centralize=True),
    "stiefel": lambda optimizer, layer: constrain_(optimizer, layer, "stiefel"),
    "oblique": lambda optimizer, layer: constrain_(optimizer, layer, "oblique"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_the_references(name: str) -> None:
    layer = _layer(_tensor(GOLDEN[name]["x"]))
    parameter = layer.get_parameter("weight")
    LAYERS[name](layer)
    _check(layer.weight, parameter, GOLDEN[name])


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_the_references(name: str) -> None:
    layer = _layer(_tensor(GOLDEN[name]["x"]))
    _check(PENALTIES[name](layer), layer.get_parameter("weight"), GOLDEN[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_matrix_are_the_references(name: str) -> None:
    x = _tensor(GOLDEN[name]["x"]).requires_grad_()
    _check(FUNCTIONS[name](x), x, GOLDEN[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_an_optimizer_are_the_references(name: str) -> None:
    golden = GOLDEN[name]
    layer = _layer(_tensor(golden["start"]))
    weight = layer.get_parameter("weight")
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    OPTIMIZERS[name](optimizer, layer)
    for grad, expected in zip(golden["grads"], golden["weights"], strict=True):
        weight.grad = _tensor(grad)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), _tensor(expected), rtol=1e-8, atol=1e-8)


def _layer(weight: Tensor) -> nn.Module:
    """A convolution or linear layer with this weight."""
    rows, columns, *kernel = weight.shape
    layer = nn.Conv2d(columns, rows, tuple(kernel)) if kernel else nn.Linear(columns, rows)
    layer.weight = nn.Parameter(weight)
    return layer


def _check(found: Tensor, parameter: Tensor, golden: dict[str, Any]) -> None:
    """Compare what was made of a parameter, and the gradient from sin(1), sin(2), … of that."""
    expected = _tensor(golden["y"])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    found.backward((1 + torch.arange(found.numel()).to(found)).sin().reshape(found.shape))
    torch.testing.assert_close(parameter.grad, _tensor(golden["grad"]), rtol=1e-8, atol=1e-8)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
