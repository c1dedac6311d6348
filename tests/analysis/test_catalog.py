"""The table of layers: what it says is so."""

from __future__ import annotations

import pytest

from normapps.analysis.catalog import catalog, describe
from normapps.errors import InputError
from normapps.norm.registry import create_norm, list_norms


def test_every_layer_has_an_entry() -> None:
    entries = catalog()
    assert tuple(entry.name for entry in entries) == list_norms()
    for entry in entries:
        place = (entry.partition, entry.operation, entry.recovery, entry.paper, entry.text)
        assert all(place), entry.name


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


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InputError, match="unknown norm 'iternom'; did you mean 'iternorm'"):
        describe("iternom")
