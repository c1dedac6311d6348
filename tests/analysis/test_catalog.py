"""The table of methods: what it says is so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from normapps.analysis.catalog import catalog, describe, names
from normapps.analysis.methods import CONSTRAINTS, KINDS, OF_INPUTS, REGULARIZERS, WEIGHTS, methods
from normapps.errors import InputError
from normapps.norm.inputs import METHODS, InputNorm
from normapps.norm.layers.moment_exchange import MomentExchange
from normapps.norm.registry import create_norm, list_norms
from normapps.norm.weight.manifold import MANIFOLDS, constrain_
from normapps.norm.weight.penalties import PENALTIES, orthogonal_penalty
from normapps.norm.weight.registry import WEIGHT_METHODS, normalize_weights_
from normapps.training.optimizers import OPTIMIZERS, create_optimizer

TUTORIAL = {
    "activation": {
        *("frn", "mean_only", "l1", "top_k", "pca", "group_whitening", "switchable_whitening"),
        *("renorm", "moment_shortcut", "moment_exchange", "region", "iebn", "attentive"),
        *("diminishing", "online", "moving", "memorized", "prong"),
    },
    "weight": {
        *("spectral", "standardized", "centered", "weight", "orthogonal", "own", "oni"),
        *("oblique", "stiefel", "so", "dso", "srip"),
    },
    "gradient": {"centralized", "block_normalized", "clipped", "lars", "lamb", "adamp"},
    "input": {"center", "standardize", "zca", "pca"},
}


def test_every_method_has_an_entry() -> None:
    entries = catalog()
    assert {entry.name for entry in entries} >= set(list_norms())
    assert len({(entry.kind, entry.name) for entry in entries}) == len(entries)
    for entry in entries:
        place = (entry.partition, entry.operation, entry.recovery, entry.paper, entry.text)
        assert all((*place, entry.cost, entry.use)), entry.name


def test_the_table_has_the_methods_of_the_tutorial() -> None:
    for kind, wanted in TUTORIAL.items():
        assert wanted <= set(names(kind)), kind
    assert set(names("activation")) >= set(list_norms())
    assert set(TUTORIAL) == set(KINDS)


def test_it_has_what_the_registries_have() -> None:
    assert WEIGHTS.keys() == WEIGHT_METHODS.keys()
    assert CONSTRAINTS.keys() == MANIFOLDS.keys()
    assert REGULARIZERS.keys() == PENALTIES.keys()
    assert OF_INPUTS.keys() == set(METHODS)
    assert {"lars", "lamb", "adamp"} <= OPTIMIZERS.keys() & set(names("gradient"))


def test_what_it_says_can_be_done() -> None:
    """The one line of every method but the shortcut, which needs two places, runs."""
    network = nn.Sequential(nn.Linear(5, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    given: dict[str, Any] = {"nn": nn, "optimizer": optimizer, "loss": 0.0, "stem": nn.ReLU()}
    given |= {"rest": nn.ReLU(), "batches": [torch.randn(8, 3)]}
    given |= {each.__name__: each for each in (constrain_, create_optimizer, orthogonal_penalty)}
    given |= {each.__name__: each for each in (normalize_weights_, InputNorm, MomentExchange)}
    for (_, name), method in methods().items():
        if name != "moment_shortcut":
            chosen = copy.deepcopy(network)
            if "constrain_" in method.use:
                chosen = network
            eval(method.use, given | {"model": chosen})


def test_options_and_state_are_the_layers_own() -> None:
    entry = describe("batch")
    assert entry.options["eps"] == "1e-05"
    assert entry.state["running_var"] == "(C,)"
    assert list(entry.state) == list(create_norm("batch", 8).state_dict())
    assert not entry.needs_condition


def test_what_must_be_given_is_marked() -> None:
    entry = describe("conditional")
    assert entry.options["num_classes"] == "required"
    assert "num_classes" in entry.state["weight"]
    assert entry.needs_condition


def test_a_pattern_chooses() -> None:
    assert [entry.name for entry in catalog("i?n")] == ["ibn", "iln"]
    assert [(entry.kind, entry.name) for entry in catalog("zc*")] == [
        ("activation", "zca"),
        ("input", "zca"),
    ]
    assert [entry.name for entry in catalog("*c*", "input")] == ["center", "pca", "zca"]
    assert describe("zca").kind == "activation"
    assert describe("zca", "input").use.startswith("InputNorm(")


def test_a_method_shows_what_its_name_leaves_open() -> None:
    assert describe("own").options == {"scale": "1.4142135623730951", "group_size": "None"}
    assert describe("stiefel").options == {"retraction": "'qr'"}
    assert describe("oblique").options == {}
    assert describe("srip").options == {"iterations": "2"}
    assert describe("clipped").options == {"factor": "0.01", "eps": "0.001"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="unknown norm 'iternom'; did you mean 'iternorm'"):
        describe("iternom")
    with pytest.raises(InputError, match="unknown weight method 'onni'; did you mean 'oni'"):
        describe("onni", "weight")
    with pytest.raises(InputError, match="unknown kind 'weights'; did you mean 'weight'"):
        catalog(kind="weights")
