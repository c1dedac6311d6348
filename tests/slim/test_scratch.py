"""Fresh weights in the shapes of a cut network, drawn as its architecture draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normapps.errors import InputError, UsageError
from normapps.graph import trace_channels
from normapps.graph.surgery import slim_model
from normapps.models.folder import build, load_model, save_model
from normapps.models.load import open_model
from normapps.slim.material import Material
from normapps.slim.scratch import flops_ratio, fresh_network, train_from_scratch, whole_source
from normapps.slim.train_options import ScratchOptions

SMALL = {
    "builder": "small-cnn",
    "arguments": {"num_classes": 10, "channels": 1, "size": 8, "width": 16},
}


def slimmed(source: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """A network without every other channel that could go, and its source."""
    model = build(source["builder"], source["arguments"], seed=1).eval()
    graph = trace_channels(model, torch.zeros(1, *shape))
    keep = ~graph.free()
    keep[::2] = True
    made, edits = slim_model(model, graph, keep)
    return made, {
        "builder": "slimmed",
        "arguments": {"base": dict(source), **edits.arguments()},
    }


def deviations(model: nn.Module) -> dict[str, float]:
    """Standard deviation of each weight of at least 300 numbers, where it is random at all."""
    return {
        name: float(each.std())
        for name, each in model.state_dict().items()
        if each.dim() > 1 and each.numel() >= 300 and float(each.std()) > 0
    }


def wanted_deviation(name: str, module: nn.Module) -> float:
    """By the rules of the architectures below, from the shapes that are left."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    fan_in, fan_out = weight[0].numel(), weight.numel() / weight.shape[1]
    if isinstance(module, nn.Linear):  # torch's default
        return float((1 / (3 * fan_in)) ** 0.5)
    if name != "mobilenetv2_035":  # kaiming_normal_(mode="fan_out", nonlinearity="relu")
        return float((2 / fan_out) ** 0.5)
    groups = module.groups
    assert isinstance(groups, int)
    return float((2 / (fan_out / groups)) ** 0.5)  # EfficientNet's


@pytest.mark.parametrize("name", ["small-cnn", "resnet10t", "mobilenetv2_035"])
def test_weights_have_the_variance_that_the_architecture_gives_such_shapes(name: str) -> None:
    source = SMALL if name == "small-cnn" else {"builder": "timm", "arguments": {"name": name}}
    shape = (1, 8, 8) if name == "small-cnn" else (3, 64, 64)
    cut, own = slimmed(source, shape)
    fresh = fresh_network(own, 3)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in cut.state_dict().items()
    }
    modules = dict(fresh.named_modules())
    checked = 0
    for key, found in deviations(fresh).items():
        module = modules[key.rpartition(".")[0]]
        if isinstance(module, nn.Linear) and name != "small-cnn":
            continue
        assert found == pytest.approx(wanted_deviation(name, module), rel=0.2), key
        checked += 1
    assert checked >= 3
    assert not torch.equal(fresh.state_dict()[key], cut.state_dict()[key])


def test_the_seed_makes_the_weights_and_a_whole_network_is_its_own() -> None:
    _, own = slimmed(SMALL, (1, 8, 8))
    one, again, other = (fresh_network(own, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    whole = fresh_network(SMALL, 5).state_dict()
    built = build(SMALL["builder"], SMALL["arguments"], seed=5).state_dict()  # type: ignore[arg-type]
    assert all(torch.equal(whole[key], built[key]) for key in built)


def test_the_whole_network_is_found_below_what_was_done_to_it() -> None:
    _, own = slimmed(SMALL, (1, 8, 8))
    twice = {"builder": "slimmed", "arguments": {"base": own}}
    assert whole_source(twice) == SMALL
    step = {"to": "ibn"}
    converted = {"builder": "converted", "arguments": {"base": own, "steps": [step]}}
    expected = {"builder": "converted", "arguments": {"base": SMALL, "steps": [step]}}
    assert whole_source(converted) == expected


def test_scratch_trains_the_shapes_and_compares_both(material: Material, tmp_path: Path) -> None:
    model, own = slimmed(SMALL, (1, 8, 8))
    save_model(tmp_path / "pruned", model, **own, history=[{"weights": "its own"}])
    opened = open_model(tmp_path / "pruned")
    options = ScratchOptions(
        steps=20, batch_size=32, warmup=0, crop=1.0, flip=0.0, jitter=0.0, device="cpu",
        budget="flops",
    )  # fmt: skip
    fitted = train_from_scratch(opened, material, options, tmp_path / "run")
    assert fitted.folder is not None
    found = load_model(fitted.folder)
    assert {k: v.shape for k, v in found.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    ratio = flops_ratio(opened, (1, 8, 8))
    # width 16 to 8: 8·(1 + 4·8…) written out is a quarter, but for the first layer and the last
    assert 3 < ratio < 4
    assert fitted.steps == round(20 * ratio)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == fitted.steps
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["budget"] == "flops"
    assert told["accuracy"]["compared_with"] == "the given network"
    assert told["verdict"] == "recommended"  # over one that was cut at random
    parts = replace(options, stop_after=9)
    train_from_scratch(opened, material, parts, tmp_path / "parts")
    train_from_scratch(opened, material, options, tmp_path / "parts")
    name = "model/model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_what_makes_no_sense_is_refused(material: Material, tmp_path: Path) -> None:
    save_model(tmp_path / "whole", build(**SMALL, seed=0), **SMALL)  # type: ignore[arg-type]
    opened = open_model(tmp_path / "whole")
    options = ScratchOptions(steps=2, budget="flops", device="cpu")
    with pytest.raises(InputError, match="was not pruned, so --budget flops has nothing"):
        train_from_scratch(opened, material, options, tmp_path / "run")
    with pytest.raises(UsageError, match="--train head: fresh weights must all be trained"):
        ScratchOptions(train="head")
