"""What may be scaled is scaled here by loops of its own, and the outputs must stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.layer_graph import LayerGraph
from normapps.graph.scaling import trace_scales


class Net(nn.Module):
    """Layers by name, and the forward that a test gives."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def multiplied(model: nn.Module, graph: LayerGraph, s: np.ndarray) -> nn.Module:
    """Scale a copy, number by number."""
    other = copy.deepcopy(model)
    done = set()
    with torch.no_grad():
        for layer in graph.layers:
            weight = other.get_parameter(layer.weight)
            each_in, each_out = len(layer.inputs) // layer.groups, len(layer.out) // layer.groups
            for o, made in enumerate(layer.out):
                group = o // each_out
                for k in range(each_in):
                    i = group * each_in + k
                    at = (i, o % each_out) if layer.transposed else (o, k)
                    weight[at] *= s[made] / s[layer.inputs[i]]
            for name in set(layer.biases) - done:
                bias = other.get_parameter(name)
                for o, made in enumerate(layer.out):
                    bias[o] *= s[made]
            done |= set(layer.biases)
    return other


def checked(model: nn.Module, x: Tensor | None = None) -> LayerGraph:
    """Scale what is free by factors between 1/30 and 30; the outputs must be those of before."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8) if x is None else x
    model, x = model.double().eval(), x.double()
    graph = trace_scales(model, x)
    s = 30 ** np.random.default_rng(0).uniform(-1, 1, graph.count)
    s[~graph.free()] = 1
    with torch.no_grad():
        before, after = model(x), multiplied(model, graph, s)(x)
    assert before.abs().max() > 0
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10 * float(before.abs().max()))
    return graph


def free(graph: LayerGraph) -> int:
    return int(graph.free().sum())


def stem_and_head(forward: Callable[..., Tensor], width: int, **layers: nn.Module) -> Net:
    """A convolution of 8 channels, ReLU, something, a convolution that reads `width` channels."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.head(forward(net, torch.relu(net.stem(x))))

    return Net(run, stem=conv(3, 8), head=conv(width, 4), **layers)


def test_chain_scales_every_hidden_channel() -> None:
    layers = (conv(3, 5), nn.ReLU(), conv(5, 7), nn.LeakyReLU(0.1), conv(7, 4))
    graph = checked(nn.Sequential(*layers))
    assert free(graph) == 12
    assert [layer.module for layer in graph.layers] == ["0", "2", "4"]
    assert graph.left() == (("4", "an output of the network"),)
    assert len(graph.groups()) == 2


def test_residual_sum_has_one_scale_a_channel() -> None:
    net = stem_and_head(
        lambda net, y: torch.relu(y + net.b(torch.relu(net.a(y)))), 8, a=conv(8, 6), b=conv(6, 8)
    )
    graph = checked(net)
    assert free(graph) == 8 + 6
    out = {layer.module: layer.out for layer in graph.layers}
    assert (out["stem"] == out["b"]).all()


def test_depthwise_input_and_output_are_scaled_apart() -> None:
    depth = conv(8, 8, groups=8)
    graph = checked(stem_and_head(lambda net, y: torch.relu(net.depth(y)), 8, depth=depth))
    assert free(graph) == 16


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolution_and_channel_shuffle(groups: int) -> None:
    def shuffle(net: Net, y: Tensor) -> Tensor:
        y = net.a(y)
        n, c, h, w = y.shape
        y = y.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return torch.relu(net.b(F.relu(y)))

    layers = {"a": conv(8, 8, groups=groups), "b": conv(8, 12, groups=groups)}
    assert free(checked(stem_and_head(shuffle, 12, **layers))) == 8 + 8 + 12


def test_transposed_convolution_of_groups() -> None:
    up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
    graph = checked(stem_and_head(lambda net, y: F.leaky_relu(net.up(y)), 6, up=up))
    assert free(graph) == 8 + 6


def test_concatenation_and_split_follow_each_channel() -> None:
    def mixed(net: Net, y: Tensor) -> Tensor:
        first, second = y.chunk(2, 1)
        first = first.add(torch.relu(net.a(second)))
        return torch.cat([second, first, y[:, 2:5]], 1)

    graph = checked(stem_and_head(mixed, 11, a=conv(4, 4)))
    assert free(graph) == 8  # those that `a` makes are joined with the stem's first four


