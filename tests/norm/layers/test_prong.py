"""PRONG: the basis changes and the function does not; descent goes as on whitened inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import convert_norm, create_norm

C, D, EPS = 6, 3, 1e-3


def _layer(**options: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"group_size": D, "eps": EPS, "every": None, "layout": "2d", **options}
    layer = create_norm("prong", C, **chosen).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer


def _input(n: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, C, 2, 2, generator=generator, dtype=torch.float64)
    mixing = torch.randn(C, C, generator=generator, dtype=torch.float64)
    return torch.einsum("dc,nchw->ndhw", mixing, x) + torch.arange(C)[:, None, None]


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as (C, samples)."""
    return x.movedim(1, 0).flatten(1)


def test_a_refresh_whitens_by_the_population_and_keeps_the_function() -> None:
    layer, x = _layer(), _input()
    y = layer(x)
    layer(_input(seed=2))
    basis = layer.basis.clone()
    layer.refresh_()
    torch.testing.assert_close(layer.eval()(x), y)
    assert (layer.basis - basis).abs().max() > 0.1
    whitened = layer.basis @ (layer.running_cov + EPS * torch.eye(D)) @ layer.basis
    torch.testing.assert_close(whitened, torch.eye(D).double().expand(C // D, D, D))
    assert torch.equal(layer.center, layer.running_mean)


def test_the_population_is_that_of_the_samples_also_one_by_one() -> None:
    """With batches of one value the covariance lies between the batches alone."""
    layer, x = _layer(momentum=None), _input(n=10)[:, :, :1, :1]
    for sample in x:
        layer(sample[None])
    rows = _rows(x).view(C // D, D, -1)
    torch.testing.assert_close(layer.running_mean, rows.mean(2).flatten())
    centred = rows - rows.mean(2, keepdim=True)
    torch.testing.assert_close(layer.running_cov, centred @ centred.mT / 10)


def test_the_first_batches_count_alike() -> None:
    """Not 99 parts of the standard normal that a new layer begins with and one of a batch."""
    layer, (one, other) = _layer(momentum=0.01), (_input(seed=1), _input(seed=2))
    layer(one)
    layer(other)
    both = torch.cat([_rows(one), _rows(other)], 1)
    torch.testing.assert_close(layer.running_mean, both.mean(1))
    centred = (both - both.mean(1, keepdim=True)).view(C // D, D, -1)
    torch.testing.assert_close(layer.running_cov, centred @ centred.mT / both.shape[1])


def test_a_step_of_descent_is_preconditioned_by_the_covariance() -> None:
    """Of the layer as a plain map A = V·U, a step is −η·G·UᵀU, with G the gradient of A."""
    layer, x = _layer(momentum=1.0), _input()
    layer(x)
    layer.refresh_()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()

    def whole() -> Tensor:
        return (layer.weight @ layer.basis).detach()

    before, centred = whole(), (_rows(x) - layer.center[:, None]).view(C // D, D, -1)
    y = layer(x)
    (y * target).sum().backward()
    gradient = _rows(target).view(C // D, D, -1) @ centred.mT
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    covariance = layer.running_cov + EPS * torch.eye(D)
    expected = before - 0.1 * gradient @ torch.linalg.inv(covariance)
    torch.testing.assert_close(whole(), expected, rtol=1e-6, atol=1e-6)


def test_the_basis_changes_by_itself_and_training_goes_on() -> None:
    layer = _layer(every=3)
    bases = []
    for step in range(1, 8):
        layer(_input(seed=step)).sum().backward()
        bases.append(layer.basis.clone())
    changed = [i + 2 for i in range(6) if not torch.equal(bases[i], bases[i + 1])]
    assert changed == [3, 6]
    again = _layer(every=3)
    again.load_state_dict(layer.state_dict())
    for _ in range(2):  # the 8th batch and the 9th
        again(_input())
    assert not torch.equal(again.basis, bases[-1])


def test_without_a_shift_the_center_stays_and_without_a_matrix_the_function_goes() -> None:
    x = _input()
    shiftless = _layer(bias=False)
    y = shiftless(x)
    shiftless.refresh_()
    torch.testing.assert_close(shiftless.eval()(x), y)
    assert not shiftless.center.any()
    bare = _layer(affine=False, momentum=1.0)
    bare(x)
    bare.refresh_()
    rows = _rows(bare.eval()(x)).view(C // D, D, -1)
    torch.testing.assert_close(rows.mean(2), torch.zeros(C // D, D).double(), atol=1e-9, rtol=0)
    covariance = rows @ rows.mT / rows.shape[2]
    assert (covariance - torch.eye(D)).abs().max() < 0.2  # eps 1e-3 on the smallest eigenvalue


def test_a_batch_norm_becomes_one_that_does_the_same() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C, eps=EPS)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    for seed in range(5):
        norm(_input(seed=seed).float())
    x = _input().float()
    converted: Any = convert_norm(norm, "prong", group_size=D, eps=EPS)
    torch.testing.assert_close(converted.eval()(x), norm.eval()(x), rtol=1e-4, atol=1e-5)
    loaded: Any = create_norm("prong", C, group_size=D, eps=EPS)
    loaded.load_state_dict({**norm.state_dict()})
    torch.testing.assert_close(loaded.eval()(x), norm(x), rtol=1e-4, atol=1e-5)
    for seed in range(3):
        converted.train()(_input(seed=seed).float())
    y = converted(x)
    converted.refresh_()
    torch.testing.assert_close(converted.eval()(x), y, rtol=1e-4, atol=1e-4)
    folded = converted.fold()
    assert isinstance(folded, nn.Conv2d)
    torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-4)


def test_in_half_precision_the_basis_stays_precise() -> None:
    layer = _layer().float().to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert {layer.basis.dtype, layer.center.dtype, layer.running_cov.dtype} == {torch.float32}


def test_an_interval_below_1_is_refused() -> None:
    with pytest.raises(InputError, match="every 0: must be at least 1 batch, or None"):
        _layer(every=0)
