"""Lossless channels: the network without them computes the same, and with any other it would not.

Every network's doomed channels are chosen by hand; what is claimed is then tried, by
compensating and cutting in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph import trace_channels
from normapps.graph.surgery import slim_model
from normapps.slim.compensation import compensate_
from normapps.slim.lossless import lossless
from normapps.slim.plan import plan

INPUT = torch.zeros(1, 3, 8, 8)

SHIFTS = (0.0, -0.7, 0.9, -0.2, 0.4, 0.6)
"""β of six channels; the γ of the first three is 0."""

NOTHING, SILENT, CONSTANT = (), (0, 1), (0, 1, 2)


def norm(scales: tuple[float, ...] = (0, 0, 0, 1.3, 0.8, -0.5)) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(6)
    layer.weight.data = torch.tensor(scales, dtype=torch.float32)
    layer.bias.data = torch.tensor(SHIFTS)
    nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return layer


def following(*after: nn.Module, act: nn.Module | None = None) -> nn.Sequential:
    """A convolution with `norm`, an activation, what comes `after` it, and a head."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm(), act or nn.ReLU(), *after, *head())


def head() -> tuple[nn.Module, ...]:
    return nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)


class Padding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Sum(nn.Module):
    """A residual block: its two batch norms share their channels."""

    def __init__(self, second: tuple[float, ...]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), norm()
        self.other, self.second = nn.Conv2d(3, 6, 3), norm(second)
        self.tail = nn.Sequential(nn.Conv2d(6, 4, 3), *head())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail((self.norm(self.conv(x)) + self.second(self.other(x))).relu())


