"""Routing: which domain each sample of a forward pass belongs to.

A one-hot matrix (N, K) instead of an index: it compiles, it needs no host synchronization, and
soft membership is the same thing with other numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .moments import Moments
from .partition import INSTANCE
from .precision import without_autocast

UNKNOWN = -1
"""The number of a domain that is not known."""

Domain = int | Tensor | None
"""A domain for all samples, or one for each (`Route` says how), or None: unknown for all."""


class Route:
    """Which domain each sample belongs to, for all domain layers of one forward pass.

    Args:
        domain: one number for all samples; an integer tensor () for all or (N,) with one a sample,
            −1 where it is unknown; (N, K) floating weights ≥ 0 of soft membership, whose rows are
            scaled to sum 1 (a row of zeros is unknown); or None, unknown for all. What a GPU
            holds is not checked in advance: a number out of range ends in a device-side assertion.
        num_domains: K.

    Attributes:
        index: the one known domain of the whole batch, or None.
        is_soft: membership is soft.
        done: the forward pass has ended. A layer that runs once more recomputes for the backward
            pass (gradient checkpointing), and must not count the batch again.

    Raises:
        InputError: a number out of range, or a tensor of another shape or dtype.
    """

    def __init__(self, domain: Domain, num_domains: int) -> None:
        self.num_domains = num_domains
        self.index: int | None = None
        self.is_soft = False
        self.done = False
        self._rows: Tensor | None = None
        self._is_common = not isinstance(domain, Tensor) or domain.dim() == 0
        self._nearest: Tensor | None = None
        if isinstance(domain, Tensor):
            self.is_soft = domain.is_floating_point()
            self._rows = _weights(domain, num_domains) if self.is_soft else _one_hot(domain, self)
        elif domain is not None:
            self.index = check_domain(domain, num_domains)

    def known(self, x: Tensor) -> Tensor:
        """Return (N, K) membership for an activation (N, C, *S); rows of zeros are unknown.

        Raises:
            InputError: x has another number of samples than there are domains given.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self._rows is None:
            self._rows = torch.zeros(1, self.num_domains, device=x.device)
            if self.index is not None:
                self._rows[:, self.index] = 1
        # once a forward pass, for all layers
        self._rows = self._rows.to(x.device, dtype, non_blocking=True)
        if self._is_common:
            return self._rows.expand(x.shape[0], -1)
        return _fitting(self._rows, x)

    def nearest(self, x: Tensor, population: Moments, eps: float) -> Tensor:
        """Return (N, K), one-hot: the domain that each sample's own moments are nearest to.

        Decided by the first layer that asks, then the same for all: the least symmetric KL
        divergence, summed over the channels, between the Gaussians of the sample and of the
        population. A sample of a single position has no variance; it goes where it is likeliest.

        Args:
            x: (N, C, *S) the layer's input.
            population: (K, C) moments of the domains.
            eps: added to all variances.

        Raises:
            InputError: x has another number of samples than the layer that decided saw.
        """
        if self._nearest is None:
            with torch.no_grad():
                divergence = _divergence(x, population, eps).nan_to_num(nan=torch.inf)
                choice = divergence.argmin(1)
                self._nearest = _table(self.num_domains, x.device)[choice + 1]
        return _fitting(self._nearest, x)


def check_domain(domain: object, num_domains: int) -> int | None:
    """Return the number of a domain, or None for −1.

    Raises:
        InputError: it is no integer, or out of range.
    """
    if isinstance(domain, bool) or not isinstance(domain, int):
        raise InputError(f"domain {domain!r}: must be an int, a tensor or None")
    if not UNKNOWN <= domain < num_domains:
        raise InputError(f"domain {domain}: must be 0 … {num_domains - 1}, or -1 for unknown")
    return None if domain == UNKNOWN else domain


def pooled(own: Moments, membership: Tensor, is_soft: bool = False) -> Moments:
    """Return the moments (K, C) of each domain's samples together (Chan's formula).

    Args:
        own: (N, C) instance moments, each of equally many values.
        membership: (N, K) weights.
        is_soft: rows of `membership` may have several entries, or others than 0 and 1.
    """
    total = membership.sum(0)
    share = (membership / torch.where(total > 0, total, 1)).t()
    mean, within = weighted(share, own.mean), weighted(share, own.var)
    if is_soft:
        gaps = (own.mean - mean.unsqueeze(1)).square()
        between = _within(share, gaps)
    else:
        between = weighted(share, (own.mean - weighted(membership, mean)).square())
    count = total.to(mean) * own.count[0].to(mean)
    return Moments(count, mean, within + between.to(within), None, INSTANCE)


