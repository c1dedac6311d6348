"""Batch renormalization (Ioffe 2017): training corrected towards what inference will do."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError
from ..recovery import recover
from .base import NormLayer, Taxonomy
from .batch import BatchNorm
from .tracking import Tracked


class BatchRenorm(BatchNorm):
    """(x−μ_B)/σ_B·r + d, then scale and shift, with r = σ_B/σ and d = (μ_B−μ)/σ as constants.

    μ and σ are the running moments before they move; gradients flow through μ_B and σ_B alone.
    r is clipped to [1/r_max, r_max], d to [−d_max, d_max]. Unclipped, training computes what
    inference would; with r_max = 1 and d_max = 0, as in the first `warmup` steps, it is batch norm.
    r_max then grows linearly from 1 and d_max from 0, to their values at steps `r_steps` and
    `d_steps`, by `num_batches_tracked`. Inference is batch norm's.

    Differs from the batchrenorm package in `momentum` (0.01 there), in ε, which is added to the
    variance and not to σ, and in `running_var`, a variance, where that averages deviations; so
    batch norm's state loads, and folds. Other public copies move the running moments first, or
    let gradients flow through r and d.

    Args:
        num_features: channels C.
        r_max, d_max: in the end; 1 and 0 make it batch norm.
        warmup: steps before r_max and d_max begin to grow.
        r_steps, d_steps: steps at whose end they have grown; 0, with `warmup`: at once.
        eps, momentum, affine, bias, sync, process_group: see `BatchNorm`.
        track_running_stats: must be True.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: no running statistics; r_max below 1, d_max or `warmup` below 0, or steps that
            end before `warmup`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, corrected by the population",
        "standardize",
        "affine",
        "Ioffe 2017",
        "3 passes; inference 1, 0 when folded",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5000,
        r_steps: int = 40000,
        d_steps: int = 25000,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **carried)
        if not track_running_stats:
            raise InputError("BatchRenorm needs running statistics (track_running_stats=True)")
        if r_max < 1 or d_max < 0:
            raise InputError(f"r_max {r_max}, d_max {d_max}: must be at least 1 and 0")
        if not 0 <= warmup <= min(r_steps, d_steps):
            steps = f"warmup {warmup}, r_steps {r_steps}, d_steps {d_steps}"
            raise InputError(f"{steps}: warmup must be in 0…r_steps and 0…d_steps")
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup
        self.r_steps, self.d_steps = r_steps, d_steps

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the class itself: it is none of torch's."""
        return cls

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._by_kernel(x, self.running_mean, self.running_var, False, 0.0)
        known = self.population()
        mean, inverse = known.mean.clone(), (known.var + self.eps).rsqrt()
        r_max, d_max = self.limits(mean)
        batch = self.moments(x)  # moves the running moments
        with torch.no_grad():
            r = ((batch.var + self.eps).sqrt() * inverse).clamp(1 / r_max, r_max)
            d = ((batch.mean - mean) * inverse).clamp(-d_max, d_max)
        scale = (batch.var + self.eps).rsqrt() * r
        return recover(x, (scale, d - batch.mean * scale), self.weight, self.bias)

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max of the next step, tensors without axes like another."""
        step = like.new_full((), self.r_steps + self.d_steps)
        if self.num_batches_tracked is not None:
            step = self.num_batches_tracked.to(like)
        r_max = 1 + (self.r_max - 1) * self._grown(step, self.r_steps)
        return r_max, self.d_max * self._grown(step, self.d_steps)

    def _grown(self, step: Tensor, end: int) -> Tensor:
        """How far a limit has grown, 0…1."""
        if end == self.warmup:
            return (step >= end).to(step)
        return ((step - self.warmup) / (end - self.warmup)).clamp(0, 1)
