"""One schema for all test-time methods: shapes, reset, saving, export, odd networks and batches."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.adapt import Online, create_method, list_methods
from normapps.adapt.methods import METHODS
from normapps.errors import InputError

timm = importlib.import_module("timm")

SMALL: dict[str, dict[str, Any]] = {
    "tent": {"optimizer": "adam", "lr": 0.01},
    "eata": {"margin": 1.0, "redundancy": 1.0, "fisher": [torch.ones(4, 3, 16, 16)], "lr": 0.01},
    "sar": {"margin": 1.0, "recovery": 10.0, "lr": 0.01, "freeze_top": False},
    "cotta": {"views": 2, "threshold": 1.0, "restore": 0.2},
    "rotta": {"capacity": 8, "update_every": 4, "teacher_momentum": 0.5, "lr": 0.1},
}
"""Options with which everything that a method does happens within a few small batches."""

NAMES = list_methods()
BATCH, NORM = (tuple(n for n in NAMES if METHODS[n].needs == needs) for needs in ("batch", "norm"))


class Net(nn.Module):
    """Batch norms, dropout and a head of four classes; returns a tensor or a dict."""

    def __init__(self, norm: str = "batch", key: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2), _norm(norm, 6), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(6, 8, 3, stride=2), _norm(norm, 8), nn.ReLU()),
        )
        self.head = nn.Linear(8, 4)
        nn.init.normal_(self.head.weight)
        self.key = key

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.body(x).mean((2, 3)))
        return y if self.key is None else {self.key: y, "features": x}


def _norm(kind: str, channels: int) -> nn.Module:
    layers = {"batch": nn.BatchNorm2d, "layer": lambda c: nn.GroupNorm(1, c), "none": nn.Identity}
    layer = layers[kind](channels)
    if kind == "batch":
        nn.init.uniform_(layer.running_mean, -0.3, 0.3)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


def _batches(sizes: tuple[int, ...] = (6, 6, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(n, 3, 16, 16, generator=generator) for n in sizes]


def _made(name: str, model: nn.Module | None = None, **options: Any) -> Online:
    return create_method(name, Net() if model is None else model, **SMALL.get(name, {}), **options)


def _learning(name: str, model: nn.Module) -> Online:
    """A method that keeps what it learns: without SAR's way back to the source."""
    options = SMALL.get(name, {}) | ({"recovery": 0.0} if name == "sar" else {})
    return create_method(name, model, **options)


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def _same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dicts, lists and tensors."""
    if isinstance(one, Tensor):
        equal = isinstance(other, Tensor) and one.dtype == other.dtype
        return equal and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def test_the_registry() -> None:
    statistics = ("source", "adabn", "prior", "ema", "cumulative")
    assert (*statistics, "tent", "eata", "sar", "cotta", "rotta", "lame") == NAMES
    assert list_methods("*ta") == ("eata", "cotta", "rotta")
    assert {each.kind for each in METHODS.values()} == {"none", "statistics", "gradient", "output"}
    assert all(name == each.name and each.paper for name, each in METHODS.items())


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_the_function(name: str) -> None:
    method = METHODS[name]
    names = list(inspect.signature(method.make).parameters)
    assert names == ["model", *method.options]
    assert inspect.Parameter.empty not in method.options.values()
    online = _made(name)
    assert online.needs_gradient == (method.kind == "gradient")


def test_unknown_names_and_options() -> None:
    with pytest.raises(InputError, match="unknown method 'tentt'; did you mean 'tent'"):
        create_method("tentt", Net())
    with pytest.raises(
        InputError, match="unknown option of method 'ema' 'momentun'; did you mean 'momentum'"
    ):
        create_method("ema", Net(), momentun=0.1)
    with pytest.raises(InputError, match="unknown option of method 'source' 'n'"):
        create_method("source", Net(), n=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", [None, "logits", "out"])
def test_logits_of_every_batch(name: str, key: str | None) -> None:
    online, plain = _made(name, Net(key=key)), _made(name)
    for x in _batches():
        logits = online(x)
        assert logits.shape == (len(x), 4)
        assert logits.isfinite().all()
        assert not logits.requires_grad
        assert torch.equal(logits, plain.adapt(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_network_given_is_left_alone(name: str) -> None:
    model = Net().train()
    model.body[0].weight.requires_grad_(False)
    before, flags = _bits(model), [each.requires_grad for each in model.parameters()]
    online = _made(name, model)
    for x in _batches():
        online(x)
    assert _bits(model) == before
    assert [each.requires_grad for each in model.parameters()] == flags
    assert all(each.grad is None for each in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    mine, theirs = model.state_dict(), online.state_dict()
    shared = {each.data_ptr() for each in theirs.values() if isinstance(each, Tensor)}
    assert not shared & {each.data_ptr() for each in mine.values()}


@pytest.mark.parametrize("name", NAMES)
def test_reset_brings_the_whole_state_back(name: str) -> None:
    online, fresh, batches = _made(name), _made(name), _batches()
    start = copy.deepcopy(online.state_dict())
    assert _same(start, fresh.state_dict())
    first = [online(x) for x in batches]
    assert _same(online.state_dict(), start) == (METHODS[name].kind in ("none", "output"))
    online.reset()
    assert _same(online.state_dict(), fresh.state_dict())
    assert all(map(torch.equal, [online(x) for x in batches], first))
    assert all(map(torch.equal, [fresh(x) for x in batches], first))
    assert _same(online.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].kind == "gradient"])
def test_parameters_learn(name: str) -> None:
    """So that the tests of resetting and saving are about more than statistics."""
    model = Net()
    online = _learning(name, model)
    for x in _batches():
        online(x)
    adapted, before = dict(online.export().named_parameters()), dict(model.named_parameters())
    changed = {key for key, value in adapted.items() if not torch.equal(value, before[key])}
    affine = {f"body.{i}.{key}" for i in (1, 5) for key in ("weight", "bias")}
    assert changed == (set(before) if name == "cotta" else affine)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_goes_on_as_the_saved_one(name: str, tmp_path: Any) -> None:
    one, other, batches = _made(name), _made(name), _batches((6, 5, 6, 4))
    for x in batches[:2]:
        one(x)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state)
    for x in batches[2:]:
        assert torch.equal(one(x), other(x))
    assert _same(one.state_dict(), other.state_dict())
    other.reset()
    assert _same(other.state_dict(), _made(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_a_plain_network(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    online = _learning(name, model)
    for x in _batches((4, 4)):
        logits = online(x)
    adapted = online.export()
    assert [type(each) for each in adapted.modules()] == [type(each) for each in model.modules()]
    plain = timm.create_model("test_resnet", num_classes=4)
    plain.load_state_dict(adapted.state_dict(), strict=True)
    with torch.no_grad():
        assert plain.eval()(x).isfinite().all()
        assert torch.equal(plain(x), adapted(x))
    assert not any(module.training for module in adapted.modules())
    assert torch.equal(online.export()(x), adapted(x))  # and exporting changes nothing
    changed = _bits(adapted) != _bits(model)
    assert changed == (METHODS[name].kind in ("statistics", "gradient"))
    assert logits.shape == (4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_outside(name: str) -> None:
    expected = [each(x) for each in [_made(name)] for x in _batches()]
    for mode in (torch.no_grad, torch.inference_mode):
        online, batches = _made(name), _batches()
        with mode():
            found = [online(x * 1.0) for x in batches]  # x * 1.0: made inside of the mode
        assert all(map(torch.equal, found, expected))
        assert not any(each.is_inference() for each in online.parameters())
        online(batches[0])
        online.reset()


@pytest.mark.parametrize("name", NAMES)
def test_one_input_is_handled_or_another_method_named(name: str) -> None:
    x = _batches((1,))[0]
    online = _made(name)
    before = copy.deepcopy(online.state_dict())
    if name in ("adabn", "tent", "eata", "sar", "cotta"):
        with pytest.raises(
            InputError, match=r"a batch of 1, needs 2.*\(prior, .*rotta\)"
        ) as caught:
            online(x)
        assert "\n" not in str(caught.value)
        assert _same(online.state_dict(), before)
        return
    logits = online(x)
    assert logits.shape == (1, 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_networks_without_batch_norms(name: str) -> None:
    model, x = Net("layer"), _batches()[0]
    if name in BATCH:
        with pytest.raises(InputError, match="no batch norm") as caught:
            _made(name, model)
        assert "\n" not in str(caught.value)
    else:
        assert _made(name, model)(x).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_networks_without_norm_layers(name: str) -> None:
    model, x = Net("none"), _batches()[0]
    if name in (*BATCH, *NORM):
        with pytest.raises(InputError, match="Net has no normalization layer") as caught:
            _made(name, model)
        assert "\n" not in str(caught.value)
    else:
        assert _made(name, model)(x).shape == (6, 4)


@pytest.mark.parametrize("name", NAMES)
def test_batches_that_are_not_finite_change_nothing(name: str) -> None:
    online, x = _made(name), _batches()[0]
    before = copy.deepcopy(online.state_dict())
    with pytest.raises(InputError, match="NaN"):
        online(x.index_fill(0, torch.tensor([1]), float("nan")))
    assert _same(online.state_dict(), before)
    assert online(x).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_are_no_logits(name: str) -> None:
    model = Net(key="scores")
    with pytest.raises(InputError, match="no logits are in it"):
        _made(name, model)(_batches()[0])
