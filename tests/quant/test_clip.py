"""Clips at fixed bounds: by channel, replaced where that is safe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.graph.scaling import trace_scales
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.norm.undo import Undo
from normapps.quant.clip import ChannelClip, prepare_clips_, scale_clips_, share_clipped
from normapps.quant.equalize import equalize_


@pytest.mark.parametrize("low", [0.0, -2.0])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 4)])
def test_channel_clip(low: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, high = 9 * torch.randn(shape), torch.tensor([1.0, 6.0, 12.0])
    clip = ChannelClip(torch.full((3,), low), high)
    out = clip(x)
    for channel in range(3):
        expected = x[:, channel].clamp(low, float(high[channel]))
        assert torch.equal(out[:, channel], expected)
    assert set(clip.state_dict()) == {"low", "high"}


def test_share_above_the_bound() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU6(), nn.Conv2d(2, 2, 1))
    graph = trace_scales(net, torch.randn(1, 3, 4, 4))
    mean, var = torch.tensor([[6.0, 4.0]]), torch.tensor([[9.0, 4.0]])
    statistics = {"0": Moments(torch.zeros(1), mean, var, None, BATCH)}
    share = share_clipped(graph, graph.clips[0], statistics, 6.0)
    assert share == pytest.approx((0.5 + 0.158655) / 2, abs=1e-5)  # above the mean, and 1 σ above
    assert math.isnan(share_clipped(graph, graph.clips[0], {}, 6.0))


class HardSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clip = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.clip(x + 3) / 6


def test_clip_within_a_hard_swish_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), HardSwish(), nn.Conv2d(4, 4, 1), nn.ReLU6())
    net.append(nn.Conv2d(4, 2, 1))
    undo = equalize_(net, torch.randn(2, 3, 4, 4), relu6="replace")
    assert list(undo.clipped) == ["3"]
    assert isinstance(net[1].clip, nn.ReLU6)
    assert undo.factors.keys() == {"2"}


def test_hardtanh_below_zero_is_scaled_but_not_replaced() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(-1, 2), nn.Conv2d(4, 2, 1)).double()
    x = 5 * torch.randn(8, 3, 4, 4).double()
    before = net(x)
    undo = equalize_(net, x, relu6="replace")
    assert dict(undo.left)["0"] == "'1' clips them below 0"
    assert undo.factors == {}
    undo = equalize_(net, x, relu6="scale")
    assert len(undo.factors["0"]) == 4
    assert float(net[1].low.max()) < 0
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    assert equalize_(net, x, relu6="replace").factors == {}


def test_one_clip_of_several_layers_ties_them_or_pins_them() -> None:
    class Shared(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, width, 1),
                nn.Conv2d(width, 2, 1),
            )
            self.act = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.act(self.b(self.act(self.a(x)))))

    x = torch.randn(4, 3, 4, 4)
    same = equalize_(Shared(4), x, relu6="scale")
    assert torch.equal(same.factors["a"], same.factors["b"])
    other = equalize_(Shared(5), x, relu6="scale")
    assert other.factors == {}


def test_function_that_clips_has_no_module_to_change() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu6(self.a(x)))

    undo = equalize_(Functional(), torch.randn(1, 3, 4, 4), relu6="scale")
    assert dict(undo.left)["a"] == "the model takes aten.hardtanh of them"


def test_modules_come_back_wherever_they_stood() -> None:
    act = nn.ReLU6()
    net = nn.Sequential(nn.Conv2d(3, 4, 1), act, nn.Conv2d(4, 4, 1), act, nn.Conv2d(4, 2, 1)).eval()
    graph = trace_scales(net, torch.randn(1, 3, 4, 4))
    undo = Undo()
    _, shares = prepare_clips_(net, graph, {}, "replace", undo)
    assert list(shares) == ["1"]
    assert type(net[1]) is type(net[3]) is nn.ReLU
    assert not net[1].training
    undo()
    assert net[1] is net[3] is act
    scale_clips_(net, graph.clips, np.ones(graph.count), undo)
    assert net[1] is act
    scale_clips_(net, graph.clips, np.full(graph.count, 2.0), undo)
    assert net[1] is net[3]
    assert torch.equal(net[1].high, torch.full((4,), 12.0))
    undo()
    assert net[1] is net[3] is act
