"""What generators and discriminators of patches play for, over maps of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import unknown

LOSSES = ("least-squares", "hinge")
"""Names of the losses below."""


def discriminator_loss(kind: str, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the discriminator's loss, the mean over the maps of its scales.

    Least squares: ½·mean((D(x) − 1)²) + ½·mean(D(G)²), Mao et al. 2017, eq. 9. Hinge:
    mean(relu(1 − D(x))) + mean(relu(1 + D(G))), Miyato et al. 2018, eq. 16.

    Args:
        kind: one of `LOSSES`.
        real, fake: (N, 1, h, w) logits a scale, of any shape.

    Raises:
        InputError: an unknown loss.
    """
    _check(kind)
    if kind == "hinge":
        parts = [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in _pairs(real, fake)]
    else:
        parts = [0.5 * ((a - 1).square().mean() + b.square().mean()) for a, b in _pairs(real, fake)]
    return torch.stack(parts).mean()


def generator_loss(kind: str, fake: Sequence[Tensor]) -> Tensor:
    """Return the generator's loss, the mean over the maps: mean((D(G) − 1)²), or −mean(D(G)).

    Args:
        kind: one of `LOSSES`.
        fake: (N, 1, h, w) logits a scale, of any shape.

    Raises:
        InputError: an unknown loss.
    """
    _check(kind)
    parts = [_exact(each) for each in fake]
    if kind == "hinge":
        return torch.stack([-each.mean() for each in parts]).mean()
    return torch.stack([(each - 1).square().mean() for each in parts]).mean()


def _pairs(real: Sequence[Tensor], fake: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(_exact(a), _exact(b)) for a, b in zip(real, fake, strict=True)]


def _exact(logits: Tensor) -> Tensor:
    """In float32 or better, also where the networks computed in less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(kind: str) -> None:
    if kind not in LOSSES:
        raise unknown("loss", kind, LOSSES)
