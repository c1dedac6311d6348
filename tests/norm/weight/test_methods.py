"""Standardized, centred, weight-normalized and orthogonal weights against their formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

import normapps.models  # noqa: F401  the guard before timm
from normapps.errors import InputError
from normapps.norm.undo import Undo
from normapps.norm.weight.methods import (
    centered_weight,
    centered_weight_norm_,
    orthogonal_,
    remove_weight_norm_,
    standardize_weight,
    weight_norm_,
    weight_standardization_,
)
from normapps.norm.weight.registry import WEIGHT_METHODS, normalize_weights_
from normapps.norm.weight.spectral import spectral_norm_

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "embedding": lambda: nn.Embedding(9, 4),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(3, 5, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _rows(layer: nn.Module, weight: Tensor) -> list[Tensor]:
    """The elements that make one output channel, a flat tensor each, in float64."""
    weight = weight.detach().double()
    if not isinstance(layer, nn.ConvTranspose2d):
        return [row.flatten() for row in weight]
    inputs = weight.shape[0] // layer.groups
    parts = [weight[g * inputs : (g + 1) * inputs] for g in range(layer.groups)]
    return [part[:, o].flatten() for part in parts for o in range(weight.shape[1])]


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 3)
    )


def _weights(network: nn.Sequential) -> list[Tensor]:
    return [network[i].weight for i in (0, 2, 4)]  # type: ignore[misc]


X = torch.linspace(-1, 1, 2 * 2 * 4 * 4).reshape(2, 2, 4, 4).square()


# Formulas


@pytest.mark.parametrize("kind", LAYERS)
def test_standardized_rows(kind: str) -> None:
    layer = LAYERS[kind]()
    before = _rows(layer, layer.weight)
    weight_standardization_(layer, eps=1e-3)
    for row, old in zip(_rows(layer, layer.weight), before, strict=True):
        std = ((old - old.mean()).square().sum() / (old.numel() - 1)).sqrt()
        torch.testing.assert_close(row, (old - old.mean()) / (std + 1e-3), rtol=1e-5, atol=1e-6)


def test_timm_standardizes_with_the_biased_variance() -> None:
    from timm.layers import StdConv2d

    theirs = StdConv2d(3, 5, 3, bias=False, eps=1e-6)
    ours = nn.Conv2d(3, 5, 3, bias=False)
    ours.load_state_dict(theirs.state_dict())
    rows = [row - row.mean() for row in _rows(ours, ours.weight)]
    weight_standardization_(ours, eps=1e-6)
    for correction, layer in ((1, ours), (0, theirs)):
        want = [row / (row.square().sum() / (row.numel() - correction)).sqrt() for row in rows]
        weight = ours.weight if correction else _effective(theirs)
        for got, expected in zip(_rows(layer, weight), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)
        for got, expected in zip(_rows(layer, weight), want, strict=True):
            other = expected * ((27 - 1) / 27) ** (0.5 if correction == 0 else -0.5)
            assert not torch.allclose(got, other, rtol=1e-3, atol=1e-6)


def _effective(layer: nn.Module) -> Tensor:
    """The weight of timm's layer, read off its answer to unit pictures."""
    unit = torch.eye(27).reshape(27, 3, 3, 3)
    out: Tensor = layer(unit)
    return out[:, :, 1, 1].t().reshape(5, 3, 3, 3)  # timm pads by 1


@pytest.mark.parametrize("kind", LAYERS)
def test_centred_weight_norm(kind: str) -> None:
    layer = LAYERS[kind]()
    before = _rows(layer, layer.weight)
    centered_weight_norm_(layer)
    for row, old in zip(_rows(layer, layer.weight), before, strict=True):
        torch.testing.assert_close(row, old - old.mean(), rtol=1e-5, atol=1e-6)
    length, direction = parametrize_originals(layer)
    with torch.no_grad():
        length.copy_(torch.arange(1.0, len(before) + 1)[:, None])
        direction.add_(0.7).mul_(3)
    for i, (row, old) in enumerate(zip(_rows(layer, layer.weight), before, strict=True)):
        centered = old - old.mean()
        want = (i + 1) * centered / centered.square().sum().sqrt()
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


