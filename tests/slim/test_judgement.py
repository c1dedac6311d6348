from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normapps.measure.accuracy import accuracy, paired_difference
from normapps.measure.latency import Latency
from normapps.measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED
from normapps.measure.stages import Stage
from normapps.measure.timing import Timing
from normapps.slim.judgement import Evidence, judge, next_step
from normapps.slim.latency import Footprint

BASE = Stage("base", 1000, True)


def after(lost: int, pictures: int = 1000, gained: int = 0) -> Stage:
    """A last stage with labels: so many right answers lost and won."""
    before, now = torch.ones(pictures, dtype=torch.bool), torch.ones(pictures, dtype=torch.bool)
    now[:lost] = False
    before[lost : lost + gained] = False
    return Stage("pruned", pictures, True, difference=paired_difference(before, now))


def alike(same: int, pictures: int = 1000) -> Stage:
    """A last stage without labels."""
    return Stage("pruned", pictures, True, same=accuracy(same, pictures))


def at(batch_size: int, speedup: float) -> Latency:
    times = {"base": Timing((1.0, 1.1)), "slimmed": Timing((1 / speedup, 1.1 / speedup))}
    return Latency(batch_size, times)


FAST = (at(1, 1.4), at(32, 1.6))
GOOD = Evidence(Footprint(1000, 5000, 4000), Footprint(700, 3000, 2800), (BASE, after(2)), FAST)


def test_good_and_fast_is_recommended() -> None:
    found = judge(GOOD)
    assert found.verdict == RECOMMENDED
    assert "40 % fewer MACs and 30 % fewer parameters" in found.reason
    assert "1.40× at batch 1 and 1.60× at batch 32" in found.reason
    assert "Accuracy changes by -0.2 points (95 %:" in found.reason


def test_a_gain_in_accuracy_is_no_loss() -> None:
    assert judge(replace(GOOD, stages=(BASE, after(0, gained=30)))).verdict == RECOMMENDED


def test_not_faster_is_not_recommended_however_good() -> None:
    found = judge(replace(GOOD, latencies=(at(1, 1.02), at(32, 0.97))))
    assert found.verdict == NOT_RECOMMENDED
    assert "40 % fewer MACs" in found.reason
    assert "but not faster here (1.02× at batch 1 and 0.97× at batch 32)" in found.reason


def test_one_batch_size_that_is_faster_is_enough() -> None:
    assert judge(replace(GOOD, latencies=(at(1, 0.9), at(32, 1.06)))).verdict == RECOMMENDED


@pytest.mark.parametrize(
    ("lost", "is_finetuned", "verdict", "words"),
    [
        (300, False, UNDECIDED, "before any finetuning: `normapps slim finetune`"),
        (300, True, NOT_RECOMMENDED, "after finetuning"),
        (9, False, UNDECIDED, "too few to tell"),
        (9, True, UNDECIDED, "too few to tell"),
    ],
)
def test_lost_accuracy(lost: int, is_finetuned: bool, verdict: str, words: str) -> None:
    found = judge(replace(GOOD, stages=(BASE, after(lost)), is_finetuned=is_finetuned))
    assert found.verdict == verdict
    assert words in found.reason


def test_few_pictures_do_not_tell() -> None:
    assert judge(replace(GOOD, stages=(BASE, after(0, pictures=20)))).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("same", "verdict", "words"),
    [
        (1000, RECOMMENDED, "cannot have changed by more"),
        (985, UNDECIDED, "too few to tell"),
        (960, UNDECIDED, "no labels to tell"),
        (100, UNDECIDED, "normapps slim finetune"),
    ],
)
def test_without_labels_agreement_must_be_almost_complete(
    same: int, verdict: str, words: str
) -> None:
    found = judge(replace(GOOD, stages=(BASE, alike(same))))
    assert found.verdict == verdict
    assert words in found.reason
    assert f"{same / 10:.1f} % of 1000 pictures" in found.reason


