"""Group normalization (Wu & He 2018), by torch's kernel."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor

from .base import AffineNorm, Recovery, Taxonomy, check_elements, largest_divisor


class GroupNorm(AffineNorm):
    """Standardize groups of channels of each sample over their positions, then scale and shift.

    Args:
        num_features: channels C.
        num_groups: at most so many groups: the largest divisor of C that is not above, so that one
            number serves all the widths of a network. The attribute tells how many there are.
        eps, affine, bias: see `AffineNorm`.
        layout, act, drop: see `NormLayer`.
    """

    taxonomy: ClassVar = Taxonomy(
        "group", "standardize", "affine", "Wu & He 2018", "2 passes, at inference too"
    )

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        self.num_groups = largest_divisor(num_features, num_groups)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        check_elements(self, x.numel() // (x.shape[0] * self.num_groups), x)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
