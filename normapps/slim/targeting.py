"""The strength of a penalty, found while training from the share of zeros that is wanted.

The wanted share rises linearly from 0 to the target over the first six tenths of the training,
and stays. Every few steps, with e = wanted − found,

    I ← I + G·e·(steps passed)/(steps in all),   λ = λ₀·exp(I + P·e),

an integral and a proportional part on log λ, with I clamped so that λ stays within 10⁴ of λ₀ both
ways. What is found is what the threshold asks for, even where it is kept from more zeros than the
target: that is how λ comes down again.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError

INTEGRAL, PROPORTIONAL, BOUND = 120.0, 4.0, math.log(1e4)
RAMP = 0.6
"""Part of the training in which the wanted share rises."""


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
        self.value, self._integral, self._last = first, 0.0, 0

    def wanted(self, step: int) -> float:
        """Return the share of zeros wanted after `step` steps."""
        return self.target * min(1.0, step / (RAMP * self.steps))

    def update(self, step: int, found: float) -> None:
        """Set `value` from the share of zeros found after `step` steps."""
        error = self.wanted(step) - found
        passed = (step - self._last) / self.steps
        moved = self._integral + INTEGRAL * error * passed
        self._integral, self._last = min(BOUND, max(-BOUND, moved)), step
        exponent = min(BOUND, max(-BOUND, self._integral + PROPORTIONAL * error))
        self.value = self.first * math.exp(exponent)

    def state_dict(self) -> dict[str, float]:
        """Return what `load_state_dict` needs, plain numbers."""
        return {"value": self.value, "integral": self._integral, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.value, self._integral = float(state["value"]), float(state["integral"])
        self._last = int(state["last"])
