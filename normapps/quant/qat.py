"""The steps in which a network that is rounded learns to answer as a float one does."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.device import evaluating
from ..engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten
from ..errors import InputError
from ..models.outputs import logits_of
from ..training.identity import weights_told
from ..training.optimizing import learning_rate, make_optimizer
from .fake import Ranges
from .finetune_options import QatOptions
from .rounding import Rounding

_CLIP = 10.0
"""Largest norm of a step's gradient."""


@runtime_checkable
class Feed(Protocol):
    """Where batches come from, the same whenever a step is asked for, as from `LabelledFeed`."""

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return inputs (N, ...) and class indices (N,), or None for no labels."""


class QatTrainer:
    """A `Task` of `engine.loop`: a network that is rounded, and the one it learns from.

    Args:
        network: what learns, in inference mode; changed in place.
        feed: where the batches come from.
        options: the recipe.
        teacher: gives the logits to learn from.
        ranges: of the inputs to begin with.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: Feed,
        options: QatOptions,
        teacher: nn.Module,
        ranges: Ranges,
    ) -> None:
        self.feed, self.options, self.teacher = feed, options, teacher
        self.losses: list[float] = []
        self.device = next(network.parameters()).device
        self.identity = {"weights": weights_told(network), "teacher": weights_told(teacher)}
        self.rounding = Rounding(network, ranges, options)
        self.optimizer = make_optimizer(network, options)
        if learnt := [each for each in self.rounding.factors() if each.requires_grad]:
            factor = options.range_lr / options.lr if options.lr else 0.0
            self.optimizer.add_param_group(
                {"params": learnt, "weight_decay": 0.0, "factor": factor}
            )

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step; return the loss and the norm of the gradient.

        Raises:
            InputError: the loss is not finite; nothing has changed then.
        """
        rate = learning_rate(step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self._loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.rounding.network.parameters(), _CLIP)
        nn.utils.clip_grad_norm_(self.rounding.factors(), _CLIP)  # else it would decide for both
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise InputError(
                f"step {step}: the loss is not finite; give a lower --lr, or check that the float"
                " network's answers are finite"
            )
        self.optimizer.step()
        self.rounding.project_()
        self.losses.append(loss_value)
        return {"loss": loss_value, "grad_norm": norm_value}

    def _loss(self, step: int) -> Tensor:
        images, labels = self.feed.batch(step)
        images = images.to(self.device)
        with evaluating(self.teacher):
            wanted = logits_of(self.teacher(images)).float()
        is_half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            logits = logits_of(self.rounding(images)).float()
        loss = divergence(logits, wanted, self.options.temperature)
        if labels is not None and self.options.label_weight:
            labelled = F.cross_entropy(logits, labels.to(self.device))
            loss = loss + self.options.label_weight * labelled
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights, ranges, optimizer, and what the run is of."""
        tensors = flatten("rounding", self.rounding.state_dict())
        return tensors | optimizer_tensors(self.optimizer), {"identity": self.identity}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of other initial weights or of another teacher.
        """
        for name, now in self.identity.items():
            if values["identity"].get(name) != now:
                raise InputError(
                    f"the run was started with {name} {values['identity'].get(name)}, not {now};"
                    " give what it was started with, or another folder"
                )
        self.rounding.load_state_dict(unflatten("rounding", tensors))
        restore_optimizer(self.optimizer, tensors)


def divergence(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean KL(wanted ‖ given) of two networks' answers, times temperature².

    Hinton et al. 2015, section 2: times the square, so that the gradient keeps its size.

    Args:
        logits: (N, C) float32, of the network that learns.
        wanted: (N, C), of the teacher.
        temperature: that divides both.
    """
    mine, theirs = (F.log_softmax(each / temperature, 1) for each in (logits, wanted))
    return temperature**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)
