"""How often a classifier is right, and how much better another one is on the same pictures."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

from ..errors import InputError
from .interval import Estimate


def accuracy(correct: int, total: int, confidence: float = 0.95) -> Estimate:
    """Return the share of right answers with Wilson's score interval (Wilson 1927).

    Unlike mean ± deviation it stays inside [0, 1] and has a width where all or none are right.

    Args:
        correct: right answers.
        total: all answers, at least one.
        confidence: how often such intervals hold the true share.

    Raises:
        InputError: counts that do not fit, or a confidence outside (0, 1).
    """
    if not 0 <= correct <= total or total < 1:
        raise InputError(f"{correct} of {total} right: give 0 to all of at least one answer")
    z = _quantile(confidence)
    share, penalty = correct / total, z * z / total
    centre = (share + penalty / 2) / (1 + penalty)
    half = math.sqrt(share * (1 - share) * penalty + penalty * penalty / 4) / (1 + penalty)
    # whatever the rounding, the ends hold the share and are shares
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, min(share, low), max(share, high), total)


def paired_difference(before: Tensor, after: Tensor, confidence: float = 0.95) -> Estimate:
    """Return by how much the share of right answers grew, on the same pictures.

    Only pictures that one of the two gets right tell anything. The interval is Bonett & Price's
    (2012), Wald's after one such picture was added to each side: it keeps its width where
    the two always agree, and covers what it says for few pictures too.

    Args:
        before, after: (N,) bool, right or wrong of the same pictures in the same order.
        confidence: how often such intervals hold the true difference.

    Returns:
        after − before in shares; the interval is centred a little nearer to 0 than the mean.

    Raises:
        InputError: lengths that differ, or none, or a confidence outside (0, 1).
    """
    if before.shape != after.shape or before.dim() != 1 or not len(before):
        raise InputError(
            f"{tuple(before.shape)} and {tuple(after.shape)} answers: give two lists of one length"
        )
    count = len(before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    centre = up - down
    half = _quantile(confidence) * math.sqrt((up + down - centre * centre) / (count + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    mean = (gained - lost) / count
    return Estimate(mean, min(mean, low), max(mean, high), count)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}: must be between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
