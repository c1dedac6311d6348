"""Min-entropy consensus: two views of a picture agree on one class, and are sure of it.

Roy et al. 2019, "Unsupervised Domain Adaptation using Feature-Whitening and Consensus Loss",
sec. 3.2, eq. 8-10.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import InputError
from ..losses import log_probabilities


def min_entropy_consensus(first: Tensor, second: Tensor) -> Tensor:
    """Return −½ max_c (log p¹_c + log p²_c) of each sample, (N,) in nats.

    The cross entropy of both predictions to the class that they agree on most. The gradient is
    that of this class alone, and is 0 once both give it all. The paper adds it, averaged, with
    λ = 0.1 to the source's cross entropy; p¹ and p² are of two random augmentations.

    Args:
        first, second: logits (N, C) of two views of the same pictures.

    Raises:
        InputError: they are not (N, C) of a floating dtype, or differ in shape.
    """
    if first.shape != second.shape:
        raise InputError(f"logits of two views {tuple(first.shape)}, {tuple(second.shape)}: differ")
    both = log_probabilities(first) + log_probabilities(second)
    return -both.amax(1) / 2
