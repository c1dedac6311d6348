"""What the layers share that normalize with more than the present batch in training too.

A batch moves a population, and what has come before counts in the normalization itself; so
training and inference compute nearly the same, and small batches do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from ..moments import Moments
from ..recovery import recover, standardization
from .base import AffineNorm, Recovery, place_of
from .tracking import Tracking
from .whitening import keep_precise


class PopulationNorm(Tracking, AffineNorm):
    """A diagonal layer with a population that training uses too.

    Its buffers stay in float32 or better in a network that is turned into half precision, where
    a small step towards a batch would be rounded away. Gradient checkpointing shows it each batch
    again, which then counts twice, and gets other gradients: leave these layers outside of it.

    Args:
        num_features: channels C.
        eps: added to the variance.
        affine, bias: have `weight`, and `bias`.
        sync, process_group: measure the batches of all processes together; see `Tracking`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        running_mean, running_var: (C,), the variance biased.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        sync: bool = False,
        process_group: Any = None,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        self.sync, self.process_group, self.frozen = sync, process_group, False
        place = place_of(carried)
        wide = torch.promote_types(place["dtype"] or torch.get_default_dtype(), torch.float32)
        self.track_variance({**place, "dtype": wide})
        self.add_memory({**place, "dtype": wide})

    def add_memory(self, place: dict[str, Any]) -> None:
        """Register what else the layer remembers."""

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: in training, no sample at all.
        """
        return self.standardize(x, self.fixed() if self.uses_population else self.moments(x))

    def fixed(self) -> Moments:
        """Return the moments (1, C) that inference standardizes by."""
        return self.population()

    @property
    def is_fixed(self) -> bool:
        """Whether inference does nothing to (N, C, *S) but what `fixed` and the recovery say."""
        return True

    def standardize(self, x: Tensor, moments: Moments) -> Tensor:
        """Standardize (N, C, *S) by moments (1, C), and recover."""
        return recover(x, standardization(moments, self.eps), self.weight, self.bias)

    def joined(self, measured: Moments, samples: int, x: Tensor) -> Moments:
        """Return what to normalize (N, C, *S) with: the batch together with what came before.

        Args:
            measured: this process's moments of x.
            samples: how many each of them is measured from.

        Raises:
            InputError: no sample, in all processes.
        """
        moved = self.moved(super().joined(measured, samples, x))
        self.running_mean.copy_(moved.mean.detach()[0])
        self.running_var.copy_(moved.var.detach()[0])
        return moved

    def moved(self, batch: Moments) -> Moments:
        """Return the population after one more batch, with the batch's part of the gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Count a batch; `joined` writes what it has moved."""
        self.num_batches_tracked.add_(1)

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure: the rest is remembered."""
        return 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PopulationNorm:
        """Follow a cast, but keep what is remembered in float32 or better."""
        floating = {key: each for key, each in self._buffers.items() if _is_floating(each)}
        parent: Any = super()
        parent._apply(fn, recurse)
        keep_precise(self, floating)
        return self


def pooled(own: Moments, new: Moments, share: Tensor) -> Moments:
    """Return (1 − share)·own + share·new: the moments of the mixture, as if both were samples.

    Unlike a mix of the variances alone it counts how far apart the means are.

    Args:
        own, new: of equal shape, both full or both diagonal.
        share: 0…1, a tensor without axes.
    """
    apart, between = new.mean - own.mean, share * (1 - share)
    mean = own.mean.lerp(new.mean, share)
    if own.cov is None or new.cov is None:
        var = own.var.lerp(new.var, share) + between * apart.square()
        return Moments(new.count, mean, var, None, own.partition)
    cov = own.cov.lerp(new.cov, share) + between * apart.unsqueeze(2) * apart.unsqueeze(1)
    var = cov.diagonal(dim1=1, dim2=2).clone()
    return Moments(new.count, mean, var, cov, own.partition)


def _is_floating(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.is_floating_point()
