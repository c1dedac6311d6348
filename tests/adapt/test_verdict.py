"""The verdict: every branch, and that better numbers never make it worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normapps.adapt.verdict import CHANCE, CLOSE, FAR, FEWEST, Evidence, judge
from normapps.measure.agreement import Agreement, Answers
from normapps.measure.interval import Estimate
from normapps.measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED

BEFORE = Answers(confidence=0.3, entropy=3.0, diversity=4.0, largest_share=0.1)
SURER = replace(BEFORE, confidence=0.5, entropy=2.0)
HELPED = Evidence(
    Agreement(200, 100, 0.5, 1.0, BEFORE, SURER), shift=(0.1, 2.0, 3.0), chance=(0.01, 0.01, 0.3)
)
"""Far pictures, a surer model, no labels."""


def _with(evidence: Evidence, **after: float) -> Evidence:
    agreement = evidence.agreement
    return replace(evidence, agreement=replace(agreement, after=replace(agreement.after, **after)))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.1, 0.02, 0.2), RECOMMENDED),
        ((-0.1, -0.2, -0.02), NOT_RECOMMENDED),
        ((0.1, -0.01, 0.2), UNDECIDED),
        ((0.0, 0.0, 0.1), UNDECIDED),
    ],
)
def test_with_labels_the_interval_decides(
    difference: tuple[float, float, float], verdict: str
) -> None:
    found = judge(replace(HELPED, difference=Estimate(*difference, 200)))
    assert found.verdict == verdict
    assert f"{100 * difference[0]:+.1f} points" in found.reason
    assert "200 labelled pictures" in found.reason


def test_one_labelled_picture_is_singular() -> None:
    found = judge(replace(HELPED, difference=Estimate(-1.0, -1.0, 0.7, 1)))
    assert found.verdict == UNDECIDED
    assert "on 1 labelled picture, which" in found.reason


def test_far_pictures_and_a_surer_model_are_good() -> None:
    found = judge(HELPED)
    assert found.verdict == RECOMMENDED
    assert "2 nats" in found.reason
    assert "from 0.30 to 0.50" in found.reason


def test_random_weights_are_not_mended() -> None:
    evidence = replace(HELPED, is_random=True, difference=Estimate(0.1, 0.05, 0.2, 9))
    found = judge(evidence)
    assert found.verdict == NOT_RECOMMENDED
    assert "random weights" in found.reason


def test_outputs_that_are_not_finite() -> None:
    found = judge(_with(HELPED, confidence=float("nan")))
    assert (found.verdict, "not finite" in found.reason) == (NOT_RECOMMENDED, True)


def test_a_collapse() -> None:
    found = judge(_with(HELPED, diversity=0.3, largest_share=0.97))
    assert found.verdict == NOT_RECOMMENDED
    assert "97% of the pictures get one class" in found.reason


def test_a_collapse_that_is_mended() -> None:
    before = Answers(confidence=0.99, entropy=0.1, diversity=0.2, largest_share=0.98)
    collapsed = replace(HELPED, agreement=replace(HELPED.agreement, before=before))
    found = judge(collapsed)
    assert found.verdict == RECOMMENDED
    assert "it gave 98% of them one class, and after adaptation 10%" in found.reason
    # pictures of one class look so, too, but are not far
    assert judge(replace(collapsed, shift=(0.3,))).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shift": ()}, "neither labels nor running statistics"),
        ({"chance": ()}, "neither labels nor running statistics"),
        ({"agreement": replace(HELPED.agreement, count=FEWEST - 1)}, f"give {FEWEST} or more"),
        ({"shift": (0.0, (CLOSE + FAR) / 2, 9.0)}, "Label some pictures"),
        ({"shift": (1.0, 1.0, 9.0), "chance": (0.3, 0.3, 0.3)}, "Label some pictures"),
    ],
)
def test_what_tells_too_little(changes: dict[str, object], words: str) -> None:
    if changes.get("chance") == (0.3, 0.3, 0.3):
        found = judge(_with(replace(HELPED, **changes), confidence=0.2))  # type: ignore[arg-type]
    else:
        found = judge(replace(HELPED, **changes))  # type: ignore[arg-type]
    assert found.verdict == UNDECIDED
    assert words in found.reason


def test_less_sure_or_less_diverse_is_undecided() -> None:
    assert judge(_with(HELPED, confidence=0.3)).verdict == UNDECIDED
    assert judge(_with(HELPED, diversity=3.5)).verdict == UNDECIDED


@pytest.mark.parametrize("shift", [0.9 * CLOSE, 0.9 * CHANCE * 0.3])
def test_pictures_like_the_models_own_need_none(shift: float) -> None:
    chance = 0.01 if shift < CLOSE else 0.3
    found = judge(replace(HELPED, shift=(shift,) * 3, chance=(chance,) * 3))
    assert found.verdict == NOT_RECOMMENDED
    assert "much like" in found.reason


@given(
    shift=st.floats(0, 10),
    chance=st.floats(0, 1),
    confidence=st.floats(0, 1),
    diversity=st.floats(0, 5),
    count=st.integers(1, 100),
)
def test_more_distance_or_confidence_never_makes_it_worse(
    shift: float, chance: float, confidence: float, diversity: float, count: int
) -> None:
    order = [NOT_RECOMMENDED, UNDECIDED, RECOMMENDED]

    def rank(shift: float, confidence: float) -> int:
        evidence = replace(
            HELPED,
            shift=(shift,),
            chance=(chance,),
            agreement=replace(HELPED.agreement, count=count),
        )
        found = judge(_with(evidence, confidence=confidence, diversity=diversity))
        assert found.reason
        assert "\n" not in found.reason
        return order.index(found.verdict)

    assert rank(shift, confidence) <= rank(shift + 0.2, confidence)
    assert rank(shift, confidence) <= rank(shift, confidence + 0.2)
