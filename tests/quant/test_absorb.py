"""High-bias absorption: exact where no value is below c and no zeros are padded, else measured."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.absorb import absorb_
from normapps.quant.clip import ChannelClip


def moments(mean: Tensor, std: Tensor) -> Moments:
    return Moments(torch.zeros(1), mean[None], std.square()[None], None, BATCH)


MEAN = torch.tensor([20.0, -5.0, 1.0, 30.0])
STD = torch.tensor([2.0, 1.0, 1.0, 4.0])
C = torch.tensor([14.0, 0.0, 0.0, 18.0]).double()  # max(0, μ − 3 σ)


def pair(second: nn.Module | None = None) -> nn.Sequential:
    """A layer of bounded outputs about MEAN, never below C where that is above 0."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        first.weight.copy_(STD.view(4, 1, 1, 1) * torch.rand(4, 3, 1, 1) / 3)
        first.bias.copy_(MEAN)
    return nn.Sequential(first, nn.ReLU(), second or nn.Conv2d(4, 5, 3)).double()


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double() * 6 - 3


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(4, 5, 3),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)),
    ],
)
def test_exact_where_every_value_is_above_c(second: nn.Module) -> None:
    net = pair(copy.deepcopy(second))
    before, bias = net(X), net[0].bias.detach().clone()
    keys = list(net.state_dict())
    statistics = {"0": moments(MEAN, STD)}
    undo = absorb_(net, X, statistics)
    torch.testing.assert_close(undo.absorbed["0"], C)
    torch.testing.assert_close(net[0].bias, bias - C)
    torch.testing.assert_close(net(X), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(statistics["0"].mean[0], MEAN - C.float())
    assert undo.difference < 1e-10
    assert undo.padded == ()
    undo()
    assert torch.equal(net(X), before)
    assert torch.equal(statistics["0"].mean[0], MEAN)
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(
    "clip",
    [
        nn.ReLU6(),
        nn.Hardtanh(0.0, 25.0),
        ChannelClip(torch.zeros(4), torch.tensor([18.0, 6.0, 1.0, 32.0])),
    ],
)
def test_exact_through_a_clip_whose_bound_goes_down_along(clip: nn.Module) -> None:
    net = pair()
    net[1] = copy.deepcopy(clip).double()
    before, layers = net(X), list(net)
    statistics = {"0": moments(MEAN, STD)}
    undo = absorb_(net, X, statistics)
    high = clip.high.double() if isinstance(clip, ChannelClip) else torch.tensor(clip.max_val)
    c = torch.minimum(C, high.double())
    torch.testing.assert_close(undo.absorbed["0"], c)
    torch.testing.assert_close(net[1].high, high - c)
    torch.testing.assert_close(net(X), before, rtol=1e-10, atol=1e-10)
    assert undo.difference < 1e-10
    undo()
    assert list(net) == layers
    assert torch.equal(net(X), before)


def test_a_clip_below_zero_is_left() -> None:
    net = pair()
    net[1] = nn.Hardtanh(-1.0, 25.0)
    undo = absorb_(net, X, {"0": moments(MEAN, STD)})
    assert undo.absorbed == {}
    assert "aten.hardtanh" in dict(undo.left)["0"]


def test_padding_with_zeros_misses_c_at_the_border_alone() -> None:
    net = pair(nn.Conv2d(4, 5, 3, padding=1))
    before = net(X)
    undo = absorb_(net, X, {"0": moments(MEAN, STD)})
    gap = (net(X) - before).abs().detach()
    assert float(gap[..., 1:-1, 1:-1].max()) < 1e-10
    edge = net[2].weight.detach()[:, :, 0].sum(2)  # the row of the kernel above the picture
    torch.testing.assert_close(gap[0, :, 0, 3], (edge @ C).abs())
    assert undo.padded == ("2",)
    assert undo.difference == pytest.approx(float(gap.max() / before.abs().max()))


def test_values_below_c_are_what_it_costs() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(16, 4, 1).double()
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)).double()
    with torch.no_grad():
        first.weight.copy_(torch.randn(4, 16, 1, 1) / 4)
        first.bias.fill_(5)
        net[2].weight.copy_(torch.eye(4).view(4, 4, 1, 1))
    x = torch.randn(64, 16, 32, 32).double()
    statistics = {"0": Moments.of(first(x).detach(), BATCH)}
    before = net(x).detach()
    undo = absorb_(net, x, statistics)
    changed = ((net(x) - before).abs() > 1e-9).double().mean()
    assert float(changed) == pytest.approx(0.00135, rel=0.25)  # Φ(−3)
    assert undo.difference > 1e-3
    undo()
    assert not absorb_(net, x, statistics, deviations=10.0).absorbed


def test_what_a_sum_reads_is_left_with_its_reason() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = pair()[0], nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.c(y + self.b(y))

    net = Residual().double()
    before = net(X)
    undo = absorb_(net, X, {"a": moments(MEAN, STD)})
    assert undo.absorbed == {}
    assert "aten.add" in dict(undo.left)["a"]
    assert torch.equal(net(X), before)


def test_without_a_relu_nothing_is_absorbed() -> None:
    net = nn.Sequential(pair()[0], nn.Conv2d(4, 2, 1)).double()
    undo = absorb_(net, X, {"0": moments(MEAN, STD)})
    assert undo.absorbed == {}
    assert dict(undo.left)["0"] == "no ReLU and layer of their own read them"


def test_layers_without_statistics_are_passed_over() -> None:
    net = pair()
    undo = absorb_(net, X, {})
    assert (undo.absorbed, undo.left, undo.difference) == ({}, (), 0.0)


def test_bias_of_two_layers_is_left() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = pair()[0], nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
            self.b.bias = self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)))

    net = Branches().double()
    before = net(X)
    undo = absorb_(net, X, {"a": moments(MEAN, STD)})
    assert undo.absorbed == {}
    assert [name for name, _ in undo.left] == ["a", "b"]
    assert torch.equal(net(X), before)


def test_negative_deviations() -> None:
    with pytest.raises(InputError, match="deviations -1"):
        absorb_(pair(), X, {}, deviations=-1)
