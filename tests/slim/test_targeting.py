"""The law of the strength that follows a wanted share of zeros."""

from __future__ import annotations

import math

import pytest

from normapps.errors import InputError
from normapps.slim.targeting import BOUND, INTEGRAL, PROPORTIONAL, TargetStrength


def test_wanted_rises_and_stays() -> None:
    law = TargetStrength(1e-4, 0.5, 100)
    assert [law.wanted(step) for step in (0, 30, 60, 100)] == [0, 0.25, 0.5, 0.5]


def test_law_written_out() -> None:
    law = TargetStrength(1e-3, 0.6, 200)
    integral, last = 0.0, 0
    for step, found in ((10, 0.0), (20, 0.02), (60, 0.5), (150, 0.58)):
        error = 0.6 * min(1, step / 120) - found
        integral, last = integral + INTEGRAL * error * (step - last) / 200, step
        law.update(step, found)
        wanted = 1e-3 * math.exp(integral + PROPORTIONAL * error)
        assert law.value == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("found", "bound"), [(0.0, BOUND), (1.0, -BOUND)])
def test_strength_is_bounded(found: float, bound: float) -> None:
    law = TargetStrength(1e-3, 0.5, 100)
    for step in range(1, 100):
        law.update(step, found)
    assert law.value == pytest.approx(1e-3 * math.exp(bound))


def test_state_goes_on_exactly() -> None:
    law, other = TargetStrength(1e-3, 0.5, 100), TargetStrength(1e-3, 0.5, 100)
    law.update(10, 0.3)
    other.load_state_dict(law.state_dict())
    for each in (law, other):
        each.update(30, 0.1)
    assert law.value == other.value


def test_out_of_range() -> None:
    for target in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="target_sparsity"):
            TargetStrength(1e-4, target, 10)
    with pytest.raises(InputError, match="steps 0"):
        TargetStrength(1e-4, 0.5, 0)
