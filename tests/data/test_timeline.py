from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normapps.data.timeline import Timeline
from normapps.data.video import Clip, Frame

BASE = Fraction(1, 1000)


def _clip(rate: int = 25, duration: int = 2, origin: Fraction = Fraction(0)) -> Clip:
    return Clip(8, 8, Fraction(1), Fraction(rate), BASE, origin, Fraction(duration), ())


def _frames(stamps, origin: Fraction = Fraction(0)) -> list[Frame]:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return [Frame(pixels, pts, pts * BASE - origin) for pts in stamps]


def _shown(timeline, stamps, clip=None, tick=0, origin=Fraction(0)) -> list[tuple[int, list[int]]]:
    shown = timeline.show(_frames(stamps, origin), clip or _clip(origin=origin), tick)
    return [(frame.pts, list(ticks)) for frame, ticks in shown]


def test_without_a_rate_every_frame_keeps_its_stamp() -> None:
    shown = _shown(Timeline(), [0, 40, 41, 300])
    assert shown == [(0, [0]), (40, [40]), (41, [41]), (300, [300])]


def test_stamps_count_from_start_and_origin() -> None:
    origin, timeline = Fraction("1.4"), Timeline(start=Fraction("0.5"))
    assert _shown(timeline, [1900, 1950], origin=origin) == [(1900, [0]), (1950, [50])]


def test_a_lower_rate_leaves_frames_out_and_a_higher_repeats_them() -> None:
    stamps = range(0, 400, 40)
    lower = _shown(Timeline(rate=Fraction(5)), stamps)
    assert [ticks for _, ticks in lower] == [[0], [1]]
    higher = _shown(Timeline(rate=Fraction(50)), stamps)
    assert [len(ticks) for _, ticks in higher] == [2] * 10


def test_the_same_rate_is_not_disturbed_by_rounded_stamps() -> None:
    stamps = [round(1000 * i / 30) for i in range(60)]  # as Matroska has them
    shown = _shown(Timeline(rate=Fraction(30)), stamps, _clip(30))
    assert [ticks for _, ticks in shown] == [[i] for i in range(60)]


stamps_of_clips = st.lists(st.integers(0, 3000), min_size=1, unique=True).map(sorted)
rates = st.fractions(Fraction(1, 2), 90, max_denominator=7)


def _reference(stamps, rate) -> dict[int, int]:
    """Tick → frame: the last frame whose own tick is not after it, the first one before that."""
    own = [math.floor(pts * BASE * rate + Fraction(1, 2)) for pts in stamps]
    over = math.floor((stamps[-1] * BASE + Fraction(1, 25)) * rate + Fraction(1, 2))
    return {
        tick: max([0, *(i for i, first in enumerate(own) if first <= tick)]) for tick in range(over)
    }


@given(stamps_of_clips, rates)
def test_a_fixed_rate_has_no_gap(stamps, rate) -> None:
    shown = _shown(Timeline(rate=rate), stamps)
    got = {tick: stamps.index(pts) for pts, ticks in shown for tick in ticks}
    assert list(got) == sorted(got)
    assert got == _reference(stamps, rate)


@given(stamps_of_clips, rates, st.data())
def test_going_on_continues_the_ticks(stamps, rate, data) -> None:
    timeline = Timeline(rate=rate)
    whole = _shown(timeline, stamps)
    at = data.draw(st.integers(0, len(whole)))
    if at:
        pts, ticks = whole[at - 1]
        rest = _shown(timeline, [each for each in stamps if each > pts], tick=ticks[-1] + 1)
        assert rest == whole[at:]


@pytest.mark.parametrize(
    ("timeline", "frames"),
    [
        (Timeline(), 50),
        (Timeline(start=Fraction(1)), 25),
        (Timeline(end=Fraction("0.4")), 10),
        (Timeline(end=Fraction(60)), 50),
        (Timeline(rate=Fraction(5)), 10),
        (Timeline(rate=Fraction(100)), 50),
    ],
)
def test_how_many_frames_are_expected(timeline, frames) -> None:
    assert timeline.frames(_clip()) == frames


def test_a_clip_of_unknown_length_promises_nothing() -> None:
    assert Timeline().frames(_clip(duration=0)) == 0


def test_the_end_stops_the_last_frame() -> None:
    shown = _shown(Timeline(end=Fraction("0.1"), rate=Fraction(100)), [0, 90])
    assert shown == [(0, list(range(9))), (90, [9])]
