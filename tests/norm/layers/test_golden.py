"""The layers against public reference code, where that is right; `golden/make.py` ran it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.norm.layers.moment_exchange import moment_exchange
from normapps.norm.layers.moment_shortcut import give_moments, take_moments
from normapps.norm.registry import create_norm

FOLDER = Path(__file__).parent / "golden"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "activations.json").read_text(encoding="utf-8"))
STEPS: dict[str, Any] = json.loads((FOLDER / "steps.json").read_text(encoding="utf-8"))
AFFINE = {"weight": [1.5, -0.5, 0.8, 1.0], "bias": [0.2, 0.1, -0.3, 0.0]}
POPULATION = {"running_mean": [0.1, 0.4, -0.2, 0.9], "running_var": [0.5, 3.0, 2.0, 6.0]}
THRESHOLD = {"threshold": [-0.5, 0.0, 0.3, 0.1]}
PAIRS = {"group_size": 2, "eps": 1e-12}
FLOAT32 = 1e-4
"""What the exchange's reference computes in."""
ONLINE = {"rate": 0.1, "rate_backward": 0.03}
OPTIONS: dict[str, dict[str, Any]] = {
    "switchable_whitening": {"group_size": 2, "eps": 1e-3},
    "group_whitening": {"num_groups": 2, "eps": 0.0},
    "renorm": {"eps": 1e-12},
    "l1": {"eps": 0.0},
    "region": {"eps": 1e-12},
    "frn/learnt": {"learn_eps": True},
    "attentive": {"num_mixtures": 2},
    "online": ONLINE,
    "online/clamp": {**ONLINE, "guard": "clamp"},
    "moving": {"memory": 2, "warmup": 2},
    "moving/renorm": {"memory": 1, "warmup": 1},
    **dict.fromkeys(("zca", "pca", "cholesky"), PAIRS),
    "iternorm": {**PAIRS, "iterations": 2},
    "domain_whitening": {"num_domains": 1, "group_size": 2, "affine": False},
}
STATE: dict[str, dict[str, Any]] = {
    "switchable_whitening": {**AFFINE, "mean_weight": [0.3, -0.4], "cov_weight": [-1.0, 0.2]},
    "iebn": {**AFFINE, "gate_weight": [0.5, -1.0, 0.0, 2.0]},
    "renorm": {**AFFINE, **POPULATION, "num_batches_tracked": 10000},
    "region": {"weight": [AFFINE["weight"], AFFINE["bias"]]},
    "frn": {**AFFINE, **THRESHOLD},
    "frn/learnt": {**AFFINE, **THRESHOLD, "learnt_eps": [-2e-4]},
    "attentive": {  # of two mixtures, whose softmax is a sigmoid, the second is nothing
        "weight": [AFFINE["weight"], [0.0] * 4],
        "bias": [AFFINE["bias"], [0.0] * 4],
        "attention.weight": [[0.5, -0.2, 0.0, 0.3], [0.0] * 4],
        "attention.bias": [0.4, 0.0],
    },
    "online": {**AFFINE, **POPULATION},
    "online/clamp": {**AFFINE, **POPULATION},
    "moving/renorm": {**AFFINE, "running_var": POPULATION["running_var"], "steps": 1000},
    "mean_only": {},
    "pca": {},
    "domain_whitening": {},
}


def _layer(name: str) -> nn.Module:
    """Our layer with the options and values that the reference was given."""
    kind, _, _ = name.partition("/")
    layer = create_norm(kind, 4, dtype=torch.float64, **OPTIONS.get(name, {}))
    values = STATE.get(name, AFFINE)
    layer.load_state_dict({key: _tensor(value) for key, value in values.items()}, strict=False)
    return layer


def _exchange(x: Tensor) -> Tensor:
    return moment_exchange(x, torch.tensor([2, 0, 1]), eps=1e-12)


def _shortcut(x: Tensor) -> Tensor:
    given, moments = take_moments(x, 1e-12)
    scale = torch.tensor(AFFINE["weight"]).to(x).reshape(4, 1, 1)
    return give_moments(given.flip(1) * scale, moments, 1e-12)


FUNCTIONS = {"moment_exchange": _exchange, "moment_shortcut": _shortcut}


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_the_references(name: str) -> None:
    layer = FUNCTIONS.get(name) or _layer(name)
    region = [_tensor(GOLDEN[name]["x"])[:, :1] > 0.5] if name == "region" else []
    _check(
        lambda x: layer(x, *region), GOLDEN[name], FLOAT32 if name == "moment_exchange" else 1e-7
    )


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_the_references_and_inference_after_them(name: str) -> None:
    layer = _layer(name)
    domain = [0] if name == "domain_whitening" else []
    for step in STEPS[name]:
        layer.train(step["grad"] is not None)
        _check(lambda x: layer(x, *domain), step, 1e-7, has_free_axes=name == "pca")


def _check(
    layer: Callable[[Tensor], Tensor],
    golden: dict[str, Any],
    tolerance: float,
    has_free_axes: bool = False,
) -> None:
    """Compare the output, and the gradient where there is one, from sin(0), sin(1), … of it."""
    x, y = _tensor(golden["x"]).requires_grad_(), _tensor(golden["y"])
    found = layer(x)
    if has_free_axes:  # theirs fall in variance, with any sign
        found = found.unflatten(1, (2, 2)).flip(2).flatten(1, 2)
        found = found * (found * y).sum((0, 2, 3), keepdim=True).sign()
    torch.testing.assert_close(found, y, rtol=tolerance, atol=tolerance)
    if golden["grad"] is not None:
        found.backward(torch.arange(y.numel()).to(y).sin().reshape(y.shape))
        torch.testing.assert_close(x.grad, _tensor(golden["grad"]), rtol=tolerance, atol=tolerance)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
