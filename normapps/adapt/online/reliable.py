"""Which samples a network is sure enough of to learn from: the filter of EATA and SAR."""

from __future__ import annotations

import math

from torch import Tensor

from ...errors import InputError


def entropy_margin(logits: Tensor, share: float) -> float:
    """Return E₀ = share · ln C in nats; samples of less entropy are reliable (EATA, eq. 3).

    Args:
        logits: (N, C).
        share: of the entropy of a uniform prediction; 0.4 in the papers.

    Raises:
        InputError: one class, whose entropy is always 0.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(
            f"logits {tuple(logits.shape)} of one class have no entropy to learn from: give the"
            " network two outputs, or take a method of statistics (prior, ema)"
        )
    return share * math.log(classes)
