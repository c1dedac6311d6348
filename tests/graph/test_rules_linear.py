"""Convolutions and matrix products: dense, grouped, depthwise, transposed, functional."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import chain, check, conv, random_scales_, reasons
from torch import Tensor, nn

from normapps.graph import trace_channels


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_grouped_convolutions(groups: int) -> None:
    """Few groups become narrower, of many (8 groups of 2) whole ones go."""
    graph = check(chain(conv(3, 16), conv(16, 16, groups=groups), conv(16, 8)), least=1.0)
    cost = next(cost for cost in graph.costs if cost.groups == groups)
    assert (cost.in_ is None) is (groups == 8)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions(multiplier: int) -> None:
    check(chain(conv(3, 6), conv(6, 6 * multiplier, groups=6), conv(6 * multiplier, 8)))


def test_depthwise_on_the_input_stays() -> None:
    graph = check(chain(conv(3, 6, groups=3), conv(6, 8)))
    assert graph.slots["l0.conv.weight"] == (None,) * 4


def test_depthwise_bias_is_no_silence() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    graph = trace_channels(
        random_scales_(chain(conv(3, 8), depthwise, nn.Conv2d(8, 8, 1))), torch.randn(1, 3, 8, 8)
    )
    assert reasons(graph, "l0.bn") == {"l2 reads them without a batch norm between"}
    depthwise.bias = None
    graph = trace_channels(
        chain(conv(3, 8), depthwise, nn.Conv2d(8, 8, 1)), torch.randn(1, 3, 8, 8)
    )
    assert reasons(graph, "l0.bn") == {"free"}


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_transposed_convolutions(groups: int) -> None:
    up = nn.ConvTranspose2d(12, 12, 2, stride=2, groups=groups)
    check(chain(conv(3, 12), up, nn.BatchNorm2d(12), nn.ReLU(), conv(12, 8)), least=1.0)


def test_one_and_three_dimensions() -> None:
    one = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3))
    check(one, torch.randn(1, 3, 12), least=1.0)
    three = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3))
    check(three, torch.randn(1, 3, 6, 6, 6), least=1.0)


def test_flatten_into_a_linear_layer_with_its_own_norm() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(8 * 25, 12), nn.BatchNorm1d(12), nn.ReLU())
    model = nn.Sequential(conv(3, 8), linear, nn.Linear(12, 4))
    graph = check(model, torch.randn(1, 3, 5, 5), least=1.0)
    columns = graph.slots["1.1.weight"][1]
    assert columns is not None
    assert columns.tolist() == graph.scales["0.bn"].repeat(25).tolist()


def test_parameter_used_functionally() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nchw,dc->ndhw", x, self.kernel)

    check(chain(conv(3, 8), Functional(), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8)), least=1.0)


def test_weight_standardization_keeps_what_it_averages() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)

    middle = nn.Sequential(Standardized(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    graph = check(chain(conv(3, 8), middle, conv(8, 8)), least=0.6)
    assert "free" not in reasons(graph, "l0.bn")
    assert reasons(graph, "l1.1") == {"free"}


def test_blur_pool_kernel_that_is_expanded() -> None:
    class Blur(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.register_buffer("filt", torch.rand(1, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.filt.expand(self.channels, 1, 3, 3)
            return F.conv2d(x, weight, stride=2, groups=self.channels)

    graph = check(chain(conv(3, 8), Blur(8), conv(8, 8)), least=1.0)
    assert any(cut.kind == "expand" and cut.sizes == (8,) for cut in graph.cuts)
