"""Options of `slim prune`: one way to say how much, and nothing that would be ignored."""

from __future__ import annotations

from typing import Any

import pytest

from normapps.errors import InputError
from normapps.slim.prune_options import RATIO, PruneOptions


def test_the_default_amount_is_known_to_be_one() -> None:
    assert PruneOptions().amount == ("ratio", RATIO)
    assert PruneOptions().is_default
    assert not PruneOptions(ratio=RATIO).is_default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", 0.0),
        ("target_flops", 0.5),
        ("target_params", 1.0),
        ("target_latency", 0.7),
        ("lossless", True),
    ],
)
def test_each_way_to_say_how_much(name: str, value: Any) -> None:
    assert PruneOptions(**{name: value}).amount == (name, float(value))
    other: dict[str, Any] = {"target_params": 0.3} if name != "target_params" else {"ratio": 0.1}
    with pytest.raises(InputError, match="say how much in one way, not 2"):
        PruneOptions(**{name: value}, **other)


@pytest.mark.parametrize(
    "given",
    [
        {"importance": "random"},
        {"per_layer": True},
        {"iterative": 2},
        {"compensate": False},
    ],
)
def test_what_lossless_would_ignore_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--lossless --.*{next(iter(given)).split('_')[0]}"):
        PruneOptions(lossless=True, **given)


def test_a_limit_needs_pictures() -> None:
    with pytest.raises(InputError, match="--limit 5"):
        PruneOptions(limit=5)
    assert PruneOptions(limit=5, data="here").limit == 5


def test_the_rules_are_what_a_plan_takes() -> None:
    rules = PruneOptions(per_layer=True, round_to=8, ignore=("head",)).rules()
    assert rules == {"per_layer": True, "min_channels": 1, "round_to": 8, "ignore": ("head",)}
