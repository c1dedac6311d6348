"""Devices by name, refusals, and modes that come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normapps.engine.device import evaluating, place, resolve_device, resolve_dtype
from normapps.errors import InputError

CPU = torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: not on this machine"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="--device tpu: choose"):
        resolve_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--device cuda:3: this machine has 1 GPUs"):
        resolve_device("cuda:3")
    with pytest.raises(InputError, match="--device cuda:x: not a device name"):
        resolve_device("cuda:x")


def test_dtypes_by_name() -> None:
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(InputError, match="--dtype int8: choose auto or one of float32"):
        resolve_dtype("int8", CPU)


def test_auto_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, want in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert resolve_dtype("auto", CPU) is want
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16


def test_place_casts_and_lays_out_weights() -> None:
    conv = place(nn.Conv2d(8, 8, 3), torch.device("cpu"), torch.bfloat16)
    assert conv.weight.dtype == torch.bfloat16
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_evaluating_restores_every_module_also_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval(), nn.Linear(2, 2))
    before = [module.training for module in model.modules()]

    def fail() -> None:
        with evaluating(model) as inside:
            assert not any(module.training for module in inside.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
