"""Filter response normalization (Singh & Krishnan 2020), with its thresholded linear unit."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..partition import INSTANCE
from ..recovery import affine as recover
from .base import AffineNorm, Recovery, Taxonomy, place_of


class FilterResponseNorm(AffineNorm):
    """max(γ·x/√(ν²+ε) + β, τ), ν² the mean square of a sample's channel over its positions.

    As nothing is centred, the rectifier behind has a threshold τ a channel of its own, the TLU.
    It takes the activation's place: a ReLU behind it would keep τ where it starts, so give the
    layer none, or `tlu=False` where it is to stand before one.

    Differs from the authors' listing in nothing; timm's `FilterResponseNormTlu2d` takes an ε ten
    times as large. Public copies with ε = 1e-15 are unstable for channels that are all but 0.

    Args:
        num_features: channels C.
        eps: ε, added to ν².
        affine, bias: have `weight`, and `bias`.
        tlu: have `threshold`; without it nothing is cut off.
        learn_eps: add |`learnt_eps`| to ε, as the paper does where samples have few positions.
        layout, act, drop: see `NormLayer`.

    Attributes:
        threshold: (C,) τ, from 0.
        learnt_eps: (1,), from 1e-4.
    """

    taxonomy: ClassVar = Taxonomy(
        "instance",
        "scale",
        "affine, threshold (TLU)",
        "Singh & Krishnan 2020",
        "2 passes, 3 with the threshold, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        *,
        tlu: bool = True,
        learn_eps: bool = False,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        self.tlu, self.learn_eps = tlu, learn_eps
        place = place_of(carried)
        threshold = nn.Parameter(torch.zeros(num_features, **place)) if tlu else None
        self.register_parameter("threshold", threshold)
        learnt = nn.Parameter(torch.full((1,), 1e-4, **place)) if learn_eps else None
        self.register_parameter("learnt_eps", learnt)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize, recover and cut off (N, C, *S).

        Raises:
            InputError: one position alone, without `learn_eps`.
        """
        if math.prod(x.shape[2:]) < 2 and not self.learn_eps:
            raise InputError(
                f"{type(self).__name__} got {tuple(x.shape)}: of one position alone nothing but "
                "the sign is left; make it with learn_eps=True, or leave this layer as it was"
            )
        scale = self.inverse_rms(x)
        scale = scale if self.weight is None else scale * self.weight
        if self.threshold is None:
            return recover(x, scale, self.bias)
        # max(y, τ) as relu(y − τ) + τ: the gradient of a maximum takes four times as long
        cut = self.threshold.to(scale)
        y = recover(x, scale, -cut if self.bias is None else self.bias - cut).relu_()
        floor: Tensor = cut.to(y.dtype).reshape(-1, *[1] * (x.dim() - 2))
        return y + floor

    def inverse_rms(self, x: Tensor) -> Tensor:
        """Return 1/√(ν²+ε): (N, C), in float32 or better."""
        values, axes = INSTANCE.view(x.to(torch.promote_types(x.dtype, torch.float32)))
        length: Tensor = torch.linalg.vector_norm(values, 2, axes)  # in one reading
        mean_square = length.reshape(x.shape[:2]).square() / math.prod(x.shape[2:])
        if self.learnt_eps is not None:
            mean_square = mean_square + self.learnt_eps.abs().to(mean_square)
        return (mean_square + self.eps).rsqrt()