class Twice(nn.Module):
    """One convolution reads what two batch norms put out."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), norm()
        self.other, self.second = nn.Conv2d(3, 6, 3), norm((0, 0, 0, 1, 1, 1))
        self.second.bias.data[2] = shift
        self.shared = nn.Conv2d(6, 4, 1)
        self.tail = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        one = self.shared(self.norm(self.first(x)).relu()).relu()
        return self.tail(one + self.shared(self.second(self.other(x)).relu()).relu())


class Again(nn.Module):
    """A convolution, and other code that reads the same channels by its weight."""

    def __init__(self, other: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), norm()
        self.conv, self.other = nn.Conv2d(6, 4, 1), other
        self.tail = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.tail(self.conv(x).relu() + self.other(x, self.conv.weight).relu())


def _padded(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)[:, :, 1:-1, 1:-1]


def _multiplied(x: Tensor, weight: Tensor) -> Tensor:
    return (x.movedim(1, -1) @ weight.flatten(1).t()).movedim(-1, 1)


def depthwise() -> nn.Sequential:
    return following(nn.Conv2d(6, 6, 3, padding=1, groups=6), norm(), nn.ReLU(), nn.Conv2d(6, 4, 1))


def pooled(include_pad: bool) -> nn.Sequential:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=include_pad)
    return following(pool, nn.Conv2d(6, 4, 1))


def linear() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norm(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def transposed(padding: int = 0) -> nn.Sequential:
    return following(nn.ConvTranspose2d(6, 4, 3, stride=2, padding=padding))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "no padding": (lambda: following(nn.Conv2d(6, 4, 3)), CONSTANT),
    "no padding, no bias": (lambda: following(nn.Conv2d(6, 4, 3, bias=False)), CONSTANT),
    "stride": (lambda: following(nn.Conv2d(6, 4, 3, stride=2)), CONSTANT),
    "1x1": (lambda: following(nn.Conv2d(6, 4, 1)), CONSTANT),
    "groups that tie them to the living": (
        lambda: following(nn.Conv2d(6, 4, 1, groups=2)),
        NOTHING,
    ),
    "zero padding": (lambda: following(nn.Conv2d(6, 4, 3, padding=1)), SILENT),
    "padding in words": (lambda: following(nn.Conv2d(6, 4, 3, padding="same")), SILENT),
    "no padding in words": (lambda: following(nn.Conv2d(6, 4, 3, padding="valid")), CONSTANT),
    "padding by code": (lambda: following(Padding(), nn.Conv2d(6, 4, 2)), SILENT),
    "reflected padding": (
        lambda: following(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
        CONSTANT,
    ),
    "SiLU and padding": (lambda: following(nn.Conv2d(6, 4, 3, padding=1), act=nn.SiLU()), (0,)),
    "SiLU, no padding": (lambda: following(nn.Conv2d(6, 4, 3), act=nn.SiLU()), CONSTANT),
    "max pooling": (
        lambda: following(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)),
        CONSTANT,
    ),
    "mean that counts the border": (lambda: pooled(True), SILENT),
    "mean that does not": (lambda: pooled(False), CONSTANT),
    "depthwise": (depthwise, CONSTANT),
    "gate": (lambda: following(Gate(), nn.Conv2d(6, 4, 1)), SILENT),
    "linear": (linear, CONSTANT),
    "transposed": (transposed, SILENT),
    "sum of constants": (lambda: Sum((0, 0, 0, 1, 1, 1)), CONSTANT),
    "sum with one alive": (lambda: Sum((1, 0, 0, 1, 1, 1)), (1, 2)),
    "one weight for a constant and a lower": (lambda: Twice(0.3), SILENT),
    "one weight for a constant and a higher": (lambda: Twice(1.5), SILENT),
    "one weight with padding and without": (lambda: Again(_padded), SILENT),
    "one weight in a product of its own": (lambda: Again(_multiplied), NOTHING),
}


def atoms_of(found: NDArray[Any], graph: Any) -> tuple[int, ...]:
    """The channels of the first batch norm of six whose atoms are in the mask."""
    scales = next(atoms for atoms in graph.scales.values() if len(atoms) == 6)
    return tuple(int(index) for index in np.flatnonzero(found[scales]))


@pytest.mark.parametrize("case", CASES)
def test_only_what_changes_nothing_is_lossless(case: str) -> None:
    torch.manual_seed(0)
    build, expected = CASES[case]
    model = build().eval()
    graph = trace_channels(model, INPUT)
    before = copy.deepcopy(model.state_dict())
    found = lossless(model, graph, INPUT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert atoms_of(found, graph) == expected
    if found.any():
        assert _difference(model, graph, ~found) < 1e-12
    others = np.ones(graph.count, bool)
    scales = next(atoms for atoms in graph.scales.values() if len(atoms) == 6)
    others[scales[[each for each in CONSTANT if each not in expected]]] = False
    if not others.all() and "groups" not in case:
        assert _difference(model, graph, others) > 1e-6


def _difference(model: nn.Module, graph: Any, keep: NDArray[Any]) -> float:
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    model = copy.deepcopy(model).double()
    smaller = copy.deepcopy(model)
    done = compensate_(smaller, graph, keep, torch.randn(8, 3, 8, 8, dtype=torch.float64))
    smaller, _ = slim_model(smaller, done.graph, keep)
    with torch.no_grad():
        a, b = model(x), smaller(x)
    return float((a - b).abs().max() / a.abs().max())


def test_a_plan_of_lossless_channels_takes_all_and_only_them() -> None:
    torch.manual_seed(0)
    model = CASES["no padding"][0]().eval()
    graph = trace_channels(model, INPUT)
    able = lossless(model, graph, INPUT)
    found = plan(graph, np.random.default_rng(0).random(graph.count), lossless=able)
    np.testing.assert_array_equal(found.keep, ~able)


def test_nothing_is_lossless_where_no_scale_is_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm((1, 1, 1e-9, 1, 1, 1)), nn.Conv2d(6, 2, 1))
    graph = trace_channels(model, INPUT)
    assert not lossless(model, graph, INPUT).any()


def test_a_scale_that_is_not_finite_is_refused() -> None:
    model = linear()
    graph = trace_channels(model, INPUT)
    model[1].weight.data[3] = float("nan")
    with pytest.raises(InputError, match="1: a scale is not finite"):
        lossless(model, graph, INPUT)
