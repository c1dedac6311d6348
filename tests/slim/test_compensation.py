from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.graph import Atoms, ChannelGraph, Keep
from normapps.graph.surgery import slim_model
from normapps.models.slimmed import apply_edits_
from normapps.models.small import SmallCnn
from normapps.norm.population import apply_, measure
from normapps.slim.compensation import Compensation, compensate_, noise

Layers = dict[str, "tuple[Atoms | None, Atoms | None] | Atoms"]
Case = Callable[[], tuple[nn.Module, ChannelGraph]]


def graph_of(model: nn.Module, count: int, layers: Layers) -> ChannelGraph:
    """A channel graph by hand: atoms of each norm, (outputs, inputs) of each product."""
    slots: dict[str, tuple[Atoms | None, ...]] = {}
    scales: dict[str, Atoms] = {}
    for name, atoms in layers.items():
        layer = model.get_submodule(name)
        if not isinstance(atoms, tuple):
            scales[name] = atoms
            keys = ("weight", "bias", "running_mean", "running_var")
            slots.update({f"{name}.{key}": (atoms,) for key in keys})
            continue
        order = atoms[::-1] if getattr(layer, "transposed", False) else atoms
        slots[f"{name}.weight"] = (*order, *[None] * (layer.get_parameter("weight").dim() - 2))
        if layer.bias is not None:
            slots[f"{name}.bias"] = (atoms[0],)
    state = model.state_dict()
    return ChannelGraph(count, slots, {name: tuple(state[name].shape) for name in slots}, scales)


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, scales, shifts and statistics of a network that has seen something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            values = values.abs() + 0.3 if name.endswith("running_var") else 0.6 * values
            tensor.data = values
    return model.eval()


