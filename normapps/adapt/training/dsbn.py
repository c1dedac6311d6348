"""Domain-specific batch normalization in two stages (Chang et al. 2019).

First a network with a batch norm a domain learns from the sources' labels and the target's
unlabelled pictures. Then a second one, from the same initial weights, learns from the sources'
labels and from pseudo-labels of the target, which the first one gives in the beginning and its own
prediction more and more (eq. 6 and 7):

    ỹ = argmax λ·F₂(x) + (1 − λ)·F₁(x),   λ(p) = 2/(1 + e^{−10p}) − 1

Differs from the paper in the first stage, where that takes another method's losses (MSTN, CPUA):
here it is the entropy of the target, and, for those who give it a weight, the entropy of the mean
prediction. The branches of all domains start as the pretrained network's batch norm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine.device import evaluating
from ...engine.run import flatten, unflatten
from ...norm.domain import DomainModel
from ..losses import entropy
from .base import Forward, JointNetwork, Method, Published, rampup, supervised
from .sampling import JointBatch


class Dsbn(Method):
    """A batch norm a domain, trained in two stages."""

    def build(self, model: nn.Module) -> JointNetwork:
        """Make every batch norm a bank of all domains, and remember how training begins."""
        domains = DomainModel(model, self.num_sources + self.num_targets, copy=False)
        network = JointNetwork(domains)
        self._start = copy.deepcopy(network.state_dict())
        self.teacher: JointNetwork | None = None
        """The network of the first stage, once that is over."""
        return network

    @property
    def boundary(self) -> int:
        """The step before which the second stage begins."""
        return self.options.stage_steps or self.options.steps // 2

    def next_stage(self) -> None:
        """Keep the trained network as the teacher, and start from the initial weights again."""
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.network.load_state_dict(self._start)

    def losses(self, forward: Forward, batch: JointBatch, step: int) -> dict[str, Tensor]:
        """Return the sources' cross entropy and the stage's term of the targets."""
        images = (*batch.sources, *batch.targets)
        logits = forward(images, [*self.source_domains(), *self.target_domains()])
        own = logits[self.num_sources :]
        terms = {"source": supervised(logits[: self.num_sources], batch.labels)}
        if self.teacher is None:
            return terms | self._unlabelled(own, step / max(1, self.boundary))
        progress = (step - self.boundary) / max(1, self.options.steps - self.boundary)
        return terms | {"pseudo": self._pseudo(own, batch, progress)}

    def _unlabelled(self, own: list[Tensor], progress: float) -> dict[str, Tensor]:
        """The first stage's terms, which grow as the network learns."""
        share = rampup(progress)
        terms = {"entropy": share * self.options.entropy_weight * entropy(torch.cat(own)).mean()}
        if self.options.diversity_weight:
            weight = share * self.options.diversity_weight
            terms["diversity"] = -weight * torch.stack([_of_mean(each) for each in own]).mean()
        return terms

    def _pseudo(self, own: list[Tensor], batch: JointBatch, progress: float) -> Tensor:
        """Cross entropy of the targets to the mixed prediction's classes."""
        teacher: Any = self.teacher
        with evaluating(teacher):
            first = teacher(batch.targets, self.target_domains())
        share = rampup(progress)
        second, earlier = torch.cat(own), torch.cat(first)
        mixed = share * second.detach().softmax(1) + (1 - share) * earlier.softmax(1)
        loss: Tensor = self.options.pseudo_weight * F.cross_entropy(second, mixed.argmax(1))
        return loss

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the plain network of a target's branch."""
        model: Any = self.network.model
        return Published(model.export(self.num_sources + target))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the teacher's tensors, none in the first stage."""
        if self.teacher is None:
            return {}, {}
        return flatten("teacher", self.teacher.state_dict()), {}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Have the teacher again where there was one."""
        state = unflatten("teacher", tensors)
        if state:
            self.teacher = copy.deepcopy(self.network).requires_grad_(False)
            self.teacher.load_state_dict(state)


def _of_mean(logits: Tensor) -> Tensor:
    """The entropy of the mean prediction: log C where all classes are met equally often."""
    mean = logits.softmax(1).mean(0)
    plogp: Tensor = torch.special.xlogy(mean, mean)
    return -plogp.sum()