def parametrize_originals(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    found = layer.parametrizations.weight  # type: ignore[union-attr]
    return found.original0, found.original1  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed"])
def test_weight_norm_has_a_length_for_each_output(kind: str) -> None:
    layer = LAYERS[kind]()
    before = layer.weight.detach().clone()
    weight_norm_(layer)
    torch.testing.assert_close(layer.weight.detach(), before)
    length, _ = parametrize_originals(layer)
    axis = 1 if kind == "transposed" else 0
    assert length.numel() == before.shape[axis]
    others = [i for i in range(before.dim()) if i != axis]
    torch.testing.assert_close(
        length.detach().flatten(), before.double().square().sum(others).sqrt().float()
    )


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("orthogonal_map", [None, "matrix_exp", "cayley", "householder"])
def test_orthogonal_rows_or_columns(kind: str, orthogonal_map: str | None) -> None:
    layer = LAYERS[kind]()
    orthogonal_(layer, orthogonal_map=orthogonal_map)
    for _ in range(2):  # at first, and after an arbitrary step
        matrix = torch.stack(_rows(layer, layer.weight))
        gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=2e-5)
        with torch.no_grad():
            for parameter in layer.parametrizations.parameters():  # type: ignore[union-attr, operator]
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_torch_would_make_each_slice_orthogonal() -> None:
    theirs, ours = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    torch_orthogonal(theirs)
    orthogonal_(ours)
    for layer, is_orthonormal in ((theirs, False), (ours, True)):
        matrix = layer.weight.detach().flatten(1)
        assert torch.allclose(matrix @ matrix.t(), torch.eye(5), atol=1e-5) == is_orthonormal


def test_orthogonal_weights_hold_under_weight_decay() -> None:
    theirs, ours = nn.Linear(7, 5), nn.Linear(7, 5)
    torch_orthogonal(theirs)
    orthogonal_(ours)
    for layer, is_orthonormal in ((theirs, False), (ours, True)):
        optimizer = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.1)
        layer(torch.ones(1, 7)).square().sum().backward()
        optimizer.step()
        matrix = layer.weight.detach()
        assert torch.allclose(matrix @ matrix.t(), torch.eye(5), atol=1e-5) == is_orthonormal


def test_orthogonal_weights_draw_from_no_global_generator() -> None:
    state, found = torch.random.get_rng_state(), []
    for seed in (1, 2):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 3)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        orthogonal_(layer)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(layer.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    torch.random.set_rng_state(state)


# Edges


@given(
    rows=st.integers(1, 4),
    fan_in=st.integers(2, 6),
    value=st.sampled_from([0.0, 1.0, -3.0]),
)
def test_constant_rows_are_zero_with_finite_gradients(rows: int, fan_in: int, value: float) -> None:
    for function in (standardize_weight, lambda w: centered_weight(torch.ones(rows, 1), w)):
        weight = torch.full((rows, fan_in), value, requires_grad=True)
        out = function(weight)
        assert torch.equal(out, torch.zeros(rows, fan_in))
        (out * torch.randn(rows, fan_in)).sum().backward()
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


def test_gradients() -> None:
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    length = torch.rand(3, 1, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(standardize_weight, (weight,))
        assert check(centered_weight, (length, weight))


@pytest.mark.parametrize("method", ["weight", "orthogonal", "centered", "standardized"])
@pytest.mark.parametrize("kind", ["linear", "transposed"])
def test_gradients_through_the_layer(method: str, kind: str) -> None:
    layer = LAYERS[kind]().double()
    normalize_weights_(layer, method)
    names = [name for name, _ in layer.named_parameters() if "original" in name]
    values = [
        p.detach().clone().requires_grad_() for n, p in layer.named_parameters() if n in names
    ]

    def effective(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        x = torch.ones(1, *((7,) if kind == "linear" else (4, 2, 2)), dtype=torch.float64)
        return torch.func.functional_call(layer, given, (x,))

    assert torch.autograd.gradcheck(effective, values)


# What all methods keep


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_copies_states_and_removal(method: str) -> None:
    network = _network()
    normalize_weights_(network, method)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    before = [w.detach().clone() for w in _weights(network)]
    for _ in range(2):
        optimizer.zero_grad()
        network(X).square().sum().backward()
        optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(_weights(network), before, strict=True))
    want = network.eval()(X)
    twin, other = copy.deepcopy(network), _network()
    normalize_weights_(other, method)
    other.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(twin(X), want)
    assert torch.equal(other.eval()(X), want)
    remove_weight_norm_(network)
    assert torch.equal(network(X), want)
    assert [type(part).__name__ for part in network] == [type(part).__name__ for part in _network()]
    assert torch.equal(twin(X), want)
    _network().load_state_dict(network.state_dict(), strict=True)
    with pytest.raises(InputError, match="Sequential: no 'weight' is parametrized"):
        remove_weight_norm_(network)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_undo_brings_the_parameters_back(method: str) -> None:
    network = _network()
    former = _weights(network)
    values = [w.detach().clone() for w in former]
    keys = list(network.state_dict())
    with normalize_weights_(network, method) as undo:
        assert isinstance(undo, Undo)
        assert all(parametrize.is_parametrized(network[i], "weight") for i in (0, 2, 4))
    for present, parameter, value in zip(_weights(network), former, values, strict=True):
        assert present is parameter
        assert torch.equal(present, value)
        assert present.requires_grad
    assert sorted(network.state_dict()) == sorted(keys)
    assert not any(parametrize.is_parametrized(part) for part in network)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_optimizers_of_before_load_afterwards(method: str) -> None:
    for remove in (
        lambda network, undo: undo(),
        lambda network, undo: remove_weight_norm_(network),
    ):
        network = _network()
        names = [name for name, _ in network.named_parameters()]
        undo = normalize_weights_(network, method)
        twin = copy.deepcopy(network)
        remove(network, undo)
        remove_weight_norm_(twin)
        assert [name for name, _ in network.named_parameters()] == names
        assert list(network.state_dict()) == names
        assert [name for name, _ in twin.named_parameters()] == names


def test_two_weights_of_a_layer_go_back_to_their_places() -> None:
    for names in (("weight", "second"), ("second", "weight")):
        layer = nn.Linear(3, 4)
        layer.second = nn.Parameter(torch.randn(3, 4))
        layer.last = nn.Parameter(torch.randn(1))
        order = [name for name, _ in layer.named_parameters()]
        undos = {name: weight_standardization_(layer, name=name) for name in ("weight", "second")}
        for name in names:
            undos[name]()
        assert [name for name, _ in layer.named_parameters()] == order


def test_undo_after_training() -> None:
    for method, keeps_training in (("standardized", True), ("weight", False), ("centered", False)):
        layer = nn.Linear(4, 3)
        value = layer.weight.detach().clone()
        undo = normalize_weights_(layer, method)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1.5)
        undo()
        expected = value + 1.5 if keeps_training else value
        torch.testing.assert_close(layer.weight.detach(), expected)
        undo()


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_assignment_is_what_is_normalized(method: str) -> None:
    layer, given = nn.Linear(4, 3), torch.randn(3, 4)
    reference = nn.Linear(4, 3)
    with torch.no_grad():
        reference.weight.copy_(given)
    normalize_weights_(layer, method)
    normalize_weights_(reference, method)
    kept = given.clone()
    layer.weight = given
    torch.testing.assert_close(layer.weight, reference.weight, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    if method != "weight":  # torch's own keeps the tensor that it was given
        assert torch.equal(given, kept)
    if method != "weight":
        with pytest.raises(
            InputError, match=r"a weight of \(2, 4\) was assigned; must be \(3, 4\)"
        ):
            layer.weight = torch.ones(2, 4)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_dtype_and_frozen_weights_are_kept(method: str) -> None:
    dtypes = [torch.float32, torch.float64]
    dtypes += [] if method == "orthogonal" else [torch.bfloat16]
    for dtype in dtypes:
        layer = nn.Linear(8, 6).to(dtype)
        layer.weight.requires_grad_(False)
        normalize_weights_(layer, method)
        assert layer.weight.dtype == dtype
        for name, parameter in layer.named_parameters():
            assert parameter.dtype == dtype
            assert parameter.requires_grad == (name == "bias")
        want = layer.weight.clone()
        remove_weight_norm_(layer)
        assert isinstance(layer.weight, nn.Parameter)
        assert not layer.weight.requires_grad
        assert layer.weight.dtype == dtype
        torch.testing.assert_close(layer.weight.detach(), want)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_autocast_computes_weights_in_float32(method: str) -> None:
    layer = nn.Linear(16, 12)
    normalize_weights_(layer, method)
    want = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, want)


@pytest.mark.parametrize("method", sorted(WEIGHT_METHODS.keys() - {"orthogonal"}))
def test_it_compiles_in_one_graph(method: str) -> None:
    layer = nn.Linear(6, 5)
    normalize_weights_(layer, method)
    layer.eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.ones(2, 6)), layer(torch.ones(2, 6)))


