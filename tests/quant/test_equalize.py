"""Equalization: the same function, like ranges, smaller rounding errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  (guards the import of timm)
from normapps.errors import InputError
from normapps.graph.fold import fold_batchnorm_
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.clip import ChannelClip
from normapps.quant.equalize import equalize_
from normapps.quant.rescale import rescale_


def chain(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first, depth = nn.Conv2d(3, 8, 3, bias=bias), nn.Conv2d(8, 8, 3, groups=8)
    net = nn.Sequential(first, nn.ReLU(), depth, nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU())
    net.extend([nn.Flatten(), nn.Linear(5 * 16, 4)])
    with torch.no_grad():
        first.weight.mul_(torch.logspace(-3, 1, 8).view(8, 1, 1, 1))
    return net


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.up = nn.ConvTranspose2d(16, 6, 2, 2, groups=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.b(torch.relu(self.a(y))))
        return self.head(torch.relu(self.up(torch.cat([y, 2 * y.flip(3)], 1))))


def ranges(weight: Tensor, dim: int) -> Tensor:
    """The largest |w| of each index of one dimension."""
    return weight.detach().abs().transpose(0, dim).flatten(1).amax(1)


def rounding_error(weight: Tensor) -> float:
    """Of one 8-bit scale for the whole tensor, relative to each output channel."""
    step = float(weight.detach().abs().max()) / 127
    weight = weight.detach()
    gap = (weight - (weight / step).round() * step).flatten(1)
    return float((gap.norm(dim=1) / weight.flatten(1).norm(dim=1)).mean())


def moments(mean: Tensor, var: Tensor) -> Moments:
    return Moments(torch.zeros(1), mean[None], var[None], None, BATCH)


def scrambled(model: nn.Module) -> nn.Module:
    """Batch norms with scales, shifts and statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.1, 2.0),
                (module.bias, -0.5, 1.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.2, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [chain, Residual])
