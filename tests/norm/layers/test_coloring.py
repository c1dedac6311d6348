"""Colouring layers: whitened by the shrunk covariance, then a full matrix, one a class or all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import BATCH, Moments, whiten
from normapps.norm.condition import ConditionedModel
from normapps.norm.layers.coloring import ColoringNorm, ConditionalColoringNorm
from normapps.norm.registry import create_norm

C, K = 6, 3


def _activation(*shape: int, seed: int = 0) -> Tensor:
    """Correlated features along axis 1, of unlike means, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    mixing = torch.eye(shape[1]) + mixing / shape[1] ** 0.5
    x = torch.randn(shape, generator=generator, dtype=torch.float64).movedim(1, -1)
    return (x @ mixing.T + torch.arange(shape[1])).movedim(-1, 1).contiguous()


def _learnt(layer: nn.Module) -> Any:
    """The layer in float64, its parameters away from their start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.double().parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += noise / 2
    return layer


def _white(x: Tensor, size: int, eps: float = 1e-3) -> np.ndarray:
    """(C, M) whitened rows of (N, C, *S), by the paper's formula."""
    rows = x.double().movedim(1, 0).flatten(1).numpy()
    parts = []
    for group in rows.reshape(-1, size, rows.shape[1]):
        cov = np.cov(group, bias=True).reshape(size, size)
        lower = np.linalg.cholesky((1 - eps) * cov + eps * np.eye(size))
        parts.append(np.linalg.solve(lower, group - group.mean(1, keepdims=True)))
    return np.concatenate(parts)


def _shaped(rows: np.ndarray, x: Tensor) -> np.ndarray:
    moved = x.movedim(1, 0)
    return np.moveaxis(rows.reshape(moved.shape), 0, 1)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


@pytest.mark.parametrize("shape", [(40, C), (5, C, 7), (4, C, 5, 6), (3, C, 2, 3, 4)])
@pytest.mark.parametrize("size", [None, 3, 2])
def test_training_is_the_formula(shape: tuple[int, ...], size: int | None) -> None:
    x = _activation(*shape)
    layer = _learnt(ColoringNorm(C, group_size=size))
    want = _numpy(layer.weight) @ _white(x, size or C) + _numpy(layer.bias)[:, None]
    np.testing.assert_allclose(_numpy(layer(x)), _shaped(want, x), atol=1e-9)
    assert layer.running_cov.shape == (C // (size or C), size or C, size or C)


@given(
    batch=st.integers(2, 4),
    channels=st.integers(1, 5),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
)
def test_any_shape(batch: int, channels: int, space: list[int]) -> None:
    x = _activation(batch, channels, *space)
    layer = _learnt(ColoringNorm(channels, eps=1e-2))
    if x.numel() // channels <= channels:
        with pytest.raises(InputError, match="group_size"):
            layer(x)
        return
    want = _numpy(layer.weight) @ _white(x, channels, 1e-2) + _numpy(layer.bias)[:, None]
    np.testing.assert_allclose(_numpy(layer(x)), _shaped(want, x), atol=1e-8)


def test_inference_uses_the_running_moments() -> None:
    layer = _learnt(ColoringNorm(C, momentum=None))
    means, covs = [], []
    for seed in range(3):
        x = _activation(4, C, 5, 6, seed=seed)
        layer(x)
        rows = _numpy(x.movedim(1, 0).flatten(1))
        means.append(rows.mean(1))
        covs.append(np.cov(rows, bias=True))
    mean, cov = np.mean(means, axis=0), np.mean(covs, axis=0)
    np.testing.assert_allclose(layer.running_cov[0], cov, atol=1e-12)
    lower = np.linalg.cholesky((1 - 1e-3) * cov + 1e-3 * np.eye(C))
    white = np.linalg.solve(lower, rows - mean[:, None])
    want = _numpy(layer.weight) @ white + _numpy(layer.bias)[:, None]
    np.testing.assert_allclose(_numpy(layer.eval()(x)), _shaped(want, x), atol=1e-9)


@pytest.mark.parametrize("size", [None, 3])
def test_it_begins_as_whitening_and_without_recovery_is_it(size: int | None) -> None:
    x = _activation(4, C, 5, 6)
    layer = ColoringNorm(C, group_size=size, dtype=torch.float64)
    bare = ColoringNorm(C, group_size=size, affine=False, dtype=torch.float64)
    assert torch.equal(layer.weight, torch.eye(C))
    assert not layer.bias.any()
    torch.testing.assert_close(bare(x), layer(x))
    np.testing.assert_allclose(_numpy(bare(x)), _shaped(_white(x, size or C), x), atol=1e-9)


def test_whitened_and_coloured_with_the_same_covariance_it_is_the_identity() -> None:
    x = _activation(4, C, 5, 6)
    moments = Moments.of(x, BATCH, full=True)
    layer = ColoringNorm(C, dtype=torch.float64)
    shrunk = (1 - layer.eps) * moments.cov[0] + layer.eps * torch.eye(C)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.cholesky(shrunk))
        layer.bias.copy_(moments.mean[0])
    torch.testing.assert_close(layer(x), x)


