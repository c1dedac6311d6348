"""Networks timed in turns at one batch size, whatever runs them.

Fewer multiplications, or smaller numbers, are not less time, so time is measured, and in turns: a
machine that slows down for a while slows all networks alike. The ratio of two networks is taken
round by round, and is therefore better known than either time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .timing import Timing, interleave

SECONDS = 8.0
"""What timing one batch size may take about, all networks together."""

_FEWEST, _MOST = 5, 51
"""Rounds."""


@dataclass(frozen=True)
class Latency:
    """Networks timed in turns at one batch size.

    Attributes:
        batch_size: pictures a call.
        times: seconds a call, by the network's name, a number each round.
    """

    batch_size: int
    times: Mapping[str, Timing]

    def speedup(self, name: str, base: str = "base") -> Timing:
        """Return how many times as fast as `base` a network is, a number each round.

        Its `median` and its `spread`, the quartiles, are what to report: where the spread holds 1,
        no difference was seen.
        """
        pairs = zip(self.times[base].seconds, self.times[name].seconds, strict=True)
        return Timing(tuple(slow / fast for slow, fast in pairs))

    def to_json(self, name: str, base: str = "base") -> dict[str, Any]:
        """Return the medians and what `speedup` says as JSON values."""
        speed = self.speedup(name, base)
        return {
            "seconds": {each: time.median for each, time in self.times.items()},
            "speedup": speed.median,
            "quartiles": list(speed.spread),
            "rounds": len(speed.seconds),
        }


def time_in_turns(
    batch_size: int,
    cases: Mapping[str, Callable[[], object]],
    *,
    seconds: float = SECONDS,
    pause: float = 0.0,
    synchronize: Callable[[], object] | None = None,
) -> Latency:
    """Time functions against each other, in as many rounds as the seconds allow.

    Args:
        batch_size: pictures that each call takes.
        cases: a call of each network, by its name.
        seconds: what it may take about; there are 5 rounds at least and 51 at most.
        pause, synchronize: as `interleave`.
    """
    once = interleave(cases, repeats=1, warmup=1, pause=pause, synchronize=synchronize)
    round_time = sum(timing.median + pause for timing in once.values())
    repeats = min(_MOST, max(_FEWEST, int(seconds / max(round_time, 1e-9))))
    found = interleave(cases, repeats=repeats, pause=pause, synchronize=synchronize)
    return Latency(batch_size, found)
