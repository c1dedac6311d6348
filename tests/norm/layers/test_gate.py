"""The gate: within 0 and 1, and never stuck outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.norm import BATCH, INSTANCE, Moments, standardize
from normapps.norm.layers.gate import blend, unit_interval
from normapps.norm.recovery import recover


def test_values_are_clamped_and_the_inside_has_a_true_gradient() -> None:
    gate = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5], dtype=torch.float64)
    assert unit_interval(gate).tolist() == [0.0, 0.0, 0.3, 1.0, 1.0]
    inside = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_interval, inside)
    assert torch.autograd.gradgradcheck(unit_interval, inside)


@pytest.mark.parametrize(
    ("value", "grad", "passes"),
    [(1.2, 1.0, True), (1.2, -1.0, False), (-0.2, -1.0, True), (-0.2, 1.0, False)],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_outside_only_the_way_back_is_open(
    value: float, grad: float, passes: bool, compiled: bool
) -> None:
    gate = torch.tensor([value], requires_grad=True)
    torch._dynamo.reset()
    clamp = unit_interval
    if compiled:
        clamp = torch.compile(unit_interval, fullgraph=True, backend="eager")
    clamp(gate).backward(torch.tensor([grad]))
    assert gate.grad.item() == (grad if passes else 0.0)


@pytest.mark.parametrize("wanted", [-1.0, 0.25, 2.0])
def test_an_optimizer_finds_the_nearest_value_from_outside(wanted: float) -> None:
    gate = torch.tensor([1.3, -0.3], requires_grad=True)
    optimizer = torch.optim.SGD([gate], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (unit_interval(gate) - wanted).square().sum().backward()
        optimizer.step()
    nearest = min(max(wanted, 0.0), 1.0)
    torch.testing.assert_close(unit_interval(gate), torch.full((2,), nearest), atol=1e-4, rtol=0)
    assert (gate >= -0.31).all()
    assert (gate <= 1.31).all()  # pushed outwards it stays where it is


def test_a_blend_is_the_sum_of_both_normalizations() -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64) * 2 + 1
    gate = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    parts: list[Tensor] = []
    for partition in (BATCH, INSTANCE):
        parts.append(standardize(x, Moments.of(x, partition), 0.1))
    share = gate.reshape(1, 3, 1, 1)
    both = blend(Moments.of(x, BATCH), Moments.of(x, INSTANCE), gate, 0.1)
    found = recover(x, both, None, None)
    torch.testing.assert_close(found, share * parts[0] + (1 - share) * parts[1])
