"""Tests of copies: what a copy shares with its model, and where it may be made."""

from __future__ import annotations

import torch
from torch import nn

from normapps.norm.nesting import detached_copy


def test_a_copy_made_in_inference_mode_can_be_trained_outside_of_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].cache = model[0].weight * 2  # with a graph, as timm's LeViT keeps its biases
    with torch.inference_mode():
        copied = detached_copy(model)
    tensors = [*copied.parameters(), *copied.buffers(), copied[0].cache]
    assert not any(each.is_inference() for each in tensors)
    copied.train()(torch.randn(4, 3)).square().sum().backward()
    assert copied[0].weight.grad is not None
    assert model[0].weight.grad is None
    assert model[0].cache.grad_fn is not None
    assert torch.equal(copied[0].cache, model[0].cache.detach())
