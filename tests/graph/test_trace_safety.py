"""What a trace must not be misled by, and what it must leave as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph import ChannelGraph, trace_channels
from normapps.graph.oracle import verify
from normapps.graph.surgery import slim_model
from normapps.norm.weight import weight_norm_


class Block(nn.Module):
    """Stem, a forward of one's own in the middle, and a head that reads 8 channels."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = Middle(call, width)
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.stem(x)))
        return out


class Middle(nn.Module):
    def __init__(self, call: Callable[[Any, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.call, self.width = call, width
        self.a = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def block(call: Callable[[Any, Tensor], Tensor], width: int = 8) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    model, x = Block(call, width), torch.randn(2, 3, 6, 6)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    model.train()(x)
    return model.eval(), x[:1]


def cut_difference(model: nn.Module, x: Any, graph: ChannelGraph | None = None) -> float:
    """Cut half of the free channels of every group without any search, and compare."""
    graph = graph or trace_channels(model, x)
    keep, free = np.ones(graph.count, bool), graph.free()
    for group in graph.groups:
        atoms = group.atoms[free[group.atoms]]
        keep[atoms[: len(atoms) // 2]] = False
    slim, _ = slim_model(model, graph, keep)
    return verify(model, slim, graph, keep, x)


def reasons(graph: ChannelGraph, layer: str) -> set[str]:
    return {graph.pinned.get(int(atom), "free") for atom in graph.scales[layer]}


def test_a_cached_tensor_carries_no_label_of_an_earlier_trace() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        if m.cache is None:
            m.cache = m.b[1].weight.view(1, 8, 1, 1) * 2  # kept from one forward to the next
        return m.a(x) * m.cache

    model, x = block(call)
    model.middle.cache = None
    trace_channels(model, x)
    again = trace_channels(model, x)
    reason = "middle joins them with numbers that cannot shrink"
    assert reasons(again, "middle.a.1") == {reason}
    assert cut_difference(model, x, again) <= 1e-5


def split_in_thirds(m: Any, x: Tensor) -> Tensor:
    first, second, third = torch.split(m.a(x), 3, 1)  # 3, 3, 2
    return torch.cat([third, second, first], 1)


def test_a_rest_of_a_split_stays() -> None:
    model, x = block(split_in_thirds)
    graph = trace_channels(model, x)
    said = "middle splits them into parts of one length and a rest"
    assert reasons(graph, "middle.a.1") == {said}


class Pair(nn.Module):
    """Two branches viewed by one width, as EfficientViT's heads are by `key_dim`."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        parts = [f(x).repeat(1, 2, 1, 1).view(n, 2, self.width, h, w) for f in (self.a, self.b)]
        out: Tensor = self.head(torch.cat([part.sum(1) for part in parts], 1))
        return out


def test_one_attribute_has_one_value() -> None:
    model, x = Pair().eval(), torch.randn(1, 3, 6, 6)
    graph = trace_channels(model, x)
    assert graph.scales["a.1"].tolist() == graph.scales["b.1"].tolist()
    assert graph.free().any()
    assert cut_difference(model, x, graph) <= 1e-5


def test_channels_laid_out_in_as_many_as_the_input_has() -> None:
    """As in lambda layers, whose heads times values are the input's channels."""

    def call(m: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return m.a(x).view(n, 2, 4, h, w).transpose(1, 2).reshape(n, c, h, w)

    model, x = block(call)
    graph = trace_channels(model, x)
    said = "middle takes their number from its input"
    assert said in reasons(graph, "middle.a.1") | reasons(graph, "stem.1")
    assert cut_difference(model, x, graph) <= 1e-5


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.a(x)[:, m.b(x).mean((0, 2, 3)).argsort()],
        lambda m, x: m.a(x)[:, m.b(x).flatten(2).argmax(2)[0] % 8],
        lambda m, x: m.a(x).index_select(1, m.b(x).flatten(2).argmax(2)[0] % 8),
    ],
)
def test_channels_that_choose_among_others_stay(call: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = block(call)
    graph = trace_channels(model, x)
    assert "free" not in reasons(graph, "middle.b.1") | reasons(graph, "middle.a.1")


@pytest.mark.parametrize("norm", [weight_norm_, nn.utils.parametrizations.spectral_norm])
def test_normalized_weights_stay_or_are_exact(norm: Callable[..., Any]) -> None:
    model, x = block(lambda m, x: m.b(m.a(x)))
    norm(model.middle if norm is weight_norm_ else model.middle.a[0])
    graph = trace_channels(model.eval(), x)
    assert cut_difference(model, x, graph) <= 1e-5
    assert any(key.startswith("middle.a.0.parametrizations") for key in graph.slots)


def test_one_weight_in_two_convolutions() -> None:
    model, x = block(lambda m, x: m.b(m.a(x)))
    model.middle.b[0].weight = model.middle.a[0].weight
    graph = trace_channels(model, x)
    assert reasons(graph, "middle.a.1") == {"free"}
    assert graph.scales["middle.a.1"].tolist() == graph.scales["stem.1"].tolist()
    assert cut_difference(model, x, graph) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = block(lambda m, x: m.b(m.a(x).relu()))
    assert cut_difference(model.to(dtype), x.to(dtype)) <= 1e-5


def test_channels_last_and_autocast() -> None:
    model, x = block(lambda m, x: m.b(m.a(x).relu()))
    layout = torch.channels_last
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cut_difference(model.to(memory_format=layout), x.to(memory_format=layout)) <= 1e-5


class Embedded(nn.Module):
    """Takes a dict of numbers and of words' indices."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.conv = nn.Embedding(5, 3), nn.Conv1d(3, 8, 1)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Conv1d(8, 2, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.words(batch["words"]).mT * batch["weights"][:, None]
        return {"out": self.head(self.norm(self.conv(x)).relu())}


def test_dicts_and_integers() -> None:
    model = Embedded().eval()
    batch = {"words": torch.arange(4)[None], "weights": torch.rand(1, 4)}
    graph = trace_channels(model, (batch,))
    assert reasons(graph, "norm") == {"free"}
    assert cut_difference(model, (batch,), graph) <= 1e-5


def script(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        return torch.jit.trace(model, x)


def test_wrapped_models_are_refused_in_one_line() -> None:
    model, x = block(lambda m, x: m.a(x))
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    compiled_in_place = nn.Sequential(nn.Conv2d(3, 4, 1))
    compiled_in_place.compile()
    for each, said in (
        (torch.compile(model), "the model is made by torch.compile; slim its `_orig_mod`"),
        (nn.Sequential(torch.compile(model)), "module '0' is made by torch.compile"),
        (compiled_in_place, "compiled in place"),
        (nn.DataParallel(plain), "the model is DataParallel; slim its `module`"),
        (script(plain, x), "TorchScript"),
    ):
        with pytest.raises(InputError, match=said) as error:
            trace_channels(each, x)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_nothing_stays_changed_though_the_forward_fails() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        torch.rand(3)
        raise ValueError("nothing\nfor me")

    model, x = block(lambda m, x: x)
    model.middle.call = call
    model.train()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"does not run on an input of shape .*\(nothing\)"):
        trace_channels(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
