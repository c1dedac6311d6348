"""IBN-a (Pan et al. 2018): some channels by their instance, the others by the batch."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError
from ..moments import Moments
from ..partition import INSTANCE
from ..recovery import recover, standardization
from .base import Taxonomy, check_elements
from .mixed import MixedNorm
from .tracking import Tracked


class IBN(MixedNorm):
    """Instance normalization of the first channels, batch normalization of the rest (fig. 3a).

    Differs from the authors' code, which splits the layer in two: `weight`, `bias` and the running
    moments keep the full length C, so that a batch norm's state loads. The population of the
    instance channels is tracked too, for the way back.

    Args:
        num_features: channels C.
        ratio: fraction of the channels that are normalized by their instance, rounded down.
        eps, momentum, affine, bias, sync, process_group: see `MixedNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        instance_features: number of these channels.

    Raises:
        InputError: a ratio outside of [0, 1].
    """

    taxonomy: ClassVar = Taxonomy(
        "instance for the first channels, batch for the rest",
        "standardize",
        "affine",
        "Pan et al. 2018",
        "2 passes, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        ratio: float = 0.5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, **carried)
        if not 0 <= ratio <= 1:
            raise InputError(f"IBN ratio {ratio}: must be between 0 and 1")
        self.ratio = ratio
        self.instance_features = int(num_features * ratio)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: one position alone, or in training one sample alone.
        """
        k = self.instance_features
        if k > 0:
            check_elements(self, math.prod(x.shape[2:]), x)
        own, batch = self._moments(x)
        mean = torch.cat([own.mean[:, :k], batch.mean[:, k:].expand(x.shape[0], -1)], 1)
        var = torch.cat([own.var[:, :k], batch.var[:, k:].expand(x.shape[0], -1)], 1)
        split = Moments(own.count, mean, var, None, INSTANCE)
        return recover(x, standardization(split, self.eps), self.weight, self.bias)

    def _moments(self, x: Tensor) -> tuple[Moments, Moments]:
        """Instance moments, at inference of the instance channels alone, and the batch's."""
        if self.uses_population and self.instance_features > 0:
            return Moments.of(x[:, : self.instance_features], INSTANCE), self.population()
        return self.both_moments(x)

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{super().extra_repr()}, ratio={self.ratio}"
