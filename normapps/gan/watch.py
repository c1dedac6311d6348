"""A watch over a GAN's training: numbers that are none, a generator that draws one picture.

The rules, checked at every step. The spread of a set of pictures is the standard deviation of each
pixel over the set, averaged over the pixels.

- Not finite: a loss, a mean logit or the norm of a gradient is NaN or infinite: at once.
- Collapse: after the spread of the drawn pictures once came to `LIVED` of the data's, it stays
  under `NARROW` of it for `PATIENCE` steps running. A grey start is none.
- Silence: the discriminator's loss stays under `SILENT` for `PATIENCE` steps running: it tells all
  pictures apart and learns nothing more. Of losses that have 0 as their least value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError

LIVED = 0.25
"""Share of the data's spread from which on a fall counts."""
NARROW = 0.05
"""Share of the data's spread under which drawn pictures are all the same."""
SILENT = 1e-3
"""Discriminator's loss under which it has nothing more to learn."""
PATIENCE = 200
"""Steps running that a sign must hold."""
_LEAST = 1 / 128
"""Spread under which the data themselves are one picture; no rule on the spread then."""


class WatchError(InputError):
    """The training went wrong and was stopped; the line says by which rule, and what to change."""


@dataclass
class Watch:
    """What the rules have counted so far.

    Attributes:
        data_spread: of the real pictures, in [−1, 1].
        has_zero: whether 0 is the least value of the discriminator's loss.
        has_lived: whether drawn pictures have once had `LIVED` of the spread.
        narrow, silent: steps running of either sign.
    """

    data_spread: float
    has_zero: bool = True
    has_lived: bool = False
    narrow: int = 0
    silent: int = 0

    @property
    def is_uneasy(self) -> bool:
        """Whether the last step showed a sign of what will stop the run."""
        return self.narrow > 0 or self.silent > 0

    def look(self, step: int, values: dict[str, float]) -> None:
        """Count one step.

        Args:
            step: its number, from 0.
            values: its metrics, `d_loss` and `spread` among them.

        Raises:
            WatchError: a rule holds.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise WatchError(
                    f"step {step}: {name} is not finite; begin anew with lower --lr-g and --lr-d "
                    "or --precision float32"
                )
        share = values["spread"] / self.data_spread if self.data_spread > _LEAST else 1.0
        self.has_lived = self.has_lived or share >= LIVED
        self.narrow = self.narrow + 1 if self.has_lived and share < NARROW else 0
        self.silent = self.silent + 1 if self.has_zero and values["d_loss"] < SILENT else 0
        if self.narrow >= PATIENCE:
            raise WatchError(
                f"step {step}: the generator has collapsed, its pictures' spread was under "
                f"{NARROW:.0%} of the data's for {PATIENCE} steps; begin anew with another --seed "
                "or --d-norm, or lower --lr-g"
            )
        if self.silent >= PATIENCE:
            raise WatchError(
                f"step {step}: the discriminator's loss was under {SILENT} for {PATIENCE} steps, "
                "it learns nothing more; begin anew with --d-norm sn, lower --lr-d or --n-dis, or "
                "--augment"
            )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know, as JSON values."""
        return {"has_lived": self.has_lived, "narrow": self.narrow, "silent": self.silent}

    def restore(self, values: dict[str, Any]) -> None:
        """Go on counting from what `state` told."""
        self.has_lived = bool(values["has_lived"])
        self.narrow, self.silent = int(values["narrow"]), int(values["silent"])


def spread(pictures: Tensor) -> Tensor:
    """Return the spread of pictures (N, C, H, W), 0-d float32, in their units.

    The standard deviation (divisor N) of each pixel over the set, averaged over the pixels.
    """
    return pictures.detach().float().var(0, unbiased=False).sqrt().mean()
