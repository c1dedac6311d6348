"""What may be shifted is shifted here, and the outputs must stay where every value is above c."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.graph.layer_graph import LayerGraph
from normapps.graph.shifting import trace_shifts


class High(nn.Module):
    """A convolution with outputs far above 0, a ReLU, something, a convolution without padding."""

    def __init__(self, between: object, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(width, 4, 2)
        nn.init.constant_(self.first.bias, 20.0)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.relu(self.first(x))))  # type: ignore[operator]


def checked(model: nn.Module) -> LayerGraph:
    torch.manual_seed(0)
    model, x = model.double(), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    graph = trace_shifts(model, x)
    c = np.random.default_rng(0).uniform(1, 5, graph.count)
    c[~graph.free()] = 0
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in graph.layers:
            weight = model.get_parameter(layer.weight)
            each_in, each_out = len(layer.inputs) // layer.groups, len(layer.out) // layer.groups
            bias = other.get_parameter(layer.biases[0])
            for o, made in enumerate(layer.out):
                bias[o] -= c[made]
                for k in range(each_in):
                    bias[o] += weight[o, k].sum() * c[layer.inputs[o // each_out * each_in + k]]
        torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-10)
    return graph


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y,
        lambda y: F.max_pool2d(y, 2),
        lambda y: F.avg_pool2d(y, 2),
        lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
        lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
        lambda y: torch.cat([y[:, 3:], y[:, :3]], 1),
        lambda y: y.relu().detach(),
    ],
)
def test_shift_passes_what_pools_and_moves(between: object) -> None:
    graph = checked(High(between))
    assert graph.free().sum() == 6
    assert graph.rectified[graph.layers[0].out].all()


def test_depthwise_reader_gets_its_own_channel() -> None:
    depth = nn.Conv2d(6, 12, 3, groups=6)
    graph = checked(High(depth, width=12))
    assert graph.free().sum() == 6 + 12
    assert not graph.rectified[graph.layers[1].out].any()


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda y: y + y.flip(2), "aten.add"),
        (lambda y: 2 * y, "aten.mul"),
        (F.relu6, "aten.hardtanh"),
        (F.leaky_relu, "aten.leaky_relu"),
        (nn.ConvTranspose2d(6, 6, 2, 2), "aten.convolution"),
    ],
)
def test_other_operations_pin(between: object, reason: str) -> None:
    graph = checked(High(between))
    assert not graph.free()[graph.layers[0].out].any()
    assert reason in dict(graph.left())["first"]
