"""Region normalization (Yu et al. 2020): inside and outside of a mask by moments of their own."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..condition import ConditionalLayer
from ..moments import Moments
from ..partition import INSTANCE
from ..recovery import standardization
from .base import AffineNorm, Recovery, Taxonomy, check_elements, place_of


class RegionNorm(ConditionalLayer, AffineNorm):
    """Standardize the two regions of each channel of each sample apart, then scale and shift.

    The condition is a mask (N, 1, *S'), or 1 instead of N, of any floating dtype or bool: 1 inside
    (what inpainting has to fill), 0 outside; a soft one weighs positions in the moments and blends
    the regions. It is resized to x by nearest neighbour, and has its channel first in the layout
    `tokens` too. A region that a mask leaves empty contributes nothing.

    This is the paper's RN-B, eq. 3–6. Differs from the authors' code, which measures each region
    over the whole batch, at inference too, adds both βs everywhere, instead of each in its region,
    and puts ε under a variance diluted by the other region.

    Args:
        num_features: channels C.
        eps: added to the variances.
        affine, bias: have `weight`, and `bias`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        weight, bias: (2, C), of outside and inside, from 1 and 0. Those (C,) of another layer are
            loaded into both.
    """

    taxonomy: ClassVar = Taxonomy(
        "instance, inside and outside a mask",
        "standardize",
        "affine of the region",
        "Yu et al. 2020",
        "4 passes and a map, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        place = place_of(carried)
        if self.weight is not None:
            self.weight = nn.Parameter(torch.ones(2, num_features, **place))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(2, num_features, **place))

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) under a mask.

        Raises:
            InputError: the mask does not fit, or one position alone.
        """
        check_elements(self, x[0, 0].numel(), x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mask = self._mask(condition, values)
        outside, inside = self._map(values, 1 - mask, 0), self._map(values, mask, 1)
        scale, shift = (torch.lerp(*pair, mask) for pair in zip(outside, inside, strict=True))
        return torch.addcmul(shift, values, scale).to(x.dtype)

    def _map(self, x: Tensor, weight: Tensor, region: int) -> tuple[Tensor, Tensor]:
        """The scale and shift of a region, shaped against (N, C, *S)."""
        moments = Moments.of(x, INSTANCE, weight=weight)
        scale, shift = standardization(moments, self.eps)
        if self.weight is not None:
            scale, shift = scale * self.weight[region], shift * self.weight[region]
        if self.bias is not None:
            shift = shift + self.bias[region]
        shape = (*moments.mean.shape, *[1] * (x.dim() - 2))
        return scale.reshape(shape).to(x), shift.reshape(shape).to(x)

    def _mask(self, condition: Any, x: Tensor) -> Tensor:
        """The mask, (N, 1, *S) in the dtype of x."""
        fits = isinstance(condition, Tensor) and condition.dim() == x.dim()
        if fits and (condition.is_floating_point() or condition.dtype == torch.bool):
            mask: Tensor = condition.to(x.dtype)
            if mask.shape[0] in (1, x.shape[0]) and mask.shape[1] == 1:
                if mask.shape[2:] != x.shape[2:]:
                    mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
                return mask.expand(x.shape[0], -1, *x.shape[2:])
        got = type(condition).__name__
        if isinstance(condition, Tensor):
            got = f"{condition.dtype} {tuple(condition.shape)}"
        wanted = ", ".join(map(str, (x.shape[0], 1, *x.shape[2:])))
        raise InputError(f"RegionNorm got {got}, needs a mask ({wanted}) of a floating dtype")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Let both regions start from the (C,) scale and shift of a layer without regions."""
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape == (self.num_features,):
                state_dict[prefix + name] = value.expand(2, -1)
        super()._load_from_state_dict(state_dict, prefix, *args)
