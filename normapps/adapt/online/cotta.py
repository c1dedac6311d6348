"""CoTTA: continual test-time adaptation by a teacher that averages views, and stochastic restore.

Wang et al., CVPR 2022. All parameters of a student learn the prediction of a teacher that follows
it slowly; where the source is unsure of a batch, the teacher is asked for many views of it; a few
random weights go back to the source's after every step, so that it does not forget.
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
from ..losses import soft_cross_entropy
from .base import Online, plain_copy
from .configuration import configure_model, streaming_layers
from .optimizers import create_optimizer
from .teacher import check_share, move_teacher_, predict, teacher_of
from .views import Scale, random_view, scale_of


class Cotta(Online):
    """Continual test-time adaptation; the logits returned are the teacher's.

    A batch costs three forward passes and a backward pass, and one more forward pass a view where
    the source is unsure: 35 with the paper's 32 views. On a CPU take fewer (`views=4`).

    Differs from the paper's code: every parameter of the student is restored, there only those
    called `weight` and `bias`; a view has draws of its own for every picture (see `random_view`);
    a reset brings back the teacher and the random state, too.

    Args:
        model: the student, as `configure_model(model, train="all")` returns it; teacher and
            anchor are copies of it. All three normalize by the batch.
        optimizer: of the student's parameters.
        steps, episodic: see `Online`.
        views: how many views the teacher's logits are averaged over; 0 never asks for views.
        threshold: the mean confidence of the source below which views are asked for. None takes
            the paper's: 0.92 for up to 10 classes, 0.72 for up to 100, 0.1 for more.
        teacher_momentum: weight of the student in the teacher, the paper's 1 − 0.999.
        restore: probability that a weight goes back; the paper's 0.01, for ImageNet 0.001.
        symmetric: the loss is the mean of the cross entropies in both directions, as in the
            paper's code for ImageNet; else the teacher's to the student's, as for CIFAR.
        strength, scale: of the views, see `random_view`.
        seed: of views and restoring.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int = 1,
        episodic: bool = False,
        *,
        views: int = 32,
        threshold: float | None = None,
        teacher_momentum: float = 0.001,
        restore: float = 0.01,
        symmetric: bool = False,
        strength: float = 1.0,
        scale: Scale | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, steps, episodic)
        check_share(teacher_momentum=teacher_momentum, restore=restore, threshold=threshold or 0)
        if views < 0 or strength < 0:
            raise InputError(f"views {views}, strength {strength}: neither may be negative")
        self.views, self.threshold, self.teacher_momentum = views, threshold, teacher_momentum
        self.restore, self.symmetric = restore, symmetric
        self.strength, self.scale = strength, scale
        self.teacher, self.anchor = teacher_of(model), teacher_of(model)
        self.generator = torch.Generator().manual_seed(seed)
        for layer in streaming_layers(self.anchor).values():
            layer.follows = False

    def step(self, x: Tensor) -> Tensor:
        """Teach the student on a batch (N, ...), and return the teacher's logits (N, C)."""
        logits = predict(self.model, x)
        with torch.no_grad():
            confidence = float(predict(self.anchor, x).softmax(1).amax(1).mean())
            target = predict(self.teacher, x)
            asked = self.views if confidence < self._threshold(target.shape[1]) else 0
            if asked:
                target = self._averaged(x)
        self._check_statistics()
        loss = consistency(logits, target, self.symmetric).mean()
        self.descend(loss)
        move_teacher_(self.teacher, self.model, self.teacher_momentum)
        self._restore()
        self.facts = {"loss": float(loss.detach()), "confidence": confidence, "views": asked}
        return target

    def export(self) -> nn.Module:
        """Return the teacher, which answers, as `Online.export` does the one network of others."""
        return plain_copy(self.teacher)

    def own_state(self) -> dict[str, Any]:
        """Return the random state."""
        return {"generator": self.generator.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` returned."""
        self.generator.set_state(state["generator"].cpu())

    def _threshold(self, classes: int) -> float:
        if self.threshold is not None:
            return self.threshold
        return 0.92 if classes <= 10 else 0.72 if classes <= 100 else 0.1

    def _averaged(self, x: Tensor) -> Tensor:
        """(N, C) teacher's logits, averaged over the views, which do not count for the stream."""
        total = torch.zeros(())
        with self.uncounted():
            for _ in range(self.views):
                view = random_view(x, self.generator, scale=self.scale, strength=self.strength)
                total = total.to(x.device) + predict(self.teacher, view)
        return total / self.views

    @torch.no_grad()
    def _restore(self) -> None:
        """Give random weights of the student the source's value."""
        if not self.restore:
            return
        for weight, source in zip(self.model.parameters(), self.anchor.parameters(), strict=True):
            if weight.requires_grad:
                chosen = torch.rand(weight.shape, generator=self.generator) < self.restore
                weight.copy_(torch.where(chosen.to(weight.device), source, weight))


def consistency(logits: Tensor, target: Tensor, symmetric: bool = False) -> Tensor:
    """Return the cross entropy between two predictions of each sample, (N,) in nats.

    −Σ q log p with q the target's probabilities, or the mean of it and −Σ p log q.

    Args:
        logits, target: (N, C) logits; of a teacher without gradient.
        symmetric: the mean of both directions.
    """
    forth = soft_cross_entropy(logits, target.softmax(1))
    if not symmetric:
        return forth
    return (forth + soft_cross_entropy(target, logits.softmax(1))) / 2


def cotta(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    steps: int = 1,
    episodic: bool = False,
    views: int = 32,
    threshold: float | None = None,
    teacher_momentum: float = 0.001,
    restore: float = 0.01,
    symmetric: bool = False,
    strength: float = 1.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Cotta:
    """Make CoTTA of a copy of any network with norm layers, with Adam as the paper for CIFAR.

    Args:
        lr: of Adam (β 0.9, 0.999).
        mean, std: of the preprocessing, for the views, which are made in [0, 1]; as the model's
            `pretrained_cfg` says, where it does.
        include, exclude: shell patterns of names of norm layers that normalize by the batch; the
            others keep the source's statistics.
        steps, episodic, views, threshold, teacher_momentum, restore, symmetric, strength, seed:
            see `Cotta`.

    Raises:
        InputError: no norm layer, or an option out of range.
    """
    scale = scale_of(model, mean, std)
    with torch.inference_mode(False):
        student = configure_model(
            detached_copy(model), rule="batch", train="all", include=include, exclude=exclude
        )
    return Cotta(
        student,
        create_optimizer(student, "adam", lr),
        steps,
        episodic,
        views=views,
        threshold=threshold,
        teacher_momentum=teacher_momentum,
        restore=restore,
        symmetric=symmetric,
        strength=strength,
        scale=scale,
        seed=seed,
    )
