"""Networks of timm with 40 % of their channels pruned: verified, and reloaded to the bit.

Eight kinds of block run in the suite, more and the 29 models of the bar with `pytest -m census`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps import load_model
from normapps.graph.oracle import slim_verified
from normapps.graph.trace import trace_channels
from normapps.models.folder import build, save_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

QUICK = (
    *("test_resnet", "test_efficientnet", "regnety_002", "mobilenetv3_small_050"),
    *("ghostnet_050", "mixnet_s", "skresnet18", "resnest14d"),
)
"""Small models with most of the 29's blocks."""
SIDES = {name: 32 for name in QUICK if "mobilenet" not in name}
"""Sides of inputs; at 32 a mobilenet's classifier has most of the operations."""
MORE = ("repvgg_a0", "densenet121", "cs3darknet_focus_s", "res2next50", "ese_vovnet19b_slim_dw")
"""The other blocks, in larger models; their operations have tests of their own."""
WHOLE = ("lambda_resnet26t", "efficientvit_m0")
"""Sizes that code takes from inputs or shares: the cut is right without a search."""


@pytest.fixture
def pruning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmarks' own part, which is a script and not part of a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("pruning")


def pruned(pruning: Any, name: str, size: int | None) -> tuple[nn.Module, Any, Any, torch.Tensor]:
    model, x = pruning.with_random_scales(name, size)
    graph = trace_channels(model, x)
    keep = pruning.planned(model, graph, 0.4)
    return model, graph, slim_verified(model, graph, keep, x), x


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.census) for name in MORE)]
)
def test_a_network_is_pruned_verified_and_reloaded(
    name: str, pruning: ModuleType, tmp_path: Path
) -> None:
    model, graph, slimmed, x = pruned(pruning, name, SIDES.get(name, 64))
    assert slimmed.left == ()
    _check(pruning, model, graph, slimmed, x)
    _check_reload(name, slimmed, x, tmp_path / "slim")


@pytest.mark.census
@pytest.mark.parametrize("name", WHOLE)
def test_no_group_is_left_by_a_search(name: str, pruning: ModuleType) -> None:
    _, _, slimmed, _ = pruned(pruning, name, None)
    assert slimmed.left == ()


@pytest.mark.census
@pytest.mark.parametrize("index", range(29))
def test_the_models_of_the_bar(index: int, pruning: ModuleType, tmp_path: Path) -> None:
    name = pruning.NAMES[index]
    model, graph, slimmed, x = pruned(pruning, name, None)
    _check(pruning, model, graph, slimmed, x)
    _check_reload(name, slimmed, x, tmp_path / "slim")


def _check(pruning: Any, model: nn.Module, graph: Any, slimmed: Any, x: torch.Tensor) -> None:
    assert slimmed.difference <= 1e-5
    # the oracle once more, without ours: what is gone is told by the scales themselves
    with torch.no_grad():
        silent = pruning.silenced_like(model, slimmed.model)(x).double()
        out = slimmed.model(x).double()
    assert float((silent - out).abs().max() / silent.abs().max()) <= 3e-5
    before, after = pruning.macs(model, x), pruning.macs(slimmed.model, x)
    assert graph.macs(slimmed.keep) == after
    assert graph.macs() == before
    assert graph.parameters(slimmed.keep) == pruning.parameters(slimmed.model)
    assert after <= 0.75 * before


def _check_reload(name: str, slimmed: Any, x: torch.Tensor, path: Path) -> None:
    base = {"builder": "timm", "arguments": {"name": name}}
    arguments = {"base": base, **slimmed.edits.arguments()}
    save_model(path, slimmed.model, builder="slimmed", arguments=arguments)
    again = load_model(path)
    with torch.no_grad():
        assert torch.equal(again(x), slimmed.model(x))
    assert _sizes(again) == _sizes(slimmed.model)


def _sizes(model: nn.Module) -> dict[str, Any]:
    """Every number that modules hold, the classifier's and the stages' among them."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | tuple | list):
                found[f"{name}.{key}"] = list(value) if not isinstance(value, int) else value
    return found


def test_reset_classifier_and_features_hold_on_the_slimmed_network(pruning: ModuleType) -> None:
    for name in ("test_resnet", "mobilenetv3_small_050"):
        _, _, slimmed, x = pruned(pruning, name, 32)
        slim: Any = slimmed.model
        features = slim.forward_features(x)
        assert slim.num_features == features.shape[1]
        slim.reset_classifier(7)
        assert slim(x).shape == (1, 7)
        assert slim.head_hidden_size == slim.get_classifier().in_features
        for stage in slim.feature_info:
            seen: list[int] = []
            module = slim.get_submodule(stage["module"])
            handle = module.register_forward_hook(
                lambda m, i, o, seen=seen: seen.append(o.shape[1])
            )
            slim(x)
            handle.remove()
            assert seen == [stage["num_chs"]]


def test_a_network_in_bfloat16_is_verified_in_float64(pruning: ModuleType) -> None:
    model, x = pruning.with_random_scales("test_resnet", 32)
    model, x = model.bfloat16(), x.bfloat16()
    graph = trace_channels(model, x)
    slimmed = slim_verified(model, graph, pruning.planned(model, graph, 0.4), x)
    assert slimmed.left == ()
    assert slimmed.difference <= 1e-5


def test_pruning_twice_reloads(pruning: ModuleType, tmp_path: Path) -> None:
    _, _, first, x = pruned(pruning, "test_resnet", 32)
    graph = trace_channels(first.model, x)
    keep = pruning.planned(first.model, graph, 0.3)
    second = slim_verified(first.model, graph, keep, x)
    assert second.left == ()
    base = {"builder": "timm", "arguments": {"name": "test_resnet"}}
    once = {"builder": "slimmed", "arguments": {"base": base, **first.edits.arguments()}}
    arguments = {"base": once, **second.edits.arguments()}
    save_model(tmp_path / "slim", second.model, builder="slimmed", arguments=arguments)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "slim")(x), second.model(x))
    assert pruning.parameters(second.model) < pruning.parameters(first.model)


def test_a_fresh_network_of_the_slimmed_shapes_runs(pruning: ModuleType) -> None:
    _, _, slimmed, x = pruned(pruning, "test_resnet", 32)
    base = {"builder": "timm", "arguments": {"name": "test_resnet"}}
    fresh = build("slimmed", {"base": base, **slimmed.edits.arguments()}, seed=0)
    fresh.train()(torch.cat([x, x + 1])).sum().backward()
    assert all(np.isfinite(each.grad.sum().item()) for each in fresh.parameters())
