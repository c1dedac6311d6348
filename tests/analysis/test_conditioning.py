"""Conditioning against known covariances and gradients written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_networks import two_layers, with_moment
from torch import Tensor, nn

from normapps.analysis.conditioning import WIDEST, Spectrum, conditioning, spectrum


def test_kappa_of_a_known_covariance() -> None:
    x = with_moment([16, 8, 4, 2, 1])
    row = conditioning(two_layers(), [(x, None)])[0]
    assert row.layer == "0"
    assert row.kind == "linear"
    found = row.input
    assert found is not None
    assert (found.dimensions, found.samples, found.rank) == (5, 12, 5)
    assert found.largest == pytest.approx(16, rel=1e-12)
    # λ₁ over the third, fourth and fifth: ⌈2.5⌉, ⌈4⌉, 5
    assert found.kappa == pytest.approx((4, 8, 16), rel=1e-12)


@pytest.mark.parametrize("width", [17, 70, 256])
def test_kappa_of_a_wide_layer(width: int) -> None:
    x = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0))
    found = conditioning(nn.Linear(width, 2), [(x[:100], None), (x[100:], None)])[0].input
    wide = x.double().numpy()
    values = np.linalg.eigvalsh(wide.T @ wide / len(x))[::-1]
    assert found is not None
    assert found.largest == pytest.approx(values[0], rel=1e-10)
    assert found.kappa[2] == pytest.approx(values[0] / values[-1], rel=1e-8)


def test_what_is_missing_of_the_rank_has_no_kappa() -> None:
    x = with_moment([9, 3, 1, 0, 0])
    found = conditioning(two_layers(), [(x, None)])[0].input
    assert found is not None
    assert found.rank == 3
    assert found.kappa[0] == pytest.approx(9)
    assert found.kappa[1:] == (math.inf, math.inf)


def test_pixels_of_a_convolution_are_samples() -> None:
    rows = with_moment([16, 8, 4, 2, 1], samples=24)
    x = rows.view(4, 3, 2, 5).permute(0, 3, 1, 2)
    model = nn.Sequential(nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    row = conditioning(model, [(x, None)])[0]
    assert row.kind == "conv 1×1"
    assert row.input is not None
    assert row.input.samples == 24
    assert row.input.kappa == pytest.approx((4, 8, 16), rel=1e-12)


def test_gradients_are_those_of_each_sample() -> None:
    model, labels = two_layers(), torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    x = with_moment([5, 4, 3, 2, 1], samples=8)
    whole = conditioning(model, [(x, labels)])
    wanted = _gradients(model, x, labels)
    for row, gradient in zip(whole, wanted, strict=True):
        values = np.linalg.eigvalsh(gradient.T @ gradient / 8)[::-1]
        found = row.gradient
        assert found is not None
        assert found.largest == pytest.approx(values[0], rel=1e-10)
        assert found.kappa[0] == pytest.approx(values[0] / values[1], rel=1e-10)
    # softmax and labels both sum to 1
    assert whole[1].gradient is not None
    assert whole[1].gradient.rank == 2
    # batches of any size give the same: no gradient is divided by the size of its batch
    parts = conditioning(model, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    for one, other in zip(whole, parts, strict=True):
        assert one.gradient is not None
        assert other.gradient is not None
        assert other.gradient.largest == pytest.approx(one.gradient.largest, rel=1e-10)


def test_the_product_stands_for_the_fisher_block() -> None:
    x = with_moment([5, 4, 3, 2, 1], samples=8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    row = conditioning(two_layers(), [(x, labels)])[0]
    assert row.input is not None
    assert row.gradient is not None
    assert row.fisher(0) == pytest.approx(row.input.kappa[0] * row.gradient.kappa[0])


def test_rounding_of_the_network_is_no_rank() -> None:
    moment = torch.diag(torch.tensor([1.0, 1e-6, 1e-14], dtype=torch.float64))
    assert spectrum(moment, 100, torch.finfo(torch.float32).eps).rank == 2
    assert spectrum(moment, 100, torch.finfo(torch.float64).eps).rank == 3
    nothing = Spectrum(3, 100, 0, 0.0, (math.inf,) * 3)
    assert spectrum(torch.zeros(3, 3, dtype=torch.float64), 100, 1e-7) == nothing


def test_a_layer_too_wide_is_left_out() -> None:
    model = nn.Linear(WIDEST + 1, 2)
    row = conditioning(model, [(torch.randn(3, WIDEST + 1), None)])[0]
    assert row.input is None
    assert math.isnan(row.fisher())
    assert row.gradient is not None


def _gradients(model: nn.Sequential, x: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """∂loss/∂output of both layers, a row a sample, by the chain rule."""
    (w1, b1), (w2, b2) = (
        [p.detach().numpy() for p in layer.parameters()] for layer in (model[0], model[2])
    )
    hidden = x.numpy() @ w1.T + b1
    logits = np.maximum(hidden, 0) @ w2.T + b2
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    g2 = shifted / shifted.sum(1, keepdims=True) - np.eye(3)[labels.numpy()]
    return (g2 @ w2) * (hidden > 0), g2
