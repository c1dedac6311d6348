"""The optimizer's side of training: rates, decay, stages."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from torch import nn

from normapps.models.small import small_cnn
from normapps.norm.domain import DomainModel
from normapps.training.optimizing import learning_rate, parameter_groups
from normapps.training.options import FitOptions

OPTIONS = FitOptions(steps=4, batch_size=16, lr=0.1, warmup=2, device="cpu")


def test_the_rate_rises_and_falls_in_each_stage() -> None:
    chosen = replace(OPTIONS, steps=120, warmup=10, lr=1.0)
    rates = [learning_rate(step, chosen) for step in range(120)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == 1.0
    assert rates[65] == pytest.approx(0.5)
    assert rates[119] == pytest.approx(0.5 * (1 - math.cos(math.pi / 110)))
    staged = [learning_rate(step, chosen, 40) for step in range(120)]
    assert staged[0] == staged[40] == pytest.approx(0.1)
    assert staged[10] == staged[50] == 1.0
    assert staged[39] < 0.01
    assert staged[119] < 0.01
    brief = replace(chosen, steps=8)
    assert learning_rate(2, brief) == 1.0  # a short stage is not all warm-up


def test_weights_decay_and_norms_do_not() -> None:
    model = DomainModel(small_cnn(3, 1, 8, 4), 2)
    groups = parameter_groups(model, replace(OPTIONS, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, each in model.named_parameters():
        is_weight = "conv" in name or name.endswith("classifier.weight")
        assert decay.pop(id(each)) == (0.3 if is_weight else 0.0), name
    assert not decay


def test_a_new_classifier_can_learn_faster() -> None:
    model = small_cnn(3, 1, 8, 4)
    model.features[0].conv.weight.requires_grad_(False)
    fresh = ("classifier.weight", "classifier.bias")
    groups = parameter_groups(nn.Sequential(model), replace(OPTIONS, head_lr=10.0), fresh)
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert factor[id(model.classifier.weight)] == factor[id(model.classifier.bias)] == 10
    assert factor[id(model.features[2].conv.weight)] == 1
    assert id(model.features[0].conv.weight) not in factor


def test_layers_that_end_like_the_classifier_learn_as_the_others() -> None:
    model = nn.ModuleDict({"se": nn.ModuleDict({"fc": nn.Linear(2, 2)}), "fc": nn.Linear(2, 2)})
    groups = parameter_groups(nn.Sequential(model), replace(OPTIONS, head_lr=10.0), ("fc.weight",))
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    named = {name: factor[id(each)] for name, each in model.named_parameters()}
    assert named == {"se.fc.weight": 1, "se.fc.bias": 1, "fc.weight": 10, "fc.bias": 1}
