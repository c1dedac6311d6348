"""Recurrences over a batch against the loop that defines them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normapps.norm.recurrence import recur


def _loop(decay: Tensor, drive: Tensor, start: Tensor) -> Tensor:
    states = [start]
    for a, b in zip(decay, drive, strict=True):
        states.append(a * states[-1] + b)
    return torch.stack(states)


@settings(max_examples=40)
@given(st.integers(1, 19), st.integers(0, 2**31))
def test_all_steps_at_once_are_the_loop(steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    decay, drive = torch.randn(2, steps, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(recur(decay, drive, start), _loop(decay, drive, start))


def test_a_decay_of_nothing_forgets_and_of_one_sums() -> None:
    drive = torch.arange(1.0, 6.0)[:, None]
    start = torch.tensor([10.0])
    assert recur(torch.zeros(5, 1), drive, start).flatten().tolist() == [10, 1, 2, 3, 4, 5]
    assert recur(torch.ones(5, 1), drive, start).flatten().tolist() == [10, 11, 13, 16, 20, 25]
