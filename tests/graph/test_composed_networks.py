"""Small networks composed at random: whatever the blocks, the raw cut gives the silenced network.

No search for guilty groups here: a random choice of channels is cut by the graph as it is.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from normapps.graph import ChannelGraph, trace_channels
from normapps.graph.oracle import verify
from normapps.graph.surgery import slim_model
from normapps.norm import create_norm

Block = tuple[nn.Module, int]
"""A block, and the channels that it gives."""


class Run(nn.Module):
    """Layers by name, and a forward given as a function of them and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Taken(nn.Module):
    """Channels of a number that an attribute holds, as first ones, as parts or as groups."""

    def __init__(self, how: str, size: int) -> None:
        super().__init__()
        self.how, self.size = how, size

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        if self.how == "first":
            return x[:, : self.size]
        if self.how == "parts":
            return sum(torch.split(x, self.size, 1)[1:], x[:, : self.size])
        return x.view(n, self.size, -1, h, w).sum(2)


class Scaled(nn.Module):
    """A parameter a channel, multiplied or added."""

    def __init__(self, channels: int, adds: bool) -> None:
        super().__init__()
        self.values, self.adds = nn.Parameter(torch.randn(1, channels, 1, 1)), adds

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values if self.adds else x * self.values


def conv(into: int, out: int, r: random.Random, kernel: int | None = None) -> nn.Sequential:
    k = kernel or r.choice([1, 3])
    layer = nn.Conv2d(into, out, k, padding=k // 2, bias=r.random() < 0.5)
    return nn.Sequential(layer, nn.BatchNorm2d(out), r.choice([nn.ReLU, nn.SiLU, nn.Identity])())


def convolution(c: int, r: random.Random) -> Block:
    out = r.choice([4, 6, 8, 12])
    return conv(c, out, r), out


def grouped(c: int, r: random.Random) -> Block:
    groups = r.choice([g for g in range(1, c + 1) if c % g == 0])
    out = groups * r.choice([1, 2, 3])
    kind = r.choice([nn.Conv2d, nn.ConvTranspose2d])
    layer = kind(c, out, 3, padding=1, groups=groups, bias=r.random() < 0.5)
    more = [nn.BatchNorm2d(out), nn.ReLU()] if r.random() < 0.7 else []
    return nn.Sequential(layer, *more), out


def bare(c: int, r: random.Random) -> Block:
    out = r.choice([4, 6])
    return nn.Conv2d(c, out, 3, padding=1), out


def norm(c: int, r: random.Random) -> Block:
    name = r.choice(["batch", "batch", "ghost", "streaming", "group", "instance", "layer"])
    if name == "group":
        return nn.GroupNorm(2 if c % 2 == 0 else 1, c), c
    return create_norm(name, c), c


def activation(c: int, r: random.Random) -> Block:
    kinds = [nn.ReLU, nn.Hardswish, nn.GELU, nn.Sigmoid, nn.Softplus, nn.Tanh, nn.LeakyReLU]
    return r.choice([*kinds, lambda: nn.PReLU(c), lambda: nn.Softmax(1), nn.Dropout])(), c


def residual(c: int, r: random.Random) -> Block:
    a, b = conv(c, 6, r), conv(6, c, r)
    return Run(lambda m, x: F.relu(x + m.b(m.a(x))), a=a, b=b), c


def in_place(c: int, r: random.Random) -> Block:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y += x
        y[:, : y.shape[1] // 2].mul_(2) if y.shape[1] % 2 == 0 and m.half else y.relu_()
        return y

    block = Run(run, a=conv(c, c, r))
    block.half = False
    return block, c


def concatenated(c: int, r: random.Random) -> Block:
    a = conv(c, 4, r)
    return Run(lambda m, x: torch.cat([x, m.a(x)], 1), a=a), c + 4


def added(pair: Sequence[Tensor]) -> Tensor:
    return pair[0] + F.relu(pair[1])


def multiplied(y: Tensor) -> Tensor:
    return y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :]


def halves(c: int, r: random.Random) -> Block:
    ways: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: added(m.a(x).chunk(2, 1)),
        lambda m, x: F.glu(m.a(x), 1),
        lambda m, x: multiplied(m.a(x)),
        lambda m, x: m.a(x).unflatten(1, (2, -1)).sum(1),
    ]
    return Run(r.choice(ways), a=conv(c, 8, r)), 4


