"""Domain-specific batch normalization: a bank of populations, each sample routed to its own.

Chang et al. 2019 (DSBN). Differs from the paper's code, which routes a whole batch by its first
sample: here every sample goes its own way, and a mixed batch gives what running each domain's
samples through a batch norm of their own would give.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..condition import ConditionalLayer
from ..distributed import gather, is_joined
from ..moments import Moments
from ..partition import INSTANCE
from ..recovery import affine as recover
from ..routing import Domain, Route, check_domain, mixture, pooled, weighted
from .base import Piece, Taxonomy, check_features
from .batch import BatchNorm
from .tracking import Tracking

UNSEEN = ("mean", "nearest")
"""What a sample of unknown domain is normalized with."""


class DomainNorm(Tracking, ConditionalLayer):
    """Batch norm with a population, and unless shared a scale and shift, for each of K domains.

    The condition is a `Domain`: a number, a tensor of numbers (a mixed batch) or of weights
    (soft membership), or None. One number is torch's kernel on that domain's rows.

    In training a mixed batch is measured once, sample by sample; the moments are pooled for each
    domain (Chan's formula) and given back to its samples. A domain that is absent keeps its
    statistics and its counter; one with a single value a channel also does, and is normalized by
    its population. With soft membership, domains are measured by weight and a sample is
    normalized by the moments of its mixture.

    A sample of unknown domain moves no statistics, and is normalized by populations in training
    too: by `unseen`, `mean` (the moments of the even mixture of all domains, with the variance
    between their means, and the mean scale and shift) or `nearest` (see `Route.nearest`). What
    gradient checkpointing recomputes of it in training sees the populations as they are by then.

    A domain's rows of `weight` and `bias` get gradients of 0 in batches without it, so no
    parameter is unused under DDP; but weight decay and momentum move them then.

    Args:
        num_features: channels C.
        num_domains: K.
        eps: added to the variance.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`, (K, C).
        share_affine: one `weight` and `bias` (C,) for all domains.
        unseen: `mean` or `nearest`.
        sync, process_group: see `Tracking`; processes may differ in their domains.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: fewer than 1 channel or domain, an unknown `unseen` or layout.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch", "standardize", "affine a domain", "Chang et al. 2019", "2 passes; inference 1"
    )
    is_coupled: ClassVar[bool] = False
    """Whether what a domain is normalized with depends on the other domains' moments."""
    tracked: ClassVar[tuple[str, ...]] = ("running_mean", "running_var", "num_batches_tracked")
    """The buffers that have a row a domain."""
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_domains: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        bias: bool = True,
        share_affine: bool = False,
        unseen: str = "mean",
        sync: bool = False,
        process_group: Any = None,
        layout: str = "any",
        act: Piece = None,
        drop: Piece = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_features(num_features)
        if num_domains < 1:
            raise InputError(f"num_domains {num_domains}: must be at least 1")
        if unseen not in UNSEEN:
            raise unknown("rule for unseen domains", unseen, UNSEEN)
        self.num_features, self.num_domains = num_features, num_domains
        self.eps, self.affine, self.share_affine, self.unseen = eps, affine, share_affine, unseen
        self.track_running_stats = True
        place: Any = {"device": device, "dtype": dtype}
        shape = (num_features,) if share_affine else (num_domains, num_features)
        scale = nn.Parameter(torch.ones(shape, **place)) if affine else None
        shift = nn.Parameter(torch.zeros(shape, **place)) if affine and bias else None
        self.register_parameter("weight", scale)
        self.register_parameter("bias", shift)
        self.track(momentum, sync, process_group)
        self.track_variance(place)
        self.carry(layout, act, drop)

    def track_variance(self, like: dict[str, Any]) -> None:
        """Register the buffers of the populations: (K, C), (K, C) and (K,)."""
        shape, device = (self.num_domains, self.num_features), like.get("device")
        self.register_buffer("running_mean", torch.zeros(shape, **like))
        self.register_buffer("running_var", torch.ones(shape, **like))
        counter = torch.zeros(self.num_domains, dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter)

    def normalize_by(self, x: Tensor, condition: Domain | Route) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: a domain out of range or of another batch size; in training, a batch of
                one known domain with a single value a channel.
        """
        route = self.route(condition)
        # processes that meet must all bring (K, C) moments, whichever domains they hold
        alone = self.uses_population or not (self.sync and is_joined())
        if route.index is not None and alone:
            if not (self.is_coupled and self.training):
                return self._by_branch(x, route.index, route.done)
            self.check_measured(x)
        known, own = route.known(x), self.population()
        bank = self.bank(x, known, own, route)
        guess = self.guess(x, known, own, route)
        mean, var = self.assign(known, guess, bank, own, route.is_soft)
        rows = known + guess
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self._chosen(self.weight, rows)
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self._chosen(self.bias, rows)
        return recover(x, *self.adjust(scale, shift, known, bank, own))

    def route(self, condition: Domain | Route) -> Route:
        """Return a condition as the `Route` of one forward pass.

        Raises:
            InputError: it does not fit, or was made for another number of domains.
        """
        if not isinstance(condition, Route):
            return Route(condition, self.num_domains)
        if condition.num_domains != self.num_domains:
            raise InputError(
                f"{type(self).__name__} has {self.num_domains} domains, "
                f"the condition was made for {condition.num_domains}"
            )
        return condition

    def bank(self, x: Tensor, known: Tensor, own: Moments, route: Route) -> Moments:
        """Return the (K, C) moments that samples of known domain are normalized with.

        In training, those of the batch, measured and remembered; for a domain with fewer than two
        values a channel its population, `own`.
        """
        if self.uses_population:
            return own
        measured = pooled(Moments.of(x, INSTANCE), known, route.is_soft)
        if self.sync:
            measured = gather(measured, self.process_group)
        if self.training and not route.done:
            self.remember(measured.detach())
        enough = (measured.count > 1)[:, None]
        mean = torch.where(enough, measured.mean, own.mean)
        var = torch.where(enough, measured.var, own.var)
        return Moments(measured.count, mean, var, None, INSTANCE)

    def guess(self, x: Tensor, known: Tensor, own: Moments, route: Route) -> Tensor:
        """Return (N, K) membership of the samples of unknown domain; else rows of 0."""
        unknown = (known.sum(1, keepdim=True) == 0).to(known)
        if self.unseen == "nearest":
            return unknown * route.nearest(x, own, self.eps)
        return unknown.expand(-1, self.num_domains) / self.num_domains

    def assign(
        self, known: Tensor, guess: Tensor, bank: Moments, own: Moments, is_soft: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and variance (N, C) that each sample is normalized with."""
        mean, var = mixture(known, bank, is_soft)
        if self.unseen == "nearest":
            return mean + weighted(guess, own.mean), var + weighted(guess, own.var)
        even = mixture(own.mean.new_full((1, self.num_domains), 1 / self.num_domains), own, True)
        unknown = guess.sum(1, keepdim=True) > 0
        return torch.where(unknown, even[0], mean), torch.where(unknown, even[1], var)

    def adjust(
        self, scale: Tensor, shift: Tensor, known: Tensor, bank: Moments, own: Moments
    ) -> tuple[Tensor, Tensor]:
        """Return each sample's scale and shift (N, C), recovery included; here, as they are."""
        return scale, shift

    def population(self) -> Moments:
        """Return a copy of the running moments (K, C), in float32 or better, with counts of 0."""
        precise = torch.promote_types(self.running_mean.dtype, torch.float32)
        mean, var = (each.to(precise, copy=True) for each in (self.running_mean, self.running_var))
        return Moments(mean.new_zeros(self.num_domains), mean, var, None, INSTANCE)

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Move the running moments of the domains that a batch holds, (K, C)."""
        seen = measured.count > 1
        share = self.next_shares(seen, measured.mean)
        unbiased = measured.count / (measured.count - 1).clamp_min(1)
        seen, share, unbiased = seen[:, None], share[:, None], unbiased[:, None]
        move(self.running_mean, measured.mean, share, seen)
        move(self.running_var, measured.var * unbiased, share, seen)

    def next_shares(self, seen: Tensor, like: Tensor) -> Tensor:
        """Count one more batch of the domains `seen`, (K,), and return the weights that it gets."""
        share = like.new_full(seen.shape, self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.data.add_(seen)
            if self.momentum is None:
                share = self.num_batches_tracked.to(share).reciprocal()
        return share

    def branch(self, domain: int, *, settled: bool = True) -> Tracking:
        """Return one domain as a layer of its own, with the same activation and dropout.

        Args:
            domain: its number.
            settled: with what the domain is normalized with at inference, so that the layer
                computes there what this one does; else with what it holds.

        Raises:
            InputError: the domain is out of range, or no layer of its own computes the same.
        """
        index = self._known(domain)
        made = self.blank_branch()
        made.frozen = self.frozen
        for name, row in (self.settled(index) if settled else self.held(index)).items():
            place = getattr(made, name)
            place.data = row.detach().clone()
            if isinstance(place, nn.Parameter):
                place.requires_grad_(getattr(self, name).requires_grad)
        made.train(self.training)
        return made

    def blank_branch(self) -> Tracking:
        """Return the layer that one domain would be, with its own values still to come."""
        kind: Any = BatchNorm.for_layout(self.layout)
        made: BatchNorm = kind(
            *(self.num_features, self.eps, self.momentum, self.affine),
            bias=self.bias is not None,
            sync=self.sync,
            process_group=self.process_group,
            layout=self.layout,
            act=self.act,
            drop=self.drop,
            device=self.running_mean.device,
            dtype=self.running_mean.dtype,
        )
        return made

    @torch.no_grad()
    def load_branch(self, domain: int, **values: Tensor | None) -> None:
        """Set what one domain holds; what is not named, or None, stays.

        Args:
            domain: its number.
            values: `weight`, `bias`, `running_mean`, `running_var`: (C,); `num_batches_tracked`:
                (); as `held` has them. A shared `weight` or `bias` changes for all domains.

        Raises:
            InputError: the domain is out of range, the layer has no such value, or another shape.
        """
        rows = self.held(self._known(domain))
        for name, value in values.items():
            if value is None:
                continue
            if name not in rows:
                raise unknown(f"value of {type(self).__name__}", name, rows)
            if value.shape != rows[name].shape:
                wanted = tuple(rows[name].shape)
                raise InputError(f"{name} {tuple(value.shape)} of a domain: must be {wanted}")
            rows[name].copy_(value)

    def held(self, domain: int) -> dict[str, Tensor]:
        """Return what one domain holds, as views by the names that a batch norm has."""
        held = {"weight": self.weight, "bias": self.bias}
        shared = {name: each for name, each in held.items() if each is not None}
        own = {name: each if self.share_affine else each[domain] for name, each in shared.items()}
        for name in self.tracked:
            if getattr(self, name) is not None:
                own[name] = getattr(self, name)[domain]
        return own

    def settled(self, domain: int) -> dict[str, Tensor]:
        """Return what one domain is normalized with at inference, by a batch norm's names."""
        return self.held(domain)

    def own(self, domain: int) -> dict[str, Tensor]:
        """Return as `held`, without a `weight` and `bias` that all domains share.

        Raises:
            InputError: the domain is out of range.
        """
        held = self.held(self._known(domain))
        shared = ("weight", "bias") if self.share_affine else ()
        return {name: row for name, row in held.items() if name not in shared}

    @torch.no_grad()
    def grow(self, from_domain: int) -> None:
        """Add a domain that starts as another one is; `weight` and `bias` become new parameters.

        Raises:
            InputError: the domain is out of range, or one more would change the others.
        """
        if self.is_coupled:
            raise InputError(
                f"{type(self).__name__} normalizes each domain by the others' moments, so that one "
                f"more would change them all; make the layer with {self.num_domains + 1} domains"
            )
        for name in self.own(from_domain):
            rows = getattr(self, name)
            more = torch.cat([rows, rows[from_domain : from_domain + 1]])
            is_learnt = isinstance(rows, nn.Parameter)
            setattr(self, name, nn.Parameter(more, rows.requires_grad) if is_learnt else more)
        self.num_domains += 1

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{super().extra_repr()}, num_domains={self.num_domains}, unseen={self.unseen}"

    def _by_branch(self, x: Tensor, index: int, again: bool) -> Tensor:
        """One domain for all: torch's kernel, which moves that domain's rows in place."""
        held = self.settled(index) if self.uses_population else self.held(index)
        mean, var = held["running_mean"], held["running_var"]
        recovery = held.get("weight"), held.get("bias")
        if self.uses_population:
            return F.batch_norm(x, mean, var, *recovery, False, 0.0, self.eps)
        self.check_measured(x)
        count = None if again else held.get("num_batches_tracked")
        if count is not None:
            count.add_(1)
        if not again and (self.momentum is not None or count is None):
            momentum = self.momentum or 0.0
            return F.batch_norm(x, mean, var, *recovery, True, momentum, self.eps)
        new_mean, new_var = torch.zeros_like(mean), torch.ones_like(var)
        y = F.batch_norm(x, new_mean, new_var, *recovery, True, 1.0, self.eps)
        if count is not None:
            share = count.to(mean).reciprocal()
            mean.data.lerp_(new_mean, share)
            var.data.lerp_(new_var, share)
        return y

    def check_measured(self, x: Tensor) -> None:
        """Check that a batch of one known domain has what its statistics need.

        Raises:
            InputError: it is measured, and has too few values a channel.
        """
        if not self.uses_population:
            self.check_samples(x.numel() // self.num_features, x)

    def _known(self, domain: int) -> int:
        index = check_domain(domain, self.num_domains)
        if index is None:
            raise InputError(f"domain -1: name one of 0 … {self.num_domains - 1}")
        return index

    def _chosen(self, values: Tensor, membership: Tensor) -> Tensor:
        return values if self.share_affine else weighted(membership, values)


def move(running: Tensor, new: Tensor, share: Tensor, seen: Tensor) -> None:
    """Move the rows `seen` of running moments towards new ones.

    Past the version counter, as torch's kernel does, whose graphs may hold rows of `running`.
    """
    moved = running.lerp(new.to(running), share.to(running))
    running.data.copy_(torch.where(seen, moved, running))
