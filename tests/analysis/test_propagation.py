"""Sizes of activations and gradients against torch's own autograd, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from known_networks import two_layers, with_moment

from normapps.analysis.propagation import propagation


def test_sizes_of_each_layer() -> None:
    model, labels = two_layers(), torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    x = with_moment([5, 4, 3, 2, 1], samples=8)
    rows = propagation(model, [(x[:5], labels[:5]), (x[5:], labels[5:])])
    first = F.linear(x, model[0].weight, model[0].bias)
    hidden = first.relu()
    logits = F.linear(hidden, model[2].weight, model[2].bias)
    gradients = torch.autograd.grad(
        F.cross_entropy(logits, labels, reduction="sum"), [first, logits]
    )
    parts = (x, first, gradients[0]), (hidden, logits, gradients[1])
    for row, tensors in zip(rows, parts, strict=True):
        read, made, gradient = (each.detach() for each in tensors)
        assert row.input == pytest.approx(float(read.square().mean().sqrt()), rel=1e-12)
        assert row.output == pytest.approx(float(made.square().mean().sqrt()), rel=1e-12)
        norms = made.square().sum(1), gradient.square().sum(1)
        assert row.norm == pytest.approx(float(norms[0].mean().sqrt()), rel=1e-12)
        assert row.gradient == pytest.approx(float(norms[1].mean().sqrt()), rel=1e-12)


def test_a_layer_that_nothing_comes_back_to_says_so() -> None:
    class Aside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aside = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.main(x) + self.aside(x).detach()

    rows = {row.layer: row for row in propagation(Aside(), [(torch.randn(6, 4), None)])}
    assert math.isnan(rows["aside"].gradient)
    assert rows["main"].gradient > 0