def taken(c: int, r: random.Random) -> Block:
    how, size = r.choice([("first", 5), ("parts", 4), ("groups", 6)])
    return nn.Sequential(conv(c, 12, r), Taken(how, size)), size


def gated(c: int, r: random.Random) -> Block:
    if r.random() < 0.5:
        down, up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)

        def run(m: Any, x: Tensor) -> Tensor:
            gate: Tensor = m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))
            return x * gate.sigmoid()

        return Run(run, down=down, up=up), c

    def flat(m: Any, x: Tensor) -> Tensor:
        gate: Tensor = m.up(m.norm(m.down(x.mean((2, 3)))).relu())
        return x * gate.sigmoid().view(x.shape[0], -1, 1, 1)

    down, up = nn.Linear(c, 5), nn.Linear(5, c)  # type: ignore[assignment]
    return Run(flat, down=down, norm=nn.BatchNorm1d(5), up=up), c


def mixed(c: int, r: random.Random) -> Block:
    """What looks at all channels at once, or moves them."""
    order = torch.tensor(r.sample(range(c), c))
    ways: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: x * x.mean(1, keepdim=True),
        lambda m, x: (
            x * torch.cat([x.amax(1, keepdim=True), x.sum(1, keepdim=True)], 1).sum(1, keepdim=True)
        ),
        lambda m, x: F.normalize(x, dim=1),
        lambda m, x: x[:, order],
        lambda m, x: x.index_select(1, order),
        lambda m, x: x.flip(1),
        lambda m, x: x.roll(1, 1),
        lambda m, x: x + x.cumsum(1),
        lambda m, x: x * x[:, :1],
        lambda m, x: x * x.flatten(2).softmax(2).view_as(x),
        lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
        lambda m, x: torch.where(x > 0, x, x * 0.1),
        lambda m, x: x.masked_fill(x < 0, 0.0).clamp(max=2.0),
        lambda m, x: torch.addcmul(x, x, x.sigmoid()),
        lambda m, x: x.transpose(2, 3).contiguous().view_as(x),
        lambda m, x: x * x.mean((2, 3), keepdim=True).expand_as(x).sigmoid(),
        lambda m, x: x * torch.ones(1, 1, 1, 1).expand(1, x.shape[1], 1, 1).softmax(1),
        lambda m, x: torch.stack([x, x * 2], 1).sum(1),
        lambda m, x: torch.maximum(x, x.flip(3)),
        lambda m, x: x - x.mean((2, 3), keepdim=True),
        lambda m, x: torch.cat([x, torch.zeros_like(x)], 2)[:, :, : x.shape[2]],
    ]
    return Run(r.choice(ways)), c


def per_channel(c: int, r: random.Random) -> Block:
    return Scaled(c, r.random() < 0.4), c


def pooled(c: int, r: random.Random) -> Block:
    up = nn.Upsample(scale_factor=2, mode=r.choice(["nearest", "bilinear"]))
    pool = r.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(4)])
    return nn.Sequential(pool, up), c


def shuffled(c: int, r: random.Random) -> Block:
    groups = 2 if c % 2 == 0 else 1

    def run(m: Any, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        return x.view(n, groups, k // groups, h, w).transpose(1, 2).reshape(n, k, h, w)

    return r.choice([Run(run), nn.ChannelShuffle(groups)]), c


def pixels(c: int, r: random.Random) -> Block:
    if c % 4 == 0 and r.random() < 0.5:
        return nn.Sequential(nn.PixelShuffle(2), nn.AvgPool2d(2)), c // 4
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2), conv(4 * c, 6, r)), 6


def padded(c: int, r: random.Random) -> Block:
    a = conv(c, c + 4, r)
    return Run(lambda m, x: m.a(x) + F.pad(x, (0, 0, 0, 0, 2, 2)), a=a), c + 4


def reused(c: int, r: random.Random) -> Block:
    a = conv(c, c, r)
    return Run(lambda m, x: m.a(m.a(x)), a=a), c


