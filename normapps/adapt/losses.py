"""Losses on logits without labels: entropy and the cross entropy to soft targets.

Both are taken for each sample, in nats, in float32 or better; who adapts by them takes the mean,
weighs or selects the samples. A class that is ruled out (a logit of −inf) adds 0, and a gradient
of 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each sample's prediction, (N,) in nats: 0 (sure) … log C (uniform).

    H = −Σ_c p_c log p_c with p = softmax(logits).

    Args:
        logits: (N, C), any floating dtype.

    Raises:
        InputError: the logits are not (N, C) of a floating dtype.
    """
    log_p = log_probabilities(logits)
    return cross_entropy_of(log_p.exp(), log_p)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −Σ_c targets_c log softmax(logits)_c of each sample, (N,) in nats.

    Gradients flow to the logits and, where they ask for it, to the targets: detach those of a
    teacher.

    Args:
        logits: (N, C), any floating dtype.
        targets: (N, C) probabilities of the classes.

    Raises:
        InputError: the logits are not (N, C) of a floating dtype, or the targets of another shape.
    """
    if targets.shape != logits.shape:
        raise InputError(f"targets {tuple(targets.shape)}: must be as the logits {_shape(logits)}")
    return cross_entropy_of(targets, log_probabilities(logits))


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax(logits), (N, C) in float32 or better.

    Raises:
        InputError: the logits are not (N, C) of a floating dtype.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise InputError(
            f"logits {_shape(logits)} of {logits.dtype}: must be (N, C) of a floating dtype"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def cross_entropy_of(p: Tensor, log_q: Tensor) -> Tensor:
    """Return −Σ_c p_c log q_c, (N,), where a p of 0 adds 0 also for a log q of −inf.

    Args:
        p: (N, C) probabilities.
        log_q: (N, C) logarithms of probabilities.
    """
    return -(p * log_q.masked_fill(p == 0, 0)).sum(1)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
