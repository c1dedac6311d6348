"""Conditional norm: one scale and shift a class, by label or mixed by weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.conditional import ConditionalNorm

K = 4


def _layer(features: int = 3, seed: int = 0, **options: Any) -> ConditionalNorm:
    torch.manual_seed(seed)
    layer = ConditionalNorm(features, K, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


def _expected(layer: ConditionalNorm, x: Tensor, labels: list[int], training: bool) -> Tensor:
    """Sample by sample, with the moments of the batch, of the sample, or of the population."""
    flat = x.reshape(*x.shape[:2], -1)
    axes = (0, 2) if layer.base == "batch" else (2,)
    mean = flat.mean(axes, keepdim=True)
    var = (flat - mean).square().mean(axes, keepdim=True)
    if not training and layer.running_mean is not None:
        mean, var = layer.running_mean.reshape(1, -1, 1), layer.running_var.reshape(1, -1, 1)
    normal = (flat - mean) / (var + layer.eps).sqrt()
    rows = [
        sample * layer.weight[label].unsqueeze(1) + layer.bias[label].unsqueeze(1)
        for sample, label in zip(normal, labels, strict=True)
    ]
    return torch.stack(rows).reshape(x.shape)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, K - 1), min_size=2, max_size=5),
    features=st.integers(1, 4),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    base=st.sampled_from(["batch", "instance"]),
    seed=st.integers(0, 10**6),
)
def test_values_in_any_shape(
    labels: list[int], features: int, space: list[int], base: str, seed: int
) -> None:
    layer = _layer(features, seed, base=base)
    x = _input(len(labels), features, *space, seed=seed)
    given_ = torch.tensor(labels)
    torch.testing.assert_close(layer(x, given_), _expected(layer, x, labels, True))
    torch.testing.assert_close(layer.eval()(x, given_), _expected(layer, x, labels, False))


def test_it_starts_as_its_base_whatever_the_class() -> None:
    x, labels = _input(4, 3, 5, 6), torch.tensor([0, 3, 1, 1])
    torch.testing.assert_close(
        ConditionalNorm(3, K).double()(x, labels), nn.BatchNorm2d(3).double()(x)
    )
    instance = ConditionalNorm(3, K, base="instance").double()
    torch.testing.assert_close(instance(x, labels), F.instance_norm(x))


def test_with_one_class_it_is_batch_norm() -> None:
    theirs = nn.BatchNorm2d(3).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    layer = ConditionalNorm(3, 1).double()
    layer.load_state_dict(theirs.state_dict())
    for seed in range(3):
        x = _input(4, 3, 5, 6, seed=seed)
        torch.testing.assert_close(layer(x, 0), theirs(x))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], theirs.state_dict()[key])
    torch.testing.assert_close(layer.eval()(x, 0), theirs.eval()(x))


def test_every_class_starts_from_a_pretrained_scale_and_shift() -> None:
    pretrained = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(pretrained[0].weight)
    nn.init.normal_(pretrained[0].bias)
    model = nn.Sequential(ConditionalNorm(3, K))
    state = pretrained.state_dict()
    model.load_state_dict(state)
    for name in ("weight", "bias"):
        rows = getattr(model[0], name)
        assert torch.equal(rows, getattr(pretrained[0], name).expand(K, -1))
        assert rows.is_contiguous()
    assert state["0.weight"].shape == (3,)  # the caller's dict is as it was
    again = nn.Sequential(ConditionalNorm(3, K))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again[0].weight, model[0].weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ConditionalNorm(3, K).load_state_dict(nn.BatchNorm2d(K).state_dict())


@pytest.mark.parametrize("base", ["batch", "instance"])
def test_the_forms_of_a_condition_agree(base: str) -> None:
    layer, x = _layer(base=base), _input(3, 3, 4)
    expected = layer(x, torch.tensor([2, 2, 2]))
    for condition in (2, torch.tensor(2), torch.tensor([2]), torch.tensor([2] * 3).int()):
        assert torch.equal(layer(x, condition), expected)
    one_hot = F.one_hot(torch.tensor([2, 2, 2]), K)
    torch.testing.assert_close(layer(x, one_hot.double()), expected)


def test_weights_are_not_rounded_under_autocast() -> None:
    layer, x = _layer().float(), _input(2, 3, 4).float()
    weights = torch.rand(2, K)
    expected = layer(x, weights)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x, weights), expected)


def test_weights_mix_scales_and_shifts() -> None:
    layer, x = _layer(), _input(2, 3, 4)
    half = torch.tensor([[0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    found = layer(x, half)
    both = [layer(x, torch.tensor([label, 3])) for label in (0, 2)]
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)


@pytest.mark.parametrize("base", ["batch", "instance"])
def test_gradients_reach_the_weights_of_the_classes(base: str) -> None:
    layer = _layer(base=base, eps=0.1, momentum=0.0)
    x = _input(2, 3, 4).requires_grad_()
    weights = torch.rand(2, K, dtype=torch.float64).requires_grad_()
    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(layer, (x, weights))


def test_a_class_without_a_sample_is_not_trained() -> None:
    layer = _layer()
    layer(_input(2, 3, 4), torch.tensor([0, 2])).square().sum().backward()
    for parameter in layer.parameters():
        assert [bool(row.any()) for row in parameter.grad] == [True, False, True, False]


def test_without_a_shift() -> None:
    layer = ConditionalNorm(3, K, bias=False)
    assert list(dict(layer.named_parameters())) == ["weight"]
    x = _input(2, 3, 4).float()
    torch.testing.assert_close(layer(x, 1), nn.BatchNorm1d(3)(x))
    torch.testing.assert_close(layer(x, torch.eye(2, K)), nn.BatchNorm1d(3)(x))


@pytest.mark.parametrize(
    ("condition", "got"),
    [
        (4, "label 4"),
        (-1, "label -1"),
        (torch.tensor([0, 4]), "label 4"),
        (torch.tensor([0, -2]), "label -2"),
        (torch.tensor([0, 1, 2]), "torch.int64 (3,)"),
        (torch.zeros(2, 3), "torch.float32 (2, 3)"),
        (torch.zeros(2, 1).long(), "torch.int64 (2, 1)"),
        ("cat", "label cat"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(condition: Any, got: str) -> None:
    message = f"ConditionalNorm got {got}, needs labels below 4: a number or (2,) integers, or (2"
    with pytest.raises(InputError, match=re.escape(message)):
        ConditionalNorm(3, K)(torch.randn(2, 3, 4), condition)


def test_labels_elsewhere_are_not_waited_for() -> None:
    # on the meta device there are no values: whoever asks for one raises
    layer = ConditionalNorm(3, K, device="meta")
    x, labels = torch.empty(2, 3, 4, device="meta"), torch.zeros(2, device="meta").long()
    assert layer(x, labels).shape == x.shape


def test_no_class_is_refused() -> None:
    with pytest.raises(InputError, match="num_classes 0: must be at least 1"):
        ConditionalNorm(3, 0)
