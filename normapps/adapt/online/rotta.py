"""RoTTA: robust test-time adaptation for streams that change and are sorted by class.

Yuan et al., CVPR 2023: batch norms whose running statistics move before they are used, a memory
balanced by predicted class, and a teacher whom a student of strongly augmented views follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError
from ...norm.convert.selection import Patterns
from ...norm.nesting import detached_copy
from ..losses import entropy, soft_cross_entropy
from .base import Online, plain_copy
from .configuration import collect_params, configure_model, streaming_layers
from .memory import Memory
from .optimizers import create_optimizer
from .teacher import check_share, move_teacher_, predict, teacher_of
from .views import Scale, random_view, scale_of


class Rotta(Online):
    """Robust test-time adaptation; the logits returned are the teacher's, in inference mode.

    A batch of one works: the networks learn from the memory, each time that `update_every` samples
    have come, and a batch is predicted before its own samples are learnt from.

    Differs from the paper's code: a memory of fewer than two samples is not learnt from, whose
    batch statistics would be nothing; a view has draws of its own for every picture (see
    `random_view`); the entropy has no 1e-6 in its logarithm.

    Args:
        model: the student, as `configure_model(model, rule="ema", momentum=0.05)` returns it; the
            teacher is a copy of it.
        optimizer: of the student's scales and shifts.
        capacity, age_weight, uncertainty_weight: of the memory, see `Memory`.
        update_every: samples between two updates.
        teacher_momentum: weight of the student in the teacher, the paper's ν.
        strength, scale: of the views, see `random_view`.
        seed: of the views.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        capacity: int = 64,
        update_every: int = 64,
        teacher_momentum: float = 0.001,
        age_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
        strength: float = 1.0,
        scale: Scale | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer)
        check_share(teacher_momentum=teacher_momentum)
        if update_every < 1 or capacity < 2 or strength < 0:
            raise InputError(
                f"update_every {update_every}, capacity {capacity}, strength {strength}: must be at"
                " least 1, 2 and 0"
            )
        self.capacity, self.update_every = capacity, update_every
        self.teacher_momentum = teacher_momentum
        self.age_weight, self.uncertainty_weight = age_weight, uncertainty_weight
        self.strength, self.scale = strength, scale
        self.teacher = teacher_of(model)
        self.memory: Memory | None = None
        self.samples = 0
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, x: Tensor) -> Tensor:
        """Return the teacher's logits (N, C) of a batch (N, ...), and learn where it is time."""
        with torch.no_grad():
            logits = predict(self.teacher, x, following=False)
        if self.memory is None:
            self.memory = self._memory(logits.shape[1])
        updates, labels = 0, logits.argmax(1).tolist()
        for sample, label, unsure in zip(x, labels, entropy(logits).tolist(), strict=True):
            self.memory.add(sample, label, unsure)
            self.samples += 1
            if self.samples % self.update_every == 0 and len(self.memory) > 1:
                self._update(self.memory)
                updates += 1
        self.facts |= {"updates": updates, "memory": len(self.memory)}
        return logits

    def export(self) -> nn.Module:
        """Return the teacher, which answers, as `Online.export` does the one network of others."""
        return plain_copy(self.teacher)

    def own_state(self) -> dict[str, Any]:
        """Return the memory, the number of samples seen, and the random state."""
        memory = None if self.memory is None else self.memory.state()
        generator = self.generator.get_state()
        return {"memory": memory, "samples": self.samples, "generator": generator}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.samples, memory = state["samples"], state["memory"]
        self.memory = None if memory is None else self._memory(memory["num_classes"])
        if self.memory is not None:
            self.memory.load(memory)

    def _memory(self, num_classes: int) -> Memory:
        return Memory(self.capacity, num_classes, self.age_weight, self.uncertainty_weight)

    def _update(self, memory: Memory) -> None:
        """Teach the student on views of the memory; the teacher sees it as it is, and follows."""
        samples = memory.samples()
        view = random_view(samples, self.generator, scale=self.scale, strength=self.strength)
        with torch.no_grad():
            target = predict(self.teacher, samples).softmax(1)
        weight = timeliness(memory.ages()).to(target)
        loss = (soft_cross_entropy(predict(self.model, view), target) * weight).mean()
        self._check_statistics()
        self.descend(loss)
        move_teacher_(self.teacher, self.model, self.teacher_momentum)
        self.facts = {"loss": float(loss.detach())}


def timeliness(ages: Tensor) -> Tensor:
    """Return the weights exp(−a)/(1+exp(−a)) of samples of age a, from ½ (new) down (eq. 8).

    Args:
        ages: (N,), as shares of the memory's capacity.
    """
    return torch.sigmoid(-ages)


def rotta(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    momentum: float = 0.05,
    capacity: int = 64,
    update_every: int = 64,
    teacher_momentum: float = 0.001,
    age_weight: float = 1.0,
    uncertainty_weight: float = 1.0,
    strength: float = 1.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Rotta:
    """Make RoTTA of a copy of any network with batch norms, with Adam as the paper.

    Args:
        lr: of Adam (β 0.9, 0.999).
        momentum: weight of a batch in the running statistics, the paper's α.
        mean, std: of the preprocessing, for the views, which are made in [0, 1]; as the model's
            `pretrained_cfg` says, where it does.
        include, exclude: shell patterns of names of norm layers; the others stay the source's.
        capacity, update_every, teacher_momentum, age_weight, uncertainty_weight, strength, seed:
            see `Rotta`.

    Raises:
        InputError: no batch norm, or none is chosen; an option out of range.
    """
    check_share(momentum=momentum)
    scale = scale_of(model, mean, std)
    with torch.inference_mode(False):
        student = configure_model(
            detached_copy(model), rule="ema", momentum=momentum, include=include, exclude=exclude
        )
    if not streaming_layers(student) or not collect_params(student)[0]:
        raise InputError(
            f"{type(model).__name__} has no batch norm with a scale among its chosen norm layers,"
            " which could follow and adapt: take tent, eata or sar, or a method of statistics"
            " (prior, ema), or lame"
        )
    return Rotta(
        student,
        create_optimizer(student, "adam", lr),
        capacity=capacity,
        update_every=update_every,
        teacher_momentum=teacher_momentum,
        age_weight=age_weight,
        uncertainty_weight=uncertainty_weight,
        strength=strength,
        scale=scale,
        seed=seed,
    )
