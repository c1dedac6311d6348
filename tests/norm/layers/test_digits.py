"""Every layer trains a small network on handwritten digits, and infers what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normapps.norm import ConditionedModel
from normapps.norm.layers.base import NormLayer
from normapps.norm.layers.moment_exchange import MomentExchange
from normapps.norm.registry import create_norm

TRAINED: tuple[str, ...] = ("frn", "mean_only", "l1", "top_k", "renorm", "pca", "iebn")
TRAINED += ("group_whitening", "switchable_whitening", "attentive")
TRAINED += ("diminishing", "memorized", "moving", "online", "prong")
"""Names of layers without a condition that must learn digits."""

OPTIONS: dict[str, dict[str, int]] = {
    "prong": {"every": 10},
    "moving": {"warmup": 20},
    "pca": {"group_size": 4},  # axes of 16 channels change places: 88 %
    "renorm": {"warmup": 10, "r_steps": 30, "d_steps": 30},
}
ACTS = {"frn": nn.Identity}  # it cuts off by itself; a rectifier behind would hold its threshold
WIDTHS = (8, 16)
TRAINING = 1280


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """1797 pictures (N, 1, 8, 8) in [0, 1] in an order without pattern, and what they show."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    return images[order], torch.from_numpy(data.target)[order]


def _network(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    one, two = (
        create_norm(name, width, layout="2d", act=ACTS.get(name, nn.ReLU), **OPTIONS.get(name, {}))
        for width in WIDTHS
    )
    first = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
    second = nn.Conv2d(*WIDTHS, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, one, second, two, nn.Flatten(), nn.Linear(16 * WIDTHS[1], 10))


Loss = Callable[[Tensor, Tensor], Tensor]


def _loss(network: nn.Module) -> Loss:
    return lambda x, target: F.cross_entropy(network(x), target)


def _train(network: nn.Module, loss: Loss, epochs: int = 5) -> None:
    images, labels = (each[:TRAINING] for each in _digits())
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, target in zip(images.split(128), labels.split(128), strict=True):
            optimizer.zero_grad()
            loss(x, target).backward()
            optimizer.step()


@torch.no_grad()
def _accuracy(network: nn.Module, infer: Callable[[Tensor], Tensor]) -> float:
    images, labels = (each[TRAINING:] for each in _digits())
    network.eval()
    return float((infer(images).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_digits(name: str) -> None:
    network = _network(name)
    layers = [each for each in network if isinstance(each, NormLayer)]
    start = [each.detach().clone() for layer in layers for each in layer.parameters()]
    _train(network, _loss(network))
    assert _accuracy(network, network) > 0.95
    moved = [each for layer in layers for each in layer.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(start, moved, strict=True))


def test_regions_learn_digits() -> None:
    """The regions are ink and paper, of which each sample has both."""
    network = _network("region")
    masked = ConditionedModel(network)
    _train(network, lambda x, target: F.cross_entropy(masked(x, x > 0.5), target))
    assert _accuracy(network, lambda x: masked(x, x > 0.5)) > 0.95


def test_exchanged_moments_teach_digits() -> None:
    network = _network("batch")
    exchange = MomentExchange(generator=torch.Generator().manual_seed(0))
    network.insert(2, exchange)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return exchange.loss(F.cross_entropy, network(x), target)

    _train(network, loss)
    assert _accuracy(network, network) > 0.95
