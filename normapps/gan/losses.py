"""What generator and discriminator play for, and penalties on the discriminator's gradient.

Logits are high for what looks real. All losses are means over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown
from ..norm.precision import without_autocast

Critic = Callable[..., Tensor]
"""A discriminator: `d(x, y)` or `d(x)` → logits (N,)."""


class Adversarial:
    """One of the losses by name, for the discriminator and for the generator.

    - `hinge` (Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17):
      E[relu(1 − D(x))] + E[relu(1 + D(G(z)))], and −E[D(G(z))];
    - `non-saturating` (Goodfellow et al. 2014): E[softplus(−D(x))] + E[softplus(D(G(z)))], and
      E[softplus(−D(G(z)))];
    - `wasserstein` (Arjovsky et al. 2017): E[D(G(z))] − E[D(x)], and −E[D(G(z))]. It needs
      `gradient_penalty` or another bound; with spectral normalization alone it does not train.

    Raises:
        InputError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        if name not in LOSSES:
            raise unknown("loss", name, LOSSES)
        self.name = name
        self._real, self._fake, self._generator = LOSSES[name]

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return what the discriminator minimizes, 0-d, of logits (N,) and (M,)."""
        return self._real(real_logits).mean() + self._fake(fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Return what the generator minimizes, 0-d, of logits (M,)."""
        return self._generator(fake_logits).mean()


def _negative(logits: Tensor) -> Tensor:
    return -logits


def _same(logits: Tensor) -> Tensor:
    return logits


def _below_one(logits: Tensor) -> Tensor:
    return F.relu(1 - logits)


def _above_minus_one(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)


def _not_real(logits: Tensor) -> Tensor:
    return F.softplus(-logits)


_Term = Callable[[Tensor], Tensor]
LOSSES: dict[str, tuple[_Term, _Term, _Term]] = {
    "hinge": (_below_one, _above_minus_one, _negative),
    "non-saturating": (_not_real, F.softplus, _not_real),
    "wasserstein": (_negative, _same, _negative),
}
"""Name → the terms of real logits and of fake ones in D's loss, and of fake ones in G's."""


def gradient_penalty(
    d: Critic,
    real: Tensor,
    fake: Tensor,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return E[(‖∇D(x̂)‖ − 1)²] at points x̂ between real and fake, 0-d (Gulrajani et al. 2017).

    In float32 or better, autocast off; usual weight: 10. `d` must treat samples apart (no batch
    norm).

    Args:
        d: the discriminator.
        real, fake: (N, C, H, W); the fake ones count as given, no gradient flows into them.
        y: labels (N,), if it has classes.
        generator: draws where between the two, one number a sample; torch's own if not given.
    """
    place = real.device if generator is None else generator.device
    share = torch.rand(len(real), generator=generator, device=place).to(real.device)
    share = share.to(_exact(real).dtype).reshape(-1, *[1] * (real.dim() - 1))
    between = torch.lerp(_exact(real.detach()), _exact(fake.detach()), share)
    return (_gradient_norm(d, between, y) - 1).square().mean()


def r1(d: Critic, real: Tensor, y: Tensor | None = None) -> Tensor:
    """Return ½·E‖∇D(x)‖² at real pictures, 0-d (Mescheder et al. 2018, eq. 9, with γ = 1).

    In float32 or better, autocast off; the weight is their γ, 10 in the paper. `d` must treat
    samples apart (no batch norm).

    Args:
        d: the discriminator.
        real: (N, C, H, W).
        y: labels (N,), if it has classes.
    """
    return _gradient(d, _exact(real.detach()), y).square().sum(1).mean() / 2


def _gradient_norm(d: Critic, x: Tensor, y: Tensor | None) -> Tensor:
    squares = _gradient(d, x, y).square().sum(1)
    # the root's slope at 0 is infinite
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _gradient(d: Critic, x: Tensor, y: Tensor | None) -> Tensor:
    """Gradient (N, C·H·W) of every sample's logit, itself differentiable."""
    x = x.requires_grad_()
    labels: tuple[Any, ...] = () if y is None else (y,)
    with torch.enable_grad(), without_autocast(x):
        (found,) = torch.autograd.grad(d(x, *labels).sum(), x, create_graph=True)
    return found.flatten(1)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
