"""Switchable whitening (Pan et al. 2019): a learnt mix of batch and instance covariances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NoReturn, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..matrix import multiply
from ..moments import Moments
from ..partition import INSTANCE
from ..precision import without_autocast
from .base import Taxonomy, place_of
from .tracking import Tracked
from .whitening import Grouped, IterNorm

KINDS = ("bw", "iw", "bn", "in", "ln")
"""Batch and instance whitening; batch, instance and layer standardization."""


class SwitchableWhitening(IterNorm):
    """Whiten by μ = Σₖ softmax(`mean_weight`)ₖ·μₖ and Σ = Σₖ softmax(`cov_weight`)ₖ·Σₖ (eq. 5).

    Of the covariances of a group of channels, `bw` is the batch's, `iw` the sample's; `bn` and
    `in` are their diagonals and `ln` is the variance of the whole sample times I. They are mixed
    before the one whitening, sample by sample; at inference the batch's are the running ones.

    Differs from the authors' code: `momentum` is the weight of the new (theirs, 0.99, of the old),
    the running covariance starts at I, not at 0, all variances are biased (their `ln` is not), and
    each kind has its own share of the covariance (with five kinds theirs give `bn` and `in` the
    shares of `bw` and `iw`, so that shares sum to more than 1 and two logits learn nothing).

    Args:
        num_features: channels C.
        kinds: of `KINDS`, two or more; the paper's three are `bw`, `iw`, `ln`.
        eps, momentum, affine, track_running_stats, group_size, bias, sync, process_group,
            iterations, layout, act, drop: see `IterNorm`.

    Attributes:
        mean_weight, cov_weight: (K,) logits of the kinds; all alike at first.

    Raises:
        InputError: an unknown or repeated kind, or as `IterNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "mix of batch and instance, channel groups",
        "whiten (Newton)",
        "affine",
        "Pan et al. 2019",
        "2 passes of d products an element, 3T products O(d³) a sample and group, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        kinds: Sequence[str] = ("bw", "iw"),
        group_size: int | None = 16,
        iterations: int = 5,
        **carried: Unpack[Tracked],
    ) -> None:
        options: Grouped = {"group_size": group_size, **carried}
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            iterations=iterations,
            **options,
        )
        self.kinds = _checked(kinds)
        place = place_of(carried)
        self.mean_weight = nn.Parameter(torch.ones(len(self.kinds), **place))
        self.cov_weight = nn.Parameter(torch.ones(len(self.kinds), **place))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        groups = self.num_features // self.group_size
        apart = x.reshape(-1, self.group_size, *x.shape[2:])
        own = Moments.of(apart, INSTANCE, full=True)
        batch = self.population() if self.uses_population else self.moments(x, self._pooled(own))
        with without_autocast(own.mean):
            mixed = self.mixed(own, batch)
            matrix = self.whitening(mixed).unflatten(0, (-1, groups))
            if self.weight is not None:
                matrix = self.weight.reshape(groups, -1, 1).to(matrix) * matrix
            shift = -(matrix @ mixed.mean.reshape(-1, groups, self.group_size, 1)).squeeze(3)
            shift = shift if self.bias is None else shift + self.bias.reshape(groups, -1)
        y = multiply(apart, INSTANCE, matrix.flatten(0, 1), shift.flatten(0, 1))
        return y.reshape(x.shape)

    def mixed(self, own: Moments, batch: Moments) -> Moments:
        """Return the moments (N·G, d) that each sample is whitened by.

        Args:
            own: of each group of each sample, (N·G, d).
            batch: of each group of the batch, (G, d).
        """
        mean, cov = (each.unflatten(0, (-1, len(batch.mean))) for each in (own.mean, _cov(own)))
        means = {"bw": batch.mean, "bn": batch.mean, "iw": mean, "in": mean}
        covs = {"bw": _cov(batch), "iw": cov}
        covs |= {"bn": _diagonal(_cov(batch)), "in": _diagonal(cov)}
        if "ln" in self.kinds:
            means["ln"] = mean.mean((1, 2), keepdim=True)
            spread = cov.diagonal(dim1=2, dim2=3) + (mean - means["ln"]).square()
            eye = torch.eye(self.group_size, dtype=cov.dtype, device=cov.device)
            covs["ln"] = spread.mean((1, 2))[:, None, None, None] * eye
        mean = self._mix(self.mean_weight, means).expand_as(mean).flatten(0, 1)
        cov = self._mix(self.cov_weight, covs).expand_as(cov).flatten(0, 1)
        return Moments(own.count, mean, cov.diagonal(dim1=1, dim2=2), cov, INSTANCE)

    def fold(self) -> NoReturn:
        """Raise InputError: what the layer does depends on each input."""
        raise InputError(
            "SwitchableWhitening measures each input at inference, too, and cannot be folded"
        )

    def _mix(self, logits: Tensor, of_kinds: dict[str, Tensor]) -> Tensor:
        share = logits.softmax(0, dtype=of_kinds["bw"].dtype)
        total = share[0] * of_kinds[self.kinds[0]]
        for index, kind in enumerate(self.kinds[1:], 1):
            total = total + share[index] * of_kinds[kind]
        return total

    def _pooled(self, own: Moments) -> Moments:
        """The moments (G, d) of the batch, from those of its samples, which weigh the same."""
        groups = self.num_features // self.group_size
        means, covs = (each.unflatten(0, (-1, groups)) for each in (own.mean, _cov(own)))
        mean = means.mean(0)
        apart = means - mean
        with without_autocast(mean):
            between = apart.permute(1, 2, 0) @ apart.permute(1, 0, 2) / len(means)
        cov = covs.mean(0) + between
        count = own.count.unflatten(0, (-1, groups)).sum(0)
        return Moments(count, mean, cov.diagonal(dim1=1, dim2=2), cov, self.partition())


def _checked(kinds: Sequence[str]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of moments", kind, KINDS)
    if isinstance(kinds, str) or len(kinds) < 2 or len(set(kinds)) < len(kinds):
        raise InputError(f"kinds {tuple(kinds)}: give two or more of {', '.join(KINDS)}, once each")
    return tuple(kinds)


def _cov(moments: Moments) -> Tensor:
    if moments.cov is None:
        raise InputError("moments are diagonal: measure them by Moments.of(..., full=True)")
    return moments.cov


def _diagonal(cov: Tensor) -> Tensor:
    return cov.diagonal(dim1=-2, dim2=-1).diag_embed()
