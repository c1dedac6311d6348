"""Freezing, thawing and synchronizing batch norms, with the activations they carry."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm_
from normapps.norm.convert.freeze import freeze_norm_, sync_norm_, unfreeze_norm_
from normapps.norm.layers.batch import BatchNorm

timm_layers = importlib.import_module("timm.layers")
misc = importlib.import_module("torchvision.ops.misc")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), timm_layers.BatchNormAct2d(6, act_layer=nn.SiLU)),
        *(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), misc.FrozenBatchNorm2d(6)),
        *(nn.Conv2d(6, 6, 1), timm_layers.FrozenBatchNormAct2d(6)),
    )
    for key, value in model.state_dict().items():
        if "running" in key:
            value.copy_(torch.rand_like(value) + 0.5)
    return model.eval()


def _x() -> Tensor:
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_" in k}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_frozen_layers_keep_logits_activation_and_statistics_in_training() -> None:
    model, x = _model(), _x()
    out, keys, statistics = model(x), list(model.state_dict()), _statistics(model)
    conversion = freeze_norm_(model)
    assert torch.equal(model(x), out)
    assert torch.equal(model.train()(x), out)
    assert list(model.state_dict()) == keys
    assert _equal(_statistics(model), statistics)
    assert isinstance(model[1].act, nn.SiLU)
    assert not any(p.requires_grad for i in (1, 3) for p in model[i].parameters())
    assert all(p.requires_grad for i in (0, 2, 5) for p in model[i].parameters())
    assert [change.note for change in conversion.report[2:]] == ["is frozen by class"] * 2
    assert conversion.converted == 2
    conversion.undo()
    assert type(model[3]) is nn.BatchNorm2d
    assert all(p.requires_grad for p in model.parameters())
    assert not torch.equal(model(x), out)


def test_scale_and_shift_may_go_on_learning() -> None:
    model = _model()
    freeze_norm_(model, affine=False)
    model.train()(_x()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_thawing_takes_freezing_back_and_thaws_what_is_frozen_by_class() -> None:
    model, x = _model(), _x()
    out = model(x)
    freeze_norm_(model)
    thaw = unfreeze_norm_(model)
    assert thaw.converted == 2
    torch.testing.assert_close(model(x), out)
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(model[6].act, nn.ReLU)
    before = _statistics(model)
    model.train()(x).sum().backward()
    after = _statistics(model)
    assert not any(torch.equal(before[key], after[key]) for key in before)
    assert after["4.num_batches_tracked"] == 1
    thaw.undo()
    assert type(model[4]) is misc.FrozenBatchNorm2d
    assert model[3].frozen
    assert not model[3].weight.requires_grad
    assert torch.equal(model.eval()(x), out)


def test_what_is_ours_is_set_in_place_and_undone() -> None:
    model = _model()
    convert_norm_(model, "batch")
    layers = list(model)
    whole = freeze_norm_(model, include="3")
    assert list(model) == layers
    assert (model[3].frozen, model[1].frozen) == (True, False)
    whole.undo()
    assert not model[3].frozen
    assert model[3].weight.requires_grad


def test_the_root_may_be_a_layer_of_ours() -> None:
    layer = BatchNorm(4)
    freeze_norm_(layer)
    assert layer.frozen
    with pytest.raises(InputError, match="itself is the norm layer"):
        freeze_norm_(nn.BatchNorm2d(4))


def test_whitening_can_be_frozen() -> None:
    model, x = _model(), _x()
    convert_norm_(model, "iternorm", include="3")
    freeze_norm_(model, include="3")
    cov = model[3].running_cov.clone()
    model.train()(x)
    assert torch.equal(model[3].running_cov, cov)


@pytest.mark.parametrize("change", [freeze_norm_, unfreeze_norm_, sync_norm_])
def test_errors(change: Any) -> None:
    with pytest.raises(InputError, match="has no batch norm"):
        change(nn.Sequential(nn.LayerNorm(4)))
    with pytest.raises(InputError, match="unknown norm layer 'o'"):
        change(nn.Sequential(nn.BatchNorm2d(4)), exclude="o")


def test_without_statistics_there_is_nothing_to_freeze() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(InputError, match=r"1 keeps no statistics to freeze; exclude='1'"):
        freeze_norm_(model)
    assert type(model[0]) is nn.BatchNorm2d
    freeze_norm_(model, exclude="1")


def test_synchronizing_keeps_activations_and_says_of_which_processes() -> None:
    model, x = _model(), _x()
    out = model(x)
    group = object()
    conversion = sync_norm_(model, process_group=group)
    assert isinstance(model[1].act, nn.SiLU)
    assert all(model[i].sync and model[i].process_group is group for i in (1, 3))
    assert torch.equal(model(x), out)
    assert type(model[4]) is misc.FrozenBatchNorm2d
    sync_norm_(model)
    assert model[1].process_group is None
    conversion.undo()
    assert type(model[1]) is timm_layers.BatchNormAct2d
