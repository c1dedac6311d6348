"""Two states of one classifier on the same pictures: do they agree, how sure are they."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Answers:
    """What a classifier's answers to a set of pictures look like, without their labels.

    Attributes:
        confidence: mean of the largest probability, 0 to 1.
        entropy: mean entropy of a picture's probabilities, in nats.
        diversity: entropy of the mean of all probabilities, in nats: near 0 where nearly all
            pictures get one class (a collapse), at most ln of the number of classes.
        largest_share: share of the pictures whose class is the most frequent one.
    """

    confidence: float
    entropy: float
    diversity: float
    largest_share: float


@dataclass(frozen=True)
class Agreement:
    """Two classifiers' answers to the same pictures.

    Attributes:
        count: pictures.
        classes: outputs of the classifiers.
        top1: share of pictures that get the same class.
        kl: mean KL divergence of the second's probabilities from the first's, in nats.
        before, after: the answers of each.
    """

    count: int
    classes: int
    top1: float
    kl: float
    before: Answers
    after: Answers


def compare_logits(before: Tensor, after: Tensor) -> Agreement:
    """Compare the logits that two classifiers give to the same pictures.

    Args:
        before, after: (N, C) floats, N and C at least 1.

    Raises:
        InputError: shapes that differ or are no (N, C).
    """
    if before.shape != after.shape:
        raise InputError(
            f"logits of {tuple(before.shape)} and {tuple(after.shape)}: give the same pictures to"
            " both"
        )
    count, classes = before.shape
    answers = describe_logits(before), describe_logits(after)
    first, second = (logits.double().log_softmax(1) for logits in (before, after))
    kl = (first.exp() * (first - second)).nan_to_num(0.0).sum(1).clamp_min(0).mean()
    top1 = (before.argmax(1) == after.argmax(1)).double().mean()
    return Agreement(count, classes, float(top1), float(kl), *answers)


def describe_logits(logits: Tensor) -> Answers:
    """Describe (N, C) logits; see `Answers`.

    Raises:
        InputError: another shape, or no logits.
    """
    if logits.dim() != 2 or not logits.numel():
        raise InputError(f"logits of {tuple(logits.shape)}: must be (pictures, classes)")
    shares = logits.double().softmax(1)
    classes = shares.argmax(1)
    return Answers(
        float(shares.amax(1).mean()),
        float(entropy(shares).mean()),
        float(entropy(shares.mean(0))),
        float(torch.bincount(classes).max()) / len(classes),
    )


def confidences(logits: Tensor) -> Tensor:
    """Return the largest probability of each picture, (N,) float64, of (N, C) logits."""
    return logits.double().softmax(1).amax(1)


def entropy(shares: Tensor) -> Tensor:
    """Return the entropy of probabilities (..., C) in nats, (...)."""
    each: Tensor = torch.special.entr(shares)
    return each.sum(-1)
