"""Instance enhancement batch normalization (Liang et al. 2020): each sample gates its channels."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ..recovery import recover, standardization
from .base import Taxonomy, place_of
from .mixed import MixedNorm
from .tracking import Tracked


class InstanceEnhancementNorm(MixedNorm):
    """γ·δ·(x−μ)/√(σ²+ε) + β of the batch, with a gate δ = sigmoid(ω·m + b) a sample and channel.

    m is the mean of the sample's channel. ω starts at 0 and b at −1, as in the authors' code: all
    gates at 0.27. With `use_std` the gate sees the sample's deviation too, ω'·s.

    Differs from the authors' code in shapes only: its (1, C, 1, 1) are (C,) here, so that a batch
    norm's scale and shift load.

    Args:
        num_features: channels C.
        use_std: have `gate_std`.
        eps, momentum, affine, bias, sync, process_group: see `MixedNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        gate_weight, gate_bias: (C,) ω and b.
        gate_std: (C,) ω', from 0.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize",
        "affine, gated by the instance",
        "Liang et al. 2020",
        "2 passes, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        use_std: bool = False,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, **carried)
        self.use_std = use_std
        place: Any = place_of(carried)
        self.gate_weight = nn.Parameter(torch.zeros(num_features, **place))
        self.gate_bias = nn.Parameter(torch.full((num_features,), -1.0, **place))
        deviation = nn.Parameter(torch.zeros(num_features, **place)) if use_std else None
        self.register_parameter("gate_std", deviation)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        own, batch = self.both_moments(x)
        gate = own.mean * self.gate_weight + self.gate_bias
        if self.gate_std is not None:
            gate = gate + own.std(self.eps) * self.gate_std
        gate = gate.sigmoid()
        scale, shift = (each * gate for each in standardization(batch, self.eps))
        return recover(x, (scale, shift), self.weight, self.bias)
