"""What the layers share that mix a batch's moments with those of its samples."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from ..moments import Moments
from ..partition import BATCH, INSTANCE
from ..pooling import pool
from .base import AffineNorm, Recovery, place_of
from .tracking import Tracking


class MixedNorm(Tracking, AffineNorm):
    """A layer that measures each sample and pools the batch's moments from that.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`.
        sync, process_group: measure the batch of all processes together; see `Tracking`.
        layout, act, drop: see `NormLayer`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        sync: bool = False,
        process_group: Any = None,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        self.track(momentum, sync, process_group)
        place = place_of(carried)
        self.track_variance(place)
        self.add_mixture(place)

    def add_mixture(self, place: dict[str, Any]) -> None:
        """Register the parameters that say how the moments are mixed, if there are any."""

    def both_moments(self, x: Tensor) -> tuple[Moments, Moments]:
        """Return the instance moments (N, C) of x, and the batch's or population's (1, C).

        Raises:
            InputError: in training, too few samples.
        """
        own = Moments.of(x, INSTANCE)
        return own, self.moments(x, pool(own, BATCH))
