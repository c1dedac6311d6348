"""Instance enhancement batch norm: the gate of each sample and channel, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normapps.norm import convert_norm
from normapps.norm.layers.iebn import InstanceEnhancementNorm


@pytest.mark.parametrize("use_std", [False, True])
def test_training_and_inference(use_std: bool) -> None:
    torch.manual_seed(0)
    layer = InstanceEnhancementNorm(3, use_std=use_std).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain = nn.BatchNorm2d(3, affine=False).double()
    held = {key: each.detach().numpy() for key, each in layer.named_parameters()}
    for training in (True, True, False):
        x = torch.randn(4, 3, 5, 2, dtype=torch.float64) * 2 + 1
        flat = x.numpy().reshape(4, 3, -1)
        logits = held["gate_weight"] * flat.mean(2) + held["gate_bias"]
        if use_std:
            logits = logits + held["gate_std"] * np.sqrt(flat.var(2) + layer.eps)
        gate = (1 / (1 + np.exp(-logits)))[..., None, None]
        normal = plain.train(training)(x).numpy()
        weight, bias = (held[key].reshape(-1, 1, 1) for key in ("weight", "bias"))
        found = layer.train(training)(x).detach()
        np.testing.assert_allclose(found, normal * weight * gate + bias, atol=1e-10)


def test_its_gates_start_as_the_authors_code_has_them() -> None:
    x = torch.randn(4, 3, 5, 2)
    expected = nn.BatchNorm2d(3)(x) * torch.tensor(-1.0).sigmoid()
    torch.testing.assert_close(InstanceEnhancementNorm(3)(x), expected)


def test_a_batch_norm_gives_it_all_it_has() -> None:
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(3, 4, 5, 5) * 2)
    layer = convert_norm(nn.Sequential(norm), "iebn")[0]
    assert set(layer.state_dict()) == set(norm.state_dict()) | {"gate_weight", "gate_bias"}
    for key, value in norm.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
