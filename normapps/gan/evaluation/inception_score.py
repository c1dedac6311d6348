"""Classifier score: are pictures recognized, and as many different things?

Salimans et al. 2016, sec. 4: exp of the mean KL(p(y|x) ‖ p(y)). Under the Inception network of 2015
and nothing else it is called the Inception score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError


def classifier_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return mean and standard deviation of the score over splits, in float64.

    1 at worst (every picture is judged alike), the number of classes at best. A small split scores
    lower than a large one; the paper has splits of 5,000.

    Args:
        logits: (N, classes).
        splits: parts of the shuffled pictures that are scored apart.
        seed: of the shuffle, so that pictures ordered by class are no trap.

    Raises:
        InputError: another shape, or fewer pictures than splits.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise InputError(
            f"logits {tuple(logits.shape)} in {splits} splits: they must be (N, classes), and the "
            "splits from 1 to N"
        )
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    logs = logits.double()[order.to(logits.device)].log_softmax(1)
    scores = torch.stack([_score(part) for part in logs.tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(logs: Tensor) -> Tensor:
    shares = logs.exp()
    # log of the mean, taken of the logs: a class that no picture has stays finite
    whole = logs.logsumexp(0) - torch.log(torch.tensor(float(len(logs)), dtype=logs.dtype))
    divergence = torch.where(shares > 0, shares * (logs - whole), 0.0).sum(1)
    return divergence.mean().exp()
