"""Pooling, padding, shuffles, resampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from small_networks import Net, chain, check, conv, reasons
from torch import Tensor, nn


class _Shuffle(nn.Module):
    """ShuffleNet's exchange between groups, written with reshapes."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)


@pytest.mark.parametrize("shuffle", [_Shuffle(), nn.ChannelShuffle(2)])
def test_channel_shuffle(shuffle: nn.Module) -> None:
    check(chain(conv(3, 12), conv(12, 12, groups=2), shuffle, conv(12, 8)), least=1.0)


@pytest.mark.parametrize(
    "middle",
    [
        nn.PixelShuffle(2),
        nn.Sequential(nn.PixelUnshuffle(2), conv(48, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv(12, 3)),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.ZeroPad2d(1), conv(12, 3)),
        nn.Sequential(nn.ReflectionPad2d(1), nn.AdaptiveMaxPool2d(4), conv(12, 3)),
        nn.Sequential(nn.Dropout(), nn.Identity(), nn.PReLU(12), nn.GELU(), conv(12, 3)),
        nn.Sequential(nn.Unfold(2, stride=2), nn.Unflatten(2, (8, 8)), conv(48, 3)),
    ],
    ids=["shuffle", "unshuffle", "upsample", "pool", "reflect", "activations", "unfold"],
)
def test_between_convolutions(middle: nn.Module) -> None:
    graph = check(chain(conv(3, 12), middle, conv(3, 8)), least=0.5)
    assert "free" in reasons(graph, "l0.bn")


def test_padded_shortcut_keeps_the_old_channels_free() -> None:
    """CIFAR's option A: the shortcut's new channels are zeros, of a number in the code."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.classify(net.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))  # type: ignore[no-any-return]

    graph = check(Net(run, a=conv(3, 4), b=conv(4, 8, stride=2)), least=0.6)
    assert reasons(graph, "a.bn") == {"free"}
    assert reasons(graph, "b.bn") == {"free", "the model pads with a fixed number of them"}
