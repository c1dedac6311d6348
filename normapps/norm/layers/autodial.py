"""AutoDIAL: each domain is normalized with a learnt mixture of its own moments and the others'.

Carlucci et al. 2017, "AutoDIAL: Automatic Domain Alignment Layers", eq. 1-3. Differs from the
paper: any number of domains; each sample has its domain, in any order within a batch; a domain
that a batch lacks stands in it by its population.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..moments import Moments
from ..routing import Route, mixture
from .base import Taxonomy, place_of
from .gate import unit_interval
from .shared_domain import Shared, SharedDomainNorm


class AutoDIAL(SharedDomainNorm):
    """Batch norm of K domains by moments that are mixed among them; γ and β are shared.

        μ'_k = αμ_k + (1−α)μ_o
        σ'²_k = ασ²_k + (1−α)σ²_o + α(1−α)(μ_k−μ_o)²

    with o the other domain (of several, their even mixture), so that with μ' and σ'² domain k is
    normalized by the moments of a distribution that has α of it. α = 1 keeps the domains apart;
    α = ½ makes two of them one.

    In training the moments are the batch's, and gradients flow through those of all domains and
    through α; a domain that the batch lacks, or has a single value a channel of, is represented
    by its population. At inference all are populations. What is tracked are the domains' own
    moments, not yet mixed. A sample of unknown domain is normalized as in `DomainNorm`.

    α is one learnt number a layer, `alpha` clamped to [½, 1]. The gradient is that of
    `gate.unit_interval`: within and at both ends it is the true one, and what has overshot an end
    is led back, where a plain clamp would hold it for ever. At inference a batch of one known
    domain is torch's kernel, through which `alpha` gets no gradient.

    Args:
        num_features, num_domains, eps, momentum, affine, bias, unseen, sync, process_group,
            layout, act, drop: see `SharedDomainNorm`.
        alpha: where α starts; at 1, the domains apart.

    Attributes:
        alpha: () the parameter of α.

    Raises:
        InputError: an `alpha` outside of [0.5, 1]; as `SharedDomainNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, mixed over domains",
        "standardize",
        "affine",
        "Carlucci et al. 2017",
        "2 passes; inference 1",
    )
    is_coupled: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        num_domains: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        alpha: float = 1.0,
        **carried: Unpack[Shared],
    ) -> None:
        super().__init__(num_features, num_domains, eps, momentum, affine, **carried)
        if not 0.5 <= alpha <= 1:
            raise InputError(f"alpha {alpha}: must be within 0.5 and 1")
        self.alpha = nn.Parameter(torch.tensor(alpha, **place_of(carried)))

    @property
    def share(self) -> Tensor:
        """α, the share of a domain's own moments: () in [0.5, 1]."""
        return (1 + unit_interval(2 * self.alpha - 1)) / 2

    def bank(self, x: Tensor, known: Tensor, own: Moments, route: Route) -> Moments:
        """Return the (K, C) mixed moments that samples of known domain are normalized with."""
        return self.mixed(super().bank(x, known, own, route))

    def assign(
        self, known: Tensor, guess: Tensor, bank: Moments, own: Moments, is_soft: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and variance (N, C) that each sample is normalized with."""
        return super().assign(known, guess, bank, self.mixed(own), is_soft)

    def mixed(self, own: Moments) -> Moments:
        """Return each domain's mixture of its moments and the others', (K, C)."""
        if self.num_domains == 1:
            others = own.mean, own.var
        else:
            apart = 1 - torch.eye(self.num_domains, device=own.mean.device)
            others = mixture(apart / (self.num_domains - 1), own, True)
        share = self.share.to(own.mean)
        rest = 1 - share
        mean = share * own.mean + rest * others[0]
        between = share * rest * (own.mean - others[0]).square()
        return replace(own, mean=mean, var=share * own.var + rest * others[1] + between)

    def settled(self, domain: int) -> dict[str, Tensor]:
        """Return what one domain is normalized with at inference, by a batch norm's names."""
        mixed = self.mixed(self.population())
        running = {"running_mean": mixed.mean[domain], "running_var": mixed.var[domain]}
        held = self.held(domain)
        return held | {name: each.detach().to(held[name]) for name, each in running.items()}
