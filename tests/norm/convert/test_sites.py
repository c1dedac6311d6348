"""Every class of torch, timm and torchvision that the converter knows, read and given back."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.norm.convert.converter import convert_norm, convert_norm_
from normapps.norm.convert.sites import KNOWN, find_sites, qualified
from normapps.norm.layers.base import NormLayer
from normapps.norm.registry import norm_class

timm_models = importlib.import_module("timm.models")
timm_layers = importlib.import_module("timm.layers")
torchvision_models = importlib.import_module("torchvision.models")

C = 8
SHAPES = {"1d": (4, C, 9), "2d": (4, C, 5, 6), "3d": (4, C, 2, 3, 4), "any": (4, C, 5, 6)}
SHAPES |= {"tokens": (4, 9, C)}
CLOSE = ("Frozen", "RmsNorm2d", "RmsNormAct2d", "RmsNorm", "LayerNormExp2d")
"""Classes that compute by other operations than the kernels, so that rounding differs."""


def _class(name: str) -> type[nn.Module]:
    module, _, short = name.rpartition(".")
    found: type[nn.Module] = getattr(importlib.import_module(module), short)
    return found


def _made(name: str, act: nn.Module | None = None) -> nn.Module:
    """A layer of a class with values that are not trivial, and with an activation if it takes one.

    SyncBatchNorm's forward needs a GPU in training, so everything is compared at inference.
    """
    torch.manual_seed(0)
    kind: Any = _class(name)
    arguments = (4, C) if qualified(kind) == "torch.nn.modules.normalization.GroupNorm" else (C,)
    if "num_groups" in inspect.signature(kind).parameters and len(arguments) == 1:
        layer = kind(C, num_groups=4)
    else:
        layer = kind(*arguments)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    if hasattr(layer, "act") or "SyncBatchNormAct" in name:
        layer.drop, layer.act = nn.Dropout(0.5), act or nn.PReLU(C)
    made: nn.Module = layer.eval()
    return made


def _input(name: str) -> Tensor:
    return torch.randn(SHAPES[KNOWN[name][1]], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KNOWN)
def test_there_and_back_to_the_bit(name: str) -> None:
    norm, layout = KNOWN[name]
    act = nn.PReLU(C) if layout != "tokens" else nn.GELU()
    model, x = nn.Sequential(_made(name, act)), _input(name)
    out, keys = model(x), list(model.state_dict())
    old = model[0]
    conversion = convert_norm_(model, norm, match="all")
    layer = model[0]
    assert isinstance(layer, norm_class(norm))
    assert layer.layout == layout
    assert layer.eps == old.eps
    assert list(model.state_dict()) == keys
    if hasattr(old, "act"):
        assert layer.act is old.act
        assert layer.drop is old.drop
    if any(each in name for each in CLOSE):
        torch.testing.assert_close(model(x), out)
    else:
        assert torch.equal(model(x), out)
    convert_norm_(model, "torch")
    assert type(model[0]) is type(old)
    assert torch.equal(model(x), out)
    assert list(model.state_dict()) == keys
    assert {k: v for k, v in vars(model[0]).items() if not k.startswith("_")} == {
        k: v for k, v in vars(old).items() if not k.startswith("_")
    }
    assert conversion.report[0].note == ("aux_bn kept aside, unused" if "Split" in name else "")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_class_of_timm_or_torchvision_is_missing() -> None:
    """Each class of theirs that derives from a norm layer of torch is known."""
    for package in (timm_models, timm_layers, torchvision_models):
        for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(found.name)
    bases = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    ours = [kind for base in bases for kind in _subclasses(base)]
    theirs = {qualified(kind) for kind in ours if _package(kind) in ("timm", "torchvision")}
    assert len(theirs) > 15
    assert theirs <= set(KNOWN)


def _subclasses(kind: type) -> set[type]:
    return {kind, *(each for below in kind.__subclasses__() for each in _subclasses(below))}


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def test_split_keeps_its_auxiliary_layers_aside() -> None:
    layer = timm_layers.SplitBatchNorm2d(C, num_splits=2)
    model = nn.Sequential(layer)
    x = torch.randn(4, C, 3, 3)
    model.train()(x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not torch.equal(before["0.running_mean"], before["0.aux_bn.0.running_mean"])
    ours = convert_norm(model, "batch")
    assert len(find_sites(ours)) == 1
    ours.train()(x)
    assert torch.equal(ours[0].aux_bn[0].running_mean, before["0.aux_bn.0.running_mean"])
    back = convert_norm(ours, "torch")
    assert type(back[0]) is timm_layers.SplitBatchNorm2d
    for key, value in back.state_dict().items():
        assert torch.equal(value, before[key]) == ("aux" in key or key[2:] in ("weight", "bias"))
    assert back[0].aux_bn[0].weight.requires_grad
    back.train()(x)


@pytest.mark.parametrize("name", [name for name in KNOWN if "Frozen" in name])
def test_frozen_layers_stay_frozen_and_load_their_old_files(name: str) -> None:
    model, x = nn.Sequential(_made(name, nn.ReLU())), _input(name)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    convert_norm_(model, "batch")
    assert model[0].frozen
    assert not any(p.requires_grad for p in model.parameters())
    out = model(x)
    assert torch.equal(model.train()[0].normalize(x), model.eval()[0].normalize(x))
    assert torch.equal(model(x), out)
    model.load_state_dict(dict(old))  # a dict without torch's version numbers, as safetensors give
    assert list(model.state_dict()) == list(old)


def test_synchronized_layers_stay_synchronized() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(C, process_group=None))
    convert_norm_(model, "batch")
    assert model[0].sync
    model.train()(torch.randn(4, C, 3))  # which torch's cannot on a CPU


def test_sites_have_all_their_names_once() -> None:
    shared = nn.BatchNorm2d(C)
    block = nn.Sequential(shared, nn.GroupNorm(2, C))
    model = nn.Sequential(block, block, shared)
    sites = find_sites(model)
    assert [site.names for site in sites] == [["0.0", "1.0", "2"], ["0.1", "1.1"]]
    assert [len(site.places) for site in sites] == [2, 1]
    assert find_sites(nn.Linear(2, 2)) == []


class OwnRmsNorm(timm_layers.RmsNorm):  # type: ignore[misc,name-defined]
    """Of a class that torch's norm layers are no base of."""


def test_what_derives_from_timms_own_layers_is_refused_by_name() -> None:
    site = find_sites(nn.Sequential(OwnRmsNorm(C)))[0]
    assert site.kinds == {"rms"}
    assert site.refusal.startswith("is not known here")


class Unregistered(NormLayer):
    """A layer of ours that nobody registered."""


def test_a_layer_outside_the_registry_is_refused_by_name() -> None:
    site = find_sites(nn.Sequential(Unregistered()))[0]
    assert site.refusal == "is not in the registry; add it to NORMS"