def with_constants(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """The reference: γ of doomed channels 0, their β as it is."""
    reference = copy.deepcopy(model)
    for name, atoms in graph.scales.items():
        reference.get_parameter(f"{name}.weight").data[torch.from_numpy(~keep[atoms])] = 0
    return reference


def raw(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """The other reference: as `with_constants`, and β 0 too."""
    silent = with_constants(model, graph, keep)
    for name, atoms in graph.scales.items():
        silent.get_parameter(f"{name}.bias").data[torch.from_numpy(~keep[atoms])] = 0
    return silent


def a(*atoms: int) -> Atoms:
    return np.array(atoms, np.int64)


def keeping(count: int, *dead: int) -> Keep:
    keep = np.ones(count, bool)
    keep[list(dead)] = False
    return keep


SIX, MORE = np.arange(6), np.arange(6, 10)


def chain(activation: nn.Module) -> tuple[nn.Module, ChannelGraph]:
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), activation),
        *(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    layers: Layers = {"0": (SIX, None), "1": SIX, "3": (MORE, SIX), "4": MORE, "8": (None, MORE)}
    return model, graph_of(model, 10, layers)


def reader(
    product: nn.Module, *behind: nn.Module, inputs: Atoms = SIX
) -> tuple[nn.Module, ChannelGraph]:
    """One normalized layer that loses channels, and one product that reads them."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), *behind, product)
    layers: Layers = {"0": (SIX, None), "1": SIX, str(3 + len(behind)): (None, inputs)}
    return model, graph_of(model, 6, layers)


class Grouped(nn.Module):
    """Two groups of three channels: channel i of both is one atom."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(F.hardswish(self.norm(self.conv(x))))


def grouped(reader: nn.Module) -> tuple[nn.Module, ChannelGraph]:
    model = Grouped(reader)
    pairs = a(0, 1, 2, 0, 1, 2)
    read = pairs if isinstance(reader, nn.ConvTranspose2d) else a(0, 1, 2)
    layers: Layers = {"conv": (pairs, None), "norm": pairs, "reader": (None, read)}
    return model, graph_of(model, 3, layers)


class Dense(nn.Module):
    """Pre-activation blocks on a growing stack, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 3, 1, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        return {"out": self.conv2(F.relu6(self.norm2(x)))}


def dense() -> tuple[nn.Module, ChannelGraph]:
    model, every = Dense(), np.arange(10)
    convs: Layers = {"stem": (SIX, None), "conv1": (MORE, SIX), "conv2": (None, every)}
    return model, graph_of(model, 10, {**convs, "norm1": SIX, "norm2": every})


class Residual(nn.Module):
    """Two batch norms whose sum is one stream, and a third right behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.norm3 = nn.BatchNorm2d(6)
        self.reader, self.norm4 = nn.Conv2d(6, 4, 2, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.norm3(F.relu(x + self.norm2(self.conv2(x))))
        x = self.reader(x)
        return self.norm4(x), x  # so norm4 is not the only one that reads it


def residual() -> tuple[nn.Module, ChannelGraph]:
    model = Residual()
    convs: Layers = {"conv1": (SIX, None), "conv2": (SIX, SIX), "reader": (None, SIX)}
    return model, graph_of(model, 6, {**convs, **{f"norm{i}": SIX for i in (1, 2, 3)}})


class Branches(nn.Module):
    """Two branches side by side and a depthwise convolution in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.norm1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.deep, self.norm3 = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.right, self.norm2 = nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)
        self.reader = nn.Conv2d(10, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        left = F.silu(self.norm3(self.deep(F.silu(self.norm1(self.left(x))))))
        return self.reader(torch.cat([F.gelu(self.norm2(self.right(x))), left], 1))


def branches() -> tuple[nn.Module, ChannelGraph]:
    model = Branches()
    layers: Layers = {
        **{"left": (SIX, None), "norm1": SIX, "deep": (SIX, None), "norm3": SIX},
        **{"right": (MORE, None), "norm2": MORE, "reader": (None, np.concatenate([MORE, SIX]))},
    }
    return model, graph_of(model, 10, layers)


CASES: dict[str, Case] = {
    **{
        type(each).__name__: lambda each=each: chain(each)
        for each in (nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.ReLU(inplace=True))
    },
    "conv with bias": lambda: reader(nn.Conv2d(6, 4, 3, stride=2, dilation=2)),
    "conv without": lambda: reader(nn.Conv2d(6, 4, 3, bias=False)),
    "linear": lambda: reader(nn.Linear(6, 4), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    "flattened": lambda: reader(
        *(nn.Linear(24, 4, bias=False), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        inputs=SIX.repeat(4),
    ),
    "transposed": lambda: reader(nn.ConvTranspose2d(6, 4, 3, padding=2, bias=False)),
    "transposed in groups": lambda: grouped(nn.ConvTranspose2d(6, 4, 1, groups=2)),
    "grouped": lambda: grouped(nn.Conv2d(6, 4, 3, groups=2)),
    "grouped without bias": lambda: grouped(nn.Conv2d(6, 4, 3, groups=2, bias=False)),
    "dense": dense,
    "residual": residual,
    "branches": branches,
}


def leaves(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return list(out.values()) if isinstance(out, dict) else list(out)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_a_cut_network_without_padding_equals_the_one_with_constants(
    case: str, dtype: torch.dtype
) -> None:
    model, graph = CASES[case]()
    model = trained(model).to(dtype)
    keep = keeping(graph.count, 1, *([7, 8] if graph.count > 6 else []))
    x = torch.randn(2, 3, 9, 9, dtype=dtype)
    wanted = leaves(with_constants(model, graph, keep)(x))
    done = compensate_(model, graph, keep, noise(x))
    slim, _ = slim_model(model, done.graph, keep)
    assert not done.missed
    assert done.off < (1e-10 if dtype == torch.float64 else 1e-4)
    for mine, reference, uncut in zip(leaves(slim(x)), wanted, leaves(model(x)), strict=True):
        largest = float(reference.detach().abs().max())
        bound = largest * (1e-10 if dtype == torch.float64 else 1e-5)
        torch.testing.assert_close(mine, reference, rtol=0, atol=bound)
        torch.testing.assert_close(uncut, reference, rtol=0, atol=bound)


def test_what_is_corrected_and_where() -> None:
    model, graph = chain(nn.SiLU())
    trained(model)
    with torch.no_grad():
        model[4].weight[[1, 3]] = 0
    # by hand: the constants SiLU(β) of channels 1 and 2, ReLU(β) of 7 and 9
    first = F.silu(model[1].bias[[1, 2]].detach())
    shift = model[3].weight.detach().sum((2, 3))[:, [1, 2]] @ first
    mean = model[4].running_mean.clone()
    second = model[8].weight.detach()[:, [1, 3]] @ F.relu(model[4].bias[[1, 3]].detach())
    bias = model[8].bias.detach().clone()
    done = compensate_(
        model, graph, keeping(10, 1, 2, 7, 9), noise(torch.zeros(1, 3, 9, 9).double())
    )
    moved = model[4].running_mean
    torch.testing.assert_close(moved[[0, 2]], (mean - shift)[[0, 2]])
    assert torch.equal(moved[[1, 3]], mean[[1, 3]])  # doomed themselves
    torch.testing.assert_close(model[8].bias.detach(), bias + second)
    one, two = done.corrections
    assert (one.weight, one.into, one.is_new, one.channels) == (
        *("3.weight", "4.running_mean"),
        *(False, 2),
    )
    assert (two.weight, two.into, two.channels) == ("8.weight", "8.bias", 2)
    sigma = model[4].running_var.sqrt()
    assert one.shift == pytest.approx(float((shift / sigma).abs()[[0, 2]].max()), rel=1e-9)
    for name, atoms in graph.scales.items():
        dead = torch.from_numpy(~keeping(10, 1, 2, 7, 9)[atoms])
        for key in ("weight", "bias"):
            assert not model.get_parameter(f"{name}.{key}")[dead].any()


def test_a_norm_that_others_read_past_keeps_its_mean() -> None:
    model, graph = residual()
    trained(model)
    mean = model.norm4.running_mean.clone()
    done = compensate_(model, graph, keeping(6, 1), torch.randn(2, 3, 9, 9).double())
    assert [(each.into, each.is_new) for each in done.corrections] == [
        ("norm2.running_mean", False),
        ("reader.bias", True),
    ]
    assert torch.equal(model.norm4.running_mean, mean)
    assert done.graph.slots["reader.bias"] == (None,)
    assert "reader.bias" in done.graph.parameter_names


def test_a_norm_that_two_products_share_keeps_its_mean() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
            self.one, self.two = (nn.Conv2d(6, 4, 1, bias=False) for _ in range(2))
            self.both = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.conv(x)))
            return self.both(self.one(x)) + self.both(self.two(x))

    model = trained(Shared())
    graph = graph_of(
        *(model, 6),
        {"conv": (SIX, None), "norm": SIX, "one": (None, SIX), "two": (None, SIX)},
    )
    x = torch.randn(2, 3, 4, 4).double()
    keep = keeping(6, 0, 2)
    wanted = with_constants(model, graph, keep)(x)
    done = compensate_(model, graph, keep, x)
    assert {each.into for each in done.corrections} == {"one.bias", "two.bias"}
    torch.testing.assert_close(model(x), wanted)


class Padded(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.reader = nn.Conv2d(6, 4, 3, padding=1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.activation(self.norm(self.conv(x))))


def padded() -> tuple[nn.Module, ChannelGraph]:
    model = Padded()
    layers: Layers = {"conv": (SIX, None), "norm": SIX, "reader": (None, SIX)}
    return trained(model), graph_of(model, 6, layers)


def test_near_zero_padding_the_mean_is_right_and_the_error_smaller() -> None:
    model, graph = padded()
    keep = keeping(6, 0, 1, 4)
    x = torch.randn(4, 3, 8, 8).double()
    wanted = with_constants(model, graph, keep)(x)
    missing = raw(model, graph, keep)(x) - wanted
    outputs = with_constants(model, graph, keep)(noise(x)).detach()
    sigma = outputs.std(correction=0)  # of all channels together: no batch norm comes next
    done = compensate_(model, graph, keep, noise(x))
    error = (model(x) - wanted).detach()
    torch.testing.assert_close(error.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-12)
    inside = error[:, :, 1:-1, 1:-1]
    assert float(inside.std((0, 2, 3)).max()) < 1e-12  # what is off is a constant there
    assert error.square().mean() < 0.5 * missing.square().mean()
    (found,) = done.corrections
    # the constants depend on no input, so `off` is the error in units of what was measured
    assert done.off == found.off == pytest.approx(float((error.abs() / sigma).max()), rel=1e-9)
    spread = float((error / sigma).square().mean().sqrt())
    assert found.off_mean == pytest.approx(spread, rel=1e-9)


def test_activations_whose_constant_is_zero_lose_nothing_at_borders() -> None:
    model, graph = padded()
    model.activation = F.relu
    keep = keeping(6, 0, 1, 4)
    with torch.no_grad():
        model.norm.bias[[0, 1, 4]] = -1.0
    x = torch.randn(2, 3, 6, 6).double()
    wanted = with_constants(model, graph, keep)(x)
    done = compensate_(model, graph, keep, noise(x))
    assert (done.off, done.corrections, done.missed) == (0, (), ())
    torch.testing.assert_close(model(x), wanted)


class Gated(nn.Module):
    """Squeeze and excitation: what doomed channels say depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.reader = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.reader(x * gate)


def test_gated_channels_are_corrected_in_the_mean_over_the_inputs() -> None:
    model = trained(Gated())
    products: Layers = {"conv": (SIX, None), "squeeze": (None, SIX), "excite": (SIX, None)}
    graph = graph_of(model, 6, {**products, "norm": SIX, "reader": (None, SIX)})
    keep = keeping(6, 0, 3)
    x = torch.randn(16, 3, 6, 6).double()
    wanted = with_constants(model, graph, keep)(x)
    missing = raw(model, graph, keep)(x) - wanted
    done = compensate_(model, graph, keep, x)
    error = model(x) - wanted
    torch.testing.assert_close(error.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-12)
    assert error.square().mean() < 0.1 * missing.square().mean()
    off = {each.weight: each.off for each in done.corrections}
    assert off["squeeze.weight"] < 1e-12  # reads them before the gate
    assert off["reader.weight"] > 1e-4


def test_a_strided_transposed_convolution_is_said_to_be_inexact() -> None:
    model, graph = reader(nn.ConvTranspose2d(6, 4, 3, stride=2))
    done = compensate_(trained(model), graph, keeping(6, 2), torch.randn(2, 3, 9, 9).double())
    assert done.off > 0.01


def test_calling_it_takes_everything_back() -> None:
    model, graph = dense()
    trained(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with compensate_(model, graph, keeping(10, 1, 7), torch.randn(1, 3, 9, 9).double()) as done:
        assert {each.into for each in done.corrections if each.is_new} == {
            "conv1.bias",
            "conv2.bias",
        }
        assert model.conv1.bias is not None
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())


def test_edits_know_new_biases_that_were_not_cut() -> None:
    model, graph = dense()
    trained(model)
    keep = keeping(10, 1)  # an input of both products, and an output of neither
    x = torch.randn(1, 3, 9, 9)
    done = compensate_(model, graph, keep, x.double())
    slim, edits = slim_model(model, done.graph, keep)
    fresh = Dense()
    apply_edits_(fresh, done.complete(edits))
    fresh.load_state_dict(slim.float().state_dict())
    assert torch.equal(fresh.eval()(x)["out"], slim(x)["out"])


def test_a_weight_made_of_another_is_missed_and_said_so() -> None:
    class Halved(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight / 2, self.bias)

    model, graph = reader(Halved(6, 4, 1))
    done = compensate_(trained(model), graph, keeping(6, 2), torch.randn(1, 3, 9, 9).double())
    assert (done.missed, done.corrections) == (("3.weight",), ())


def test_a_product_without_a_layer_is_followed_where_a_norm_takes_it() -> None:
    class Own(nn.Module):
        def __init__(self, is_normalized: bool) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
            self.kernel = nn.Parameter(torch.ones(4, 6, 1, 1))
            self.next = nn.BatchNorm2d(4) if is_normalized else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.norm(self.conv(x)))
            return self.next(F.conv2d(x, weight=self.kernel))

    x, keep = torch.randn(2, 3, 4, 4).double(), keeping(6, 5)
    for is_normalized in (True, False):
        model = trained(Own(is_normalized))
        graph = graph_of(model, 6, {"conv": (SIX, None), "norm": SIX})
        slots = {**graph.slots, "kernel": (None, SIX, None, None)}
        graph = ChannelGraph(6, slots, graph.shapes, graph.scales)
        wanted = with_constants(model, graph, keep)(x)
        done = compensate_(model, graph, keep, x)
        if is_normalized:
            assert done.corrections[0].into == "next.running_mean"
            torch.testing.assert_close(model(x), wanted)
        else:
            assert done.missed == ("kernel",)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model, graph = chain(nn.SiLU())
    trained(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"keep is \(9,\) bool.*10 atoms"):
        compensate_(model, graph, keeping(9), torch.randn(1, 3, 9, 9).double())
    with torch.no_grad():
        model[1].bias[2] = torch.inf
    with pytest.raises(InputError, match=r"'3\.weight'.*not finite"):
        compensate_(model, graph, keeping(10, 2), torch.randn(1, 3, 9, 9).double())
    with torch.no_grad():
        model[1].bias[2] = before["1.bias"][2]
    with pytest.raises(RuntimeError):
        compensate_(model, graph, keeping(10, 2), torch.randn(1, 4, 9, 9).double())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_modes_and_tuples_of_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain(nn.ReLU())[0]

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x + y)

    model = trained(Two()).train()
    graph = chain(nn.ReLU())[1]
    graph = ChannelGraph(
        *(graph.count, {f"inner.{name}": each for name, each in graph.slots.items()}),
        *({}, {f"inner.{name}": each for name, each in graph.scales.items()}),
    )
    x = torch.randn(2, 3, 9, 9).double()
    done: Compensation = compensate_(model, graph, keeping(10, 1), (x, x))
    assert model.training
    assert model.inner[1].training
    assert len(done.corrections) == 1


