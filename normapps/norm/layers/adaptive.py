"""Adaptive instance normalization (Huang & Belongie 2017) as a layer."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ..condition import ConditionalLayer
from ..diagonal import instance_norm
from ..moments import Moments
from ..partition import INSTANCE
from ..recovery import adain
from .base import AffineNorm, Piece, Taxonomy, check_elements


class AdaIN(ConditionalLayer, AffineNorm):
    """`adain` as a layer without parameters, to stand where a norm layer stood.

    The condition is the style: `Moments` of C channels, for one style or for N.

    Args:
        num_features: channels C of content and style.
        eps: added to both variances.
        alpha: strength: 0 gives the content, 1 the style's moments.
        layout, act, drop: see `NormLayer`.
        device, dtype: taken for the sake of uniformity; there is nothing to place.

    Example:
        >>> AdaIN(64)(content, Moments.of(style))
    """

    taxonomy: ClassVar = Taxonomy(
        "instance",
        "standardize",
        "another image's moments",
        "Huang & Belongie 2017",
        "2 passes, at inference too; the style is measured before",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha: float = 1.0,
        *,
        layout: str = "any",
        act: Piece = None,
        drop: Piece = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine=False, layout=layout, act=act, drop=drop)
        self.alpha = alpha

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Give content (N, C, *S) the moments of one style or of N.

        Raises:
            InputError: no moments, of another number of channels or samples; one position alone.
        """
        if not isinstance(condition, Moments):
            raise InputError(f"AdaIN got a {type(condition).__name__}, needs a style as Moments")
        check_elements(self, math.prod(x.shape[2:]), x)
        # not told by whether there is a gradient: checkpointing runs once without and once with
        if self.training and self.alpha == 1 and x.is_contiguous():
            INSTANCE.check_fit(condition.mean, x.shape)
            return instance_norm(x, condition.std(self.eps), condition.mean, self.eps)
        return adain(x, condition, self.eps, alpha=self.alpha)

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{self.num_features}, eps={self.eps}, alpha={self.alpha}, layout={self.layout}"
