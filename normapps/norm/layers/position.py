"""Positional normalization (Li et al. 2019): each position over its channels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .base import AffineNorm, Taxonomy
from .layer import over_channels


class PositionNorm(AffineNorm):
    """Standardize each position over its channels, then scale and shift.

    For images what timm and ConvNeXt call `LayerNorm2d`. Li et al. leave out the affine recovery
    and give the moments back to a later layer instead.
    """

    taxonomy: ClassVar = Taxonomy(
        "position", "standardize", "affine", "Li et al. 2019", "2 passes, at inference too"
    )

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        return over_channels(self, x)
