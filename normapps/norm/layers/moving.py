"""Moving average batch normalization (Yan et al. 2020): recent batches count, backward too."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, distributed

from ...errors import InputError
from ..distributed import is_joined
from ..moments import Moments
from ..partition import BATCH
from ..recovery import affine
from .base import NormLayer, Taxonomy
from .population import PopulationNorm, pooled
from .tracking import Tracked, Tracking


class MovingNorm(PopulationNorm):
    """Divide by the root mean square over the last m batches, and do the like to the gradient.

    MABN: y = r·z with z = x/χ̄, where χ̄² is the average of E[x²] over the last m batches (and eps).
    The gradient of x, for the gradient g of z, is (g − z·Ψ̄)/χ̄, where Ψ̄ averages mean(g·z) over the
    last m backward passes. With one batch alone this is the exact gradient of x/√E[x²]; so it is
    for the first `warmup` batches. r = χ̄/χ̂, cut to 1/clip…clip and constant for the gradient,
    takes training to the population's χ̂, which inference divides by; before `renorm_after`
    batches it is 1.

    There is no centring, so that the backward pass has one statistic and not two. The paper
    centres the weights before the layer instead; `normalize_weights_(model, "centered")` does that
    and gives them a norm.

    Differs from the authors' code: while fewer than m batches have come, those are averaged; χ̂
    averages batches, not averages of batches; in `running_mean` and `running_var`, of which it is
    the mean square, the population is as batch norm's, exact also where means drift.

    Args:
        num_features, eps, affine, bias, sync, process_group, layout, act, drop: see
            `PopulationNorm`.
        momentum: weight of a batch in the population; None averages all batches.
        memory: m batches; m times their size is the size that they simulate.
        warmup: batches that are normalized each by itself.
        renorm_after: batches after which r is used.
        clip: the largest r.

    Attributes:
        recent_square, recent_slope: (m, C), E[x²] and mean(g·z) of the last batches.
        steps: batches of training that the layer has seen; a network's that was converted to this
            layer do not count.

    Raises:
        InputError: no channels, no memory, or a clip below 1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, recent ones",
        "scale",
        "affine",
        "Yan et al. 2020",
        "2 passes; inference 1, 0 when folded",
    )
    recent_square: Tensor
    recent_slope: Tensor
    steps: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.02,
        affine: bool = True,
        *,
        memory: int = 16,
        warmup: int = 100,
        renorm_after: int = 1000,
        clip: float = 5.0,
        **carried: Unpack[Tracked],
    ) -> None:
        if memory < 1:
            raise InputError(f"memory {memory}: must be at least 1, the present batch")
        if clip < 1:
            raise InputError(f"clip {clip}: must be at least 1, which switches r off")
        self.memory = memory
        super().__init__(num_features, eps, affine, **carried)
        self.momentum, self.clip = momentum, clip
        self.warmup, self.renorm_after = warmup, renorm_after

    def add_memory(self, place: dict[str, Any]) -> None:
        """Register what is remembered of the recent batches: nothing yet."""
        for name in ("recent_square", "recent_slope"):
            self.register_buffer(name, torch.zeros(self.memory, self.num_features, **place))
        steps = torch.tensor(0, dtype=torch.long, device=place.get("device"))
        self.register_buffer("steps", steps)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: in training, one value a channel alone.
        """
        if self.uses_population:
            return self.standardize(x, self.fixed())
        samples = x.numel() // self.num_features
        return self._trained(x, Moments.of(x.detach(), BATCH), samples)

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S); with `sync`, take part in what the other processes average.

        Raises:
            InputError: all processes together have too few samples.
        """
        if not self.uses_population:
            x = self._trained(x, self.no_moments(x).detach(), 0)
        return NormLayer.pass_empty(self, x)

    def fixed(self) -> Moments:
        """Return the moments (1, C) that inference standardizes by: mean 0, variance χ̂²."""
        own = self.population()
        square = own.var + own.mean.square()
        return Moments(own.count, torch.zeros_like(square), square, None, BATCH)

    def joined(self, measured: Moments, samples: int, x: Tensor) -> Moments:
        """Return the moments of all processes, checked and remembered; see `Tracking.joined`."""
        return Tracking.joined(self, measured, samples, x)

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Move the population towards a batch."""
        share = self.next_share(measured.mean)
        moved = pooled(self.population().to(measured.mean), measured, share)
        self.running_mean.copy_(moved.mean[0])
        self.running_var.copy_(moved.var[0])

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure: one alone is only its sign."""
        return 2

    def _trained(self, x: Tensor, measured: Moments, samples: int) -> Tensor:
        """Normalize and recover a batch of training."""
        with torch.no_grad():
            before = self.fixed().var.to(measured.mean)
            batch = self.joined(measured, samples, x)
            self.steps.add_(1)
            recent = _Recent(self, (self.steps - 1) % self.memory)
            used = recent.average(self.recent_square, batch.var + batch.mean.square())
            gain = ((used + self.eps) / (before + self.eps)).sqrt().clamp(1 / self.clip, self.clip)
            gain = torch.where(self.steps > self.renorm_after, gain, 1.0)
        moving: Any = _Moving.apply
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        y = moving(precise, (used + self.eps).rsqrt(), gain, recent, self.recent_slope)
        return affine(y, self.weight, self.bias).to(x.dtype)


class _Recent:
    """The place of the present batch among the recent ones."""

    def __init__(self, layer: MovingNorm, slot: Tensor) -> None:
        self.slot = slot.reshape(1)
        self.filled = layer.steps.clamp_max(layer.memory)
        self.is_warm = layer.steps > layer.warmup
        self.joins = layer.sync and is_joined()
        self.group = layer.process_group

    def average(self, rows: Tensor, new: Tensor) -> Tensor:
        """Put the batch's (1, C) into (m, C) rows; return their average, or itself in warm-up."""
        rows.index_copy_(0, self.slot, new.to(rows))
        return torch.where(self.is_warm, (rows.sum(0, keepdim=True) / self.filled).to(new), new)


class _Moving(torch.autograd.Function):
    """y = gain·scale·x, with the slope of the recent batches in its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, gain: Tensor, recent: _Recent, slopes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, scale, gain)
        ctx.recent, ctx.slopes = recent, slopes  # not saved: other passes may change them before
        return affine(x, scale * gain, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, gain = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        along = (grad * x).sum(axes) * (scale * gain)[0]
        both = torch.cat([along, along.new_full((1,), x.numel() // x.shape[1])]).detach()
        if ctx.recent.joins:
            distributed.all_reduce(both, group=ctx.recent.group)
        new, last = both[:-1] / both[-1], ctx.slopes[ctx.recent.slot]
        # what overflowed under a loss scale would stay for m batches, and lower layers' longer
        slope = ctx.recent.average(ctx.slopes, torch.where(new.isfinite(), new, last.to(new)))
        return affine(grad, scale * gain, None) - affine(x, scale.square() * slope, None), *[
            None
        ] * 4
