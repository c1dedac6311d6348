from __future__ import annotations

import time

import pytest

from normapps.errors import InputError
from normapps.measure.timing import Timing, interleave


class Clock:
    """Seconds that pass only when a case says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_each_case_gets_its_own_seconds() -> None:
    clock = Clock()
    times = iter([9.0, 1.0, 5.0, 2.0])
    cases = {"slow": lambda: clock.work(3), "varied": lambda: clock.work(next(times))}
    got = interleave(cases, repeats=3, warmup=1, clock=clock)
    assert got["slow"].seconds == (3, 3, 3)
    assert got["varied"].seconds == (1, 5, 2)
    assert got["varied"].median == 2


def test_cases_take_turns_and_each_round_begins_with_another() -> None:
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "abc"}
    interleave(cases, repeats=3, warmup=2)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 15, 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab"]


def test_the_device_is_waited_for_before_both_readings() -> None:
    clock = Clock()
    queued: list[float] = []

    def synchronize() -> None:
        clock.work(sum(queued))
        queued.clear()

    cases = {"queues": lambda: queued.append(2.0), "returns": lambda: clock.work(1)}
    got = interleave(cases, repeats=2, synchronize=synchronize, clock=clock)
    assert got["queues"].seconds == (2, 2)
    assert got["returns"].seconds == (1, 1)


def test_the_pause_is_not_timed() -> None:
    start = time.perf_counter()
    got = interleave({"nothing": lambda: None}, repeats=2, warmup=0, pause=0.05)
    assert time.perf_counter() - start >= 0.1
    assert max(got["nothing"].seconds) < 0.05


def test_the_spread_is_the_quartiles() -> None:
    assert Timing((5, 1, 4, 2, 3)).spread == (2, 4)
    assert Timing((7.0,)).spread == (7, 7)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(InputError, match="0 cases, 7 repeats"):
        interleave({})
    with pytest.raises(InputError, match="1 cases, 0 repeats"):
        interleave({"nothing": lambda: None}, repeats=0)
