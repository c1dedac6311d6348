"""Which frames of a clip are shown, and at which time stamps of the result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from .video import Clip, Frame


@dataclass(frozen=True)
class Timeline:
    """The part of a clip that is taken, and its rate.

    Attributes:
        start: seconds since `Clip.origin`, where the result begins.
        end: seconds at which it stops; None at the clip's end.
        rate: frames a second; None keeps every frame and its own time stamp.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    rate: Fraction | None = None

    def time_base(self, clip: Clip) -> Fraction:
        """Seconds a unit of the result's time stamps."""
        return 1 / self.rate if self.rate else clip.time_base

    def frames(self, clip: Clip) -> int:
        """About how many frames are shown, at least 1; 0 where the file does not say."""
        end = clip.duration if self.end is None else min(self.end, clip.duration or self.end)
        rate = min(self.rate, clip.rate) if self.rate else clip.rate
        return max(1, round((end - self.start) * rate)) if end else 0

    def show(
        self, frames: Iterable[Frame], clip: Clip, tick: int = 0
    ) -> Iterator[tuple[Frame, range]]:
        """Give frames the time stamps at which they are shown, from 0 at `start`.

        Under a fixed rate a frame stands at every tick from the one nearest to its own time up to
        the next frame's, and one that has no tick is left out.

        Args:
            frames: in order, none before `start` or at or after `end`.
            clip: that they come from.
            tick: the first tick that is not taken yet, where an earlier run stopped.
        """
        if self.rate is None:
            first = math.floor((clip.origin + self.start) / clip.time_base)
            for frame in frames:
                yield frame, range(frame.pts - first, frame.pts - first + 1)
            return
        held: Frame | None = None
        for frame in frames:
            if held is not None and (stop := self._tick(frame.time)) > tick:
                yield held, range(tick, stop)
                tick = stop
            held = frame
        if held is not None:
            over = held.time + 1 / clip.rate
            stop = self._tick(over if self.end is None else min(over, self.end))
            if stop > tick:
                yield held, range(tick, stop)

    def _tick(self, time: Fraction) -> int:
        rate = self.rate or Fraction(1)
        return math.floor((time - self.start) * rate + Fraction(1, 2))
