"""Mean-only batch norm: what it subtracts in training, at inference, and folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normapps.graph.fold import fold_batchnorm
from normapps.norm import convert_norm
from normapps.norm.layers.mean_only import MeanOnlyBatchNorm


@pytest.mark.parametrize("momentum", [0.3, None])
def test_training_and_inference(momentum: float | None) -> None:
    layer = MeanOnlyBatchNorm(3, momentum).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    weight, bias = (each.reshape(-1, 1, 1) for each in (layer.weight, layer.bias))
    running = torch.zeros(3, dtype=torch.float64)
    for step in range(3):
        x = torch.randn(4, 3, 5, 2, dtype=torch.float64) + step
        mean = x.transpose(0, 1).reshape(3, -1).sum(1) / 40
        torch.testing.assert_close(layer(x), weight * (x - mean.reshape(-1, 1, 1)) + bias)
        running = running + (1 / (step + 1) if momentum is None else momentum) * (mean - running)
    torch.testing.assert_close(layer.running_mean, running)
    expected = weight * (x - running.reshape(-1, 1, 1)) + bias
    torch.testing.assert_close(layer.eval()(x), expected)
    keys = ["weight", "bias", "running_mean", "num_batches_tracked"]
    assert list(layer.state_dict()) == keys


def test_it_folds_into_a_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), MeanOnlyBatchNorm(4, layout="2d", act=nn.ReLU))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(8, 3, 6, 6)
    model(x)
    folded, report = fold_batchnorm(model.eval(), x)
    assert [each.norm for each in report.folded] == ["1"]
    assert not any(isinstance(each, MeanOnlyBatchNorm) for each in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert report.statistics == {}  # what leaves a layer without a scale has no known moments


def test_a_batch_norm_keeps_its_mean_on_the_way() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    layer = convert_norm(nn.Sequential(norm), "mean_only")[0]
    assert torch.equal(layer.running_mean, norm.running_mean)
    assert torch.equal(layer.weight, norm.weight)
    assert layer.num_batches_tracked == 0
