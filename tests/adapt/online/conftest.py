"""Networks and streams for the tests of TENT, EATA and SAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

CLASSES = 6
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 2),
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "layer": nn.LayerNorm,
}


class Tokens(nn.Module):
    """Applies a layer norm to the channels of (N, C, H, W)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return y


def _net(norm: str = "batch", classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    made = [NORMS[norm](width) for width in (8, 12)]
    for layer in made:
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5 if name.endswith(("weight", "var")) else -0.5, 1.5)
    one, two = (Tokens(layer) if norm == "layer" else layer for layer in made)
    body = [nn.Conv2d(3, 8, 3, bias=False), one, nn.ReLU(), nn.Dropout(0.5)]
    body += [nn.Conv2d(8, 12, 3, stride=2), two, nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    head = nn.Linear(12, classes)
    nn.init.normal_(head.weight, 0, 1.5)  # predictions of all degrees of certainty
    return nn.Sequential(*body, nn.Flatten(), head).eval()


def _batches(sizes: tuple[int, ...] = (7, 5, 6, 4), seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 9, 9, generator=generator) * 3 + 1 for n in sizes]


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """Make a network of a kind of norm, its scales, shifts and statistics away from the start."""
    return _net


@pytest.fixture
def batches() -> Callable[..., list[Tensor]]:
    """Make a stream of batches (N, 3, 9, 9) of given sizes."""
    return _batches