def test_one_channel_at_a_time_it_standardizes() -> None:
    x = _activation(4, C, 5, 6)
    got = ColoringNorm(C, group_size=1, eps=1e-12, dtype=torch.float64)(x)
    torch.testing.assert_close(got, nn.BatchNorm2d(C, eps=1e-12, dtype=torch.float64)(x))


def test_the_covariance_is_shrunk_and_not_only_raised() -> None:
    x = _activation(4, C, 5, 6)
    moments = Moments.of(x, BATCH, full=True)
    raised = whiten(x, moments, "cholesky", 0.5)
    assert (ColoringNorm(C, eps=0.5, dtype=torch.float64)(x) - raised).abs().max() > 0.1
    # all of it: the identity stands for the covariance
    centred = x - moments.mean.view(1, C, 1, 1)
    torch.testing.assert_close(ColoringNorm(C, eps=1.0, dtype=torch.float64)(x), centred)


def test_a_scale_a_channel_is_loaded_as_the_diagonal() -> None:
    batch = nn.BatchNorm2d(C)
    batch(_activation(4, C, 5, 6).float())
    nn.init.normal_(batch.weight)
    nn.init.normal_(batch.bias)
    layer = ColoringNorm(C, eps=1e-6, layout="2d")
    layer.load_state_dict(batch.state_dict())
    batch.eps = 1e-6
    x = _activation(2, C, 3, 3).float()
    torch.testing.assert_close(layer.eval()(x), batch.eval()(x), rtol=1e-4, atol=1e-4)


# classes


def _reference(layer: Any, x: Tensor, weights: np.ndarray) -> np.ndarray:
    """What a conditional layer makes of (N, C, *S) under weights of the classes (N, K)."""
    white = _shaped(_white(x, layer.group_size), x).reshape(*x.shape[:2], -1)
    color = np.einsum("nk,kcd->ncd", weights, _numpy(layer.class_weight)) + _numpy(layer.weight)
    shift = weights @ _numpy(layer.class_bias) + _numpy(layer.bias)
    return (color @ white + shift[:, :, None]).reshape(x.shape)


@pytest.mark.parametrize("shape", [(40, C), (5, C, 7), (4, C, 5, 6), (3, C, 2, 3, 4)])
@pytest.mark.parametrize("size", [None, 3])
def test_each_sample_is_coloured_by_its_class(shape: tuple[int, ...], size: int | None) -> None:
    x = _activation(*shape)
    layer = _learnt(ConditionalColoringNorm(C, K, group_size=size))
    labels = torch.arange(shape[0]) % K
    want = _reference(layer, x, np.eye(K)[labels])
    np.testing.assert_allclose(_numpy(layer(x, labels)), want, atol=1e-9)
    layer.frozen = True
    for label in range(K):
        one = layer(x, torch.full_like(labels, label))
        for condition in (label, torch.tensor(label), torch.tensor([label])):
            torch.testing.assert_close(layer(x, condition), one)


def test_weights_mix_the_classes() -> None:
    x, layer = _activation(4, C, 5, 6), _learnt(ConditionalColoringNorm(C, K))
    weights = torch.rand(4, K, dtype=torch.float64)
    want = _reference(layer, x, weights.numpy())
    np.testing.assert_allclose(_numpy(layer(x, weights)), want, atol=1e-9)