def test_after_finetuning_no_finetuning_is_advised() -> None:
    found = judge(replace(GOOD, stages=(BASE, alike(500)), is_finetuned=True))
    assert found.verdict == UNDECIDED
    assert "finetune" not in found.reason


def test_without_pictures_only_what_is_lossless_is_known_to_be_good() -> None:
    found = judge(replace(GOOD, stages=()))
    assert found.verdict == UNDECIDED
    assert "no pictures were given; --data names some" in found.reason
    found = judge(replace(GOOD, stages=(), not_judged="the model returns a dict"))
    assert "The answers were not judged: the model returns a dict." in found.reason
    found = judge(replace(GOOD, stages=(), is_lossless=True))
    assert found.verdict == RECOMMENDED
    assert "No output changes" in found.reason
    few = replace(GOOD, stages=(BASE, alike(20, pictures=20)))
    assert judge(few).verdict == UNDECIDED
    assert judge(replace(few, is_lossless=True)).verdict == RECOMMENDED
    contradicted = replace(GOOD, stages=(BASE, alike(900)), is_lossless=True)
    assert judge(contradicted).verdict == UNDECIDED
    assert judge(replace(GOOD, stages=(BASE, BASE))).verdict == UNDECIDED


def test_time_that_was_not_measured_decides_nothing() -> None:
    found = judge(replace(GOOD, latencies=()))
    assert found.verdict == UNDECIDED
    assert "no time was measured" in found.reason


def test_what_is_no_use_whatever_else() -> None:
    found = judge(replace(GOOD, is_random=True))
    assert (found.verdict, "random weights" in found.reason) == (NOT_RECOMMENDED, True)
    found = judge(replace(GOOD, after=GOOD.before))
    assert (found.verdict, "No channel went" in found.reason) == (NOT_RECOMMENDED, True)
    found = judge(replace(GOOD, stages=(BASE, replace(after(0), is_finite=False))))
    assert (found.verdict, "not finite" in found.reason) == (NOT_RECOMMENDED, True)


def test_the_stage_that_is_kept_is_judged_and_named() -> None:
    early, late = replace(after(2), name="compensated"), replace(after(300), name="recalibrated")
    both = replace(GOOD, stages=(BASE, early, late))
    assert judge(both).verdict == UNDECIDED
    kept = replace(both, kept="compensated")
    assert judge(kept).verdict == RECOMMENDED
    assert [kept.title(each) for each in kept.stages] == [
        *("base", "compensated (kept)", "recalibrated")
    ]
    broken = replace(both, stages=(BASE, early, replace(late, is_finite=False)))
    assert judge(broken).verdict == NOT_RECOMMENDED
    assert judge(replace(broken, kept="compensated")).verdict == RECOMMENDED


def test_the_next_step_is_a_command_that_a_shell_takes() -> None:
    place = Path("my runs") / "slim"
    worse = replace(GOOD, stages=(BASE, after(300)))
    told = next_step(worse, judge(worse), place)
    words = shlex.split(told.partition(": ")[2])
    assert words == [
        *("normapps", "slim", "finetune", str(place), "TRAINING_PICTURES"),
        *("-o", f"{place}-finetuned"),
    ]
    assert next_step(GOOD, judge(GOOD), place) == f"Use it: normapps.load_model({str(place)!r})"
    slow = replace(GOOD, latencies=(at(1, 1.0),), is_lossless=True)
    assert "load_model" in next_step(slow, judge(slow), place)
    for hopeless in (replace(GOOD, is_random=True), replace(GOOD, after=GOOD.before)):
        assert next_step(hopeless, judge(hopeless), place) == ""


def test_a_reason_is_one_line() -> None:
    for stages in ((BASE, after(300)), (BASE, alike(900)), ()):
        for latencies in (FAST, (), (at(1, 1.0),)):
            reason = judge(replace(GOOD, stages=stages, latencies=latencies)).reason
            assert "\n" not in reason
            assert reason.endswith(".")
