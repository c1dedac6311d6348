"""Switchable normalization (Luo et al. 2019): a learnt mix of instance, layer and batch moments."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..moments import Moments
from ..partition import INSTANCE, LAYER
from ..pooling import pool
from ..recovery import recover, standardization
from .base import Taxonomy
from .mixed import MixedNorm


class SwitchableNorm(MixedNorm):
    """Standardize by μ = Σₖ softmax(`mean_weight`)ₖ·μₖ and σ² = Σₖ softmax(`var_weight`)ₖ·σₖ².

    k runs over the moments of the instance, the layer and the batch (eq. 3), which are mixed
    before the activation is touched: with all the weight on one, this *is* instance, layer
    (of whole samples) or batch normalization. At inference the batch's are the running moments.

    Differs from the authors' code: `momentum` is torch's, the weight of the new; variances are
    pooled from variances, not from E[x²], and are biased but in `running_var`.

    Its options are those of `MixedNorm`.

    Attributes:
        mean_weight, var_weight: (3,) logits of instance, layer, batch; all alike at first.
    """

    taxonomy: ClassVar = Taxonomy(
        "mix of instance, layer and batch",
        "standardize",
        "affine",
        "Luo et al. 2019",
        "2 passes, at inference too",
    )

    def add_mixture(self, place: dict[str, Any]) -> None:
        """Register the logits, all alike."""
        self.mean_weight = nn.Parameter(torch.ones(3, **place))
        self.var_weight = nn.Parameter(torch.ones(3, **place))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        own, batch = self.both_moments(x)
        kinds = (own, pool(own, LAYER), batch)
        mean = _mixed(self.mean_weight, [each.mean for each in kinds])
        var = _mixed(self.var_weight, [each.var for each in kinds])
        mixed = Moments(own.count, mean, var, None, INSTANCE)
        return recover(x, standardization(mixed, self.eps), self.weight, self.bias)


def _mixed(logits: Tensor, values: list[Tensor]) -> Tensor:
    """Σₖ softmax(logits)ₖ·valuesₖ, where each of the values is (N or 1, C or 1)."""
    share = logits.softmax(0, dtype=values[0].dtype)
    return share[0] * values[0] + share[1] * values[1] + share[2] * values[2]
