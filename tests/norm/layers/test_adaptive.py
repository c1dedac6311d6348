"""AdaIN as a layer: the function, in every place where a norm layer may stand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import BATCH, AdaIN, Moments
from normapps.norm.layers import adaptive
from normapps.norm.registry import create_norm


def _features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _expected(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Equation 8, written out, with (N or 1, C) moments of the style."""
    flat = x.flatten(2)
    own = flat.mean(2, keepdim=True)
    own_var = (flat - own).square().mean(2, keepdim=True)
    y = (flat - own) / (own_var + eps).sqrt() * (var + eps).sqrt().unsqueeze(2)
    return (y + mean.unsqueeze(2)).reshape(x.shape)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 4),
    features=st.integers(1, 5),
    one_style=st.booleans(),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(
    samples: int, features: int, one_style: bool, space: list[int], seed: int
) -> None:
    x = _features(samples, features, *space, seed=seed)
    pictures = _features(1 if one_style else samples, features, 7, seed=seed + 1)
    style = Moments.of(pictures)
    found = AdaIN(features, eps=0.1)(x, style)
    mean = pictures.mean(2)
    var = (pictures - mean.unsqueeze(2)).square().mean(2)
    torch.testing.assert_close(found, _expected(x, mean, var, 0.1))


def test_there_is_one_class_and_it_is_in_the_registry() -> None:
    layer = create_norm("adaptive", 3, layout="2d")
    assert type(layer) is AdaIN is adaptive.AdaIN
    assert not list(layer.parameters())
    assert not layer.state_dict()
    assert layer.weight is None
    assert repr(AdaIN(3, eps=0.1)).startswith("AdaIN(\n  3, eps=0.1, alpha=1.0, layout=any")


def test_its_own_moments_change_nothing() -> None:
    x = _features(2, 3, 6, 5)
    torch.testing.assert_close(AdaIN(3)(x, Moments.of(x)), x)


def test_strength_goes_part_of_the_way() -> None:
    x, style = _features(2, 3, 6, 5), Moments.of(_features(1, 3, 4, 4, seed=1))
    full = AdaIN(3)(x, style)
    torch.testing.assert_close(AdaIN(3, alpha=0.25)(x, style), 0.25 * full + 0.75 * x)
    assert torch.equal(AdaIN(3, alpha=0)(x, style), x)


def test_a_population_may_be_a_style_and_tokens_the_content() -> None:
    x, pictures = _features(2, 3, 8), _features(5, 3, 6, seed=1)
    style = Moments.of(pictures, BATCH)
    layer = AdaIN(3, layout="tokens", act=nn.ReLU)
    found = layer(x.transpose(1, 2), style)
    torch.testing.assert_close(found.transpose(1, 2), AdaIN(3)(x, style).relu())


def test_gradients_reach_content_and_style() -> None:
    layer = AdaIN(3, eps=0.1)
    content, style = (_features(2, 3, 4, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x, y: layer(x, Moments.of(y)), (content, style))


def test_what_does_not_fit_is_refused() -> None:
    x, layer = _features(2, 3, 6, 6), AdaIN(3)
    with pytest.raises(InputError, match="AdaIN got a Tensor, needs a style as Moments"):
        layer(x, torch.ones(2, 3))
    with pytest.raises(InputError, match=r"AdaIN got \(2, 4, 6, 6\), needs \(N, C=3, ...\)"):
        layer(_features(2, 4, 6, 6), Moments.of(x))
    with pytest.raises(InputError, match=r"moments of 3 x 3 .* needs 2 x 3 or 1 x 3"):
        layer(x, Moments.of(_features(3, 3, 4)))
    with pytest.raises(InputError, match=r"AdaIN got \(2, 3\): 1 element"):
        layer(_features(2, 3), Moments.of(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("styles", [1, 2])
def test_training_is_the_same_by_one_kernel(styles: int, dtype: torch.dtype) -> None:
    x = _features(2, 3, 6, 5).to(dtype).requires_grad_()
    style = Moments.of(_features(styles, 3, 4, 4, seed=1))
    trained, inferred = AdaIN(3)(x, style), AdaIN(3).eval()(x, style)
    torch.testing.assert_close(trained, inferred, check_stride=True)
    assert not trained._is_view()  # behind which an activation in place would copy it
