"""Instance normalization (Ulyanov et al. 2016), by torch's kernel."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import AffineNorm, Taxonomy, check_elements


class InstanceNorm(AffineNorm):
    """Standardize each channel of each sample over its positions, then scale and shift.

    Unlike torch's layer it has `weight` and `bias` unless told otherwise, and no population. One
    position alone has no variance: that is an error in training and at inference.
    """

    taxonomy: ClassVar = Taxonomy(
        "instance", "standardize", "affine", "Ulyanov et al. 2016", "2 passes, at inference too"
    )

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        check_elements(self, x[0, 0].numel(), x)
        return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
