"""How far an order of removal is followed until a measured time is met.

Time is neither noiseless nor a falling function of the channels (widths that are no multiple of a
vector register cost more than wider ones), so nothing here relies on either: a coarse grid is
measured first, then the gap before the first point that meets the target is bisected, and what is
reported is measured again at the end, after the choice and beside the whole network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .removal import Array, Removal

Measure = Callable[[Array], float]
"""Seconds that the network takes with a (count,) bool mask of what stays."""

TOLERANCE = 0.02
"""Fraction of the target within which a time has met it."""

GRID = 4
TRIES = 4


@dataclass(frozen=True)
class Timed:
    """Where an order is stopped, and the time measured there.

    Attributes:
        taken: atoms of the order.
        fraction: of the whole network's time, both measured once more after the choice.
        measurements: in all, those included.
    """

    taken: int
    fraction: float
    measurements: int


def by_latency(order: Removal, measure: Measure, target: float, before: int = 0) -> Timed:
    """Find the shortest removal among those measured that takes `target` of the time at most.

    Args:
        order: of removal.
        measure: called 3 to 12 times.
        target: fraction of the whole network's time, in (0, 1], met within `TOLERANCE`.
        before: atoms of the order that have gone already, and go in any case.

    Raises:
        InputError: no point of the grid meets it; names the nearest. Or a time is no positive
            finite number.
    """
    whole = _time(order, measure, 0)
    aim, limit = target * whole, target * whole * (1 + TOLERANCE)
    times: dict[int, float] = {}
    for taken in np.linspace(before, len(order.order), GRID + 1).round().astype(int).tolist():
        times[taken] = whole if taken == 0 else _time(order, measure, taken)
        if times[taken] <= limit:
            break
    if min(times.values()) > limit:
        nearest = min(times.values()) / whole
        raise InputError(
            f"--target-latency {target:g}: cannot be met here, the nearest measured is"
            f" {nearest:.3g} of the time; ask for that, or for --target-flops"
        )
    _bisect(order, measure, aim, times)
    taken = min(each for each, seconds in times.items() if seconds <= limit)
    fraction = _time(order, measure, taken) / _time(order, measure, 0)
    return Timed(taken, fraction, len(times) + 2 + (0 not in times))


def _bisect(order: Removal, measure: Measure, aim: float, times: dict[int, float]) -> None:
    """Measure between the first point that meets `aim` and the one before it; adds to `times`."""
    high = min(taken for taken, seconds in times.items() if seconds <= aim * (1 + TOLERANCE))
    low = max((taken for taken in times if taken < high), default=high)
    for _ in range(TRIES):
        if high - low <= 1 or abs(times[high] / aim - 1) <= TOLERANCE:
            return
        middle = (low + high) // 2
        times[middle] = _time(order, measure, middle)
        if times[middle] <= aim * (1 + TOLERANCE):
            high = middle
        else:
            low = middle


def _time(order: Removal, measure: Measure, taken: int) -> float:
    seconds = measure(order.keep(taken))
    if not (np.isfinite(seconds) and seconds > 0):
        raise InputError(f"a latency of {seconds} s was measured: must be positive and finite")
    return float(seconds)
