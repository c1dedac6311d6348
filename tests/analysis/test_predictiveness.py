"""Steps along the gradient against softmax regression written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_networks import normalized, pictures, with_moment
from torch import Tensor, nn

from normapps.analysis.predictiveness import FACTORS, predictiveness


def _softmax_regression(
    w: np.ndarray, x: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray]:
    logits = x @ w.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(x)), labels]).mean()
    return float(loss), (p - np.eye(len(w))[labels]).T @ x / len(x)


def test_every_number_of_a_step() -> None:
    model = nn.Linear(5, 3, bias=False).double()
    x, labels = with_moment([5, 4, 3, 2, 1]), torch.arange(12) % 3
    rows = predictiveness(model, (x, labels), lr=0.4)
    w = model.weight.detach().numpy()
    loss, g = _softmax_regression(w, x.numpy(), labels.numpy())
    length = np.linalg.norm(g)
    assert [row.size for row in rows] == [0, *(0.4 * factor for factor in FACTORS)]
    assert (rows[0].loss, rows[0].distance, rows[0].cosine) == pytest.approx((loss, 0, 1))
    for row in rows[1:]:
        there, h = _softmax_regression(w - row.size * g, x.numpy(), labels.numpy())
        moved = np.linalg.norm(h - g)
        assert row.loss == pytest.approx(there, rel=1e-10)
        assert row.predicted == pytest.approx(loss - row.size * length**2, rel=1e-10)
        assert row.distance == pytest.approx(moved / length, rel=1e-8)
        assert row.cosine == pytest.approx((g * h).sum() / length / np.linalg.norm(h), rel=1e-10)
        assert row.smoothness == pytest.approx(moved / (row.size * length), rel=1e-8)


def test_the_models_own_answers_stay_the_same_along_the_way() -> None:
    model = nn.Linear(5, 3, bias=False).double()
    x = with_moment([5, 4, 3, 2, 1])
    own = (x @ model.weight.detach().T).argmax(1)
    assert predictiveness(model, (x, None), 2.0) == predictiveness(model, (x, own), 2.0)


def test_a_loss_that_overflows_is_infinite() -> None:
    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x) ** 2).exp()

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    rows = predictiveness(Exponential(), (x, torch.arange(8) % 2), lr=1e6, factors=(1.0,))
    assert rows[0].loss < 100
    assert math.isinf(rows[1].loss)
    assert math.isinf(rows[1].distance)


def test_the_model_comes_back_as_it_was() -> None:
    model = normalized(nn.BatchNorm2d(8)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = predictiveness(model, (pictures(8), torch.arange(8) % 4))
    assert rows[1].loss < rows[0].loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].training
