"""L1 and top-k batch norm: the distances in numpy, their constants by what Gaussians have."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.fold import fold_batchnorm
from normapps.norm import apply_, convert_norm, measure
from normapps.norm.layers.l1 import L1BatchNorm, TopKBatchNorm
from normapps.norm.registry import create_norm


def _scale(x: np.ndarray, k: int | None) -> np.ndarray:
    """The scales (C,) of (C, M): of all distances, or of the k largest."""
    distances = np.sort(np.abs(x - x.mean(1, keepdims=True)), axis=1)
    if k is None:
        return np.sqrt(np.pi / 2) * distances.mean(1)
    normal = statistics.NormalDist()
    k = min(k, x.shape[1])
    share = k / x.shape[1]
    factor = share / (2 * normal.pdf(normal.inv_cdf(1 - share / 2)))
    return distances[:, -k:].mean(1) * factor


def _made(k: int | None, **options: float | None) -> L1BatchNorm:
    torch.manual_seed(0)
    name, more = ("l1", {}) if k is None else ("top_k", {"k": k})
    layer = create_norm(name, 3, dtype=torch.float64, **more, **options)
    assert isinstance(layer, L1BatchNorm)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def _rows(x: Tensor) -> np.ndarray:
    return x.transpose(0, 1).reshape(x.shape[1], -1).numpy()


@pytest.mark.parametrize("k", [None, 1, 7, 1000])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_training_and_inference(k: int | None, momentum: float | None) -> None:
    layer = _made(k, momentum=momentum)
    mean, var = np.zeros(3), np.ones(3)
    weight, bias = (each.detach().numpy()[:, None] for each in (layer.weight, layer.bias))
    for step in range(3):
        x = torch.randn(4, 3, 5, 2, dtype=torch.float64) ** 3 + step
        rows = _rows(x)
        own, s = rows.mean(1), _scale(rows, k)
        y = (rows - own[:, None]) / np.sqrt(s**2 + 1e-5)[:, None] * weight + bias
        np.testing.assert_allclose(_rows(layer(x).detach()), y, atol=1e-10)
        share = 1 / (step + 1) if momentum is None else momentum
        mean, var = mean + share * (own - mean), var + share * (s**2 * 40 / 39 - var)
    np.testing.assert_allclose(layer.running_mean, mean, atol=1e-12)
    np.testing.assert_allclose(layer.running_var, var, atol=1e-10)
    y = (rows - mean[:, None]) / np.sqrt(var + 1e-5)[:, None] * weight + bias
    np.testing.assert_allclose(_rows(layer.eval()(x).detach()), y, atol=1e-10)


@pytest.mark.parametrize("k", [None, 10, 100])
def test_of_gaussians_the_scale_is_the_deviation(k: int | None) -> None:
    x = torch.randn(1000, 400, generator=torch.Generator().manual_seed(0)).double() * 2
    spread = _made(k).spread(x, x.mean(0, keepdim=True)).mean()
    assert spread.item() == pytest.approx(2, rel=0.01)


def test_the_largest_of_all_distances_are_all() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    l1, top = _made(None), _made(20)
    torch.testing.assert_close(top(x), l1(x))


def test_an_outlier_counts_for_less_than_in_batch_norm() -> None:
    x = torch.randn(64, 3, dtype=torch.float64)
    x[0] = 100
    l1, batch = create_norm("l1", 3).double(), create_norm("batch", 3).double()
    assert (l1(x)[1:].std(0) > 3 * batch(x)[1:].std(0)).all()


@pytest.mark.parametrize("name", ["l1", "top_k"])
def test_a_batch_norm_becomes_one_and_folds(name: str) -> None:
    torch.manual_seed(0)
    old = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=1e-3))
    x = torch.randn(6, 2, 7, 7)
    old(x)
    model = convert_norm(old, name)
    assert model[1].eps == 1e-3
    torch.testing.assert_close(model.eval()(x), old.eval()(x))
    model.train()(x)
    folded, report = fold_batchnorm(model.eval(), x)
    assert len(report.folded) == 1
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["l1", "top_k"])
def test_statistics_measured_anew_are_its_own(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(create_norm(name, 3, momentum=None, layout="2d"))
    x = torch.randn(16, 3, 4, 4) ** 3
    expected = model(x)
    measured = measure(model, [x])
    apply_(model, measured)
    # what is stored is unbiased
    torch.testing.assert_close(model.eval()(x), expected, rtol=5e-3, atol=1e-4)
    batch = x.transpose(0, 1).flatten(1).var(1)
    assert ((model[0].running_var / batch - 1).abs() > 0.1).all()


def test_no_distance_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="k 0: must be at least 1"):
        TopKBatchNorm(3, k=0)
