"""Layer normalization (Ba et al. 2016): each sample by itself, by torch's kernels."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import AffineNorm, Taxonomy, check_elements


class LayerNorm(AffineNorm):
    """Standardize each sample over all its channels and positions, then scale and shift.

    That is group normalization with one group. In the layout `tokens` it is what the field calls
    layer normalization there: each token over its own channels, as `nn.LayerNorm(C)`. For images
    normalized at each position by itself (timm's `LayerNorm2d`) see `PositionNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "layer", "standardize", "affine", "Ba et al. 2016", "2 passes, at inference too"
    )

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.layout == "tokens":
            return over_channels(self, x)
        check_elements(self, x.numel() // x.shape[0], x)
        return F.group_norm(x, 1, self.weight, self.bias, self.eps)


def over_channels(layer: AffineNorm, x: Tensor) -> Tensor:
    """Layer-normalize (N, C, *S) over C at each position; a view where C lies innermost."""
    check_elements(layer, layer.num_features, x)
    last = x.movedim(1, -1)
    y = F.layer_norm(last, (layer.num_features,), layer.weight, layer.bias, layer.eps)
    return y.movedim(-1, 1)
