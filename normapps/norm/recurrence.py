"""Linear recurrences over a batch, all steps at once."""

from __future__ import annotations

import torch
from torch import Tensor


def recur(decay: Tensor, drive: Tensor, start: Tensor) -> Tensor:
    """Return s₀ … s_N of sₜ = decayₜ·sₜ₋₁ + driveₜ with s₀ = start, exact up to rounding.

    Steps next to each other are combined, then pairs of them, and so on (Hillis & Steele 1986):
    log₂ N operations on whole tensors instead of N on rows.

    Args:
        decay, drive: (N, C).
        start: (C,).

    Returns:
        (N+1, C).
    """
    span = 1
    while span < len(drive):
        drive = torch.cat([drive[:span], drive[span:] + decay[span:] * drive[:-span]])
        decay = torch.cat([decay[:span], decay[span:] * decay[:-span]])
        span *= 2
    return torch.cat([start[None], drive + decay * start])
