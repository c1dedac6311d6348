"""Batch-instance normalization (Nam & Kim 2018): a learnt gate a channel between the two."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..recovery import recover
from .base import Taxonomy, check_elements
from .gate import blend, unit_interval
from .mixed import MixedNorm


class BatchInstanceNorm(MixedNorm):
    """γ·(ρ·BN(x) + (1 − ρ)·IN(x)) + β with ρ = `gate` clamped to [0, 1] (eq. 3).

    Starts as batch normalization. Differs from the paper, which clamps the parameter after each
    optimizer step: see `gate.unit_interval`. The paper also gives the gates ten times the learning
    rate, which is the optimizer's business.

    Its options are those of `MixedNorm`.

    Attributes:
        gate: (C,) ρ, from 1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch and instance",
        "standardize",
        "affine",
        "Nam & Kim 2018",
        "2 passes, at inference too",
    )

    def add_mixture(self, place: dict[str, Any]) -> None:
        """Register the gate, open to the batch."""
        self.gate = nn.Parameter(torch.ones(self.num_features, **place))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: one position alone, or in training one sample alone.
        """
        check_elements(self, math.prod(x.shape[2:]), x)
        own, batch = self.both_moments(x)
        both = blend(batch, own, unit_interval(self.gate), self.eps)
        return recover(x, both, self.weight, self.bias)
