"""trace_channels on small networks: what is tied, what may go, and why the rest stays.

The judge is a silenced copy: γ = β = 0 in the doomed channels of every batch norm. A network cut
by the graph must give its outputs, whatever channels are drawn.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from normapps.errors import InputError
from normapps.graph import ChannelGraph, trace_channels
from normapps.graph.oracle import verify
from normapps.graph.surgery import slim_model
from normapps.norm import create_norm


def _random_(model: nn.Module) -> nn.Module:
    """Batch norms with scales, shifts and statistics that nothing can hide behind."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.1, 1.9),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def _keep(graph: ChannelGraph, ratio: float = 0.4) -> np.ndarray:
    """Draw what goes: a part of each group's free atoms, never all of them."""
    random = np.random.default_rng(0)
    keep, free = np.ones(graph.count, bool), graph.free()
    for group in graph.groups:
        atoms = group.atoms[free[group.atoms]]
        gone = min(max(1, round(ratio * len(atoms))), len(group.atoms) - 1, len(atoms))
        keep[random.permutation(atoms)[:gone]] = False
    return keep


def _flops(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def _check(model: nn.Module, x: Tensor | None = None, *, least: float = 0.5) -> ChannelGraph:
    """Cut a network, compare it with the silenced one, count its operations and parameters."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16) if x is None else x
    graph = trace_channels(_random_(model), x)
    keep = _keep(graph)
    slim, _ = slim_model(model, graph, keep)
    assert verify(model, slim, graph, keep, x) <= 1e-5
    assert graph.macs() == _flops(model, x)
    assert graph.macs(keep) == _flops(slim, x)
    assert graph.parameters() == sum(p.numel() for p in model.parameters())
    assert graph.parameters(keep) == sum(p.numel() for p in slim.parameters())
    free = graph.free()
    channels = np.concatenate(list(graph.scales.values()))
    assert free[channels].mean() >= least, dict(graph.pinned)
    assert not keep[free].all()
    return graph


def _reasons(graph: ChannelGraph, layer: str) -> set[str]:
    return {graph.pinned.get(int(atom), "free") for atom in graph.scales[layer]}


def _conv(into: int, out: int, kernel: int = 3, **more: Any) -> nn.Sequential:
    conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, **more)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out), act=nn.ReLU()))


class _Net(nn.Module):
    """Layers by name, and a forward given as a function."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(8, 5)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _chain(*layers: nn.Module) -> nn.Module:
    named = {f"l{index}": layer for index, layer in enumerate(layers)}

    def run(net: Any, x: Tensor) -> Tensor:
        for name in named:
            x = getattr(net, name)(x)
        return net.classify(x)  # type: ignore[no-any-return]

    return _Net(run, **named)


def test_plain_chain_and_names() -> None:
    graph = _check(_chain(_conv(3, 6), _conv(6, 8)), least=1.0)
    assert list(graph.scales) == ["l0.bn", "l1.bn"]
    assert graph.slots["l1.conv.weight"][1] is not None
    assert graph.slots["l1.conv.weight"][1].tolist() == graph.scales["l0.bn"].tolist()
    assert graph.slots["l0.conv.weight"][1:] == (None, None, None)
    first, last = graph.groups[0], graph.groups[-1]
    assert (first.name, first.layers, first.reason) == ("l0.bn", ("l0.bn",), None)
    assert (last.name, last.reason) == ("head.weight", "an output of the network")


def test_model_comes_out_as_it_went_in() -> None:
    model = _chain(_conv(3, 8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert set(graph.slots) == set(model.state_dict())
    assert set(graph.parameter_names) == {name for name, _ in model.named_parameters()}


def test_inputs_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(InputError, match=r"does not run on an input of shape \(1, 4, 8, 8\)") as e:
        trace_channels(_chain(_conv(3, 8)), torch.randn(1, 4, 8, 8))
    assert "\n" not in str(e.value)


def test_residual_sums_tie() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        x = F.relu(x + net.b(x))
        x += net.c(x)
        return net.classify(x)  # type: ignore[no-any-return]

    graph = _check(_Net(run, a=_conv(3, 8), b=_conv(8, 8), c=_conv(8, 8)), least=1.0)
    assert graph.scales["a.bn"].tolist() == graph.scales["c.bn"].tolist()


def test_concatenation_read_by_several_batch_norms() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.a(F.relu(net.n1(x)))
        z = net.b(F.relu(net.n2(torch.cat([x, y], 1))))
        return net.classify(F.relu(net.n3(torch.cat([x, y, z], 1))))  # type: ignore[no-any-return]

    layers = {f"n{i + 1}": nn.BatchNorm2d(size) for i, size in enumerate((3, 6, 8))}
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
    graph = _check(_Net(run, stem=nn.Conv2d(3, 3, 1), a=a, b=b, **layers), least=1.0)
    assert graph.scales["n3"][:6].tolist() == graph.scales["n2"].tolist()


def test_densenet_stream_read_without_a_norm_stays() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.classify(F.relu(net.norm(x)) + net.skip(x))  # type: ignore[no-any-return]

    stem, skip = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
    model = _Net(run, stem=stem, norm=nn.BatchNorm2d(8), skip=skip)
    graph = trace_channels(_random_(model), torch.randn(1, 3, 8, 8))
    reasons = _reasons(graph, "norm")
    assert reasons == {"skip reads them without a batch norm between"}


class _Split(nn.Module):
    """Res2Net's way: pieces of a width that is held in an attribute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width, self.sizes = how, 4, [4, 4, 4]
        self.convs = nn.ModuleList(_conv(4, 4) for _ in range(2))

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
    graph = _check(_chain(_conv(3, 12), _Split(how), _conv(12, 8)), least=1.0)
    cut = next(cut for cut in graph.cuts if cut.owner == "l1")
    assert cut.total == 12
    assert graph.scales["l0.bn"][:4].tolist() == graph.scales["l0.bn"][4:8].tolist()


class _Ghost(nn.Module):
    """GhostNet's way: more channels than are wanted, the first `out` of them taken."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out = out
        self.cheap = _conv(6, 6, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.cheap(x)], 1)[:, : self.out]


@pytest.mark.parametrize("out", [9, 12])
def test_first_channels_taken(out: int) -> None:
    _check(_chain(_conv(3, 6), _Ghost(out), _conv(out, 8)), least=0.9)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_grouped_convolutions(groups: int) -> None:
    """Few groups become narrower, of many (8 groups of 2) whole ones go."""
    graph = _check(_chain(_conv(3, 16), _conv(16, 16, groups=groups), _conv(16, 8)), least=1.0)
    cost = next(cost for cost in graph.costs if cost.groups == groups)
    assert (cost.in_ is None) is (groups == 8)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions(multiplier: int) -> None:
    _check(_chain(_conv(3, 6), _conv(6, 6 * multiplier, groups=6), _conv(6 * multiplier, 8)))


def test_depthwise_on_the_input_stays() -> None:
    graph = _check(_chain(_conv(3, 6, groups=3), _conv(6, 8)))
    assert graph.slots["l0.conv.weight"] == (None,) * 4


def test_depthwise_bias_is_no_silence() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    graph = trace_channels(
        _random_(_chain(_conv(3, 8), depthwise, nn.Conv2d(8, 8, 1))), torch.randn(1, 3, 8, 8)
    )
    assert _reasons(graph, "l0.bn") == {"l2 reads them without a batch norm between"}
    depthwise.bias = None
    graph = trace_channels(
        _chain(_conv(3, 8), depthwise, nn.Conv2d(8, 8, 1)), torch.randn(1, 3, 8, 8)
    )
    assert _reasons(graph, "l0.bn") == {"free"}


class _Shuffle(nn.Module):
    """ShuffleNet's exchange between groups, written with reshapes."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)


@pytest.mark.parametrize("shuffle", [_Shuffle(), nn.ChannelShuffle(2)])
def test_channel_shuffle(shuffle: nn.Module) -> None:
    _check(_chain(_conv(3, 12), _conv(12, 12, groups=2), shuffle, _conv(12, 8)), least=1.0)


@pytest.mark.parametrize(
    "middle",
    [
        nn.PixelShuffle(2),
        nn.Sequential(nn.PixelUnshuffle(2), _conv(48, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), _conv(12, 3)),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.ZeroPad2d(1), _conv(12, 3)),
        nn.Sequential(nn.ReflectionPad2d(1), nn.AdaptiveMaxPool2d(4), _conv(12, 3)),
        nn.Sequential(nn.Dropout(), nn.Identity(), nn.PReLU(12), nn.GELU(), _conv(12, 3)),
        nn.Sequential(nn.Unfold(2, stride=2), nn.Unflatten(2, (8, 8)), _conv(48, 3)),
    ],
    ids=["shuffle", "unshuffle", "upsample", "pool", "reflect", "activations", "unfold"],
)
def test_between_convolutions(middle: nn.Module) -> None:
    graph = _check(_chain(_conv(3, 12), middle, _conv(3, 8)), least=0.5)
    assert "free" in _reasons(graph, "l0.bn")


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_transposed_convolutions(groups: int) -> None:
    up = nn.ConvTranspose2d(12, 12, 2, stride=2, groups=groups)
    _check(_chain(_conv(3, 12), up, nn.BatchNorm2d(12), nn.ReLU(), _conv(12, 8)), least=1.0)


def test_one_and_three_dimensions() -> None:
    one = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3))
    _check(one, torch.randn(1, 3, 12), least=1.0)
    three = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3))
    _check(three, torch.randn(1, 3, 6, 6, 6), least=1.0)


def test_flatten_into_a_linear_layer_with_its_own_norm() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(8 * 25, 12), nn.BatchNorm1d(12), nn.ReLU())
    model = nn.Sequential(_conv(3, 8), linear, nn.Linear(12, 4))
    graph = _check(model, torch.randn(1, 3, 5, 5), least=1.0)
    columns = graph.slots["1.1.weight"][1]
    assert columns is not None
    assert columns.tolist() == graph.scales["0.bn"].repeat(25).tolist()


def test_squeeze_and_excitation() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        gate = torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.classify(x * gate)  # type: ignore[no-any-return]

    graph = _check(_Net(run, a=_conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1)))
    rows = graph.slots["up.weight"][0]
    assert rows is not None
    assert rows.tolist() == graph.scales["a.bn"].tolist()
    inner = next(group for group in graph.groups if group.name == "down.weight")
    assert inner.reason == "no batch norm scales them"


def test_several_heads_and_dicts() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _conv(3, 8)
            self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.body(x)
            return {"box": self.box(x), "more": [self.score(x)]}

    graph = _check(Heads(), least=1.0)
    assert {group.reason for group in graph.groups} == {None, "an output of the network"}


def test_output_channels_stay() -> None:
    graph = trace_channels(_conv(3, 8), torch.randn(1, 3, 8, 8))
    assert _reasons(graph, "bn") == {"an output of the network"}
    assert not graph.free().any()


def test_shared_modules_tie_both_calls() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.classify(net.b(net.b(net.a(x))))  # type: ignore[no-any-return]

    graph = _check(_Net(run, a=_conv(3, 8), b=_conv(8, 8)), least=1.0)
    assert graph.scales["a.bn"].tolist() == graph.scales["b.bn"].tolist()


def test_shared_parameters_have_every_name() -> None:
    first, second = _conv(8, 8), _conv(8, 8)
    second.conv.weight = first.conv.weight
    graph = _check(_chain(_conv(3, 8), first, second), least=1.0)
    assert graph.slots["l2.conv.weight"] is not None
    assert "l2.conv.weight" not in graph.parameter_names


def test_layer_scale_and_positions_are_cut_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    graph = _check(_chain(_conv(3, 8), Scaled(), _conv(8, 8)), least=1.0)
    slot = graph.slots["l1.gamma"][0]
    assert slot is not None
    assert slot.tolist() == graph.scales["l0.bn"].tolist()


def test_added_positions_end_silence() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.rand(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.places

    model = _chain(_conv(3, 8), Placed(), nn.Conv2d(8, 8, 1))
    graph = trace_channels(_random_(model), torch.randn(1, 3, 8, 8))
    assert _reasons(graph, "l0.bn") == {"l2 reads them without a batch norm between"}


def test_parameter_used_functionally() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nchw,dc->ndhw", x, self.kernel)

    _check(_chain(_conv(3, 8), Functional(), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 8)), least=1.0)


def test_weight_standardization_keeps_what_it_averages() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)

    middle = nn.Sequential(Standardized(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    graph = _check(_chain(_conv(3, 8), middle, _conv(8, 8)), least=0.6)
    assert "free" not in _reasons(graph, "l0.bn")
    assert _reasons(graph, "l1.1") == {"free"}


def test_blur_pool_kernel_that_is_expanded() -> None:
    class Blur(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.register_buffer("filt", torch.rand(1, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.filt.expand(self.channels, 1, 3, 3)
            return F.conv2d(x, weight, stride=2, groups=self.channels)

    graph = _check(_chain(_conv(3, 8), Blur(8), _conv(8, 8)), least=1.0)
    assert any(cut.kind == "expand" and cut.sizes == (8,) for cut in graph.cuts)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.Sigmoid(), "l2 reads them without a batch norm between"),
        (nn.Softplus(), "l2 reads them without a batch norm between"),
        (nn.Hardtanh(0.5, 1.0), "l2 reads them without a batch norm between"),
        (nn.Softmax(1), "l1 takes aten._softmax over them"),
        (nn.GroupNorm(2, 8), "l1 takes statistics over them"),
        (nn.InstanceNorm2d(8), "free"),
        (nn.ConstantPad2d(1, 2.0), "l2 reads them without a batch norm between"),
    ],
)
def test_what_ends_silence(middle: nn.Module, reason: str) -> None:
    model = _random_(_chain(_conv(3, 8), middle, nn.Conv2d(8, 8, 1)))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert _reasons(graph, "l0.bn") == {reason}


class _Calls(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _overwrite(x: Tensor) -> Tensor:
    x[:, :4] = torch.ones_like(x[:, :4])
    return x


def _fill_part(x: Tensor) -> Tensor:
    out = torch.zeros(1, 12, 8, 8)
    out[:, :8] = x
    return out[:, :8]


def _fill(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape)
    out[:] = x
    return out


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x.cumsum(1), "l1 takes aten.cumsum over them"),
        (torch.linalg.pinv, "aten.linalg_pinv has no rule (in l1)"),
        (lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]], "l1 picks some of them"),
        (lambda x: x[:, ::2].repeat(1, 2, 1, 1), "l1 picks some of them"),
        (lambda x: x.roll(1, 1), "l1 rolls them"),
        (lambda x: x * x.mean(1, keepdim=True), "l1 takes aten.mean over them"),
        (lambda x: x * x.amax(1, keepdim=True), "l1 takes aten.amax over them"),
        (lambda x: x + torch.ones(8, 1, 1), "l1 joins them with numbers that cannot shrink"),
        (_overwrite, "l1 writes into a part of a tensor"),
        (_fill_part, "l1 joins them with numbers that cannot shrink"),
        (_fill, "l1 joins them with numbers that cannot shrink"),
        (lambda x: torch.matmul(x.flatten(2).mT, torch.eye(8)).mT.unflatten(2, (8, 8)), "l1 "),
        (
            lambda x: (
                x
                * F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3), padding=1)[0][
                    ..., None, None
                ]
            ),
            "l1 convolves along them",
        ),
    ],
)
def test_what_cannot_be_followed_stays_with_a_reason(
    call: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = _random_(_chain(_conv(3, 8), _Calls(call), nn.Conv2d(8, 8, 1)))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    reasons = _reasons(graph, "l0.bn")
    assert any(each.startswith(reason) for each in reasons), reasons
    assert len(reasons & {"free"}) == 0 or reason == "l1 writes into a part of a tensor"


def test_in_place_operations_on_slices_that_keep_zeros() -> None:
    def call(x: Tensor) -> Tensor:
        x[:, : x.shape[1] // 2].mul_(2.0)
        return x

    _check(_chain(_conv(3, 8), _Calls(call), _conv(8, 8)), least=1.0)


def test_attention_is_exact_or_stays() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.heads = nn.Conv2d(8, 24, 1), 2

        def forward(self, x: Tensor) -> Tensor:
            n, _, h, w = x.shape
            q, k, v = self.qkv(x).view(n, 3, self.heads, -1, h * w).unbind(1)
            return ((q.mT @ k).softmax(-1) @ v.mT).mT.reshape(n, -1, h, w)

    graph = _check(_chain(_conv(3, 8), Attention(), _conv(8, 8)), least=1.0)
    values = next(group for group in graph.groups if group.name == "l1.qkv.weight")
    assert values.reason == "no batch norm scales them"


@pytest.mark.parametrize("values", [4, 6], ids=["fused", "decomposed"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_torch_attention(values: int, scale: float | None) -> None:
    """Its own scale is of the number of channels; a scale that is given is not."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = _conv(8, 4, 1), _conv(8, 4, 1), _conv(8, values, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
            return y[:, 0].mT.unflatten(2, (16, 16))

    model = _random_(_chain(_conv(3, 8), Attention(), _conv(values, 8)))
    graph = _check(model, least=0.5) if values != 4 or scale is None else None
    graph = graph or trace_channels(model, torch.randn(1, 3, 16, 16))
    wanted = "free" if scale else "l1 scales attention by their number"
    assert _reasons(graph, "l1.q.bn") == {wanted}
    assert _reasons(graph, "l1.v.bn") == _reasons(graph, "l0.bn") == {"free"}


def test_padded_shortcut_keeps_the_old_channels_free() -> None:
    """CIFAR's option A: the shortcut's new channels are zeros, of a number in the code."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.classify(net.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))  # type: ignore[no-any-return]

    graph = _check(_Net(run, a=_conv(3, 4), b=_conv(4, 8, stride=2)), least=0.6)
    assert _reasons(graph, "a.bn") == {"free"}
    assert _reasons(graph, "b.bn") == {"free", "the model pads with a fixed number of them"}


def test_batch_norm_without_scale_is_none() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU())
    graph = trace_channels(_chain(plain, nn.Conv2d(8, 8, 1)), torch.randn(1, 3, 8, 8))
    assert not graph.scales
    assert set(graph.pinned.values()) == {"no batch norm scales them", "an output of the network"}


def test_network_without_a_batch_norm() -> None:
    graph = trace_channels(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))
    assert graph.scales == {}
    assert not graph.free().any()


def test_activations_are_let_go_while_it_runs() -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def note(x: Tensor) -> Tensor:
        made = x * 2
        held.append(weakref.ref(made))
        return made + 1

    def look(x: Tensor) -> Tensor:
        alive.append(held[0]() is not None)
        return x

    trace_channels(_chain(_conv(3, 8), _Calls(note), _Calls(look)), torch.randn(1, 3, 8, 8))
    assert alive == [False]


@pytest.mark.parametrize("name", ["batch", "ghost", "streaming", "group", "switchable", "cholesky"])
def test_layers_of_ours(name: str) -> None:
    """What normalizes as batch norm does is a scale; channels under the others stay, with why."""
    model = _chain(nn.Conv2d(3, 8, 3), create_norm(name, 8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    graph = trace_channels(model, torch.randn(1, 3, 16, 16))
    batch = name in ("batch", "ghost", "streaming")
    assert list(graph.scales) == (["l1"] if batch else [])
    rows = graph.slots["l0.weight"][0]
    assert rows is not None
    reasons = {graph.pinned.get(int(atom), "free") for atom in rows}
    assert ("free" in reasons) is batch
    assert batch or all("l1" in each or "no batch norm" in each for each in reasons)
