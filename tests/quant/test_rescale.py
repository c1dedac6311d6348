"""Rescaling: another network with the same function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.layer_graph import LayerGraph
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.equalize import equalize_
from normapps.quant.fake import fake_quantize_
from normapps.quant.rescale import rescale_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU6())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 8)).double()


X = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_function_stays_whatever_is_drawn(seed: int, spread: float) -> None:
    model = net()
    before = model(X)
    undo = rescale_(model, X, seed=seed, spread=spread)
    torch.testing.assert_close(model(X), before, rtol=1e-9, atol=1e-9)
    for s in undo.factors.values():
        assert float(s.log10().abs().max()) <= spread


def test_factors_spread_over_the_whole_range_and_repeat_with_the_seed() -> None:
    one, other = (rescale_(net(), X, seed=seed, spread=2.0).factors for seed in (0, 0))
    assert one.keys() == {"0", "2"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = torch.cat(list(one.values())).log10()
    assert float(logs.max() - logs.min()) > 2.5
    assert not torch.equal(rescale_(net(), X, seed=1, spread=2.0).factors["0"], one["0"])


def test_given_factors_are_applied_to_free_channels_only() -> None:
    model = net()
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()

    def factors(graph: LayerGraph) -> np.ndarray:
        return np.full(graph.count, 4.0)

    statistics = {"0": Moments(torch.zeros(1), torch.ones(1, 16), torch.ones(1, 16), None, BATCH)}
    last = model[5].bias.detach().clone()
    undo = rescale_(model, X, factors, statistics=statistics)
    assert torch.equal(model[0].weight, 4 * weight)
    assert torch.equal(model[0].bias, 4 * bias)
    assert torch.equal(model[5].bias, last)
    assert torch.equal(statistics["0"].mean, torch.full((1, 16), 4.0))
    assert torch.equal(statistics["0"].var, torch.full((1, 16), 16.0))
    assert torch.equal(model[3].high, torch.full((16,), 24.0).double())
    with undo:
        pass
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(statistics["0"].mean, torch.ones(1, 16))
    assert isinstance(model[3], nn.ReLU6)


def test_one_scale_a_tensor_collapses_and_equalization_repairs() -> None:
    """The published shape: per tensor a badly scaled network is lost, equalized it is not."""

    def error(model: nn.Module) -> float:
        with torch.no_grad(), fake_quantize_(model, per_channel=False):
            return float((model(X) - expected).norm() / expected.norm())

    model = net()
    expected = model(X).detach()
    plain = error(model)
    rescale_(model, X, seed=0, spread=2.0)
    spread = error(model)
    equalize_(model, X, relu6="scale")
    assert plain < 0.03
    assert spread > 0.2
    assert error(model) < 1.5 * plain


def test_shared_weight_and_shared_bias_are_scaled_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
            self.b.bias = self.a.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(torch.relu(self.a(x)))))))

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Linear(4, 6), Twice()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(torch.relu(self.stem(x)))

    model, x = Stem().double(), torch.randn(5, 4).double()
    before = model(x)
    undo = rescale_(model, x, seed=0, spread=1.0)
    assert undo.factors.keys() == {"stem", "body.a", "body.b"}
    assert undo.difference <= 1e-10
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_are_no_positive_numbers(bad: float) -> None:
    with pytest.raises(InputError, match="factors must be positive numbers"):
        rescale_(net(), X, lambda graph: np.full(graph.count, bad))


class _Alternating(nn.Module):
    """Another layer for another size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.even, self.odd = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        out: Tensor = self.even(x) if x.shape[-1] % 2 == 0 else self.odd(x)
        return out


def test_layers_that_run_at_another_size_only_stop_what_they_read() -> None:
    torch.manual_seed(0)
    model, x = _Alternating().double(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    wanted = model(x)
    undo = rescale_(model, x[..., :6, :6])
    assert not undo.factors
    assert dict(undo.left)["first"] == "scaling them changes what the network computes"
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