def shared_weight(c: int, r: random.Random) -> Block:
    a, b = conv(c, c, r, 3), conv(c, c, r, 3)
    b[0].weight = a[0].weight
    return nn.Sequential(a, b), c


def attention(c: int, r: random.Random) -> Block:
    q, k, v = (conv(c, 8, r, 1) for _ in range(3))

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
        return (v @ (q.mT @ k).softmax(-1)).unflatten(2, x.shape[2:])

    return Run(run, q=q, k=k, v=v), 8


def normed_weight(c: int, r: random.Random) -> Block:
    layer = nn.Conv2d(c, 6, 3, padding=1)
    if r.random() < 0.5:
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.parametrizations.spectral_norm(layer)
    return nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), conv(6, 6, r)), 6


BLOCKS = {
    each.__name__: each
    for each in (
        *(convolution, grouped, bare, norm, activation, residual, in_place, concatenated, halves),
        *(taken, gated, mixed, per_channel, pooled, shuffled, pixels, padded, reused),
        *(shared_weight, attention, normed_weight),
    )
}


def pooled_head(m: Any, x: Tensor) -> Any:
    return m.fc(x.mean((2, 3)))


def flat_head(m: Any, x: Tensor) -> Any:
    return m.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


def several_heads(m: Any, x: Tensor) -> Any:
    return {"map": m.map(x), "more": (m.fc(x.amax((2, 3))), x.shape[0])}


def composed(names: list[str], head: str, seed: int) -> nn.Module:
    """Return a stem, the blocks in this order with a norm before each, and a head."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    channels = r.choice([4, 6, 8])
    layers: list[nn.Module] = [conv(3, channels, r)]
    for name in names:
        block, channels = BLOCKS[name](channels, r)
        layers.append(block)
        if r.random() < 0.4:
            layers.append(conv(channels, channels, r))
    run = {"pooled": pooled_head, "flat": flat_head, "several": several_heads}[head]
    size = channels * (4 if head == "flat" else 1)
    end = Run(run, fc=nn.Linear(size, 3), map=nn.Conv2d(channels, 2, 1))
    return nn.Sequential(*layers, end)


def randomize_(model: nn.Module, x: Tensor) -> nn.Module:
    """Scales and shifts that nothing hides behind; statistics of this very input."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.1, 1.9)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(torch.cat([x, torch.randn(3, *x.shape[1:])]))
    return model.eval()


def drawn(graph: ChannelGraph, seed: int) -> np.ndarray:
    """Draw what goes, of each group any number of its free atoms, but never all of the group."""
    rng = np.random.default_rng(seed)
    keep, free = np.ones(graph.count, bool), graph.free()
    for group in graph.groups:
        atoms = group.atoms[free[group.atoms]]
        most = min(len(atoms), len(group.atoms) - 1)
        keep[rng.permutation(atoms)[: rng.integers(0, most + 1)]] = False
    return keep


def check(names: list[str], head: str, seed: int) -> float:
    """Compare the raw cut with the silenced network; return the share of channels that may go."""
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    model = randomize_(composed(names, head, seed), x)
    graph = trace_channels(model, x)
    keep = drawn(graph, seed)
    slim, _ = slim_model(model, graph, keep)
    assert verify(model, slim, graph, keep, x) <= 1e-5
    assert graph.macs(keep) == flops(slim, x)
    assert graph.parameters(keep) == sum(p.numel() for p in slim.parameters())
    return float(graph.free()[np.concatenate(list(graph.scales.values()))].mean())


def flops(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block(name: str) -> None:
    shares = [check([name], head, seed) for seed, head in enumerate(("pooled", "flat", "several"))]
    assert max(shares) > 0


def test_a_reshape_by_a_number_in_the_code() -> None:
    """Tied channels in front of `view(n, 2, c // 2)` do not make 2 a number of channels."""
    check(["halves", "concatenated", "grouped", "shuffled"], "flat", 2916)


@settings(max_examples=int(os.environ.get("COMPOSED_EXAMPLES", "25")))
@given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    st.sampled_from(["pooled", "flat", "several"]),
    st.integers(0, 2**16),
)
def test_any_composition(names: list[str], head: str, seed: int) -> None:
    check(names, head, seed)