# the toy check of METHODS.md: 50 % of a sparse-trained network, raw → compensated → recalibrated


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32).unsqueeze(1)
    return images[order], torch.tensor(data.target)[order]


def sparse(images: Tensor, labels: Tensor) -> SmallCnn:
    """Twenty-five epochs of SGD with momentum, and a proximal step on γ after each."""
    torch.manual_seed(0)
    model = SmallCnn(10, 1, 8, 16)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.constant_(norm.weight, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(25):
        rate = optimizer.param_groups[0]["lr"] = 0.05 if epoch < 18 else 0.005
        for batch in torch.randperm(len(images), generator=generator).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            for norm in norms:
                norm.weight.data = F.softshrink(norm.weight.data, rate * 0.09)
    return model.eval()


def graph_of_chain(model: nn.Module) -> ChannelGraph:
    layers: Layers = {}
    count, atoms = 0, None
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            before, atoms = atoms, np.arange(count, count + layer.out_channels)
            count += layer.out_channels
            layers[name] = atoms, before
        elif isinstance(layer, nn.BatchNorm2d):
            assert atoms is not None
            layers[name] = atoms
    layers["classifier"] = None, atoms
    return graph_of(model, count, layers)


def test_digits_raw_compensated_recalibrated() -> None:
    images, labels = digits()
    model = sparse(images[:1200], labels[:1200])
    graph = graph_of_chain(model)
    scales = torch.cat([model.get_parameter(f"{name}.weight").abs() for name in graph.scales])

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(images[1200:]).argmax(1) == labels[1200:]).double().mean())

    found = []
    for ratio in (0.4, 0.5, 0.6):
        keep = (scales > scales.quantile(ratio)).numpy()
        slim = copy.deepcopy(model)
        done = compensate_(slim, graph, keep, noise(images))
        compensated = right(slim)
        apply_(slim, measure(slim, images[:1200].split(400)))
        assert not done.missed
        found.append((right(raw(model, graph, keep)), compensated, right(slim)))
    base, (low, middle, high) = right(model), np.mean(found, 0)
    assert base > 0.95
    assert middle > low + 0.03
    assert high > middle + 0.05
