"""The layers against public reference code, where that is right; `golden/make.py` ran it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normapps.norm.layers.moment_exchange import moment_exchange
from normapps.norm.registry import create_norm

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "activations.json").read_text(encoding="utf-8")
)
AFFINE = {"weight": [1.5, -0.5, 0.8, 1.0], "bias": [0.2, 0.1, -0.3, 0.0]}
POPULATION = {"running_mean": [0.1, 0.4, -0.2, 0.9], "running_var": [0.5, 3.0, 2.0, 6.0]}
OPTIONS: dict[str, dict[str, Any]] = {
    "switchable_whitening": {"group_size": 2, "eps": 1e-3},
    "group_whitening": {"num_groups": 2, "eps": 0.0},
    "renorm": {"eps": 1e-12},
    "l1": {"eps": 0.0},
    "region": {"eps": 1e-12},
}
STATE: dict[str, dict[str, Any]] = {
    "switchable_whitening": {**AFFINE, "mean_weight": [0.3, -0.4], "cov_weight": [-1.0, 0.2]},
    "iebn": {**AFFINE, "gate_weight": [0.5, -1.0, 0.0, 2.0]},
    "renorm": {**AFFINE, **POPULATION, "num_batches_tracked": 10000},
    "region": {"weight": [AFFINE["weight"], AFFINE["bias"]]},
    "mean_only": {},
}


def _layer(name: str) -> Callable[..., Tensor]:
    """Our layer with the options and values that the reference was given."""
    if name == "moment_exchange":
        return lambda x: moment_exchange(x, torch.tensor([2, 0, 1]), eps=1e-12)
    layer = create_norm(name, 4, dtype=torch.float64, **OPTIONS.get(name, {}))
    values = STATE.get(name, AFFINE)
    layer.load_state_dict({key: torch.tensor(value) for key, value in values.items()}, strict=False)
    return layer


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_the_references(name: str) -> None:
    x, y, grad = (torch.tensor(GOLDEN[name][key]).double() for key in ("x", "y", "grad"))
    more = [x[:, :1] > 0.5] if name == "region" else []
    x.requires_grad_()
    found = _layer(name)(x, *more)
    # the exchange's reference computes in float32
    tolerance = 1e-4 if name == "moment_exchange" else 1e-6
    torch.testing.assert_close(found, y, rtol=tolerance, atol=tolerance)
    found.square().sum().backward()
    torch.testing.assert_close(x.grad, grad, rtol=tolerance, atol=tolerance)
