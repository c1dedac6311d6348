"""Root mean square normalization (Zhang & Sennrich 2019): scaling without centring."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor

from .base import AffineNorm, Carried, Taxonomy


class RmsNorm(AffineNorm):
    """Divide each position by the root mean square of its channels, then scale.

    Args:
        num_features: channels C.
        eps: added to the mean square; None: the resolution of the dtype, as in torch.
        affine: have `weight`.
        bias: have `bias`; the paper has none.
        layout, act, drop: see `NormLayer`.
    """

    taxonomy: ClassVar = Taxonomy(
        "position", "scale", "affine", "Zhang & Sennrich 2019", "2 passes, at inference too"
    )
    eps: Any

    def __init__(
        self,
        num_features: int,
        eps: float | None = 1e-6,
        affine: bool = True,
        *,
        bias: bool = False,
        **carried: Unpack[Carried],
    ) -> None:
        super().__init__(num_features, 0.0, affine, bias=bias, **carried)
        self.eps = eps

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        last = x.movedim(1, -1)
        y = F.rms_norm(last, (self.num_features,), self.weight, self.eps)
        y = y if self.bias is None else (y + self.bias).to(y.dtype)
        return y.movedim(-1, 1)
