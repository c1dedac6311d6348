"""Layer-instance normalization of U-GAT-IT (Kim et al. 2020), plain and from a latent."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..condition import ConditionalLayer
from ..moments import Moments
from ..partition import INSTANCE, LAYER
from ..pooling import pool
from ..recovery import recover
from .base import AffineNorm, Recovery, Taxonomy, check_elements, place_of
from .gate import blend, unit_interval
from .modulated import check_latent, modulated


class LayerInstanceNorm(AffineNorm):
    """γ·(ρ·IN(x) + (1 − ρ)·LN(x)) + β with ρ = `rho` clamped to [0, 1] (ILN of the paper).

    Starts as the normalization of whole samples. Differs from the paper's code: biased variances,
    and the parameter is not clamped after each optimizer step: see `gate.unit_interval`.

    Args:
        num_features: channels C.
        eps, affine, bias: see `AffineNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        rho: (C,), from 0.
    """

    taxonomy: ClassVar = Taxonomy(
        "instance and layer",
        "standardize",
        "affine",
        "Kim et al. 2020",
        "2 passes, at inference too",
    )
    first_rho: ClassVar[float] = 0.0

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        rho = torch.full((num_features,), self.first_rho, **place_of(carried))
        self.rho = nn.Parameter(rho)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: one position alone.
        """
        return recover(x, self.blended(x), self.weight, self.bias)

    def blended(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and shift (N, C) of ρ·IN + (1 − ρ)·LN.

        Raises:
            InputError: one position alone.
        """
        check_elements(self, math.prod(x.shape[2:]), x)
        own = Moments.of(x, INSTANCE)
        return blend(own, pool(own, LAYER), unit_interval(self.rho), self.eps)


class AdaLIN(ConditionalLayer, LayerInstanceNorm):
    """γ(z)·(ρ·IN(x) + (1 − ρ)·LN(x)) + β(z), with γ and β linear in a latent z.

    The condition is z: (N, latent_features), or (1, latent_features) for all samples. γ(z) =
    `weight` + U·z and β(z) = `bias` + V·z. Differs from the paper, beside what
    `LayerInstanceNorm` says, in that U and V start at 0, so that γ = 1 and β = 0 at first.

    Args:
        num_features: channels C.
        latent_features: length of z.
        eps, affine, bias: see `AffineNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        rho: (C,), from 0.9.

    Raises:
        InputError: fewer than one latent feature.
    """

    taxonomy: ClassVar = Taxonomy(
        "instance and layer",
        "standardize",
        "from a latent",
        "Kim et al. 2020",
        "2 passes, at inference too, a product with the latent",
    )
    first_rho: ClassVar[float] = 0.9

    def __init__(
        self,
        num_features: int,
        latent_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        if latent_features < 1:
            raise InputError(f"latent_features {latent_features}: must be at least 1")
        self.latent_features = latent_features
        place = place_of(carried)
        self.change = nn.Linear(latent_features, 2 * num_features, bias=False, **place)
        nn.init.zeros_(self.change.weight)

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) under a latent.

        Raises:
            InputError: the latent does not fit; one position alone.
        """
        latent = check_latent(self, condition, self.latent_features, x)
        change = self.change(latent.to(self.change.weight.dtype))
        return recover(x, self.blended(x), *modulated(change, self.weight, self.bias))
