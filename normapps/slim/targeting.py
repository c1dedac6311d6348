"""The strength of a penalty, found while training from the share of zeros that is wanted.

What is steered is not the share of zeros, which stays 0 until the first scale has come all the way
down, but the scale at the target's quantile. It has to arrive at 0 after six tenths of the
training. Every few steps, with the speed at which it fell and the one that it needs,

    λ ← λ·√(needed/found), the ratio between 1/4 and 4,

and once it is 0, λ ← λ·exp(60·(target − found)·(steps passed)/(steps in all)), with the share of
zeros that the threshold asks for, even where it is kept from more of them than the target. λ stays
within 10⁴ of λ₀ both ways.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError

RAMP = 0.6
"""Part of the training in which the target's quantile comes down."""

_HOLD, _MOST, _BOUND = 60.0, 4.0, 1e4


class TargetStrength:
    """λ for a share of zeros at the end of the training; it follows what `update` is told.

    Args:
        first: λ₀.
        target: wanted share of zeros, between 0 and 1, both excluded.
        steps: of the whole training.

    Raises:
        InputError: a target or number of steps out of range.
    """

    def __init__(self, first: float, target: float, steps: int) -> None:
        if not 0 < target < 1:
            raise InputError(f"target_sparsity {target}: must lie between 0 and 1")
        if steps < 1:
            raise InputError(f"steps {steps}: must be at least 1, the length of the training")
        self.first, self.target, self.steps = first, target, steps
        self.value, self._last = first, 0
        self._quantile: float | None = None

    @property
    def every(self) -> int:
        """Steps from one `update` to the next: a hundred in all, where that is not too often."""
        return max(1, min(10, self.steps // 100))

    def update(self, step: int, found: float, quantile: float) -> None:
        """Set `value` from what was found after `step` steps.

        Args:
            step: steps taken.
            found: share of zeros that the threshold asks for.
            quantile: the scale below which the target's share of all is.
        """
        passed = step - self._last
        factor = math.exp(_HOLD * (self.target - found) * passed / self.steps)
        if quantile > 0:
            factor = 1.0
            if self._quantile is not None:
                needed = quantile / max(RAMP * self.steps - step, 0.02 * self.steps)
                speed = (self._quantile - quantile) / passed
                ratio = needed / speed if speed > 0 else _MOST
                factor = math.sqrt(min(_MOST, max(1 / _MOST, ratio)))
        self.value = min(self.first * _BOUND, max(self.first / _BOUND, self.value * factor))
        self._quantile, self._last = quantile, step

    def state_dict(self) -> dict[str, float | None]:
        """Return what `load_state_dict` needs, plain numbers."""
        return {"value": self.value, "quantile": self._quantile, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.value, self._last = float(state["value"]), int(state["last"])
        known = state["quantile"]
        self._quantile = None if known is None else float(known)
