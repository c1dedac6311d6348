"""Attentive normalization (Li et al. 2020): each sample mixes its scale and shift from a few."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..precision import without_autocast
from ..recovery import recover, standardization
from .base import Taxonomy, place_of
from .mixed import MixedNorm
from .tracking import Tracked


class AttentiveNorm(MixedNorm):
    """Standardize over the batch, then scale by Σₖ λₖ·γₖ and shift by Σₖ λₖ·βₖ, λ of each sample.

    λ = softmax(A·m + a) of the sample's channel means m (`attention`), and K scales and shifts.

    Differs from the authors' code, where λ is a hard sigmoid of batch-normalized attention to
    mean/deviation and the γₖ start at random about 1: with the softmax, one of the paper's
    variants, the λₖ sum to 1 and the γₖ may all start at 1. So the layer starts as batch norm, and
    a pretrained scale and shift load into every row.

    Args:
        num_features: channels C.
        num_mixtures: K; in the paper 5 to 20, growing with the channels.
        eps, momentum, bias, sync, process_group: see `MixedNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        weight, bias: (K, C), from 1 and 0.
        attention: the linear layer C → K.

    Raises:
        InputError: fewer than one mixture.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize",
        "mix of affines, by the instance",
        "Li et al. 2020",
        "2 passes and C·K products a sample, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        num_mixtures: int = 5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, True, **carried)
        if num_mixtures < 1:
            raise InputError(f"num_mixtures {num_mixtures}: must be at least 1")
        self.num_mixtures = num_mixtures
        place: Any = place_of(carried)
        self.attention = nn.Linear(num_features, num_mixtures, **place)
        self.weight = nn.Parameter(torch.ones(num_mixtures, num_features, **place))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(num_mixtures, num_features, **place))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        own, batch = self.both_moments(x)
        with without_autocast(x):
            share = self.attention(own.mean.to(self.attention.weight.dtype)).softmax(1)
            weight, bias = (
                None if each is None else share @ each for each in (self.weight, self.bias)
            )
        return recover(x, standardization(batch, self.eps), weight, bias)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Let every row start from the (C,) scale and shift of a layer with one."""
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape == (self.num_features,):
                state_dict[prefix + name] = value.expand(self.num_mixtures, -1)
        super()._load_from_state_dict(state_dict, prefix, *args)