def test_linear_after_flatten_reads_each_channel_at_every_position() -> None:
    layers = (conv(3, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(80, 6), nn.ReLU())
    graph = checked(nn.Sequential(*layers, nn.Linear(6, 2)))
    assert free(graph) == 11
    (fc,) = (layer for layer in graph.layers if layer.module == "4")
    assert (fc.inputs == np.repeat(graph.layers[0].out, 16)).all()


def test_linear_layers_of_sequences_along_the_last_dimension() -> None:
    layers = (nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    assert free(checked(nn.Sequential(*layers), torch.randn(2, 7, 3))) == 11


def test_gate_behind_a_sigmoid_leaves_the_gated_channels_free() -> None:
    def gated(net: Net, y: Tensor) -> Tensor:
        gate = torch.sigmoid(net.expand(torch.relu(net.reduce(y.mean((2, 3), keepdim=True)))))
        return y * gate

    graph = checked(stem_and_head(gated, 8, reduce=conv(8, 4, 1), expand=conv(4, 8, 1)))
    assert free(graph) == 8 + 4
    assert ("expand", "the model takes aten.sigmoid of them") in graph.left()


_PASSING: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda y: F.max_pool2d(y, 3, 2, 1),
    "average": lambda y: F.avg_pool2d(y, 3, 2, 1),
    "adaptive": lambda y: F.adaptive_avg_pool2d(y, 3),
    "adaptive max": lambda y: F.adaptive_max_pool2d(y, 2),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bicubic": lambda y: F.interpolate(y, scale_factor=2, mode="bicubic", antialias=True),
    "zeros": lambda y: F.pad(y, (1, 2, 0, 1)),
    "reflection": lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "replication": lambda y: F.pad(y, (1, 1, 1, 1), mode="replicate"),
    "in place": lambda y: y.mul_(2).relu_().add_(y.abs()),
    "constant factors": lambda y: 3 * y / torch.arange(1.0, 9.0).view(8, 1, 1).to(y),
    "extremes": lambda y: torch.maximum(y, y.flip(3)) - torch.minimum(y, -y),
    "mean": lambda y: y - y.mean((2, 3), keepdim=True) + y.sum(3, keepdim=True),
    "clamp": lambda y: y.clamp(min=0).neg(),
    "roll, flip": lambda y: y.roll(3, 1).flip(1)[:, torch.tensor([0, 2, 1, 3, 4, 5, 7, 6])],
    "channels last": lambda y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", _PASSING)
def test_positively_homogeneous_operations_let_every_channel_pass(name: str) -> None:
    graph = checked(stem_and_head(lambda net, y: _PASSING[name](y), 8))
    assert free(graph) == 8


def test_channels_padded_and_shuffled_into_positions() -> None:
    padded = checked(stem_and_head(lambda net, y: F.pad(y, (0, 0, 0, 0, 2, 1)), 11))
    assert free(padded) == 8
    shuffled = checked(stem_and_head(lambda net, y: F.pixel_shuffle(net.a(y), 2), 2, a=conv(8, 8)))
    assert free(shuffled) == 8  # the four that share a channel of the result have positions apart
    assert "does not keep its channels" in dict(shuffled.left())["a"]


def test_prelu_keeps_its_slopes() -> None:
    assert free(
        checked(stem_and_head(lambda net, y: net.act(y - 1 * y.flip(2)), 8, act=nn.PReLU(8)))
    )


_PINNING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sigmoid": (torch.sigmoid, "aten.sigmoid"),
    "silu": (F.silu, "aten.silu"),
    "gelu": (F.gelu, "aten.gelu"),
    "hardswish": (F.hardswish, "aten.hardswish"),
    "square": (lambda y: y * y, "multiplies them with each other"),
    "number": (lambda y: y + 1, "adds a number"),
    "tensor": (lambda y: y + torch.ones(8, 1, 1).to(y), "adds a number"),
    "denominator": (lambda y: y / (1 + y.abs()), "them"),
    "clip": (F.relu6, "aten.hardtanh"),
    "mean of channels": (lambda y: y - y.mean(1, keepdim=True), "aten.mean"),
    "pool over channels": (
        lambda y: F.avg_pool2d(y.permute(0, 2, 3, 1), 2),
        "aten.avg_pool2d",
    ),
    "layer norm": (lambda y: F.layer_norm(y, y.shape[1:]), "aten.native_layer_norm"),
    "softmax": (lambda y: y.softmax(1), "aten._softmax"),
    "comparison": (lambda y: torch.where(y > 0.3, y, 0 * y), "aten.gt"),
}


@pytest.mark.parametrize("name", _PINNING)
def test_other_operations_pin_what_they_read_and_say_so(name: str) -> None:
    operation, reason = _PINNING[name]
    graph = checked(stem_and_head(lambda net, y: operation(y), 8))
    assert free(graph) == 0
    assert reason in dict(graph.left())["stem"]


def test_sum_with_the_input_pins() -> None:
    graph = checked(Net(lambda net, x: net.b(x + net.a(x)), a=conv(3, 3), b=conv(3, 2)))
    assert free(graph) == 0
    assert "keep their scale" in dict(graph.left())["a"]


def test_batch_norm_left_pins_both_sides() -> None:
    graph = checked(stem_and_head(lambda net, y: net.norm(y), 8, norm=nn.BatchNorm2d(8)))
    assert free(graph) == 0
    assert "norm takes aten." in dict(graph.left())["stem"]


def test_weight_that_is_computed_pins() -> None:
    normed = nn.utils.parametrizations.weight_norm(conv(8, 8))
    graph = checked(stem_and_head(lambda net, y: torch.relu(net.a(y)), 8, a=normed))
    assert free(graph) == 0
    assert dict(graph.left())["stem"] == "a has no weight that is a parameter itself"


def test_weight_that_is_read_elsewhere_pins() -> None:
    def read_twice(net: Net, y: Tensor) -> Tensor:
        return torch.relu(net.a(y)) * net.a.weight.sum()

    graph = checked(stem_and_head(read_twice, 8, a=conv(8, 8)))
    assert free(graph) == 0
    assert dict(graph.left())["a"] == "the weight of 'a' is used elsewhere, too"


def test_layer_that_runs_twice_has_one_scale_for_both() -> None:
    def twice(net: Net, y: Tensor) -> Tensor:
        return torch.relu(net.a(torch.relu(net.a(y))))

    graph = checked(stem_and_head(twice, 8, a=conv(8, 8)))
    assert free(graph) == 8
    assert len(graph.layers) == 3


def test_writing_into_a_buffer_pins() -> None:
    def written(net: Net, y: Tensor) -> Tensor:
        whole = torch.zeros(len(y), 10, *y.shape[2:], dtype=y.dtype)
        whole[:, 1:9] = y
        return whole

    graph = checked(stem_and_head(written, 10))
    assert free(graph) == 0
    assert "writes into a part" in dict(graph.left())["stem"]


def test_writing_into_a_view_keeps_views_true() -> None:
    def written(net: Net, y: Tensor) -> Tensor:
        y[:, :4] += torch.relu(net.a(y))
        return y

    assert free(checked(stem_and_head(written, 8, a=conv(8, 4)))) == 8


def test_clip_of_a_module_is_noted_and_does_not_pin() -> None:
    net = nn.Sequential(conv(3, 8), nn.ReLU6(), conv(8, 2))
    graph = trace_scales(net, torch.randn(1, 3, 8, 8))
    assert free(graph) == 8
    (clip,) = graph.clips
    assert clip.module == "1"
    assert (clip.atoms == graph.layers[0].out).all()
    assert free(graph.pin(clip.atoms, "clipped")) == 0


def test_model_comes_out_as_it_went_in() -> None:
    net = nn.Sequential(conv(3, 8), nn.Dropout(), conv(8, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    trace_scales(net, torch.randn(1, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(drawn, torch.rand(3))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net._forward_hooks


def test_model_that_does_not_run_says_for_which_shape() -> None:
    with pytest.raises(InputError, match=r"does not run on an input of shape \(1, 4, 8, 8\)"):
        trace_scales(nn.Sequential(conv(3, 8)), torch.randn(1, 4, 8, 8))
