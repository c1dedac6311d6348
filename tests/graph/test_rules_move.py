"""Concatenations, splits and slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import Net, chain, check, conv, random_scales_, reasons
from torch import Tensor, nn

from normapps.graph import trace_channels


def test_concatenation_read_by_several_batch_norms() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.a(F.relu(net.n1(x)))
        z = net.b(F.relu(net.n2(torch.cat([x, y], 1))))
        return net.classify(F.relu(net.n3(torch.cat([x, y, z], 1))))  # type: ignore[no-any-return]

    layers = {f"n{i + 1}": nn.BatchNorm2d(size) for i, size in enumerate((3, 6, 8))}
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
    graph = check(Net(run, stem=nn.Conv2d(3, 3, 1), a=a, b=b, **layers), least=1.0)
    assert graph.scales["n3"][:6].tolist() == graph.scales["n2"].tolist()


def test_densenet_stream_read_without_a_norm_stays() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.classify(F.relu(net.norm(x)) + net.skip(x))  # type: ignore[no-any-return]

    stem, skip = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
    model = Net(run, stem=stem, norm=nn.BatchNorm2d(8), skip=skip)
    graph = trace_channels(random_scales_(model), torch.randn(1, 3, 8, 8))
    found = reasons(graph, "norm")
    assert found == {"skip reads them without a batch norm between"}


class _Split(nn.Module):
    """Res2Net's way: pieces of a width that is held in an attribute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width, self.sizes = how, 4, [4, 4, 4]
        self.convs = nn.ModuleList(conv(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "split":
            parts = torch.split(x, self.width, 1)
        elif self.how == "sizes":
            parts = torch.split(x, self.sizes, 1)
        elif self.how == "chunk":
            parts = x.chunk(3, 1)
        else:
            width = x.shape[1] // 3
            parts = tuple(x[:, i * width : (i + 1) * width] for i in range(3))
        return torch.cat([parts[0], self.convs[0](parts[1]), self.convs[1](parts[2])], 1)


@pytest.mark.parametrize("how", ["split", "sizes", "chunk", "slice"])
def test_pieces(how: str) -> None:
    graph = check(chain(conv(3, 12), _Split(how), conv(12, 8)), least=1.0)
    cut = next(cut for cut in graph.cuts if cut.owner == "l1")
    assert cut.total == 12
    assert graph.scales["l0.bn"][:4].tolist() == graph.scales["l0.bn"][4:8].tolist()


class _Ghost(nn.Module):
    """GhostNet's way: more channels than are wanted, the first `out` of them taken."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out = out
        self.cheap = conv(6, 6, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.cheap(x)], 1)[:, : self.out]


@pytest.mark.parametrize("out", [9, 12])
def test_first_channels_taken(out: int) -> None:
    check(chain(conv(3, 6), _Ghost(out), conv(out, 8)), least=0.9)
