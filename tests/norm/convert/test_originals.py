"""Back to torch's and timm's classes: layers that came from one, and layers that came from none."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm, convert_norm_
from normapps.norm.convert.freeze import freeze_norm_, sync_norm_, unfreeze_norm_
from normapps.norm.registry import create_norm, list_norms

timm_layers = importlib.import_module("timm.layers")

C = 8
SHAPES = {"1d": (4, C, 9), "2d": (4, C, 5, 6), "3d": (4, C, 2, 3, 4), "tokens": (4, 9, C)}
NEEDED = {"conditional": "num_classes", "conditional_coloring": "num_classes"}
NEEDED |= {"self_modulated": "latent_features", "adalin": "latent_features"}
NEEDED |= {"spatial": "condition_channels", "domain": "num_domains"}
NEEDED |= dict.fromkeys(("autodial", "transnorm", "domain_whitening"), "num_domains")

ALWAYS_OURS: list[tuple[str, str, str]] = [
    ("batch", "1d", "BatchNorm1d"),
    ("batch", "2d", "BatchNorm2d"),
    ("batch", "3d", "BatchNorm3d"),
    ("instance", "1d", "InstanceNorm1d"),
    ("instance", "2d", "InstanceNorm2d"),
    ("group", "2d", "GroupNorm"),
    ("layer", "2d", "GroupNorm"),
    ("layer", "tokens", "LayerNorm"),
    ("position", "tokens", "LayerNorm"),
    ("position", "2d", "LayerNorm2d"),
    ("rms", "tokens", "RMSNorm"),
    ("rms", "2d", "RmsNorm2d"),
]
WITH_ACTIVATION = [
    ("batch", "2d", "BatchNormAct2d"),
    ("group", "2d", "GroupNormAct"),
    ("layer", "2d", "GroupNorm1Act"),
    ("layer", "tokens", "LayerNormAct"),
    ("position", "2d", "LayerNormAct2d"),
]


def _shaken(layer: Any) -> nn.Sequential:
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    return nn.Sequential(layer).eval()


@pytest.mark.parametrize(("norm", "layout", "name"), ALWAYS_OURS)
@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_from_nowhere_gets_torchs_class(
    norm: str, layout: str, name: str, affine: bool
) -> None:
    model = _shaken(create_norm(norm, C, layout=layout, affine=affine, eps=1e-3))
    x = torch.randn(SHAPES[layout])
    out, keys = model(x), list(model.state_dict())
    parameters = list(model.parameters())
    convert_norm_(model, "torch")
    assert type(model[0]).__name__ == name
    assert model[0].eps == 1e-3
    torch.testing.assert_close(model(x), out)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize(("norm", "layout", "name"), WITH_ACTIVATION)
def test_an_activation_needs_timms_class(
    norm: str, layout: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = nn.PReLU(C) if layout != "tokens" else nn.SiLU()
    model = _shaken(create_norm(norm, C, layout=layout, act=act))
    x = torch.randn(SHAPES[layout])
    out, keys = model(x), list(model.state_dict())
    back = convert_norm(model, "torch")
    assert type(back[0]).__name__ == name
    torch.testing.assert_close(back(x), out)
    assert list(back.state_dict()) == keys
    monkeypatch.delitem(sys.modules, "timm.layers")
    with pytest.raises(InputError, match=r"0: torch has no class for .*with an activation"):
        convert_norm_(model, "torch")


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        *((norm, {}) for norm in list_norms() if norm not in {each[0] for each in ALWAYS_OURS}),
        ("batch", {"layout": "tokens"}),
        ("rms", {"bias": True, "layout": "tokens"}),
        ("instance", {"act": nn.ReLU}),
    ],
)
def test_what_torch_has_no_class_for_is_refused_by_name(norm: str, options: dict[str, Any]) -> None:
    more = {NEEDED[norm]: 3} if norm in NEEDED else {}
    layer = create_norm(norm, C, **({"layout": "2d"} | options | more))
    model = nn.Sequential(nn.Sequential(layer))
    with pytest.raises(InputError, match=rf"^0\.0: torch has no class for the '{norm}' layer"):
        convert_norm_(model, "torch")
    assert model[0][0] is layer
    with pytest.raises(InputError, match="unknown norm layer"):
        convert_norm_(model, "torch", exclude="1.0")
    assert convert_norm_(model, "torch", exclude="0.0").converted == 0


def test_a_layer_that_became_another_kind_gets_that_kinds_class() -> None:
    model = nn.Sequential(nn.BatchNorm2d(C), timm_layers.BatchNormAct2d(C))
    convert_norm_(model, "group", num_groups=2)
    convert_norm_(model, "torch")
    assert [type(m) for m in model] == [nn.GroupNorm, timm_layers.GroupNormAct]
    assert isinstance(model[1].act, nn.ReLU)


def test_a_layer_finds_back_through_other_kinds() -> None:
    model = nn.Sequential(timm_layers.BatchNormAct2d(C, act_layer=nn.SiLU))
    act = model[0].act
    for norm in ("instance", "iternorm", "batch", "torch"):
        convert_norm_(model, norm)
    assert type(model[0]) is timm_layers.BatchNormAct2d
    assert model[0].act is act


def test_what_changed_meanwhile_comes_along() -> None:
    model = nn.Sequential(nn.BatchNorm2d(C))
    convert_norm_(model, "batch", eps=0.1, momentum=None, track_running_stats=False)
    model.eval()
    convert_norm_(model, "torch")
    layer = model[0]
    assert (layer.eps, layer.momentum, layer.track_running_stats) == (0.1, None, False)
    assert layer.running_mean is None
    assert not layer.training


def test_hooks_come_along() -> None:
    model, seen = nn.Sequential(nn.BatchNorm2d(C)), []
    convert_norm_(model, "batch")
    model[0].register_forward_hook(lambda module, *_: seen.append(type(module)))
    convert_norm_(model, "torch")
    model(torch.randn(2, C, 3, 3))
    assert seen == [nn.BatchNorm2d]


def test_what_torchs_class_cannot_be_is_in_the_report() -> None:
    model = nn.Sequential(nn.BatchNorm2d(C))
    freeze_norm_(model)
    sync_norm_(model)
    notes = [change.note for change in convert_norm_(model, "torch").report]
    assert notes == ["not frozen any more; not synchronized any more"]


def test_a_thawed_layer_is_an_ordinary_one() -> None:
    model = nn.Sequential(timm_layers.FrozenBatchNormAct2d(C)).train()
    unfreeze_norm_(model)
    convert_norm_(model, "torch")
    assert type(model[0]) is timm_layers.BatchNormAct2d
    x = torch.randn(4, C, 3, 3)
    expected: Tensor = nn.functional.batch_norm(x, None, None, training=True).relu()
    torch.testing.assert_close(model(x), expected)
    assert model[0].num_batches_tracked == 1


def test_a_model_without_ours_stays() -> None:
    assert convert_norm_(nn.Sequential(nn.BatchNorm2d(C)), "torch").report == []
