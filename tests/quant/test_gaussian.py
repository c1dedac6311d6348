from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.quant import gaussian
from normapps.quant.clip import ChannelClip

MEANS = torch.tensor([-7.0, -2.0, -0.3, 0.0, 0.8, 2.5, 6.0, 9.0])
STDS = torch.tensor([0.5, 3.0, 0.01, 1.0, 4.0, 0.7, 2.0, 0.2])
Scalar = Callable[[float], float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


SCALARS: dict[str, tuple[nn.Module, Scalar, tuple[float, ...], float]] = {
    "identity": (nn.Identity(), lambda x: x, (), 1e-9),
    "relu": (nn.ReLU(inplace=True), lambda x: max(x, 0.0), (0.0,), 1e-9),
    "relu6": (nn.ReLU6(), lambda x: min(max(x, 0.0), 6.0), (0.0, 6.0), 1e-9),
    "hardtanh": (nn.Hardtanh(-2, 3), lambda x: min(max(x, -2.0), 3.0), (-2.0, 3.0), 1e-9),
    "leaky": (nn.LeakyReLU(0.2), lambda x: x if x > 0 else 0.2 * x, (0.0,), 1e-9),
    "hardsigmoid": (
        nn.Hardsigmoid(),
        lambda x: min(max(x / 6 + 0.5, 0.0), 1.0),
        (-3.0, 3.0),
        1e-9,
    ),
    "hardswish": (
        nn.Hardswish(),
        lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
        (-3.0, 3.0),
        1e-9,
    ),
    "gelu": (nn.GELU(), lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, (0.0,), 1e-9),
    "gelu tanh": (
        nn.GELU("tanh"),
        lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        (0.0,),
        1e-9,
    ),
    "silu": (nn.SiLU(), lambda x: x * sigmoid(x), (0.0,), 1e-9),
    "sigmoid": (nn.Sigmoid(), sigmoid, (0.0,), 1e-9),
    "elu": (nn.ELU(), lambda x: x if x > 0 else math.expm1(x), (0.0,), 2e-5),
    "prelu": (nn.PReLU(1, 0.3), lambda x: x if x > 0 else 0.3 * x, (0.0,), 2e-5),
}


def reference(function: Scalar, kinks: tuple[float, ...], mean: float, std: float) -> float:
    """Adaptive integration between the kinks, in z."""
    inner = sorted((kink - mean) / std for kink in kinks)
    edges = [-12.0, *(z for z in inner if -12 < z < 12), 12.0]

    def weighted(z: float) -> float:
        return function(mean + std * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    pairs = itertools.pairwise(edges)
    return sum(integrate.quad(weighted, a, b, epsabs=1e-12, limit=200)[0] for a, b in pairs)


@pytest.mark.parametrize("name", SCALARS)
def test_the_mean_of_an_activation_is_the_integral(name: str) -> None:
    layer, scalar, kinks, tolerance = SCALARS[name]
    found = gaussian.activation_mean(layer, MEANS, STDS)
    assert found.dtype == torch.float64
    pairs = zip(MEANS.tolist(), STDS.tolist(), strict=True)
    for value, (mean, std) in zip(found.tolist(), pairs, strict=True):
        assert abs(value - reference(scalar, kinks, mean, std)) <= tolerance * max(1.0, std)


@pytest.mark.parametrize("name", SCALARS)
def test_the_mean_of_an_activation_is_what_sampling_finds(name: str) -> None:
    layer = SCALARS[name][0]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn((100_000, len(MEANS)), generator=generator)
    values = layer((MEANS + STDS * draws).clone()).detach()
    off = (gaussian.activation_mean(layer, MEANS, STDS) - values.mean(0)).abs()
    assert bool((off <= 5 * values.std(0) / math.sqrt(len(draws)) + 1e-6).all())


@pytest.mark.parametrize("name", SCALARS)
def test_without_spread_it_is_the_function_of_the_mean(name: str) -> None:
    layer, scalar, _, _ = SCALARS[name]
    found = gaussian.activation_mean(layer, MEANS, torch.zeros_like(MEANS))
    wanted = torch.tensor([scalar(mean) for mean in MEANS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@given(
    mean=st.floats(-50, 50),
    std=st.floats(0, 20),
    high=st.floats(0, 30),
)
def test_a_clip_lies_within_its_bounds_and_under_relu(mean: float, std: float, high: float) -> None:
    beta, s, bound = (torch.tensor([each], dtype=torch.float64) for each in (mean, std, high))
    clipped = gaussian.clip_mean(beta, s, 0.0, bound)
    relu = gaussian.relu_mean(beta, s)
    assert -1e-9 <= float(clipped) <= min(high, float(relu)) + 1e-9
    mirrored = gaussian.relu_mean(-beta, s)
    assert float(relu - mirrored) == pytest.approx(mean, abs=1e-9)


def test_a_clip_may_differ_from_channel_to_channel() -> None:
    high = torch.tensor([1.0, 2.0, 6.0, 30.0])
    mean, std = torch.full((4,), 1.5), torch.full((4,), 2.0)
    found = gaussian.clip_mean(mean, std, 0.0, high)
    layer = ChannelClip(torch.zeros(4), high)
    assert torch.equal(gaussian.activation_mean(layer, mean, std), found)
    for value, bound in zip(found.tolist(), high.tolist(), strict=True):
        wanted = reference(lambda x, bound=bound: min(max(x, 0.0), bound), (0.0, bound), 1.5, 2.0)
        assert abs(value - wanted) <= 1e-9


def test_a_layer_with_parameters_of_its_own_for_each_channel() -> None:
    layer = nn.PReLU(len(MEANS))
    slopes = torch.linspace(-0.5, 0.9, len(MEANS))
    layer.weight.data = slopes
    found = gaussian.activation_mean(layer, MEANS, STDS)
    wanted = gaussian.leaky_relu_mean(MEANS, STDS, slopes.double())
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)
    assert layer.weight.dtype == torch.float32


def test_what_is_not_elementwise_is_refused() -> None:
    with pytest.raises(InputError, match="GLU gives 4 values for 8 channels"):
        gaussian.activation_mean(nn.GLU(1), MEANS, STDS)


def test_any_function_can_be_integrated() -> None:
    def square(x: Tensor) -> Tensor:
        return x.square()

    found = gaussian.integrated_mean(square, MEANS, STDS)
    torch.testing.assert_close(found, MEANS.double() ** 2 + STDS.double() ** 2)
