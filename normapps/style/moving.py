"""Moving moments: what a clip's frames have in common stands for each frame's own moments.

Stylizing frame by frame measures every frame anew, and whatever enters or leaves the picture
changes how the rest is painted: it flickers. An average over the last frames changes slowly, and
it begins anew where the scene changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..norm import Moments, mix

CUT = 0.35
"""Distance of two frames' moments beyond which the scene has changed; see `distance`."""

_TELLING = (0, 1)
"""Levels by which a change of scene is found: the colours, and the network's first."""

_PARTS = ("count", "mean", "var", "cov")


class MovingMoments:
    """Exponential moving averages of moments, level by level, over the frames of a clip.

    The first frames weigh as they would in an average of their own (as Adam's bias correction),
    so no frame stands for the whole at the beginning. Called for a frame twice, it answers the
    same. What `state` returns makes another object go on with the very same numbers.

    Args:
        seconds: within which the weight of a frame falls to 1/e.

    Attributes:
        cuts: changes of scene so far.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cuts = seconds, 0
        self._time = -math.inf
        self._total = 0.0
        self._kept: dict[int, Moments] = {}
        self._seen: dict[int, Moments] = {}
        self._next: dict[int, Moments] = {}
        self._measured: dict[int, Moments] = {}
        self._decay, self._is_cut = 0.0, False

    def begin(self, time: float) -> None:
        """Begin with the next frame.

        Args:
            time: of the frame in seconds, greater than the last one's.
        """
        self._commit()
        self._decay = math.exp((self._time - time) / self.seconds)
        self._time = time

    def __call__(self, level: int, measured: Moments) -> Moments:
        """Return the average of a level's moments with those of the frame that was begun.

        Args:
            level: number of the level; those in `_TELLING` come first.
            measured: the frame's own moments.
        """
        if level in _TELLING:
            self._measured[level] = measured
            seen = self._seen.get(level)
            if seen is not None and distance(measured, seen.to(measured.mean)) > CUT:
                self._is_cut = True
                self._next = dict(self._measured)  # what came before begins anew, too
        before = None if self._is_cut else self._kept.get(level)
        share = 1.0 if before is None else 1 / (self._decay * self._total + 1)
        self._next[level] = measured if before is None else _moved(before, measured, share)
        return self._next[level]

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next frames depend on, on the CPU."""
        self._commit()
        numbers = torch.tensor([self._time, self._total, self.cuts], dtype=torch.float64)
        parts = self._kept | {-1 - level: seen for level, seen in self._seen.items()}
        tensors = {
            f"{level}.{part}": value.detach().cpu().clone()
            for level, moments in parts.items()
            for part in _PARTS
            if (value := getattr(moments, part)) is not None
        }
        return {"numbers": numbers, **tensors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        time, total, cuts = state["numbers"].tolist()
        self._time, self._total, self.cuts = time, total, int(cuts)
        levels = {int(key.split(".")[0]) for key in state if key != "numbers"}
        kept = {
            level: Moments(*(state.get(f"{level}.{part}") for part in _PARTS))  # type: ignore[arg-type]
            for level in levels
        }
        self._seen = {-1 - level: kept.pop(level) for level in sorted(levels) if level < 0}
        self._kept, self._next, self._measured, self._is_cut = kept, {}, {}, False

    def _commit(self) -> None:
        """Take the frame that is done into the average."""
        if not self._next:
            return
        self.cuts += self._is_cut
        self._total = 1 + (0 if self._is_cut else self._decay * self._total)
        self._kept, self._next = self._next, {}
        self._seen, self._measured, self._is_cut = self._measured, {}, False


def distance(one: Moments, other: Moments) -> float:
    """Return how far two pictures' moments (G=1) lie apart: 0 for the same, about 1 for strangers.

    The root mean square over the channels of the Wasserstein distance of two Gaussians, in
    standard deviations: √((μ₁−μ₂)² + (σ₁−σ₂)²) / √((σ₁²+σ₂²)/2).
    """
    scale = ((one.var + other.var) / 2).clamp_min(1e-8)
    moved = (one.mean - other.mean).square() + (one.std() - other.std()).square()
    return float((moved / scale).mean().sqrt())


def _moved(before: Moments, measured: Moments, share: float) -> Moments:
    before = before.to(measured.mean)
    mixed = mix((before, measured), (1 - share, share), "linear")
    return replace(mixed, count=measured.count)