# Refusals


def test_refusals_name_the_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 2, 1))
    with pytest.raises(InputError, match="unknown weight normalization 'spectre'; did you mean"):
        normalize_weights_(network, "spectre")
    with pytest.raises(InputError, match="1: rows of one element have no variance; exclude it"):
        weight_standardization_(network)
    assert type(network[0]) is nn.Linear
    with torch.no_grad():
        network[1].weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="1: 'weight' has a row of zeros, which has no direction"):
        weight_norm_(network)
    assert type(network[0]) is nn.Linear  # what was done is taken back
    with pytest.raises(
        InputError, match=r"Linear: 'weight' is torch\.bfloat16; orthogonal weights"
    ):
        orthogonal_(nn.Linear(3, 3).bfloat16())
    for method in WEIGHT_METHODS:
        with pytest.raises(InputError, match="BatchNorm1d: no linear, embedding or convolution"):
            normalize_weights_(nn.BatchNorm1d(3), method)
    spectral_norm_(network, include=["0"])
    with pytest.raises(InputError, match="0: 'weight' is parametrized by SpectralNorm already"):
        centered_weight_norm_(network)


def test_layers_are_chosen_by_pattern() -> None:
    network = _network()
    weight_standardization_(network, include=["[02]"], exclude=["2"])
    assert [parametrize.is_parametrized(part) for part in network] == [True] + [False] * 4
    assert "WeightStandardization(eps=1e-05)" in repr(network)
    centered_weight_norm_(network, include=["4"])
    assert "CenteredWeightNorm(eps=1e-12)" in repr(network)
