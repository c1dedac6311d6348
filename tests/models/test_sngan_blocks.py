"""SNGAN's blocks: resampling convolutions and norms against plain functions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.sngan_blocks import (
    NORMS,
    DiscriminatorBlock,
    GeneratorBlock,
    PoolingConv2d,
    UpsamplingConv2d,
    glorot_,
    make_norm,
    normalized,
)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def _same(fast: Tensor, plain: Tensor, leaves: list[Tensor]) -> None:
    """Values and gradients of a random functional of them."""
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    towards = torch.randn(fast.shape, generator=torch.Generator().manual_seed(9), dtype=fast.dtype)
    ours = torch.autograd.grad((fast * towards).sum(), leaves)
    theirs = torch.autograd.grad((plain * towards).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
def test_upsampling_convolution_is_nearest_upsampling_then_convolution(
    inputs: int, outputs: int, height: int, width: int
) -> None:
    layer = UpsamplingConv2d(inputs, outputs).double()
    x = _drawn(2, inputs, height, width)
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    plain = F.conv2d(enlarged, layer.weight, layer.bias, padding=1)
    _same(layer(x), plain, [x, *layer.parameters()])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_pooling_convolution_is_convolution_then_average_pooling(
    inputs: int, outputs: int, height: int, width: int
) -> None:
    layer = PoolingConv2d(inputs, outputs).double()
    x = _drawn(2, inputs, 2 * height, 2 * width)
    full = F.conv2d(x, layer.weight, layer.bias, padding=1)
    plain = full.unflatten(3, (width, 2)).unflatten(2, (height, 2)).mean((3, 5))
    _same(layer(x), plain, [x, *layer.parameters()])


def test_they_are_stored_as_plain_convolutions() -> None:
    for layer in (UpsamplingConv2d(3, 5), PoolingConv2d(3, 5)):
        assert isinstance(layer, nn.Conv2d)
        shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
        assert shapes == {"weight": (5, 3, 3, 3), "bias": (5,)}


def test_a_generator_block_is_the_plain_one() -> None:
    block = GeneratorBlock(6, 4, "none", 3, 0).double()
    x = _drawn(2, 6, 5, 5)
    up = nn.Upsample(scale_factor=2, mode="nearest")
    h = F.conv2d(up(x.relu()), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.conv2d(h.relu(), block.conv2.weight, block.conv2.bias, padding=1)
    # the shortcut as in the paper: upsampling first
    plain = h + F.conv2d(up(x), block.shortcut.weight, block.shortcut.bias)
    _same(block(x, _drawn(2, 3)), plain, [x, *block.parameters()])


@pytest.mark.parametrize(
    ("inputs", "outputs", "is_pooling", "is_first"),
    [(3, 4, True, True), (4, 6, True, False), (4, 4, True, False), (4, 6, False, False)],
)
def test_a_discriminator_block_is_the_plain_one(
    inputs: int, outputs: int, is_pooling: bool, is_first: bool
) -> None:
    block = DiscriminatorBlock(inputs, outputs, is_pooling=is_pooling, is_first=is_first).double()
    x = _drawn(2, inputs, 6, 6)
    h = F.conv2d(x if is_first else x.relu(), block.conv1.weight, block.conv1.bias, padding=1)
    assert h.shape[1] == (outputs if is_first else inputs)
    h = F.conv2d(h.relu(), block.conv2.weight, block.conv2.bias, padding=1)
    # the shortcut as in the paper's deeper blocks: pooling last
    plain = h + F.conv2d(x, block.shortcut.get_parameter("weight"), block.shortcut.bias)
    plain = F.avg_pool2d(plain, 2) if is_pooling else plain
    _same(block(x), plain, [x, *block.parameters()])


def test_a_block_that_changes_nothing_has_no_shortcut_weights() -> None:
    block = DiscriminatorBlock(4, 4, is_pooling=False).double()
    x = _drawn(2, 4, 5, 5)
    assert len(list(block.parameters())) == 4
    with torch.no_grad():
        block.conv2.weight.zero_()
    torch.testing.assert_close(block(x), x)  # its biases are 0 at the start


def _expected_norm(kind: str, layer: nn.Module, x: Tensor, z: Tensor, y: Tensor | None) -> Tensor:
    """What a training batch becomes, from the papers' formulas."""
    part = dict(layer.named_parameters())
    if kind == "none":
        return x
    if kind == "wc":
        flat = x.transpose(0, 1).flatten(1)
        centered = flat - flat.mean(1, keepdim=True)
        cov = (1 - 1e-3) * centered @ centered.T / flat.shape[1] + 1e-3 * torch.eye(len(flat))
        white = torch.linalg.inv(torch.linalg.cholesky(cov)) @ centered
        white = white.unflatten(1, (len(x), -1)).transpose(0, 1)
        color, shift = part["weight"].expand(len(x), -1, -1), part["bias"].expand(len(x), -1)
        if y is not None:
            color, shift = color + part["class_weight"][y], shift + part["class_bias"][y]
        return (color @ white + shift[:, :, None]).unflatten(2, x.shape[2:])
    axes, eps = ((2, 3), 1e-5) if kind == "in" else ((0, 2, 3), 2e-5)
    mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    chosen = y if kind == "cbn" else torch.zeros(len(x), dtype=torch.long)
    gamma, beta = (part[name].reshape(-1, x.shape[1])[chosen] for name in ("weight", "bias"))
    if kind == "self-mod":
        hidden = (z @ part["hidden.weight"].T + part["hidden.bias"]).relu()
        change = hidden @ part["change.weight"].T
        gamma, beta = gamma + change[:, : x.shape[1]], beta + change[:, x.shape[1] :]
    return (x - mean) / (var + eps).sqrt() * gamma[..., None, None] + beta[..., None, None]


CASES = [(kind, 0) for kind in NORMS if kind != "cbn"] + [("cbn", 3), ("wc", 3), ("self-mod", 3)]


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_every_norm_is_its_formula(kind: str, classes: int) -> None:
    torch.manual_seed(0)
    layer = make_norm(kind, 4, 5, classes).double()
    with torch.no_grad():
        for each in layer.parameters():
            each.add_(torch.randn_like(each) / 2)
    x, z = _drawn(6, 4, 3, 3), _drawn(6, 5, seed=1)
    y = torch.tensor([0, 2, 1, 1, 0, 2]) if classes and kind != "self-mod" else None
    plain = _expected_norm(kind, layer, x, z, y)
    _same(normalized(layer, x, z, y), plain, [x, *layer.parameters()])


@pytest.mark.parametrize("kind", ["bn", "cbn", "self-mod", "wc"])
def test_running_statistics_decay_by_nine_tenths(kind: str) -> None:
    layer = make_norm(kind, 4, 5, 3 if kind == "cbn" else 0)
    x = torch.randn(8, 4, 3, 3) + 3
    normalized(layer, x, torch.randn(8, 5), torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(layer.get_buffer("running_mean"), 0.1 * x.mean((0, 2, 3)))


def test_norms_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="unknown generator norm 'nb'"):
        make_norm("nb", 4, 5, 0)
    with pytest.raises(InputError, match="num_classes 0"):
        make_norm("cbn", 4, 5, 0)


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_glorot_has_its_bound_and_leaves_an_identity(gain: float) -> None:
    layer = nn.Conv2d(20, 30, 3)
    glorot_(layer, gain)
    bound = gain * math.sqrt(6 / (9 * 20 + 9 * 30))
    assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert layer.bias is not None
    assert not layer.bias.detach().any()
    glorot_(nn.Identity())
