"""Spatially-adaptive normalization, SPADE (Park et al. 2019): scale and shift a position."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..operations import standardize
from .base import LAYOUTS, Taxonomy, place_of
from .modulated import Modulated, ModulatedNorm, modulated

CONVS: dict[str, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    "1d": nn.Conv1d,
    "2d": nn.Conv2d,
    "3d": nn.Conv3d,
}


class SpatialNorm(ModulatedNorm):
    """γ(m)·standardize(x) + β(m), where γ and β are maps, made from a map m by two convolutions.

    The condition m: (N, condition_channels, *S'), or 1 instead of N, of any floating dtype, is
    resized to x by nearest neighbour: a segmentation as one channel a class, depth, a mask.
    γ(m) = `weight` + G·relu(H·m + h) and β(m) = `bias` + B·relu(H·m + h): `weight` is the 1 of
    the paper's 1 + γ. Differs from the paper in that G and B start at 0, so that the layer starts
    as its base normalization.

    Args:
        num_features: channels C.
        condition_channels: channels of m.
        hidden_channels: channels between the convolutions; 128 in the paper.
        kernel_size: of both convolutions; odd.
        eps, momentum, affine, bias, base, sync, process_group: see `ModulatedNorm`.
        layout: `1d`, `2d` or `3d`; `any` is taken as `2d`, `tokens` have no neighbours.
        act, drop: see `NormLayer`.

    Raises:
        InputError: another layout, an even kernel, a width below 1, or an unknown base.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch or instance",
        "standardize",
        "a map, from a map",
        "Park et al. 2019",
        "2 passes and 2 convolutions of the map, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        condition_channels: int,
        hidden_channels: int = 128,
        kernel_size: int = 3,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        **carried: Unpack[Modulated],
    ) -> None:
        if carried.get("layout", "any") == "any":
            carried["layout"] = "2d"
        super().__init__(num_features, eps, momentum, affine, **carried)
        if min(condition_channels, hidden_channels, kernel_size) < 1 or kernel_size % 2 == 0:
            sizes = f"({condition_channels}, {hidden_channels}, {kernel_size})"
            raise InputError(
                f"condition_channels, hidden_channels, kernel_size {sizes}: must be at least 1, "
                "and the kernel odd"
            )
        self.condition_channels = condition_channels
        self._add_convs(hidden_channels, kernel_size, place_of(carried))

    def _add_convs(self, hidden_channels: int, kernel_size: int, place: dict[str, Any]) -> None:
        if self.layout not in CONVS:
            raise InputError(f"SpatialNorm layout '{self.layout}': must be one of 1d, 2d, 3d")
        make: Any = CONVS[self.layout]
        options = {"padding": kernel_size // 2, **place}
        self.hidden = make(self.condition_channels, hidden_channels, kernel_size, **options)
        change = make(hidden_channels, 2 * self.num_features, kernel_size, bias=False, **options)
        self.change = change
        nn.init.zeros_(change.weight)

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) under a map.

        Raises:
            InputError: the map does not fit; in training, too few samples.
        """
        scale, shift = self.modulation(x, condition)
        normal = standardize(x, self.moments(x), self.eps)
        common = torch.promote_types(x.dtype, scale.dtype)
        y = torch.addcmul(shift.to(common), normal.to(common), scale.to(common))
        return y.to(x.dtype)

    def modulation(self, x: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        """Return γ(m) and β(m), (N, C, *S) or (1, C, *S)."""
        resized = F.interpolate(self._checked(condition, x), size=x.shape[2:], mode="nearest")
        change = self.change(self.hidden(resized.to(self.hidden.weight.dtype)).relu())
        return modulated(change, self.weight, self.bias)

    def _checked(self, condition: Any, x: Tensor) -> Tensor:
        n, axes = x.shape[0], self.hidden.weight.dim()
        if x.dim() != axes:
            raise InputError(f"SpatialNorm got {tuple(x.shape)}, needs positions: (N, C, L)")
        if isinstance(condition, Tensor) and condition.is_floating_point():
            fits = condition.dim() == axes and condition.shape[0] in (1, n)
            if fits and condition.shape[1] == self.condition_channels:
                return condition
        got = type(condition).__name__
        if isinstance(condition, Tensor):
            got = f"{condition.dtype} {tuple(condition.shape)}"
        wanted = LAYOUTS[self.layout].split(" or ")[-1]
        wanted = wanted.replace("N, C", f"{n}, {self.condition_channels}")
        raise InputError(f"SpatialNorm got {got}, needs a floating map of {wanted}")