def mixture(membership: Tensor, bank: Moments, is_soft: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and variance (N, C) of each sample's mixture of a bank's (K, C) moments.

    Args:
        membership: (N, K) weights; rows of zeros give zeros.
        bank: moments of the domains.
        is_soft: as in `pooled`; then the variance has the part between the domains' means.
    """
    mean, var = weighted(membership, bank.mean), weighted(membership, bank.var)
    if is_soft:
        gaps = (bank.mean - mean.unsqueeze(1)).square()
        var = var + _within(membership.to(gaps), gaps)
    return mean, var


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights @ values, where a weight of 0 also keeps out NaN and infinity.

    A row that weighs a value that is not finite is NaN there; other rows do not notice, nor do
    gradients. In float64 within: no reduced precision of matrix products (TF32, autocast) may
    choose a neighbour's digits. The dtype is that of the values, at least float32.
    """
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    with without_autocast(values):
        product = _multiply(weights.to(wide), values.to(wide))
    return product.to(torch.promote_types(values.dtype, torch.float32))


class _Product(torch.autograd.Function):
    """weights @ values without 0·NaN, forward and backward, as often as it is differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, values: Tensor) -> Tensor:
        finite = values.isfinite()
        product = weights @ torch.where(finite, values, 0)
        spoilt = weights.ne(0).to(values) @ finite.logical_not().to(values) > 0
        return product.masked_fill(spoilt, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        to_weights, to_values = ctx.needs_input_grad
        return (
            _multiply(grad, values.t()) if to_weights else None,
            _multiply(weights.t(), grad) if to_values else None,
        )


def _multiply(weights: Tensor, values: Tensor) -> Tensor:
    function: Any = _Product  # torch does not annotate apply
    product: Tensor = function.apply(weights, values)
    return product


def _within(weights: Tensor, gaps: Tensor) -> Tensor:
    """The sum of gaps (A, B, C) by weights (A, B), where those of weight 0 are not looked at."""
    weights = weights.unsqueeze(2)
    return (weights * torch.where(weights > 0, gaps, 0)).sum(1)


def _one_hot(domain: Tensor, route: Route) -> Tensor:
    if domain.dim() > 1 or domain.is_complex() or domain.dtype == torch.bool:
        raise InputError(
            f"domains {tuple(domain.shape)} of {domain.dtype}: must be integers () or (N,), or "
            f"weights (N, {route.num_domains}) of a floating dtype"
        )
    if domain.device.type == "cpu" and domain.numel() and not torch.compiler.is_compiling():
        for extreme in torch.aminmax(domain):
            check_domain(int(extreme), route.num_domains)
    # an embedding refuses on its own device what is out of range, where an index would wrap around
    return F.embedding(domain.reshape(-1).long() + 1, _table(route.num_domains, domain.device))


def _table(num_domains: int, device: torch.device) -> Tensor:
    """Row k+1 is one-hot for domain k, row 0 is zero."""
    return F.pad(torch.eye(num_domains, device=device), (0, 0, 1, 0))


def _weights(domain: Tensor, num_domains: int) -> Tensor:
    if domain.dim() != 2 or domain.shape[1] != num_domains:
        raise InputError(
            f"domain weights {tuple(domain.shape)}: must be (N, {num_domains}), or integers (N,)"
        )
    weights = domain.to(torch.promote_types(domain.dtype, torch.float32)).clamp_min(0)
    total = weights.sum(1, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def _fitting(rows: Tensor, x: Tensor) -> Tensor:
    if rows.shape[0] != x.shape[0]:
        raise InputError(
            f"domains of {rows.shape[0]} samples meet an activation of {x.shape[0]}: give one "
            "domain a sample; a network that folds positions into the batch (LeViT, EfficientViT) "
            "takes one domain a batch, as a number"
        )
    return rows


def _divergence(x: Tensor, population: Moments, eps: float) -> Tensor:
    """How far each sample is from each population, (N, K); only the order counts."""
    own = Moments.of(x, INSTANCE)
    here, there = own.var.unsqueeze(1) + eps, population.var + eps
    gap = (own.mean.unsqueeze(1) - population.mean).square()
    if x[0, 0].numel() == 1:
        return (gap / there + there.log()).sum(2)
    return (here / there + there / here + gap * (1 / here + 1 / there)).sum(2)
