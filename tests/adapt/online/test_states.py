"""What CoTTA, RoTTA, LAME and the guard around them promise alike: state, export, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.base import Online
from normapps.adapt.online.cotta import cotta
from normapps.adapt.online.guard import Guard
from normapps.adapt.online.lame import lame
from normapps.adapt.online.rotta import rotta
from normapps.errors import InputError


def _net(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), norm(8)]
    net = nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net.train()(torch.randn(32, 3, 9, 9))
    return net.eval()


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


Make = Callable[[nn.Module], Any]


def _cotta(model: nn.Module) -> Online:
    return cotta(model, views=2, threshold=1.0, restore=0.1)


def _rotta(model: nn.Module) -> Online:
    return rotta(model, capacity=8, update_every=5)


def _guard(model: nn.Module) -> Guard:
    return Guard(_rotta(model), patience=8, window=8, least_classes=0, most_doubt=1)


MAKES: dict[str, Make] = {"cotta": _cotta, "rotta": _rotta, "lame": lame, "guard": _guard}
every = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def _batches(count: int = 4, size: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 9, 9, generator=generator) * 2 + 1 for _ in range(count)]


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places at which two nested states are not the same to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys"]
        return [each for key in a for each in _differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [each for i, pair in pairs for each in _differences(*pair, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


@every
def test_reset_brings_the_whole_state_back(make: Make) -> None:
    model, fresh = make(_net()), make(_net())
    for batch in _batches():
        model(batch)
    if not isinstance(model, type(lame(_net()))):  # LAME keeps nothing
        assert _differences(model.state_dict(), fresh.state_dict())
    model.reset()
    assert _differences(model.state_dict(), fresh.state_dict()) == []
    for batch in _batches(seed=2):  # and it goes on as a fresh one
        assert torch.equal(model(batch), fresh(batch))
    assert _differences(model.state_dict(), fresh.state_dict()) == []


@every
def test_a_state_loaded_in_mid_stream_goes_on_to_the_bit(make: Make) -> None:
    model, other = make(_net()), make(_net())
    first, *rest = _batches(5)
    model(first)
    model(rest[0])
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert _differences(model.state_dict(), other.state_dict()) == []
    for batch in rest[1:]:
        assert torch.equal(model(batch), other(batch))
    assert _differences(model.state_dict(), other.state_dict()) == []
    other.reset()
    assert _differences(other.state_dict(), make(_net()).state_dict()) == []


@every
def test_two_runs_are_the_same_whatever_the_global_random_state(make: Make) -> None:
    outputs = []
    for seed in (5, 6):
        model = make(_net())
        torch.manual_seed(seed)
        outputs.append([model(batch) for batch in _batches()])
    assert _differences(*outputs) == []


@every
def test_the_source_stays_and_the_export_loads_into_it(make: Make) -> None:
    source = _net()
    before = copy.deepcopy(source.state_dict())
    model = make(source)
    for batch in _batches():
        model(batch)
    assert _differences(source.state_dict(), before) == []
    exported = model.export()
    assert not exported.training
    assert [type(each) for each in exported] == [type(each) for each in source]
    source.load_state_dict(exported.state_dict(), strict=True)
    x = _batches(1, seed=9)[0]
    assert torch.equal(source(x), exported(x))


@every
def test_a_batch_that_is_not_finite_changes_nothing(make: Make) -> None:
    model, other = make(_net()), make(_net())
    first, second = _batches(2)
    model(first)
    other(first)
    bad = second.clone()
    bad[2, 1, 3, 3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        model(bad)
    assert torch.equal(model(second), other(second))
    assert _differences(model.state_dict(), other.state_dict()) == []


@every
def test_a_checkpoint_that_is_not_finite_is_one_line(make: Make) -> None:
    net = _net()
    with torch.no_grad():
        net[-1].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"Sequential (makes|returns) NaN or infinite") as error:
        make(net)(_batches(1)[0])
    assert "\n" not in str(error.value)


class _Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "more": x}


@every
def test_a_model_that_returns_a_dict(make: Make) -> None:
    a, b = make(_Dict()), make(_net())
    for batch in _batches():
        assert torch.equal(a(batch), b(batch))


@every
def test_the_wrappers_mode_changes_nothing(make: Make) -> None:
    a, b = make(_net()).train(), make(_net()).eval()
    for batch in _batches():
        assert torch.equal(a(batch), b(batch))
    assert _differences(a.state_dict(), b.state_dict()) == []


@every
def test_in_inference_mode_it_does_the_same(make: Make) -> None:
    net = _net()
    with torch.inference_mode():
        a = make(net)
    b = make(_net())
    for batch in _batches():
        with torch.inference_mode():
            inside = a(batch.clone())
        assert torch.equal(inside, b(batch))
        assert not inside.requires_grad
    a.reset()


@pytest.mark.parametrize("make", [_cotta, lame], ids=["cotta", "lame"])
def test_networks_without_batch_norms(make: Make) -> None:
    model = make(_net(_group))
    before = copy.deepcopy(model.export().state_dict())
    outputs = [model(batch) for batch in _batches()]
    assert all(each.isfinite().all() for each in outputs)
    changed = _differences(before, model.export().state_dict())
    assert bool(changed) == (make is _cotta)
    assert model(_batches(1, size=1)[0]).shape == (1, 4)


@pytest.mark.parametrize("make", [_cotta, _rotta], ids=["cotta", "rotta"])
def test_no_norm_layer_is_one_line(make: Make) -> None:
    with pytest.raises(InputError, match=r"^Sequential has no normalization layer[^\n]*$"):
        make(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))


def test_timm_models_export_strictly() -> None:
    import_module("normapps.models")  # its guard first
    import timm

    source = timm.create_model("test_efficientnet", num_classes=5).eval()
    for make in (_cotta, _rotta, lame):
        model = make(source)
        for batch in _batches(2, size=5):
            model(nn.functional.interpolate(batch, 64))
        fresh = timm.create_model("test_efficientnet", num_classes=5)
        fresh.load_state_dict(model.export().state_dict(), strict=True)
