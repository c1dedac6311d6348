"""How good a network is at each stage of being made smaller, beside the base that it is made of.

All stages answer the same pictures. With labels that gives accuracy and its paired difference from
the base. Without, it gives how often a stage answers as the base does; that is not accuracy, but it
bounds what accuracy can have lost: on a picture with the same answer nothing is won or lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..models.outputs import logits_of
from .accuracy import accuracy, paired_difference
from .agreement import Agreement, compare_logits
from .interval import Estimate


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says to a set of pictures.

    Attributes:
        logits: (N, C) float32, on the CPU.
        labels: (N,) int64 of the same pictures; None without.
    """

    logits: Tensor
    labels: Tensor | None = None

    @property
    def right(self) -> Tensor | None:
        """Right or wrong, (N,) bool; None without labels."""
        return None if self.labels is None else self.logits.argmax(1) == self.labels

    @property
    def is_finite(self) -> bool:
        """Whether every logit is."""
        return bool(self.logits.isfinite().all())


@dataclass(frozen=True)
class Stage:
    """A network beside the base on the same pictures.

    Attributes:
        name: of the stage.
        pictures: their number.
        is_finite: all its logits are.
        accuracy: share of right answers with its 95 % interval; None without labels.
        difference: accuracy less the base's, paired; None without labels and for the base itself.
        same: share of pictures that get the base's answer, with its interval; None for the base.
        agreement: more about that; None for the base.
        logit_error: root mean square of the logits' change, in deviations of the base's logits
            (each picture's mean taken off, which no answer depends on); None for the base.
    """

    name: str
    pictures: int
    is_finite: bool
    accuracy: Estimate | None = None
    difference: Estimate | None = None
    same: Estimate | None = None
    agreement: Agreement | None = None
    logit_error: float | None = None


def predict(model: nn.Module, batches: Iterable[Any]) -> Prediction:
    """Run a network over pictures, in evaluation mode and without gradients.

    Args:
        model: a classifier.
        batches: images (n, C, H, W), or tuples of images and (n,) labels, or of images and None,
            on the model's device.

    Raises:
        InputError: no picture; outputs that are no logits (N, C); labels of some batches only, or
            outside the classes.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            images, truth = batch if isinstance(batch, tuple | list) else (batch, None)
            logits.append(logits_of(model(images)).float().cpu())
            if truth is not None:
                labels.append(truth.cpu())
    if not logits:
        raise InputError("no pictures to judge the network by: give at least one")
    answers = torch.cat(logits)
    return Prediction(answers, _checked(torch.cat(labels), answers) if labels else None)


def compare(name: str, found: Prediction, base: Prediction | None = None) -> Stage:
    """Say how good a stage is beside the base.

    Args:
        name: of the stage.
        found: what it says.
        base: what the base says to the same pictures; None if this is the base.

    Raises:
        InputError: other pictures, or another number of classes, than the base's.
    """
    count, right = len(found.logits), found.right
    share = None if right is None else accuracy(int(right.sum()), count)
    if base is None:
        return Stage(name, count, found.is_finite, share)
    agreement = compare_logits(base.logits, found.logits)
    before = base.right
    return Stage(
        name,
        count,
        found.is_finite,
        share,
        None if right is None or before is None else paired_difference(before, right),
        accuracy(round(agreement.top1 * count), count),
        agreement,
        _logit_error(base.logits.double(), found.logits.double()),
    )


def evaluate_stages(
    models: Iterable[tuple[str, nn.Module]], batches: Iterable[Any]
) -> tuple[Stage, ...]:
    """Evaluate networks on the same pictures; the first is the base.

    Args:
        models: names and classifiers. An iterator may make each when it is asked for, so that
            one at a time is in memory.
        batches: as `predict` takes them; iterated once a network, always in the same order.

    Raises:
        InputError: as `predict` and `compare`; or no network.
    """
    found: list[Stage] = []
    base: Prediction | None = None
    for name, model in models:
        answers = predict(model, batches)
        found.append(compare(name, answers, base))
        base = base or answers
    if not found:
        raise InputError("no network to evaluate: give at least the base")
    return tuple(found)


def best(stages: Sequence[Stage]) -> Stage:
    """Return the stage whose network is to be kept: the last, unless an earlier one answers better.

    What is done after the cut mostly helps, but not always: statistics from few pictures, or from
    pictures of another kind, can be worse than the old ones. Better is, with labels, the higher
    accuracy, and without, to answer more often as the base, which is the network that was asked
    for, or as often with logits nearer to its. A choice among two or three by the pictures that
    also judge it flatters it a little.

    Args:
        stages: as `evaluate_stages` returns them; the base, which is the first, is none to keep.
    """
    return max(reversed(stages[1:]), key=_merit)  # of equals the first that is met: the latest


def _merit(stage: Stage) -> tuple[bool, float, float]:
    if stage.accuracy is not None:
        return stage.is_finite, stage.accuracy.mean, 0.0
    share = 0.0 if stage.same is None else stage.same.mean
    return stage.is_finite, share, -(stage.logit_error or 0.0)


def _logit_error(base: Tensor, found: Tensor) -> float:
    base, found = (each - each.mean(1, keepdim=True) for each in (base, found))
    size = base.square().mean().sqrt()
    error = (found - base).square().mean().sqrt()
    return float(error / size) if size > 0 else float(error)


def _checked(labels: Tensor, logits: Tensor) -> Tensor:
    if len(labels) != len(logits):
        raise InputError(
            f"{len(labels)} labels for {len(logits)} pictures: label all of them or none"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise InputError(
            f"labels from {int(labels.min())} to {int(labels.max())}: the network has"
            f" {logits.shape[1]} outputs; give pictures of its own classes"
        )
    return labels
