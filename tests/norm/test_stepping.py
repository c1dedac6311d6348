"""Hooks around an optimizer's steps: when they are called, and what a closure and a scaler see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.stepping import around_steps_


def test_before_and_after_a_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.5)
    seen: list[tuple[str, float, bool]] = []

    def note(where: str) -> None:
        seen.append((where, float(weight), torch.is_grad_enabled()))

    undo = around_steps_(optimizer, lambda: note("before"), lambda: note("after"))
    weight.grad = torch.ones(1)
    optimizer.step()
    assert seen == [("before", 1.0, False), ("after", 0.5, False)]
    undo()
    optimizer.step()
    assert len(seen) == 2


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_is_followed_each_time(by_name: bool) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight], max_iter=3)
    seen: list[Any] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight - torch.tensor([3.0, 5.0])).pow(4).sum()
        loss.backward()
        seen.append("closure")
        return loss

    around_steps_(optimizer, lambda: seen.append(weight.grad is not None))
    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(16 + 256)
    assert seen == ["closure", True] * (len(seen) // 2)
    assert len(seen) >= 6


def test_gradients_that_are_still_scaled_are_refused() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.5)
    around_steps_(optimizer, lambda: None)
    weight.grad = torch.ones(1)
    optimizer.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]  # as a scaler does
    with pytest.raises(InputError, match=r"SGD: its gradients are scaled still; call scaler"):
        optimizer.step()
    assert float(weight) == 1.0
