"""Timing several things against each other in one run, fairly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

from ..errors import InputError


@dataclass(frozen=True)
class Timing:
    """Seconds that one case took, a number each time it ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the times: what a slow outlier does not move."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles; the time itself, twice, where it ran once."""
        if len(self.seconds) == 1:
            return self.seconds * 2
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def interleave(
    cases: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    pause: float = 0.0,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every case in turn, round after round, and time each run.

    A machine that slows down for a while slows all cases alike. Each round begins with another
    case, so that none always follows the same one.

    Args:
        cases: functions of no arguments by name.
        repeats: timed rounds.
        warmup: rounds before them that are not timed.
        pause: seconds of rest before each run: worker threads of the library that ran last spin
            for a while and would take the next one's cores.
        synchronize: waits for a device to finish; called before either reading of the clock.
        clock: returns seconds.

    Raises:
        InputError: no case, or no round to time.
    """
    if not cases or repeats < 1:
        raise InputError(f"{len(cases)} cases, {repeats} repeats: at least one of each is needed")
    wait = synchronize or _nothing
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            taken = _time(cases[name], wait, clock)
            if turn >= 0:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _time(
    case: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float]
) -> float:
    wait()
    start = clock()
    case()
    wait()
    return clock() - start


def _nothing() -> None:
    """Nothing to wait for: the CPU is done when the call returns."""
