"""With all weight on the source the logits do not move by one bit, in every batch norm family.

The families are the converter's census, benchmarks/census.py; all of them under `-m census`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.adapt import adabn, create_method, ema, prior
from normapps.adapt.online.base import Online, configure_model
from normapps.adapt.online.statistics import Statistics
from normapps.models.outputs import logits_of
from normapps.norm import convert_norm_
from normapps.norm.nesting import detached_copy

timm = importlib.import_module("timm")
torchvision = importlib.import_module("torchvision")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

FAMILIES = {
    "resnet": "resnet18",
    "efficientnet": "efficientnet_lite0",  # activations in the batch norms
    "mobilenetv3": "mobilenetv3_small_050",
    "regnet": "regnety_002",
    "densenet": "densenet121",
    "byobnet": "repvgg_a0",  # identity branches of a batch norm alone
    "vovnet": "ese_vovnet19b_slim_dw",
    "levit": "levit_128s",  # 1d, of flattened tokens
    "mobilevit": "mobilevit_xxs",  # beside layer norms
}

COPIES: dict[str, Callable[[nn.Module, list[Tensor]], nn.Module]] = {
    "adabn(weight=0)": lambda model, batches: adabn(model, batches, weight=0),
    "prior(n=inf)": lambda model, batches: prior(model, batches, math.inf),
    "prior(n=1e30)": lambda model, batches: prior(model, batches, 1e30),
    "ema(momentum=0)": lambda model, batches: ema(model, batches, 0),
}
"""A plain model of all the source's statistics."""

STREAMS: dict[str, Callable[[nn.Module], Online]] = {
    "source": lambda model: create_method("source", model),
    "prior(n=inf)": lambda model: create_method("prior", model, n=math.inf),
    "cumulative(n=inf)": lambda model: create_method("cumulative", model, n=math.inf),
    "ema(momentum=0)": lambda model: create_method("ema", model, momentum=0),
    "rule='source'": lambda model: Statistics(_configured(model)),
}
"""A method that takes everything from the source."""


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which is a script and not part of a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("census")


def _configured(model: nn.Module) -> nn.Module:
    return configure_model(detached_copy(model), rule="source", train="none")


def _differing(
    model: nn.Module,
    x: Tensor,
    copies: Collection[str] = COPIES,
    streams: Collection[str] = STREAMS,
) -> Iterator[str]:
    """What is not the identity, or leaves another state behind than the source's."""
    batches = [x, x.flip(0) * 2]
    with torch.no_grad():
        expected, state = logits_of(model(x)), _bits(model)
        for name in copies:
            adapted = COPIES[name](model, batches)
            if not torch.equal(logits_of(adapted(x)), expected):
                yield name
        for name in streams:
            online = STREAMS[name](model)
            if not all(torch.equal(online(x), expected) for _ in range(2)):
                yield f"method {name}"
            exported = online.export()
            if not torch.equal(logits_of(exported(x)), expected):
                yield f"method {name}, exported"
            if list(exported.state_dict()) != list(state):
                yield f"method {name}, the exported keys"
    if _bits(model) != state:
        yield "the model itself"


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def _moves(model: nn.Module, x: Tensor) -> bool:
    """Whether less than all weight on the source is noticed: the proof can fail."""
    with torch.no_grad():
        expected = logits_of(model(x)).detach()
        whole = logits_of(prior(model, [x])(x))
        return not torch.allclose(whole, expected, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_all_kinds(family: str, census: ModuleType) -> None:
    model, x = census.timm_model(FAMILIES[family])
    copies, streams = ("adabn(weight=0)", "prior(n=1e30)"), ("rule='source'",)
    assert list(_differing(model, x, copies, streams)) == []
    assert _moves(model, x)
    nearly = create_method("prior", model, n=1e30)(x)  # mixed by arithmetic, not by the kernel
    expected = logits_of(model(x)).detach()
    torch.testing.assert_close(nearly, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["torch", "frozen", "ours"])
def test_small_networks_by_every_way(kind: str) -> None:
    """torchvision's frozen layers divide in another order than torch's kernel."""
    torch.manual_seed(0)
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    layers: list[nn.Module] = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 6, 3), frozen(6) if kind == "frozen" else nn.BatchNorm2d(6)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    for layer in (model[1], model[4]):
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    if kind == "ours":
        convert_norm_(model, "batch")
    x = torch.randn(4, 3, 9, 9)
    rounded = {"rule='source'"} if kind == "frozen" else set()
    assert list(_differing(model, x, streams=STREAMS.keys() - rounded)) == []
    assert _moves(model, x)
    for name in rounded:
        torch.testing.assert_close(STREAMS[name](model)(x), model(x), rtol=1e-6, atol=1e-6)


def test_a_wrapper_that_loses_an_activation_or_a_statistic_is_found(census: ModuleType) -> None:
    """What reference code does: another BatchNorm2d, with what it knows of, in place of any."""
    model, x = census.timm_model("test_efficientnet")
    wrapped, _ = census.timm_model("test_efficientnet")
    wrapped.load_state_dict(model.state_dict())
    for parent in wrapped.modules():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                naive = nn.BatchNorm2d(layer.num_features, layer.eps).eval()
                naive.load_state_dict(layer.state_dict())
                setattr(parent, name, naive)
    assert not torch.equal(model(x), wrapped(x))


@pytest.mark.census
@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_every_family(kind: str, census: ModuleType, capsys: Any) -> None:
    made = census.timm_model if kind == "timm" else census.torchvision_model
    named = census.SMALLEST if kind == "timm" else census.TORCHVISION
    more = census.MORE if kind == "timm" else {}
    names = [name for family in named for name in (named[family], *more.get(family, ()))]
    failed = {}
    for name in names:
        model, x = made(name)
        if found := list(_differing(model, x)):
            failed[name] = found
        with capsys.disabled():
            print(name, failed.get(name, "ok"), flush=True)
    assert not failed
