"""TENT: test-time adaptation by minimizing the entropy of the predictions.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021: batch
statistics, and gradient steps of the scales and shifts of the norm layers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from ...norm.convert.selection import Patterns
from ..losses import entropy
from .base import Online
from .configuration import collect_params, configure_model, configured_copy
from .optimizers import create_optimizer

__all__ = ["Tent", "collect_params", "configure_model", "tent"]


class Tent(Online):
    """Entropy minimization: θ ← θ − η ∇θ mean H(softmax f(x)), θ the scales and shifts (eq. 1).

    The logits returned are those before the step, as in the paper's code. Differs from it: the
    running statistics stay, dropout is off, norms without population adapt too, and a batch that
    is not finite is refused before anything changes.

    Args:
        model: as `configure_model` returns it.
        optimizer: of `collect_params(model)`.
        steps, episodic: see `Online`.

    Example:
        >>> model = configure_model(model)
        >>> online = Tent(model, torch.optim.Adam(collect_params(model)[0], 1e-3))
        >>> logits = online(batch)
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, steps: int = 1, episodic: bool = False
    ) -> None:
        super().__init__(model, optimizer, steps, episodic)

    def step(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of a batch, then make them more certain."""
        logits = self.logits(x)
        loss = entropy(logits).mean()
        self.descend(loss)
        self.facts = {"entropy": float(loss.detach())}
        return logits


def tent(
    model: nn.Module,
    *,
    optimizer: str = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    steps: int = 1,
    episodic: bool = False,
    prior: float = 0.0,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Tent:
    """Make TENT of a copy of any network with norm layers.

    By default the paper's setting for ImageNet, whose networks timm's are: SGD, momentum 0.9,
    learning rate 2.5e-4, for batches of 64. `optimizer="adam"` is its setting for CIFAR: 1e-3, for
    batches of 200; a step of Adam is as large as the rate however small the gradient, and runs
    away sooner on smaller batches.

    Args:
        lr: None takes the paper's of the optimizer.
        momentum: of SGD.
        steps, episodic: see `Online`.
        prior: samples that the source's statistics count for beside each batch; above 0 small
            batches work, one included.
        include, exclude: shell patterns of names of norm layers; the others stay the source's.

    Raises:
        InputError: no norm layer, none is chosen, or none has a scale or shift; an option out of
            range.
    """
    adapting = configured_copy(model, prior=prior, include=include, exclude=exclude)
    chosen = create_optimizer(adapting, optimizer, lr, momentum)
    return Tent(adapting, chosen, steps, episodic)
