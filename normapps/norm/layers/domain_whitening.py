"""Domain-specific whitening (DWT): groups of channels decorrelated, each domain by its own moments.

Roy et al. 2019, "Unsupervised Domain Adaptation using Feature-Whitening and Consensus Loss",
sec. 3.1. Differs from the paper's code: every sample has its domain, in any order within a batch;
the matrix is factorized in float64, and derived again from the running covariance at inference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ...errors import InputError
from ..distributed import gather, is_joined
from ..matrix import multiply
from ..moments import Moments
from ..operations import whitening_matrix
from ..partition import INSTANCE, Partition, channel_groups
from ..precision import without_autocast
from ..routing import Domain, Route, weighted
from .base import Taxonomy, largest_divisor, place_of
from .domain import move
from .shared_domain import Shared, SharedDomainNorm
from .tracking import Tracking
from .whitening import CholeskyNorm, keep_precise


class DomainWhitening(SharedDomainNorm):
    """γ·W_k(x−μ_k)+β with W_kΣ'_kW_kᵀ = I, Σ'_k = (1−ε)Σ_k + εI, in groups of channels.

    W_k is the inverse Cholesky factor of domain k; γ and β are shared. In training μ_k and Σ_k are
    those of the batch's samples of the domain; a domain that has no more values a channel than
    channels in a group is normalized by its population and keeps it. Soft membership and samples
    of unknown domain are as in `DomainNorm`, with the full moments of the mixture. The nearest
    domain is found by the variances alone.

    Args:
        num_features: channels C.
        num_domains: K.
        eps: ε, the share of the identity in Σ'.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`, (C,).
        group_size: channels whitened together, all of them if None; the largest divisor of C
            that is not above it is taken.
        unseen, sync, process_group, layout, act, drop: see `SharedDomainNorm`.

    Attributes:
        group_size: channels d whitened together, in fact.
        running_mean: (K, C).
        running_cov: (K, C/d, d, d), biased, without the identity's share. An old `running_var`,
            (C,) or (K, C), is loaded as its diagonal. Like `running_mean` in float32 or better.

    Raises:
        InputError: an `eps` outside of [0, 1], a group size below 1; as `SharedDomainNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups",
        "whiten (Cholesky)",
        "affine",
        "Roy et al. 2019",
        "2 passes of d products an element, Cholesky O(d³) a group and domain",
    )
    tracked: ClassVar = ("running_mean", "running_cov", "num_batches_tracked")
    running_cov: Tensor

    def __init__(
        self,
        num_features: int,
        num_domains: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        group_size: int | None = 4,
        **carried: Unpack[Shared],
    ) -> None:
        super().__init__(num_features, num_domains, eps, momentum, affine, **carried)
        if not 0 <= eps <= 1:
            raise InputError(f"eps {eps}: the share of the identity must be within 0 and 1")
        limit = num_features if group_size is None else group_size
        self.group_size = largest_divisor(num_features, limit)
        self._track_covariance(place_of(carried))

    def normalize_by(self, x: Tensor, condition: Domain | Route) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: a domain out of range or of another batch size; in training, a batch of
                one known domain with too few values a channel.
        """
        route = self.route(condition)
        own = self.population()
        if route.index is not None and self.uses_population:
            return multiply(x, self.partition(), *self.map(self._of_domain(own, route.index)))
        if route.index is not None and not (self.sync and is_joined()):
            self.check_measured(x)
        known = route.known(x)
        maps = self._known_maps(known, self.bank(x, known, own, route), route.is_soft)
        maps = maps + self._unknown_maps(self.guess(x, known, own, route), own)
        maps = maps.reshape(-1, self.group_size, self.group_size + 1)
        groups = x.reshape(-1, self.group_size, *x.shape[2:])  # each of a sample stands by itself
        return multiply(groups, INSTANCE, maps[..., :-1], maps[..., -1]).reshape(x.shape)

    def map(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return what whitening and recovery together do: y = matrix·x + shift in each group.

        Args:
            moments: full moments of the C/d groups of channels, R times.

        Returns:
            matrix (R·C/d, d, d) and shift (R·C/d, d).
        """
        with without_autocast(moments.mean):
            matrix = whitening_matrix(self._shrunk(moments), "cholesky", self.eps)
            if self.weight is not None:
                matrix = self._repeated(self.weight, matrix).unsqueeze(2).to(matrix) * matrix
            shift = -(matrix @ moments.mean.unsqueeze(2)).squeeze(2)
        return matrix, shift if self.bias is None else shift + self._repeated(self.bias, shift)

    def bank(self, x: Tensor, known: Tensor, own: Moments, route: Route) -> Moments:
        """Return the full moments, (K·C/d) groups, that samples of known domain are whitened with.

        In training, those of the batch, measured and remembered; for a domain with too few values
        a channel its population, `own`.
        """
        if self.uses_population:
            return own
        measured = self._measured(x, known)
        if self.sync:
            measured = gather(measured, self.process_group)
        if self.training and not route.done:
            self.remember(measured.detach())
        enough = (measured.count > self.group_size)[:, None]
        mean = torch.where(enough, measured.mean, own.mean)
        return _full(measured.count, mean, torch.where(enough[:, None], _cov(measured), _cov(own)))

    def guess(self, x: Tensor, known: Tensor, own: Moments, route: Route) -> Tensor:
        """Return (N, K) membership of the samples of unknown domain; else rows of 0."""
        mean, var = (each.reshape(self.num_domains, -1) for each in (own.mean, own.var))
        diagonal = Moments(own.count[: self.num_domains], mean, var, None, INSTANCE)
        return super().guess(x, known, diagonal, route)

    def population(self) -> Moments:
        """Return a copy of the running moments, (K·C/d) groups, in float32 or better, uncounted."""
        cov = self.running_cov.flatten(0, 1)
        precise = torch.promote_types(cov.dtype, torch.float32)
        mean = self.running_mean.reshape(cov.shape[:2])
        mean, cov = (each.to(precise, copy=True) for each in (mean, cov))
        return _full(mean.new_zeros(len(mean)), mean, cov)

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Move the running moments of the domains that a batch holds, (K·C/d) groups."""
        seen = measured.count.reshape(self.num_domains, -1)[:, 0] > self.group_size
        share = self.next_shares(seen, measured.mean)
        for running, new in ((self.running_mean, measured.mean), (self.running_cov, measured.cov)):
            if new is not None:
                shape = (-1, *[1] * (running.dim() - 1))
                move(running, new.reshape_as(running), share.reshape(shape), seen.reshape(shape))

    def settled(self, domain: int) -> dict[str, Tensor]:
        """Return what one domain is whitened with at inference, by a `CholeskyNorm`'s names."""
        held = self.held(domain)
        return held | {"running_cov": (1 - self.eps) * held["running_cov"]}

    def blank_branch(self) -> Tracking:
        """Return the layer that one domain would be, with its own values still to come."""
        like = self.running_mean if self.weight is None else self.weight
        return CholeskyNorm(
            *(self.num_features, self.eps, self.momentum, self.affine),
            group_size=self.group_size,
            bias=self.bias is not None,
            sync=self.sync,
            process_group=self.process_group,
            layout=self.layout,
            act=self.act,
            drop=self.drop,
            device=like.device,
            dtype=like.dtype,
        )

    def partition(self) -> Partition:
        """Return the partition whose moments are tracked, a domain."""
        return channel_groups(self.group_size)

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure: in training, those of full rank."""
        return self.group_size + 1 if self.training else 2

    @property
    def remedy(self) -> str:
        """What helps where there are too few samples."""
        return (
            "give larger batches (drop_last=True), a smaller group_size than "
            f"{self.group_size}, or freeze the layer (freeze_norm_)"
        )

    def no_moments(self, x: Tensor) -> Moments:
        """Return the moments, of count 0, that stand for an empty batch (0, C, *S)."""
        none = super().no_moments(x)
        cov = none.mean.unsqueeze(2).expand(-1, -1, self.group_size)
        return replace(none, cov=cov, partition=INSTANCE)

    def track_variance(self, like: dict[str, Any]) -> None:
        """Leave the buffers to `__init__`, which knows the size of the groups by then."""

    def _track_covariance(self, place: dict[str, Any]) -> None:
        """Register the buffers of full populations, standard normal at first."""
        own = place["dtype"] or torch.get_default_dtype()
        place = {**place, "dtype": torch.promote_types(own, torch.float32)}
        groups = self.num_features // self.group_size
        eye = torch.eye(self.group_size, **place).repeat(self.num_domains, groups, 1, 1)
        mean = torch.zeros(self.num_domains, self.num_features, **place)
        counter = torch.zeros(self.num_domains, dtype=torch.long, device=place["device"])
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_cov", eye)
        self.register_buffer("num_batches_tracked", counter)

    def _measured(self, x: Tensor, known: Tensor) -> Moments:
        """The batch's moments of each domain's samples, (K·C/d) groups."""
        each = Moments.of(x.reshape(-1, self.group_size, *x.shape[2:]), INSTANCE, full=True)
        total = known.sum(0)
        share = (known / torch.where(total > 0, total, 1)).t()
        count = total.to(each.mean) * each.count[0].to(each.mean)
        groups = self.num_features // self.group_size
        return replace(_mixture(share, each), count=count.repeat_interleave(groups))

    def _known_maps(self, known: Tensor, bank: Moments, is_soft: bool) -> Tensor:
        """Of each sample of known domain, (N, C·(d+1)); rows of 0 for the others."""
        if not is_soft:
            return weighted(known, self._maps(bank))
        is_known = known.sum(1, keepdim=True) > 0
        return torch.where(is_known, self._maps(_mixture(known, bank)), 0)

    def _unknown_maps(self, guess: Tensor, own: Moments) -> Tensor:
        """Of each sample of unknown domain, (N, C·(d+1)); rows of 0 for the others."""
        if self.unseen == "nearest":
            return weighted(guess, self._maps(own))
        even = own.mean.new_full((1, self.num_domains), 1 / self.num_domains)
        return weighted(guess.sum(1, keepdim=True), self._maps(_mixture(even, own)))

    def _maps(self, moments: Moments) -> Tensor:
        """`map` as one row (R, C·(d+1)) for each of R sets of groups."""
        matrix, shift = self.map(moments)
        rows = torch.cat([matrix, shift.unsqueeze(2)], 2)
        return rows.reshape(-1, self.num_features * (self.group_size + 1))

    def _shrunk(self, moments: Moments) -> Moments:
        return replace(moments, cov=(1 - self.eps) * _cov(moments))

    def _repeated(self, values: Tensor, like: Tensor) -> Tensor:
        """A recovery (C,) for the groups of R domains, (R·C/d, d)."""
        return values.reshape(-1, self.group_size).repeat(
            len(like) * self.group_size // self.num_features, 1
        )

    def _of_domain(self, moments: Moments, domain: int) -> Moments:
        groups = self.num_features // self.group_size
        rows = slice(domain * groups, (domain + 1) * groups)
        return _full(moments.count[rows], moments.mean[rows], _cov(moments)[rows])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DomainWhitening:
        """Follow a cast, but keep the running moments in float32 or better."""
        before = {name: self._buffers[name] for name in ("running_mean", "running_cov")}
        parent: Any = super()
        parent._apply(fn, recurse)
        keep_precise(self, before)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Take a batch norm's or a bank's `running_var` as the diagonal."""
        var = state_dict.get(prefix + "running_var")
        fits = var is not None and var.shape in (self.running_mean.shape, (self.num_features,))
        if fits and prefix + "running_cov" not in state_dict:
            rows = state_dict.pop(prefix + "running_var").expand(self.running_mean.shape)
            cov = rows.reshape(self.running_cov.shape[:3]).diag_embed()
            state_dict[prefix + "running_cov"] = cov
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _mixture(share: Tensor, parts: Moments) -> Moments:
    """The moments of R mixtures, by `share` (R, M), of M sets of groups: R sets.

    What has a share of 0 may be NaN.
    """
    width = parts.mean.shape[1]
    means = parts.mean.reshape(share.shape[1], -1)
    mean = weighted(share, means)
    within = weighted(share, _cov(parts).reshape(share.shape[1], -1))
    weight = share.to(mean).unsqueeze(2)
    gaps = torch.where(weight > 0, means - mean.unsqueeze(1), 0).unflatten(2, (-1, width))
    between = (weight[..., None, None] * gaps.unsqueeze(4) * gaps.unsqueeze(3)).sum(1)
    mean, cov = mean.reshape(-1, width), within.reshape(between.shape) + between
    return _full(mean.new_zeros(len(mean)), mean, cov.flatten(0, 1))


def _full(count: Tensor, mean: Tensor, cov: Tensor) -> Moments:
    return Moments(count, mean, cov.diagonal(dim1=1, dim2=2), cov, INSTANCE)


def _cov(moments: Moments) -> Tensor:
    if moments.cov is None:
        raise InputError("moments are diagonal: measure them by Moments.of(..., full=True)")
    return moments.cov
