"""SAR: sharpness-aware and reliable entropy minimization, for small batches and mixed streams.

Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023: TENT on
reliable samples, down to flat minima, and back to the source when predictions collapse. The paper
recommends networks of group or layer norm for it, which do without batch statistics.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError
from ...norm.convert.selection import Patterns
from ...norm.convert.sites import find_sites
from ..losses import entropy
from .base import Online
from .configuration import configured_copy
from .optimizers import create_optimizer
from .reliable import entropy_margin
from .sam import climbed


class Sar(Online):
    """Entropy minimization over reliable samples by the gradient at θ + ρ·g/‖g‖ (eq. 2, 4).

    Samples with H < margin·ln C give g; those of them that pass the same again at the moved θ give
    the gradient of the step. Where none is left, nothing changes (the paper's code then steps by
    the momentum alone). The loss is followed by e ← 0.9·e + 0.1·loss; e < `recovery` means that
    the predictions have collapsed: all goes back to the start. Differs from the paper's code: e
    begins anew, too, where there it stays below and keeps the network at the start; the stream's
    statistics and the optimizer's momentum begin anew with it.

    Args:
        model: as `configure_model` returns it.
        optimizer: of `collect_params(model)`; any, SGD in the paper.
        steps, episodic: see `Online`.
        margin: share of ln C, E₀ in the paper.
        rho: radius of the move.
        recovery: in nats; the paper's 0.2 is for 1000 classes, take less for few, 0 for never.

    Attributes:
        ema: e, None before the first step.
        resets: how often the network went back by itself.

    Raises:
        InputError: a number below 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int = 1,
        episodic: bool = False,
        *,
        margin: float = 0.4,
        rho: float = 0.05,
        recovery: float = 0.2,
    ) -> None:
        super().__init__(model, optimizer, steps, episodic)
        if not all(each >= 0 for each in (margin, rho, recovery)):
            raise InputError(
                f"margin {margin}, rho {rho}, recovery {recovery}: none may be below 0"
            )
        self.margin, self.rho, self.recovery = margin, rho, recovery
        self.ema: float | None = None
        self.resets = 0

    def step(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of a batch, then learn from its reliable samples."""
        logits = self.logits(x)
        margin, entropies = entropy_margin(logits, self.margin), entropy(logits)
        chosen = entropies.detach() < margin
        loss, kept = None, 0
        if bool(chosen.any()):
            loss, kept = self._descend(x, entropies[chosen].mean(), chosen, margin)
        facts = {"entropy": float(entropies.detach().mean()), "reliable": int(chosen.sum())}
        if loss is not None:
            self._follow(loss)
            facts |= {"loss": loss}
        self.facts = facts | {"selected": kept, "resets": self.resets}
        return logits

    def own_state(self) -> dict[str, Any]:
        """Return e and how often the network went back."""
        return {"ema": self.ema, "resets": self.resets}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` returned."""
        self.ema, self.resets = state["ema"], state["resets"]

    def _descend(
        self, x: Tensor, first: Tensor, chosen: Tensor, margin: float
    ) -> tuple[float | None, int]:
        """Step by the gradient at the moved parameters; return the loss there, and of how many."""
        norm = self.differentiate(first)
        with climbed(self.trained(), norm, self.rho), self.uncounted():
            entropies = entropy(self.logits(x))
            again = chosen & (entropies.detach() < margin)
            kept = int(again.sum())
            loss = entropies[again].mean()
            if kept:
                self.differentiate(loss)
        if self.optimizer is not None:
            if kept:
                self.optimizer.step()
            self.optimizer.zero_grad()
        return (float(loss.detach()) if kept else None), kept

    def _follow(self, loss: float) -> None:
        self.ema = loss if self.ema is None else 0.9 * self.ema + 0.1 * loss
        if self.ema < self.recovery:
            resets = self.resets + 1
            self.reset()
            self.resets = resets


def sar(
    model: nn.Module,
    *,
    margin: float = 0.4,
    rho: float = 0.05,
    recovery: float = 0.2,
    optimizer: str = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    steps: int = 1,
    episodic: bool = False,
    prior: float = 0.0,
    include: Patterns = (),
    exclude: Patterns = (),
    freeze_top: bool = True,
) -> Sar:
    """Make SAR of a copy of any network with norm layers, with the paper's setting for ResNets.

    Args:
        margin, rho, recovery: see `Sar`.
        optimizer, momentum, prior, include, exclude: see `tent`.
        lr: None takes 2.5e-4 for SGD; the paper takes 1e-3 for vision transformers, and less for
            small batches: N/64 of it, for ResNets 2·N/64.
        steps, episodic: see `Online`.
        freeze_top: leave the scales and shifts of `top_layers` as they are, as the paper does.

    Raises:
        InputError: as `tent`; a number below 0.
    """
    layers: dict[str, Any] = {"prior": prior, "include": include, "exclude": exclude}
    if freeze_top:
        layers["freeze"] = top_layers(model)
    adapting = configured_copy(model, **layers)
    chosen = create_optimizer(adapting, optimizer, lr, momentum)
    return Sar(adapting, chosen, steps, episodic, margin=margin, rho=rho, recovery=recovery)


def top_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the norm layers near the output, which SAR does not train.

    The last stage of ResNets (`layer4`) and of networks of `stages`, the last quarter of the
    `blocks` of transformers and the norm behind them; nothing where the names tell no such parts.
    """
    names = [site.name for site in find_sites(model)]
    stages = [(name, found) for name in names if (found := _STAGE.match(name))]
    if not stages:
        return ()
    kind = stages[-1][1][1]
    last = max(int(found[2]) for _, found in stages if found[1] == kind)
    least = last - (last + 1) // 4 + 1 if kind == "blocks." else last
    start = next(name for name, found in stages if found[1] == kind and int(found[2]) >= least)
    return tuple(names[names.index(start) :])


_STAGE = re.compile(r"(layer|stages\.|blocks\.)(\d+)\.")
