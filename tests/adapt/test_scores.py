"""From predictions to rows: hand-counted shares, differences on the same pictures, verdicts."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch

from normapps.adapt.runs import Cell, Run
from normapps.adapt.scores import rows_of, verdict_of

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
RIGHT = LABELS.tolist()


def wrong_at(*places: int) -> tuple[int, ...]:
    return tuple((RIGHT[i] + 1) % 3 if i in places else RIGHT[i] for i in range(10))


def cell(method: str, answers: tuple[int, ...], seed: int = 0, **values: object) -> Cell:
    run = Run("shift", ("clean",), method, 8, seed)
    return Cell(run, "clean", answers, **values)  # type: ignore[arg-type]


def test_a_row_counts_right_answers_and_compares_with_the_source() -> None:
    source = cell("source", wrong_at(0, 1, 2, 3), entropy=0.5, seconds=0.1, peak_bytes=10)
    tent = cell("tent", wrong_at(0, 9), entropy=0.3, seconds=0.3, peak_bytes=30)
    first, second = rows_of([source, tent], LABELS)
    assert (first.method, first.gain, first.agreement) == ("source", None, 1.0)
    assert first.accuracy is not None
    assert first.accuracy.mean == pytest.approx(0.6)
    # Wilson's interval for 6 of 10
    z = 1.959963984540054
    middle, half = (
        (0.6 + z * z / 20) / (1 + z * z / 10),
        z * math.sqrt(0.024 + z * z / 400) / (1 + z * z / 10),
    )
    assert (first.accuracy.low, first.accuracy.high) == pytest.approx(
        (middle - half, middle + half)
    )
    assert second.accuracy is not None
    assert second.gain is not None
    assert second.accuracy.mean == pytest.approx(0.8)
    assert second.gain.mean == pytest.approx(0.2)
    assert second.gain.low < 0.2 < second.gain.high
    assert second.agreement == pytest.approx(0.6)  # they differ at 1, 2, 3 and 9
    assert (second.entropy, second.seconds, second.peak_bytes) == (0.3, 0.3, 30)


def test_seeds_are_averaged_and_the_pictures_are_what_counts() -> None:
    cells = [
        cell("source", wrong_at(0, 1, 2, 3), 0, seconds=1.0),
        cell("source", wrong_at(0, 1), 1, seconds=3.0),
        cell("tent", wrong_at(0, 1), 1),
        cell("tent", wrong_at(9), 0),
    ]
    source, tent = rows_of(cells, LABELS)
    assert source.accuracy is not None
    assert source.accuracy.mean == pytest.approx(0.7)
    assert source.accuracy.count == 10
    assert source.seconds == 2.0
    # one seed: 0 1 2 3 won, 9 lost; the other: nothing
    each = [0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, -0.5]
    assert tent.gain is not None
    assert tent.gain.mean == pytest.approx(fmean(each))
    t9 = 2.2621571628  # Student's, 9 degrees of freedom
    assert tent.gain.margin == pytest.approx(
        t9 * stdev(each) / math.sqrt(10), rel=1e-5
    )  # by a series
    assert tent.agreement == pytest.approx((5 + 10) / 20)


def test_without_labels_there_is_agreement() -> None:
    rows = rows_of([cell("source", wrong_at()), cell("tent", wrong_at(4))], None)
    assert [(row.accuracy, row.gain) for row in rows] == [(None, None)] * 2
    assert rows[1].agreement == pytest.approx(0.9)
    assert verdict_of([cell("source", wrong_at())], None).verdict == "undecided"


def test_a_method_that_could_not_run_says_why() -> None:
    (_, row) = rows_of([cell("source", wrong_at()), cell("adabn", (), note="needs 2")], LABELS)
    assert (row.note, row.accuracy, row.pictures) == ("needs 2", None, 0)


def many(method: str, wrong: int, batch_size: int = 8, domain: str = "clean") -> Cell:
    """200 pictures of class 0, the first `wrong` of them wrong."""
    answers = (1,) * wrong + (0,) * (200 - wrong)
    return Cell(Run("shift", (domain,), method, batch_size, 0), domain, answers)


ZEROS = torch.zeros(200, dtype=torch.int64)


@pytest.mark.parametrize(
    ("wrong", "verdict", "words"),
    [
        ((100, 60, 90), "recommended", "tent answers better than the source: +20.0 points"),
        ((60, 100, 90), "not recommended", "the best, adabn, answers worse: -15.0 points"),
        ((60, 59, 90), "undecided", "the best, tent, may be chance: +0.5 points"),
    ],
)
def test_the_best_method_decides(wrong: tuple[int, int, int], verdict: str, words: str) -> None:
    names = ("source", "tent", "adabn")
    found = verdict_of([many(*pair) for pair in zip(names, wrong, strict=True)], ZEROS)
    assert found.verdict == verdict
    assert found.reason.startswith(words)
    assert "for the best of 2)" in found.reason


def test_the_verdict_is_on_all_domains_and_names_the_setting() -> None:
    cells = [
        *(many("source", 100, size, domain) for size in (8, 50) for domain in ("clean", "fog:3")),
        many("tent", 40, 8, "clean"),
        many("tent", 160, 8, "fog:3"),
        many("tent", 60, 50, "clean"),
        many("tent", 100, 50, "fog:3"),
    ]
    found = verdict_of(cells, ZEROS)
    assert found.verdict == "recommended"
    assert found.reason.startswith(
        "tent (shift, batches of 50) answers better than the source: +10"
    )


def test_nothing_to_compare_is_undecided() -> None:
    assert verdict_of([many("source", 5)], ZEROS).reason == "no method but the source could be run"
    one = [cell("source", (0,)), cell("tent", (1,))]
    assert verdict_of(one, torch.tensor([0])).reason == "one picture tells nothing"
