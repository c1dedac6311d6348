"""Fake quantization of whole networks, against float64 written out; ranges; what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normapps.errors import InputError
from normapps.quant.fake import fake_quantize_, input_ranges, output_axis, quantizable

LAYERS = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9), 0),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 9, 9), 0),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 9, 9), 0),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4), 0),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 9), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), 1),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 3, 3), 1),
    "Linear": (lambda: nn.Linear(5, 3), (2, 5), 0),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def reference_weight(weight: Tensor, bits: int, axis: int | None) -> Tensor:
    w = weight.detach().double().numpy()
    others = tuple(each for each in range(w.ndim) if each != axis)
    # the scale is a float32, and a tie is decided there
    scale = np.float32(np.abs(w).max(others, keepdims=True)) / np.float32(2 ** (bits - 1) - 1)
    return torch.from_numpy(np.round(w / scale.astype(np.float64)) * scale)


def reference_input(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = (high - low) / top
    zero = np.round(-low / scale)
    return (torch.clamp((x.double() / scale).round() + zero, 0, top) - zero) * scale


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_every_layer(name: str, per_channel: bool, bits: int) -> None:
    make, shape, axis = LAYERS[name]
    layer = make()
    model = nn.Sequential(layer)
    x, before = normal(*shape), layer.weight.detach().clone()
    expected = reference_weight(layer.weight, bits, axis if per_channel else None)
    assert output_axis(layer) == axis
    parameter, plain = layer.weight, model(x)
    with fake_quantize_(model, per_channel=per_channel, weight_bits=bits):
        assert layer.weight is parameter
        assert torch.allclose(layer.weight.double(), expected, rtol=1e-6, atol=1e-9)
        assert not torch.equal(model(x), plain)
    assert torch.equal(layer.weight, before)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("bits", [(8, 8), (4, 6)])
def test_a_network_is_that_of_the_equations(bits: tuple[int, int]) -> None:
    model, x = network(), normal(2, 3, 8, 8)
    ranges = {"0.0": (-1.5, 2.0), "1.0": (0.0, 1.1), "4": (0.0, 0.4)}
    weight_bits, activation_bits = bits
    hidden = x.double()
    for name, settings in (("0.0", {"padding": 1}), ("1.0", {"padding": 1, "groups": 8})):
        layer = model.get_submodule(name)
        hidden = reference_input(hidden, *ranges[name], activation_bits)
        weight = reference_weight(layer.get_parameter("weight"), weight_bits, 0)
        hidden = F.relu(F.conv2d(hidden, weight, layer.get_parameter("bias").double(), **settings))
    hidden = reference_input(hidden.mean((2, 3)), *ranges["4"], activation_bits)
    weight = reference_weight(model[4].weight, weight_bits, 0)
    expected = F.linear(hidden, weight, model[4].bias.double())
    plain = model(x)
    options = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    with fake_quantize_(model, activations=ranges, **options):
        assert torch.allclose(model(x).double(), expected, atol=2e-6)
        assert not torch.allclose(plain.double(), expected, atol=1e-3)
    assert torch.equal(model(x), plain)


def test_inputs_alone_where_a_range_is_given() -> None:
    model, x = network(), normal(2, 3, 8, 8)
    heard: dict[str, Tensor] = {}
    for name in ("0.0", "1.0"):
        model.get_submodule(name).register_forward_hook(
            lambda _, args, __, name=name: heard.update({name: args[0]})
        )
    with fake_quantize_(model, activations={"0.0": (-1.0, 1.0)}, activation_bits=4):
        model(x)
    assert len(heard["0.0"].unique()) <= 16
    assert len(heard["1.0"].unique()) > 100


def test_excluded_layers_stay_float() -> None:
    for pattern, left in (("1", {"1.0"}), ("1.*", {"1.0"}), ("*.0", {"0.0", "1.0"}), ("4", {"4"})):
        model = network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        ranges = dict.fromkeys(quantizable(model), (-1.0, 1.0))
        fake_quantize_(model, weight_bits=4, activations=ranges, exclude=(pattern,))
        same = {
            name
            for name, layer in quantizable(model).items()
            if torch.equal(layer.get_parameter("weight"), before[f"{name}.weight"])
        }
        hooked = {name for name, layer in quantizable(model).items() if layer._forward_pre_hooks}
        assert same == left
        assert hooked == set(ranges) - left


def test_a_shared_weight_comes_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    undo = fake_quantize_(model, weight_bits=3)
    assert not torch.equal(model[0].weight, before)
    undo()
    assert torch.equal(model[0].weight, before)


def test_keywords_and_autocast_go_through() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(input=x)
            return out

    torch.manual_seed(0)
    model, x = Model(), normal(4, 6)
    expected = reference_input(x, -1.0, 1.0, 8)
    heard: list[Tensor] = []
    model.fc.register_forward_hook(
        lambda _, __, options, ___: heard.append(options["input"]), with_kwargs=True
    )
    with fake_quantize_(model, activations={"fc": (-1.0, 1.0)}):
        model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
    for each in heard:
        assert torch.allclose(each.double(), expected, atol=1e-6)


def test_it_compiles() -> None:
    model, x = network(), normal(2, 3, 8, 8)
    ranges = input_ranges(model, [x])
    with fake_quantize_(model, activations=ranges, weight_bits=4), torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(x), model(x))


def test_ranges_of_inputs_over_batches() -> None:
    model = network().train()
    batches = [normal(3, 3, 8, 8, seed=seed) for seed in range(4)]
    found = input_ranges(model, [(each, torch.zeros(3)) for each in batches])
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    whole = torch.cat(batches)
    with torch.no_grad():
        hidden = [whole, model[0](whole), model[:4](whole)]
    assert list(found) == ["0.0", "1.0", "4"]
    for (low, high), x in zip(found.values(), hidden, strict=True):
        assert low == pytest.approx(float(x.min()), abs=1e-6)
        assert high == pytest.approx(float(x.max()), rel=1e-5)
    first = input_ranges(model, batches, limit=3)
    assert first["0.0"] == pytest.approx((float(batches[0].min()), float(batches[0].max())))


def test_other_methods_leave_outliers_out() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    x = normal(5000, 4)
    x[0, 0] = 1000.0
    highs = {method: input_ranges(model, [x], method=method)["0"][1] for method in
             ("min-max", "percentile", "mse")}  # fmt: skip
    assert highs["min-max"] == 1000
    assert highs["percentile"] < 10
    assert input_ranges(model, [x], method="percentile", percentile=90.0)["0"][1] < 2
    assert highs["mse"] < 1000


def test_a_layer_that_is_not_called_has_no_range() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.used(3 * x)  # type: ignore[no-any-return]

    x = torch.arange(4.0)[None]
    assert input_ranges(Half(), [x]) == {"used": (0.0, 9.0)}


def test_fewer_bits_lose_more() -> None:
    model, x = network(), normal(8, 3, 8, 8)
    ranges, plain = input_ranges(model, [x]), model(x)

    def error(**settings: int) -> float:
        with fake_quantize_(model, activations=ranges, **settings), torch.no_grad():
            return float((model(x) - plain).square().mean())

    assert error() < error(weight_bits=6) < error(weight_bits=4) < error(weight_bits=2)
    assert error() < error(activation_bits=6) < error(activation_bits=3)


def batches_of_nothing() -> Iterator[Tensor]:
    yield from ()


def test_what_cannot_be_rounded_is_refused_and_nothing_changes() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refusals = {
        "unknown layer in --exclude: '4.x'": {"exclude": ("4.x",)},
        "unknown layer in activations: '1.1'; did you mean '1.0'": {"activations": {"1.1": (0, 1)}},
        r"input of layer '4': range from 2\.0 to 1\.0": {"activations": {"4": (2.0, 1.0)}},
        "1 bits": {"weight_bits": 1},
        "20 bits": {"activations": {"4": (0.0, 1.0)}, "activation_bits": 20},
    }
    for line, settings in refusals.items():
        with pytest.raises(InputError, match=line):
            fake_quantize_(model, **settings)
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="layer '4': its weight is not finite"):
        fake_quantize_(model)
    with torch.no_grad():
        model[4].weight.copy_(before["4.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_have_no_weight_of_their_own_are_refused() -> None:
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2)), nn.Linear(2, 2))
    with pytest.raises(InputError, match="layer '0': its weight is computed from others; exclude"):
        fake_quantize_(normed)
    fake_quantize_(normed, exclude=("0",))
    with pytest.raises(InputError, match="layer '0': its weight has no values yet"):
        fake_quantize_(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(InputError, match="Sequential has no convolution and no linear layer"):
        fake_quantize_(nn.Sequential(nn.ReLU()))


def test_batches_without_a_range_are_refused() -> None:
    with pytest.raises(InputError, match="no batch came to a layer"):
        input_ranges(network(), batches_of_nothing())
    with pytest.raises(InputError, match=r"input of layer '0\.0': values from nan"):
        input_ranges(network(), [torch.full((1, 3, 8, 8), torch.nan)])
    with pytest.raises(InputError, match="unknown range method 'mimax'"):
        input_ranges(network(), [normal(1, 3, 8, 8)], method="mimax")
