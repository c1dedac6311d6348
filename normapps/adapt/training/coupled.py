"""What AutoDIAL, TransNorm and DWT share: all domains in one mixed batch, one stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...norm.domain import DomainModel
from ..losses import entropy
from .base import Forward, JointNetwork, Method, Published, supervised
from .sampling import JointBatch


class Coupled(Method):
    """Layers that look at all domains of a batch; cross entropy, and the target's entropy.

    Class attributes:
        kind: of `DomainModel`.
    """

    kind: ClassVar[str]

    def build(self, model: nn.Module) -> JointNetwork:
        """Make every batch norm a layer of all domains."""
        domains = DomainModel(model, self.num_domains, kind=self.kind, copy=False)
        return JointNetwork(domains, together=True)

    @property
    def num_domains(self) -> int:
        """How many domains the layers know."""
        return self.num_sources + self.num_targets

    def losses(self, forward: Forward, batch: JointBatch, step: int) -> dict[str, Tensor]:
        """Return the sources' cross entropy and the targets' entropy, λ = `entropy_weight`."""
        images = (*batch.sources, *batch.targets)
        logits = forward(images, [*self.source_domains(), *self.target_domains()])
        own = torch.cat(logits[self.num_sources :])
        return {
            "source": supervised(logits[: self.num_sources], batch.labels),
            "entropy": self.options.entropy_weight * entropy(own).mean(),
        }

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the network of a target's branch."""
        model: Any = self.network.model
        return Published(model.export(self.num_sources + target), tuple(model.steps()))
