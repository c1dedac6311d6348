"""Online normalization (Chiley et al. 2019): one sample at a time, in both directions."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError, unknown
from ..moments import Moments
from ..operations import scale as divide
from ..partition import BATCH, INSTANCE, LAYER
from ..recovery import affine
from ..recurrence import recur
from .base import NormLayer, Taxonomy
from .population import PopulationNorm
from .tracking import Tracked

GUARDS = ("scaling", "clamp", "none")
"""What keeps the error of the running moments from growing through a network."""


class OnlineNorm(PopulationNorm):
    """Standardize each sample by the running moments that the samples before it have left.

    Forward, sample by sample, m and v the sample's own mean and variance a channel:

        y = (x − μ)/√(σ² + ε);  σ² ← (1−a)(σ² + a(m − μ)²) + a·v;  μ ← (1−a)μ + a·m

    Backward, for the gradient g of y: two controls, e and d, keep the gradient
    orthogonal to y and to 1 on average over the samples, as batch norm's is in each batch:

        h = g − b·e·y;  e ← e + mean(h·y);  x' = h/√(σ² + ε) − b·d;  d ← d + mean(x')

    A batch of N is N samples in their order: it gives exactly what N batches of one give, in
    log₂ N steps. Differs from the paper: where b·mean(y²) exceeds 1, as while the running variance
    is far too small, b is 1/mean(y²) in the first control, which would otherwise oscillate and
    diverge. The controls have the unit of the gradient: a loss scale that jumps disturbs them.

    Args:
        num_features, eps, affine, bias, layout, act, drop: see `PopulationNorm`.
        rate: a, weight of a *sample* in the running moments; 1 − α_f of the paper.
        rate_backward: b, weight of a sample in the controls; 1 − α_b.
        guard: one of `GUARDS`, behind the recovery: `scaling` divides each sample by the root mean
            square of all its elements (layer scaling), at inference too; `clamp` cuts at ±5 (the
            authors' code); `none`.
        sync, process_group: merge the running moments of all processes after each batch; the
            controls stay each process's own, as do the samples that they follow.

    Attributes:
        control: (2, C), e and d.

    Raises:
        InputError: no channels, a rate outside 0…1, or an unknown guard.
    """

    taxonomy: ClassVar = Taxonomy(
        "sample by sample, all so far",
        "standardize",
        "affine",
        "Chiley et al. 2019",
        "2 passes, 4 with layer scaling; inference 1, 3 with it, 0 when folded without",
    )
    control: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        rate: float = 0.001,
        rate_backward: float = 0.01,
        guard: str = "scaling",
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        for name, value in (("rate", rate), ("rate_backward", rate_backward)):
            if not 0 < value < 1:
                raise InputError(f"{name} {value}: must be between 0 and 1")
        if guard not in GUARDS:
            raise unknown("guard", guard, GUARDS)
        self.rate, self.rate_backward, self.guard = rate, rate_backward, guard

    def add_memory(self, place: dict[str, Any]) -> None:
        """Register the controls of the gradient, at rest."""
        self.register_buffer("control", torch.zeros(2, self.num_features, **place))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._guarded(self.standardize(x, self.population()))
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.no_grad():
            own = Moments.of(precise, INSTANCE)
            scale, shift = self._follow(own, x)
            level = own.mean * scale + shift
            power = own.var * scale.square() + level.square()
        controlled: Any = _Controlled.apply
        y = controlled(precise, scale, shift, level, power, self.control, self.rate_backward)
        return self._guarded(affine(y, self.weight, self.bias).to(x.dtype))

    @property
    def is_fixed(self) -> bool:
        """Whether inference does nothing to (N, C, *S) but what `fixed` and the recovery say."""
        return self.guard == "none"

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S); with `sync`, take over what the others' samples have moved.

        Raises:
            InputError: no process has a sample.
        """
        if not self.uses_population:
            with torch.no_grad():
                self.joined(self.no_moments(x), 0, x)
        return NormLayer.pass_empty(self, x)

    def moved(self, batch: Moments) -> Moments:
        """Return the running moments after the batch, which are what `_follow` hands over."""
        return batch

    def _follow(self, own: Moments, x: Tensor) -> tuple[Tensor, Tensor]:
        """Move the running moments over the samples; return the scale and shift of each, (N, C)."""
        start = self.population().to(own.mean)
        keep = torch.full_like(own.mean, 1 - self.rate)
        mean = recur(keep, self.rate * own.mean, start.mean[0])
        apart = (own.mean - mean[:-1]).square()
        var = recur(keep, self.rate * (own.var + (1 - self.rate) * apart), start.var[0])
        count = own.count.sum(0, keepdim=True)
        last = Moments(count, mean[-1:], var[-1:], None, BATCH)
        self.joined(last, x.numel() // self.num_features, x)
        scale = (var[:-1] + self.eps).rsqrt()
        return scale, -mean[:-1] * scale

    def _guarded(self, y: Tensor) -> Tensor:
        if self.guard == "clamp":
            return y.clamp(-5, 5)
        if self.guard == "none":
            return y
        return divide(y, Moments.of(y, LAYER), self.eps)


class _Controlled(torch.autograd.Function):
    """y = scale·x + shift of each sample and channel, with the paper's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        level: Tensor,
        power: Tensor,
        control: Tensor,
        rate: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, level, power)
        ctx.control, ctx.rate = control, rate  # not saved: other passes may move it before ours
        return affine(x, scale, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, level, power = ctx.saved_tensors
        y = affine(x, scale, shift)
        space = list(range(2, x.dim()))
        along = (grad * y).mean(space) if space else grad * y
        total = grad.mean(space) if space else grad
        start = ctx.control.to(x.dtype)
        rate = (1 / power.clamp_min(1e-30)).clamp_max(ctx.rate)
        first = recur(1 - rate * power, along, start[0])
        pull = rate * first[:-1]
        drive = scale * (total - pull * level)
        second = recur(torch.full_like(drive, 1 - ctx.rate), drive, start[1])
        moved = torch.stack([first[-1], second[-1]]).detach().to(ctx.control)
        # what overflowed under a loss scale would never leave the controls again
        ctx.control.copy_(torch.where(moved.isfinite(), moved, ctx.control))
        turned = affine(grad, scale, -ctx.rate * second[:-1])
        of_x = turned - affine(y, scale * pull, None)
        return of_x, None, None, None, None, None, None
