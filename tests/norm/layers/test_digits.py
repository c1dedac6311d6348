"""Every layer trains a small network on handwritten digits, and infers what it has learnt."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normapps.norm.layers.base import NormLayer
from normapps.norm.registry import create_norm

TRAINED: tuple[str, ...] = ("batch",)
TRAINED += ("diminishing", "memorized", "moving", "online", "prong")
"""Names of layers without a condition that must learn digits."""

OPTIONS: dict[str, dict[str, int]] = {"prong": {"every": 10}, "moving": {"warmup": 20}}
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
        create_norm(name, width, layout="2d", act=nn.ReLU, **OPTIONS.get(name, {}))
        for width in WIDTHS
    )
    first = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
    second = nn.Conv2d(*WIDTHS, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, one, second, two, nn.Flatten(), nn.Linear(16 * WIDTHS[1], 10))


def _train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int = 5) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, target in zip(images.split(64), labels.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), target).backward()
            optimizer.step()


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_digits(name: str) -> None:
    images, labels = _digits()
    network = _network(name)
    layers = [each for each in network if isinstance(each, NormLayer)]
    start = [each.detach().clone() for layer in layers for each in layer.parameters()]
    _train(network.train(), images[:TRAINING], labels[:TRAINING])
    with torch.no_grad():
        found = network.eval()(images[TRAINING:]).argmax(1)
    assert float((found == labels[TRAINING:]).double().mean()) > 0.95
    moved = [each for layer in layers for each in layer.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(start, moved, strict=True))