def test_it_begins_as_the_layer_without_classes() -> None:
    x = _activation(4, C, 5, 6)
    layer = ConditionalColoringNorm(C, K, dtype=torch.float64)
    plain = ColoringNorm(C, dtype=torch.float64)
    torch.testing.assert_close(layer(x, torch.tensor([0, 1, 2, 0])), plain(x))
    layer.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(layer.eval()(x, 1), plain.eval()(x))


@pytest.mark.parametrize("bias", [True, False])
def test_only_the_classes_of_the_batch_learn(bias: bool) -> None:
    layer = ConditionalColoringNorm(C, K, bias=bias)
    y = layer(_activation(4, C, 5, 6).float(), torch.tensor([0, 2, 2, 0]))
    (y * torch.rand_like(y)).sum().backward()
    tables = [layer.class_weight, layer.class_bias] if bias else [layer.class_weight]
    for table in tables:
        learnt = table.grad.flatten(1).abs().sum(1) > 0
        assert learnt.tolist() == [True, False, True]
    assert layer.weight.grad.any()
    assert (layer.bias is None) == (not bias)


def test_gradients() -> None:
    layer = _learnt(ConditionalColoringNorm(C, K, group_size=3))
    x = _activation(4, C, 2, 1).requires_grad_()
    names = [key for key, _ in layer.named_parameters()]
    values = [each.detach().clone().requires_grad_() for each in layer.parameters()]
    labels = torch.tensor([0, 1, 2, 1])

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {key: each.clone() for key, each in layer.named_buffers()}
        state = dict(zip(names, parameters, strict=True)) | buffers
        y: Tensor = torch.func.functional_call(layer, state, (x, labels))
        return y

    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(forward, (x, *values))


def test_a_label_reaches_the_layer_within_a_network() -> None:
    torch.manual_seed(0)
    layer = _learnt(create_norm("conditional_coloring", C, num_classes=K, layout="2d"))
    model = ConditionedModel(nn.Sequential(nn.Conv2d(3, C, 1).double(), layer, nn.ReLU())).eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    want = layer(model.model[0](x), labels).relu()
    assert torch.equal(model(x, labels), want)
    assert not torch.equal(model(x, 0), want)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (3, "got label 3, needs labels below 3"),
        (-1, "got label -1"),
        (torch.tensor([0, 1, 5, 0]), "got label 5"),
        (torch.tensor([0, 1, -2, 0]), "got label -2"),
        (torch.tensor([0, 1]), r"got torch\.int64 \(2,\)"),
        (torch.rand(4, 2), r"got torch\.float32 \(4, 2\)"),
        ("cat", "got 'cat'"),
    ],
)
def test_conditions_that_do_not_fit(condition: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConditionalColoringNorm(C, K)(_activation(4, C, 5, 6), condition)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes 0"):
        ConditionalColoringNorm(C, 0)
    with pytest.raises(InputError, match="eps 2: is a share"):
        ColoringNorm(C, eps=2)
    with pytest.raises(InputError, match="needs a condition"):
        ConditionalColoringNorm(C, K)(_activation(4, C, 5, 6))


# folding


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize(
    ("layout", "shape", "kind"),
    [
        *(("2d", (4, C, 5, 6), nn.Conv2d), ("3d", (4, C, 2, 3, 4), nn.Conv3d)),
        *(("1d", (20, C), nn.Conv1d), ("tokens", (4, C, C), nn.Linear)),
    ],
)
def test_folded_it_is_one_product(
    layout: str, shape: tuple[int, ...], kind: type[nn.Module], size: int | None
) -> None:
    x = _activation(*shape).float()
    plain = _learnt(ColoringNorm(C, group_size=size, layout=layout)).float()
    classes = _learnt(ConditionalColoringNorm(C, K, group_size=size, layout=layout)).float()
    plain(x)
    classes(x, 0)
    torch.testing.assert_close(plain.eval().fold()(x), plain(x), rtol=1e-5, atol=1e-5)
    assert isinstance(plain.fold(), kind)
    classes.eval()
    for label in range(K):
        torch.testing.assert_close(classes.fold(label)(x), classes(x, label), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="got None, needs labels"):
        classes.fold()
