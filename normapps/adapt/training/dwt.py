"""Domain-specific whitening and consensus (DWT-MEC, Roy et al. 2019).

Each of the domains source, target and target augmented is whitened by its own covariance, and the
two views of a target picture are to agree: the min-entropy consensus loss, λ = `entropy_weight`
(0.1 in the paper). As there, a small network is whitened everywhere; of a deep one only the first
quarter of the norm layers, and the others are batch norms a domain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...norm.convert.converter import convert_norm_
from ...norm.domain import DomainModel
from ...training.parts import batch_norms
from .base import Forward, JointNetwork, supervised
from .consensus import min_entropy_consensus
from .coupled import Coupled
from .sampling import JointBatch

_SMALL = 8
"""Norm layers up to which a network is whitened everywhere."""


class Dwt(Coupled):
    """Whitening layers a domain; the published network whitens with the target's covariance."""

    kind = "domain_whitening"
    views = 2

    @property
    def num_domains(self) -> int:
        """Sources, targets, and the targets' other view."""
        return self.num_sources + 2 * self.num_targets

    def build(self, model: nn.Module) -> JointNetwork:
        """Whiten in the first layers, or all of a small network."""
        names = batch_norms(model)
        first = names if len(names) <= _SMALL else names[: len(names) // 4]
        if len(first) == len(names):
            return super().build(model)
        banks = self.num_domains
        convert_norm_(model, self.kind, include=first, num_domains=banks)
        domains = DomainModel(model, banks, share_affine=True, exclude=first, copy=False)
        return JointNetwork(domains, together=True)

    def losses(self, forward: Forward, batch: JointBatch, step: int) -> dict[str, Tensor]:
        """Return the sources' cross entropy and the consensus of the targets' two views."""
        again = [number + self.num_targets for number in self.target_domains()]
        images = (*batch.sources, *batch.targets, *batch.again)
        logits = forward(images, [*self.source_domains(), *self.target_domains(), *again])
        split = self.num_sources + self.num_targets
        one, other = torch.cat(logits[self.num_sources : split]), torch.cat(logits[split:])
        consensus = min_entropy_consensus(one, other).mean()
        return {
            "source": supervised(logits[: self.num_sources], batch.labels),
            "consensus": self.options.entropy_weight * consensus,
        }
