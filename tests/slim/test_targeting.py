"""The law of the strength that brings a quantile of the scales to 0 in time."""

from __future__ import annotations

import math

import pytest

from normapps.errors import InputError
from normapps.slim.targeting import TargetStrength


def test_law_written_out() -> None:
    law = TargetStrength(1e-3, 0.6, 200)
    told = [(10, 0.0, 1.0), (20, 0.0, 0.98), (30, 0.0, 0.5), (60, 0.2, 0.55), (119, 0.5, 0.1)]
    value = 1e-3
    for last, (step, found, quantile) in zip([None, *told], told, strict=False):
        law.update(step, found, quantile)
        if last is not None:
            speed = (last[2] - quantile) / (step - last[0])
            needed = quantile / max(120 - step, 4)
            value *= math.sqrt(max(0.25, min(4.0, needed / speed if speed > 0 else 4.0)))
        assert law.value == pytest.approx(value, rel=1e-12)
    law.update(140, 0.7, 0.0)
    assert law.value == pytest.approx(value * math.exp(60 * -0.1 * 21 / 200), rel=1e-12)


@pytest.mark.parametrize(("found", "quantile", "exponent"), [(0.0, 1.0, 4), (1.0, 0.0, -4)])
def test_strength_is_bounded(found: float, quantile: float, exponent: int) -> None:
    law = TargetStrength(1e-3, 0.5, 100)
    for step in range(1, 100):
        law.update(step, found, quantile)
    assert law.value == pytest.approx(1e-3 * 10.0**exponent)


def test_it_looks_a_hundred_times_but_not_at_every_step_of_a_long_training() -> None:
    assert [TargetStrength(1e-3, 0.5, steps).every for steps in (7, 100, 350, 9000)] == [
        1,
        1,
        3,
        10,
    ]


def test_a_scale_that_follows_the_strength_arrives_in_time() -> None:
    """A scale falls by λ a step, whatever λ it began with; the loss holds it back a little."""
    for first in (1e-5, 1e-2):
        law, value, arrived = TargetStrength(first, 0.5, 1000), 1.0, 0
        for step in range(1, 1001):
            value = max(0.0, value - max(0.0, law.value - 1e-3))
            if step % law.every == 0:
                law.update(step, 0.5 if value == 0 else 0.0, value)
            arrived = arrived or (step if value == 0 else 0)
        assert 500 < arrived < 700


def test_state_goes_on_exactly() -> None:
    law, other = TargetStrength(1e-3, 0.5, 100), TargetStrength(1e-3, 0.5, 100)
    for between in (None, (10, 0.3, 0.2)):
        if between is not None:
            law.update(*between)
        other.load_state_dict(law.state_dict())
        for each in (law, other):
            each.update(30, 0.1, 0.1)
        assert law.value == other.value
        assert law.state_dict() == other.state_dict()


def test_out_of_range() -> None:
    for target in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="target_sparsity"):
            TargetStrength(1e-4, target, 10)
    with pytest.raises(InputError, match="steps 0"):
        TargetStrength(1e-4, 0.5, 0)
