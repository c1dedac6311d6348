"""The gap between training and inference against the formula of the symmetric KL divergence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from known_networks import normalized, pictures
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn

from normapps.analysis.gap import BatchMoments, gap, output_gap, shares_a_pass
from normapps.analysis.hooks import watch
from normapps.errors import InputError
from normapps.norm import create_norm


def _divergence(x: Tensor, mean: Tensor, var: Tensor) -> np.ndarray:
    """Of the moments of x (N, C, H, W) from a layer's, with its eps: (C,) nats."""
    values = x.double().transpose(0, 1).flatten(1).numpy()
    mu, one = values.mean(1), values.var(1, ddof=1) + 1e-5
    mean_, other = mean.double().numpy(), var.double().numpy() + 1e-5
    return np.asarray(
        0.5 * (one / other + other / one + (mu - mean_) ** 2 * (1 / one + 1 / other)) - 1
    )


def test_batches_and_all_pictures() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 2))
    layer = model[0]
    layer.running_mean.copy_(torch.tensor([0.1, -0.3, 2.0]))
    layer.running_var.copy_(torch.tensor([1.0, 0.5, 3.0]))
    x = pictures(9, side=4)
    (row,) = gap(model, [(x[:5], None), (x[5:], None)])
    wanted = _divergence(x, layer.running_mean, layer.running_var)
    apart = [
        _divergence(part, layer.running_mean, layer.running_var).mean() for part in (x[:5], x[5:])
    ]
    assert row.layer == "0"
    assert row.channels == 3
    assert row.data == pytest.approx(wanted.mean(), rel=1e-6)
    assert row.worst == pytest.approx(wanted.max(), rel=1e-6)
    assert row.channel == wanted.argmax() == 2
    assert row.batch == pytest.approx(np.mean(apart), rel=1e-6)


def test_logits_of_both_ways() -> None:
    model = normalized(nn.BatchNorm2d(8)).eval()
    x = pictures(16)
    found = output_gap(model, (x, None))
    assert not model[1].training
    with torch.no_grad():
        inferred = model(x)
        trained = model.train()(x)
    change = (trained - inferred).norm() / inferred.norm()
    assert found.change == pytest.approx(float(change), rel=1e-5)
    agreement = (trained.argmax(1) == inferred.argmax(1)).float().mean()
    assert found.agreement == pytest.approx(float(agreement))


def test_without_running_statistics_there_is_none() -> None:
    with pytest.raises(InputError, match="training equals inference"):
        gap(normalized(nn.GroupNorm(2, 8)), [(pictures(4), None)])


def _deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(4 * 16, 3)),
    ).eval()


def test_a_pass_for_other_analyses_hears_the_same() -> None:
    model = _deep()
    parts = [(pictures(5), None), (pictures(4, seed=2), None)]
    assert shares_a_pass(model)
    moments = BatchMoments(model)
    with moments.over(parts) as batches:
        watch(model, batches, [])
    assert not model[1]._forward_pre_hooks
    for found, wanted in zip(moments.rows(), gap(model, parts), strict=True):
        assert dataclasses.astuple(found)[:2] == dataclasses.astuple(wanted)[:2]
        assert dataclasses.astuple(found)[2:] == pytest.approx(
            dataclasses.astuple(wanted)[2:], rel=1e-5
        )


@pytest.mark.parametrize(
    ("norm", "shares"),
    [
        (nn.GroupNorm(2, 8), True),
        (create_norm("ghost", 8), False),
        (FrozenBatchNormAct2d(8), False),
    ],
)
def test_which_layers_let_the_gap_share_a_pass(norm: nn.Module, shares: bool) -> None:
    model = _deep()
    assert not shares_a_pass(nn.Sequential(nn.GroupNorm(2, 8)))
    model.insert(1, norm)
    assert shares_a_pass(model) == shares
