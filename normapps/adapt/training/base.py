"""What every training method over domains shares: a joint batch through one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.outputs import logits_of
from ...norm.domain import DomainModel
from .options import RecipeOptions
from .sampling import JointBatch

Forward = Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]
"""Pictures and the number of a domain for each batch of them, to logits (n, C) of each."""

Step = Mapping[str, Any]
"""A step of the builder `converted`."""


class JointNetwork(nn.Module):
    """A network that takes the batches of several domains in one call, as DDP wants it.

    Args:
        model: a `DomainModel`, or a network without domains.
        together: the layers need all domains at once (one mixed batch); else each goes alone, on
            torch's kernel.
    """

    def __init__(self, model: nn.Module, together: bool = False) -> None:
        super().__init__()
        self.model, self.together = model, together

    @property
    def inner(self) -> nn.Module:
        """The network that was given, with the layers of the method."""
        return self.model.model if isinstance(self.model, DomainModel) else self.model

    def forward(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        """Return the logits of each batch, (n, C) float32."""
        if not isinstance(self.model, DomainModel):
            return [logits_of(self.model(x)).float() for x in images]
        if not self.together:
            pairs = zip(images, domains, strict=True)
            return [logits_of(self.model(x, domain)).float() for x, domain in pairs]
        sizes = [len(x) for x in images]
        given = torch.tensor(domains, device=images[0].device)
        mixed = given.repeat_interleave(torch.tensor(sizes, device=given.device))
        return list(logits_of(self.model(torch.cat(list(images)), mixed)).float().split(sizes))


@dataclass(frozen=True)
class Published:
    """A trained network of one target.

    Attributes:
        model: plain where the method allows it.
        steps: what a `converted` builder has to do to the base; () where the shape is the base's.
        before: the network before it was adapted, for methods that adapt after training.
    """

    model: nn.Module
    steps: tuple[Step, ...] = ()
    before: nn.Module | None = None


class Method:
    """A training method: what it makes of the network, its losses, what it publishes.

    Args:
        model: the network to train, with an output a class; changed in place or copied.
        num_sources, num_targets: domains; sources come first in every numbering.
        options: the recipe.

    Attributes:
        network: what is trained.
        num_sources, num_targets, options: as given.
    """

    views: ClassVar[int] = 1
    """How many augmented versions of a target's batch the losses need."""
    has_target: ClassVar[bool] = True
    """Whether the losses look at the target."""

    def __init__(
        self, model: nn.Module, num_sources: int, num_targets: int, options: RecipeOptions
    ) -> None:
        self.num_sources, self.num_targets, self.options = num_sources, num_targets, options
        self.network = self.build(model)

    def build(self, model: nn.Module) -> JointNetwork:
        """Make the network that is trained."""
        return JointNetwork(model)

    def losses(self, forward: Forward, batch: JointBatch, step: int) -> dict[str, Tensor]:
        """Return the terms of a step's loss, weighted; their sum is differentiated.

        Args:
            forward: the network, wrapped for several processes where there are.
            batch: the pictures.
            step: its number from 0.
        """
        raise NotImplementedError

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the network of a target.

        Args:
            target: its number among the targets, from 0.
            pictures: its batches as the network takes them, for methods that measure it.
        """
        raise NotImplementedError

    @property
    def models(self) -> int:
        """How many different networks are published: one a target, or one for all."""
        return self.num_targets

    @property
    def boundary(self) -> int | None:
        """The step before which a second stage begins; None without one."""
        return None

    def next_stage(self) -> None:
        """Begin the second stage."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the method keeps beside its network: tensors and JSON values."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become what `state` told."""

    def source_domains(self) -> list[int]:
        """Numbers of the sources' domains."""
        return list(range(self.num_sources))

    def target_domains(self) -> list[int]:
        """Numbers of the targets' domains."""
        return list(range(self.num_sources, self.num_sources + self.num_targets))


def supervised(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Return the mean cross entropy over all sources' pictures."""
    return F.cross_entropy(torch.cat(list(logits)), torch.cat(list(labels)))


def rampup(progress: float, steepness: float = 10.0) -> float:
    """Return 2/(1+e^{−γp}) − 1: from 0 at the start to almost 1 (Ganin et al. 2016, sec. 5).

    Args:
        progress: p, share of the training that is done, in [0, 1].
        steepness: γ.
    """
    return 2 / (1 + math.exp(-steepness * progress)) - 1
