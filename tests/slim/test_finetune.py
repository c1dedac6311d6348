"""Finetuning and training from scratch of networks that were cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.graph import trace_channels
from normapps.graph.surgery import slim_model
from normapps.models.folder import load_model, save_model
from normapps.models.load import OpenedModel, open_model
from normapps.slim.finetune import finetune
from normapps.slim.material import Material, check_classes
from normapps.slim.train_options import FinetuneOptions

Make = Callable[..., OpenedModel]

PLAIN = FinetuneOptions(
    steps=20, batch_size=32, lr=0.1, warmup=0, crop=1.0, flip=0.0, jitter=0.0, device="cpu",
)  # fmt: skip


@pytest.fixture
def pruned(make_network: Make, tmp_path: Path) -> OpenedModel:
    """A small network that has lost every other channel that it could."""
    opened = make_network(8)
    graph = trace_channels(opened.model, torch.zeros(1, 1, 8, 8))
    keep = ~graph.free()
    keep[::2] = True
    model, edits = slim_model(opened.model, graph, keep)
    arguments = {"base": dict(opened.source), **edits.arguments()}
    wanted = opened.preprocessing.to_json()
    folder = tmp_path / "pruned"
    history = [{"weights": "its own"}]
    save_model(
        folder, model, builder="slimmed", arguments=arguments, preprocessing=wanted,
        history=history,
    )  # fmt: skip
    return open_model(folder)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in model.state_dict().items()}


def test_a_pruned_network_learns_on_and_keeps_its_shapes(
    pruned: OpenedModel, material: Material, tmp_path: Path
) -> None:
    before = {name: each.clone() for name, each in pruned.model.state_dict().items()}
    fitted = finetune(pruned, material, PLAIN, tmp_path / "run")
    assert fitted.folder is not None
    again = load_model(fitted.folder)
    assert shapes(again) == shapes(pruned.model)
    assert all(torch.equal(before[name], each) for name, each in pruned.model.state_dict().items())
    x = pruned.preprocessing.normalize(material.test.images)
    with torch.no_grad():
        right = [
            float((each(x).argmax(1) == material.test.labels).float().mean())
            for each in (pruned.model, again)
        ]
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    accuracy = told["accuracy"]
    assert accuracy["before"]["mean"] == pytest.approx(right[0])
    assert accuracy["after"]["mean"] == pytest.approx(right[1])
    assert accuracy["difference"]["mean"] == pytest.approx(right[1] - right[0])
    assert accuracy["before"]["low"] < right[0] < accuracy["before"]["high"]
    assert right[1] > right[0] + 0.2
    assert told["verdict"] == "recommended"


def test_a_baseline_may_be_missed_by_a_little(
    pruned: OpenedModel, material: Material, tmp_path: Path
) -> None:
    first = finetune(pruned, material, PLAIN, tmp_path / "one")
    chosen = replace(PLAIN, baseline=str(first.folder))
    fitted = finetune(pruned, material, chosen, tmp_path / "two")
    assert fitted.verdict is not None
    assert "1 points may be lost" in fitted.verdict.reason
    assert "over baseline" in fitted.verdict.reason


def test_pictures_of_other_classes_are_refused(pruned: OpenedModel, material: Material) -> None:
    check_classes(pruned, material)  # its folder does not say
    told = replace(pruned, history=({"classes": list("0123456789")},))
    check_classes(told, material)
    other = replace(pruned, history=({"classes": list("abcdefghij")},))
    with pytest.raises(InputError, match=r"was trained on the classes a, b, c, d, … 10 in all"):
        check_classes(other, material)


def test_pictures_to_learn_from_must_have_labels_of_two_classes(material: Material) -> None:
    bare = type(material.train)(material.train.images)
    with pytest.raises(InputError, match="the pictures: has no labels"):
        Material.of(bare)
    with pytest.raises(InputError, match="--test: has no labels"):
        Material.of(material.train, bare)
    labels = material.train.labels
    assert labels is not None
    one = type(bare)(bare.images[labels == 3], labels[labels == 3], material.classes)
    with pytest.raises(InputError, match="has one class; a classifier needs two"):
        Material.of(one)


def test_a_part_is_held_out_unless_all_is_asked_for(material: Material) -> None:
    split = Material.of(material.train, hold_out=5)
    assert len(split.train) + len(split.test) == 300
    assert 50 <= len(split.test) <= 60
    assert split.measured_on == "held-out pictures"
    whole = Material.of(material.train, hold_out=0)
    assert whole.train is whole.test
    assert whole.measured_on == "the training pictures"


def test_frozen_statistics_are_an_option(
    pruned: OpenedModel, material: Material, tmp_path: Path
) -> None:
    fitted = finetune(pruned, material, replace(PLAIN, steps=2, freeze_stats=True), tmp_path / "r")
    assert fitted.model is not None
    state = fitted.model.state_dict()
    kept = [torch.equal(state[name], each) for name, each in pruned.model.state_dict().items()]
    running = ["running" in name or "num_batches" in name for name in state]
    assert kept == running
    assert math.isfinite(float(sum(each.float().sum() for each in state.values())))
