"""Diminishing batch normalization (Ma & Klabjan 2017): each batch counts less than the last."""

from __future__ import annotations

from typing import ClassVar, Unpack

from ...errors import InputError
from ..moments import Moments
from .base import Taxonomy
from .population import PopulationNorm
from .tracking import Tracked


class DiminishingNorm(PopulationNorm):
    """Standardize by a population that batch t moves by αₜ = t^−power before it is used.

    μ ← (1−αₜ)μ + αₜμ_B and the same for σ². With power 1 all batches so far count alike, the
    paper's αₜ = 1/t; with 0 this is batch normalization. The gradient flows through the batch's
    part, so it is batch norm's for the first batch and fades with αₜ. Inference uses the same
    population, and so computes what training does. It is variances that are averaged, biased.

    Args:
        num_features, eps, affine, bias, sync, process_group, layout, act, drop: see
            `PopulationNorm`.
        power: how fast a batch's weight falls, 0…1; below 1 early batches are forgotten in time.

    Raises:
        InputError: no channels, or a power outside 0…1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, all so far",
        "standardize",
        "affine",
        "Ma & Klabjan 2017",
        "2 passes; inference 1, 0 when folded",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        power: float = 1.0,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        if not 0 <= power <= 1:
            raise InputError(f"power {power}: must be in 0…1; 1 averages all batches")
        self.power = power

    def moved(self, batch: Moments) -> Moments:
        """Return the population after one more batch, with the batch's part of the gradient."""
        own = self.population().to(batch.mean)
        share = self.num_batches_tracked.to(batch.mean).pow(-self.power)
        mean, var = own.mean.lerp(batch.mean, share), own.var.lerp(batch.var, share)
        return Moments(batch.count, mean, var, None, batch.partition)
