"""Training on the sources alone: the baseline, AdaBN after it, and norm layers that generalize.

`source` is the yardstick of all others. `adabn` measures the target when training is over (Li et
al. 2017). IBN (Pan et al. 2018), BIN (Nam & Kim 2018) and MixStyle (Zhou et al. 2021) never see the
target: they make the network less sensitive to the looks of a domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...norm.convert.converter import convert_norm_
from ...norm.nesting import detached_copy
from ...norm.population.choosing import choose
from ...training.parts import batch_norms
from ..adabn import adabn
from .base import Forward, JointNetwork, Method, Published, Step, supervised
from .mixstyle import add_mixstyle_
from .sampling import JointBatch


class SourceOnly(Method):
    """Cross entropy on the sources, nothing else."""

    has_target = False

    def losses(self, forward: Forward, batch: JointBatch, step: int) -> dict[str, Tensor]:
        """Return the cross entropy on the sources."""
        logits = forward([torch.cat(batch.sources)], [0])  # one batch, with one mean and variance
        return {"source": supervised(logits, batch.labels)}

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the network, the same for every target."""
        return Published(detached_copy(self.network.model))

    @property
    def models(self) -> int:
        """One for all targets."""
        return 1


class AdaBN(SourceOnly):
    """Source only, then the running statistics of each target."""

    def build(self, model: nn.Module) -> JointNetwork:
        """Refuse, before the training, a network without statistics to replace."""
        choose(model, (), ())
        return super().build(model)

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the network with the target's statistics."""
        adapted = adabn(self.network.model, pictures)
        return Published(adapted, before=self.network.model)

    @property
    def models(self) -> int:
        """One a target."""
        return max(1, self.num_targets)


class _Converted(SourceOnly):
    """Source only, on a network whose norm layers are others."""

    to: ClassVar[str]

    def build(self, model: nn.Module) -> JointNetwork:
        """Convert the layers of `layers`.

        Raises:
            InputError: there are none.
        """
        names = self.layers(model)
        if not names:
            raise InputError(
                f"{type(model).__name__} has no batch norm that could become {self.to}; "
                "--method source trains it as it is"
            )
        convert_norm_(model, self.to, include=names)
        self._steps: tuple[Step, ...] = ({"to": self.to, "layers": names, "options": {}},)
        return super().build(model)

    def layers(self, model: nn.Module) -> list[str]:
        """Return the names of the layers to convert: all batch norms."""
        return batch_norms(model)

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the converted network, the same for every target."""
        return Published(detached_copy(self.network.model), self._steps)


class Bin(_Converted):
    """Batch-instance normalization everywhere: a gate a channel learns where style matters."""

    to = "bin"


class Ibn(_Converted):
    """IBN-a in the first half of the batch norms.

    Pan et al. put it into the first norm of the blocks of a ResNet's first three stages, because
    deep features hold little of a picture's looks; "the first half" says the same of any network.
    """

    to = "ibn"

    def layers(self, model: nn.Module) -> list[str]:
        """Return the first half of the batch norms."""
        names = batch_norms(model)
        return names[: max(1, len(names) // 2)]


class MixStyle(SourceOnly):
    """Source only, with the features of the first stages in each other's style."""

    def build(self, model: nn.Module) -> JointNetwork:
        """Have the first two stages mixed in training."""
        self._undo = add_mixstyle_(model)
        return super().build(model)

    def publish(self, target: int, pictures: Iterable[Tensor]) -> Published:
        """Return the network without what mixes."""
        model = self.network.model
        self._undo()
        published = super().publish(target, pictures)
        self._undo = add_mixstyle_(model)
        return published
