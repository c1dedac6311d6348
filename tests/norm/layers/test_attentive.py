"""Attentive normalization: a mixture of affine maps a sample, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.norm import convert_norm
from normapps.norm.layers.attentive import AttentiveNorm


def test_training_and_inference() -> None:
    torch.manual_seed(0)
    layer = AttentiveNorm(3, 4).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain = nn.BatchNorm2d(3, affine=False).double()
    held = {key: each.detach().numpy() for key, each in layer.named_parameters()}
    for training in (True, True, False):
        x = torch.randn(5, 3, 5, 2, dtype=torch.float64) * 2 + 1
        logits = x.numpy().mean((2, 3)) @ held["attention.weight"].T + held["attention.bias"]
        powers = np.exp(logits)
        share = powers / powers.sum(1, keepdims=True)
        weight, bias = ((share @ held[key])[..., None, None] for key in ("weight", "bias"))
        normal = plain.train(training)(x).numpy()
        found = layer.train(training)(x).detach()
        np.testing.assert_allclose(found, normal * weight + bias, atol=1e-10)


def test_it_starts_as_the_batch_norm_that_it_came_from() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    x = torch.randn(4, 3, 5, 2)
    converted = convert_norm(model, "attentive", num_mixtures=6)
    assert converted[0].weight.shape == (6, 3)
    torch.testing.assert_close(converted(x), model(x))
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))


def test_its_rows_do_not_stay_alike() -> None:
    torch.manual_seed(0)
    layer = AttentiveNorm(3)
    layer(torch.randn(4, 3, 5, 2)).square().sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad.std(0) > 0).all()


def test_no_mixture_is_refused() -> None:
    with pytest.raises(InputError, match="num_mixtures 0"):
        AttentiveNorm(3, 0)
