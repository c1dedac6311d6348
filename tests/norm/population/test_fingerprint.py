"""Fingerprints: the same for the same weights, and the first weight that differs by its name."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.norm.population.fingerprint import Fingerprint


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_statistics_and_memory_format_do_not_matter() -> None:
    model = _model()
    expected = Fingerprint.of(model)
    model(torch.randn(2, 3, 5, 5))
    assert Fingerprint.of(model.to(memory_format=torch.channels_last)) == expected
    assert [entry.name for entry in expected.entries] == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    ]


def test_it_sees_every_element() -> None:
    model = _model()
    expected = Fingerprint.of(model)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            old = weight.flatten()[-1].clone()
            weight.view(-1)[-1] = torch.nextafter(old, old + 1)
        assert expected.difference(Fingerprint.of(model)) == f"{name} differs"
        with torch.no_grad():
            weight.view(-1)[-1] = old
    assert expected.difference(Fingerprint.of(model)) is None


def test_the_first_difference_is_named() -> None:
    found = Fingerprint.of(_model())
    assert found.difference(Fingerprint.of(_model(1))) == "0.weight differs"
    wider = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert found.difference(Fingerprint.of(wider)) == (
        "0.weight has shape (4, 3, 3, 3), the other (8, 3, 3, 3)"
    )
    half = Fingerprint.of(_model().bfloat16())
    assert found.difference(half) == "0.weight is float32, the other bfloat16"
    other = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    assert found.difference(Fingerprint.of(other)) == "0.weight stands where the other has 1.weight"


@pytest.mark.parametrize("longer_first", [True, False])
def test_a_missing_end_is_named(longer_first: bool) -> None:
    model = _model()
    both = Fingerprint.of(model), Fingerprint.of(model[:2])
    first, second = both if longer_first else both[::-1]
    assert first.difference(second) == "2.weight is in one of the two only"


def test_it_survives_json() -> None:
    found = Fingerprint.of(_model())
    assert Fingerprint.from_list(json.loads(json.dumps(found.to_list()))) == found


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"^0\.weight: has no values"):
        Fingerprint.of(_model().to("meta"))