def test_function_stays(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    net, x = make().to(dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    before, weights = net(x).detach(), copy.deepcopy(net.state_dict())
    undo = equalize_(net, x)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    assert float((net(x).detach() - before).abs().max() / before.abs().max()) <= bound
    assert undo.difference <= bound
    assert not all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    undo()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_pair_gets_the_factors_of_the_paper() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    r1, r2 = ranges(net[0].weight, 0), ranges(net[2].weight, 1)
    w1, b1, w2, b2 = (each.detach().clone() for each in net.parameters())
    s = (r2 / r1).sqrt()
    undo = equalize_(net, torch.randn(1, 3, 8, 8).double())
    torch.testing.assert_close(undo.factors["0"], s)
    torch.testing.assert_close(net[0].weight, w1 * s.view(-1, 1, 1, 1))
    torch.testing.assert_close(net[0].bias, b1 * s)
    torch.testing.assert_close(net[2].weight, w2 / s.view(1, -1, 1, 1))
    assert torch.equal(net[2].bias, b2)
    assert undo.left == (("2", "an output of the network"),)


def test_ranges_meet_on_both_sides_of_a_chain() -> None:
    net = chain()
    undo = equalize_(net, torch.randn(2, 3, 8, 8), tolerance=1e-6, iterations=500)
    pairs = [
        (ranges(net[0].weight, 0), ranges(net[2].weight, 0)),
        (ranges(net[2].weight, 0), ranges(net[4].weight, 1)),
    ]
    fc = net[7].weight.detach().abs().view(4, 5, 16).amax((0, 2))
    pairs.append((ranges(net[4].weight, 0), fc))
    for r1, r2 in pairs:
        spread = (r1 / r2).log()
        assert float((spread - spread.mean()).abs().max()) < 1e-3
    assert undo.change <= 1e-6


def test_shared_channels_take_the_largest_range_of_each_side() -> None:
    net = Residual()
    equalize_(net, torch.randn(2, 3, 8, 8), tolerance=1e-6, iterations=1000)
    made = torch.maximum(ranges(net.stem.weight, 0), ranges(net.b.weight, 0))
    up = ranges(net.up.weight, 0)
    read = torch.stack([ranges(net.a.weight, 1), up[:8], up[8:]]).amax(0)
    spread = (made / read).log()
    assert float((spread - spread.mean()).abs().max()) < 1e-3


def test_weight_between_channels_of_one_scale_settles() -> None:
    """x + conv(x): one scale a channel on both sides of a weight, as in matrix balancing."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.mix, self.head = (
                nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 4), (4, 2))
            )
            with torch.no_grad():  # two pairs that exchange what they have
                for layer in (self.stem, self.head):
                    layer.weight.mul_(1e-6)
                self.mix.weight.zero_()
                for row, column, value in ((0, 1, 1.0), (1, 0, 9.0), (2, 3, 5.0), (3, 2, 0.1)):
                    self.mix.weight[row, column] = value

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.stem(x))
            return self.head(torch.relu(y + self.mix(y)))

    net = Stream()
    undo = equalize_(net, torch.randn(2, 3, 4, 4), tolerance=1e-5, iterations=500)
    assert undo.change <= 1e-5
    one, other = (float(net.mix.weight.detach()[at]) for at in ((0, 1), (1, 0)))
    assert one == pytest.approx(other, rel=1e-3) == pytest.approx(3, rel=1e-3)


def test_statistics_go_along_and_come_back() -> None:
    net, x = chain(), torch.randn(64, 3, 8, 8)
    seen = Moments.of(net[0](x).detach().double(), BATCH)
    statistics = {"0": seen}
    undo = equalize_(net, x, statistics)
    after = Moments.of(net[0](x).detach().double(), BATCH)
    torch.testing.assert_close(statistics["0"].mean, after.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics["0"].var, after.var, rtol=1e-5, atol=1e-9)
    assert not torch.allclose(after.var, seen.var)
    undo()
    assert statistics["0"] is seen


def test_rounding_with_one_scale_hurts_less() -> None:
    net = chain()
    before = rounding_error(net[0].weight)
    equalize_(net, torch.randn(2, 3, 8, 8))
    assert before > 0.3
    assert rounding_error(net[0].weight) < 0.05


@pytest.mark.parametrize("channels", [(0, slice(None)), (slice(None), 2)])
def test_channel_of_zeros_keeps_its_scale(channels: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        (net[0] if channels[0] == 0 else net[2]).weight[channels] = 0
    undo = equalize_(net, torch.randn(2, 3, 4, 4))
    at = 0 if channels[0] == 0 else 2
    assert float(undo.factors["0"][at]) == 1
    assert all(bool(each.isfinite().all()) for each in net.parameters())


def relu6_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net[0].weight.mul_(20)
    return net.double()


def test_relu6_scaled_is_exact() -> None:
    net, x = relu6_net(), torch.randn(8, 3, 8, 8).double()
    before, keys = net(x), list(net.state_dict())
    undo = equalize_(net, x, relu6="scale")
    assert isinstance(net[1], ChannelClip)
    torch.testing.assert_close(net[1].high, 6 * undo.factors["0"])
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    again = equalize_(net, x, relu6="scale")
    assert again.change < 1e-9
    assert again.left == (("2", "an output of the network"),)
    again()
    undo()
    assert isinstance(net[1], nn.ReLU6)
    assert list(net.state_dict()) == keys
    assert torch.equal(net(x), before)


def test_relu6_replaced_says_what_it_clipped() -> None:
    net, x = relu6_net(), torch.randn(4096, 3, 1, 1).double()
    seen = net[0](x).detach()
    statistics = {"0": Moments.of(seen, BATCH)}
    undo = equalize_(net, x, statistics, relu6="replace")
    assert isinstance(net[1], nn.ReLU)
    assert list(undo.clipped) == ["1"]
    share = float((seen > 6).double().mean())
    assert share > 0.1
    assert abs(undo.clipped["1"] - share) < 0.01  # a sum of three normal numbers is normal
    assert undo.difference < 1e-10  # of the equalization, not of the replacement
    undo()
    assert isinstance(net[1], nn.ReLU6)


def test_relu6_kept_keeps_its_channels() -> None:
    net, x = relu6_net(), torch.randn(8, 3, 8, 8).double()
    before = copy.deepcopy(net.state_dict())
    undo = equalize_(net, x, relu6="keep")
    assert undo.factors == {}
    assert dict(undo.left)["0"] == "'1' clips them at a fixed bound"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_the_trace_cannot_see_is_found_by_comparing_and_left() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (nn.Conv2d(i, o, 1) for i, o in ((3, 6), (6, 5), (5, 2)))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            gate = torch.from_numpy(np.tanh(y.detach().numpy())).mean()
            return self.c(torch.relu(self.b(y))) * gate

    net, x = Hidden(), torch.randn(4, 3, 4, 4)
    before = net(x).detach()
    undo = equalize_(net, x)
    assert dict(undo.left)["a"] == "scaling them changes what the network computes"
    assert "b" in undo.factors
    assert "a" not in undo.factors
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18", "regnety_002"])
def test_folded_networks_of_timm(name: str) -> None:
    import timm

    torch.manual_seed(0)
    net = scrambled(timm.create_model(name, num_classes=10))
    x = torch.randn(2, 3, 32, 32)
    folding = fold_batchnorm_(net, x, verify=False)
    before = copy.deepcopy(net.state_dict())
    spread = rescale_(net, x, seed=0, spread=1.0, statistics=folding.statistics)
    undo = equalize_(net, x, folding.statistics, iterations=3, relu6="scale")
    assert spread.difference <= 1e-5
    assert undo.difference <= 1e-5
    whole = sum(len(s) for s in undo.factors.values())
    layers = [each for each in net.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert whole >= 0.6 * sum(len(each.weight) for each in layers)
    reasons = {reason for _, reason in undo.left}
    assert all("output of the network" in each or "aten.sigmoid" in each for each in reasons)
    undo()
    spread()
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_refusals() -> None:
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(InputError, match="iterations -1"):
        equalize_(chain(), x, iterations=-1)
    with pytest.raises(InputError, match="unknown relu6 'scaled'; did you mean 'scale'"):
        equalize_(chain(), x, relu6="scaled")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Sequential has torch\.bfloat16: rescale it in float32"):
        equalize_(chain().bfloat16(), x.bfloat16())
