"""What training commands show while they read pictures, and of what they measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normapps.measure.interval import Estimate


class Reading:
    """Pictures read so far, over all places."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._totals: dict[str, int] = {}

    def __call__(self, place: str, done: int, total: int) -> None:
        """Show one more picture of a place, which has so many."""
        self._totals[place] = total
        self._bar.advance(place, sum(self._totals.values()))

    def close(self) -> None:
        """Leave the terminal to the training's own bar."""
        self._bar.__exit__(None, None, None)


def percent(share: Estimate) -> str:
    """Return a share in percent with its interval."""
    return f"{100 * share.mean:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"
