"""Polarization: the penalty, its gradient, and two groups of scales with nothing between."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from normapps.errors import InputError
from normapps.slim.polarization import polarization, polarization_gradient
from normapps.slim.regularizer import ScaleRegularizer


def test_penalty_is_the_papers() -> None:
    x = [0.9, 0.1, 0.5, 0.7]
    mean = sum(x) / 4
    wanted = sum(1.4 * each - abs(each - mean) for each in x)
    got = polarization(torch.tensor(x, dtype=torch.float64), torch.ones(4), 1.4)
    assert float(got) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_autograds(weighted: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(20, generator=draw, dtype=torch.float64).requires_grad_()
    costs = torch.rand(20, generator=draw, dtype=torch.float64) if weighted else torch.ones_like(x)
    costs = costs.detach()
    if weighted:
        costs[3:6] = 0.0
    polarization(x, costs, 1.3).backward()
    got = polarization_gradient(x.detach(), costs, 1.3)
    torch.testing.assert_close(got, x.grad, rtol=1e-12, atol=1e-14)


def test_channels_without_weight_do_not_count_in_the_mean() -> None:
    x = torch.tensor([0.2, 0.6, 1.0])
    with_other = polarization(x, torch.tensor([1.0, 1.0, 0.0]))
    assert float(with_other) == pytest.approx(float(polarization(x[:2], torch.ones(2))))


def test_parts_the_scales_in_two() -> None:
    model = nn.BatchNorm1d(40)
    nn.init.uniform_(model.weight, 0.2, 0.8)
    wanted = torch.linspace(0.1, 0.9, 40)
    optimizer = SGD(model.parameters(), 0.05)
    reg = ScaleRegularizer(model, optimizer, kind="polarization", strength=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (0.3 * (model.weight - wanted).square()).sum().backward()
        optimizer.step()
        reg.step()
    values = model.weight.detach()
    kept = values[values > 0]
    assert kept.min() > max(0.2, values.mean())
    # and those are where the loss wants them, up to a pull of no more than t − 1 and the mean's
    assert (kept - wanted[values > 0]).abs().max() < 0.5 * 0.2 / 0.6
    assert 0.2 < reg.sparsity() == (values == 0).float().mean() < 0.8
    assert values.max() <= 1


def test_clamps_what_it_is_on_and_nothing_else() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    nn.init.constant_(model[1].weight, 1.5)
    optimizer = SGD(model.parameters(), 1.0)
    reg = ScaleRegularizer(model, optimizer, kind="polarization", strength=0.0, include="0")
    for each in model.parameters():
        each.grad = torch.tensor([2.0, -2.0])
    optimizer.step()
    reg.step()
    assert model[0].weight.tolist() == [0.0, 1.0]
    assert model[1].weight.tolist() == [-0.5, 3.5]


def test_scales_outside_of_its_range_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    with torch.no_grad():
        model[0].weight[1] = -0.25
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=r"layer '0': scale 1 is -0\.25.*from scratch"):
        ScaleRegularizer(model, optimizer, kind="polarization")


def test_t_must_be_positive() -> None:
    model = nn.BatchNorm1d(3)
    with pytest.raises(InputError, match="t 0: must be greater"):
        ScaleRegularizer(model, SGD(model.parameters(), 0.1), kind="polarization", t=0)


def test_group_is_not_for_it() -> None:
    model = nn.BatchNorm1d(3)
    with pytest.raises(InputError, match=r"group=True is for kind='proximal', not 'polarization'"):
        ScaleRegularizer(model, SGD(model.parameters(), 0.1), kind="polarization", group=True)
