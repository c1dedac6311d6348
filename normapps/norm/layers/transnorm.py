"""TransNorm: batch norm a domain, with more weight on the channels that the domains agree on.

Wang et al. 2019, "Transferable Normalization", sec. 3.2, and the paper's code where the two
differ: the gain is on the whole output, shift included.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ..moments import Moments
from .base import Taxonomy
from .shared_domain import SharedDomainNorm
from .tracking import Tracking


class TransNorm(SharedDomainNorm):
    """(1 + α_c)·(γx̂ + β), where x̂ is standardized by its domain's moments; γ and β are shared.

        α_c = C·(1+d_c)⁻¹ / Σ_j (1+d_j)⁻¹,   d_c = |μ_s/√(σ_s²+ε) − μ_t/√(σ_t²+ε)|

    α is transferability: it sums to C over the channels, so that the mean gain is 2, and it has no
    gradient. In training d is that of the batch, where a domain that the batch lacks stands by
    its population; at inference, and for samples of unknown domain, that of the populations.

    Differs from the paper's code: any number of domains (d is the mean over their pairs), each
    sample has its own, in any order within a batch, at inference too, where the paper takes the
    target; and d in training is of biased variances, those that a batch is normalized with.

    A network starts with its activations doubled, unless γ and β are halved: train it, or its
    scales, with the layer in place.

    Its options are those of `SharedDomainNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch", "standardize", "affine, gains", "Wang et al. 2019", "2 passes; inference 1"
    )
    is_coupled: ClassVar[bool] = True

    def gain(self, domains: Moments) -> Tensor:
        """Return 1 + α (C,), of mean 2, of the moments of the domains (K, C)."""
        ratio = domains.mean / (domains.var + self.eps).sqrt()
        pairs = max(self.num_domains * (self.num_domains - 1), 1)
        distance = (ratio - ratio.unsqueeze(1)).abs().sum((0, 1)) / pairs
        closeness = (1 + distance).reciprocal()
        return (1 + self.num_features * closeness / closeness.sum()).detach()

    def adjust(
        self, scale: Tensor, shift: Tensor, known: Tensor, bank: Moments, own: Moments
    ) -> tuple[Tensor, Tensor]:
        """Return each sample's scale and shift (N, C), recovery and gain included."""
        is_known = known.sum(1, keepdim=True) > 0
        gain = torch.where(is_known, self.gain(bank), self.gain(own))
        return scale * gain, shift * gain

    def settled(self, domain: int) -> dict[str, Tensor]:
        """Return what one domain is normalized with at inference, the gain in `weight`, `bias`."""
        held, gain = self.held(domain), self.gain(self.population())
        if self.weight is None:
            return held | {"weight": gain.to(self.running_mean)}
        recovery = (name for name in ("weight", "bias") if name in held)
        return held | {name: (held[name] * gain).to(held[name]) for name in recovery}

    def branch(self, domain: int, *, settled: bool = True) -> Tracking:
        """Return one domain as a batch norm, the gain folded into its scale and shift.

        Raises:
            InputError: the domain is out of range, or there is no scale to fold the gain into.
        """
        if settled and self.weight is None:
            raise InputError(
                "TransNorm without a scale (affine=False) is no batch norm without one: its gain "
                "would be lost; make it with affine=True"
            )
        return super().branch(domain, settled=settled)
