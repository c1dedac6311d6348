"""EATA: learn from samples that are reliable and new, and do not forget what matters.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022: TENT on selected
samples, weighted, with a penalty for leaving the source where its Fisher information is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError
from ...models.outputs import logits_of
from ...norm.convert.selection import Patterns
from ...norm.population.listening import Source
from ..losses import entropy
from .base import Online
from .configuration import collect_params, configured_copy, streaming_layers
from .optimizers import create_optimizer
from .reliable import entropy_margin


class Eata(Online):
    """Entropy minimization over reliable, new samples, with a penalty for forgetting.

    A sample is learnt from where H < E₀ = margin·ln C and |cos(p̄, p)| < redundancy (eq. 3, 5). The
    loss is the mean of exp(E₀−H)·H over these, the weight a constant, plus
    fisher_weight·Σ F·(θ−θ₀)² (eq. 8); p̄ ← 0.9·p̄ + 0.1·their mean prediction. Where no sample is
    left, nothing changes. Differs from the paper's code: a reset forgets p̄, too.

    Args:
        model: as `configure_model` returns it; its scales and shifts now are θ₀.
        optimizer: of `collect_params(model)`.
        steps, episodic: see `Online`.
        fisher: what `fisher_information` returns; without it there is no penalty.
        fisher_weight: β, the paper's 2000; its code takes 1 for CIFAR.
        margin: share of ln C.
        redundancy: the paper's 0.05; its code takes 0.4 for CIFAR, where few classes leave more
            predictions alike.

    Attributes:
        probabilities: p̄, (C,), or None before the first sample that was learnt from.

    Raises:
        InputError: `fisher` is not of this model's scales and shifts; a number below 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int = 1,
        episodic: bool = False,
        *,
        fisher: Mapping[str, Tensor] | None = None,
        fisher_weight: float = 2000.0,
        margin: float = 0.4,
        redundancy: float = 0.05,
    ) -> None:
        super().__init__(model, optimizer, steps, episodic)
        if not all(each >= 0 for each in (fisher_weight, margin, redundancy)):
            raise InputError(
                f"fisher_weight {fisher_weight}, margin {margin}, redundancy {redundancy}: none"
                " may be below 0"
            )
        self.fisher_weight, self.margin, self.redundancy = fisher_weight, margin, redundancy
        self.fisher = _checked(fisher or {}, _named(model))
        self.anchor = {name: each.detach().clone() for name, each in _named(model).items()}
        self.probabilities: Tensor | None = None

    def step(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of a batch, then learn from its reliable, new samples."""
        logits = self.logits(x)
        margin, entropies = entropy_margin(logits, self.margin), entropy(logits)
        p = logits.detach().to(entropies.dtype).softmax(1)
        reliable = entropies.detach() < margin
        chosen = reliable & self._is_new(p)
        self.facts = {
            "entropy": float(entropies.detach().mean()),
            "reliable": int(reliable.sum()),
            "selected": int(chosen.sum()),
        }
        if self.facts["selected"]:
            kept = entropies[chosen]
            self.descend((kept * (margin - kept.detach()).exp()).mean() + self.penalty())
            self._follow(p[chosen].mean(0))
        return logits

    def penalty(self) -> Tensor | float:
        """Return fisher_weight·Σ F·(θ−θ₀)², how much of what matters has been left."""
        total: Tensor | float = 0.0
        named = _named(self.model)
        for name, fisher in self.fisher.items():
            moved = named[name] - self.anchor[name].to(named[name])
            total = total + (fisher.to(moved) * moved.square()).sum()
        return self.fisher_weight * total

    def own_state(self) -> dict[str, Any]:
        """Return p̄, the Fisher information and θ₀."""
        return {
            "probabilities": self.probabilities,
            "fisher": self.fisher,
            "anchor": self.anchor,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` returned."""
        self.probabilities = state["probabilities"]
        self.fisher, self.anchor = state["fisher"], state["anchor"]

    def _is_new(self, p: Tensor) -> Tensor:
        if self.probabilities is None:
            return p.new_ones(len(p), dtype=torch.bool)
        usual = self.probabilities.to(p)[None]
        return F.cosine_similarity(usual, p, dim=1).abs() < self.redundancy

    def _follow(self, p: Tensor) -> None:
        earlier = self.probabilities
        self.probabilities = p if earlier is None else 0.9 * earlier.to(p) + 0.1 * p


def fisher_information(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    limit: int | None = 2000,
    prior: float = 0.0,
    include: Patterns = (),
    exclude: Patterns = (),
) -> dict[str, Tensor]:
    """Return how much the predictions depend on each scale and shift, by parameter name.

    The mean over batches of (∂L/∂θ)², L the mean cross entropy of a batch to the classes that the
    network itself predicts. As in EATA's code, whose weight of 2000 belongs to it: the square is
    that of a batch's gradient, which the paper's eq. 9, of each sample's, is more than.

    Args:
        model: any network with norm layers; a copy of it is run.
        loader: batches (N, ...) of the source's domain, with labels beside or without; EATA takes
            2000 images in batches of 64.
        limit: at most so many inputs.
        prior, include, exclude: as they will be in `eata`.

    Raises:
        InputError: no inputs, or logits that are not finite; as `eata`.
    """
    network = configured_copy(model, prior=prior, include=include, exclude=exclude)
    named = _named(network)
    batches = 0
    with torch.inference_mode(False), torch.enable_grad():
        found = {name: torch.zeros_like(each) for name, each in named.items()}
        for each in Source(network, loader, limit, None):
            x = each.clone() if each.is_inference() else each
            for layer in streaming_layers(network).values():
                layer.batch_samples = len(x)
            log_p = logits_of(network(x)).log_softmax(1)
            loss = -log_p.amax(1).mean()
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            batches += 1
            for total, grad in zip(found.values(), grads, strict=True):
                if grad is not None:
                    total.add_(grad.square())
    if not batches:
        raise InputError("the loader gave no inputs: there is no Fisher information to measure")
    return {name: total / batches for name, total in found.items()}


def eata(
    model: nn.Module,
    *,
    fisher: Mapping[str, Tensor] | Iterable[Any] | None = None,
    fisher_weight: float = 2000.0,
    margin: float = 0.4,
    redundancy: float = 0.05,
    optimizer: str = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    steps: int = 1,
    episodic: bool = False,
    prior: float = 0.0,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Eata:
    """Make EATA of a copy of any network with norm layers, with the paper's setting for ImageNet.

    Args:
        fisher: batches of the source's domain, or what `fisher_information` made of them. None
            leaves the penalty out: the paper's ETA.
        fisher_weight, margin, redundancy: see `Eata`.
        optimizer, lr, momentum, prior, include, exclude: see `tent`.
        steps, episodic: see `Online`.

    Raises:
        InputError: as `tent`, `Eata` and `fisher_information`.
    """
    layers: dict[str, Any] = {"prior": prior, "include": include, "exclude": exclude}
    if fisher is not None and not isinstance(fisher, Mapping):
        fisher = fisher_information(model, fisher, **layers)
    adapting = configured_copy(model, **layers)
    return Eata(
        adapting,
        create_optimizer(adapting, optimizer, lr, momentum),
        steps,
        episodic,
        fisher=fisher,
        fisher_weight=fisher_weight,
        margin=margin,
        redundancy=redundancy,
    )


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters, names = collect_params(model)
    return dict(zip(names, parameters, strict=True))


def _checked(fisher: Mapping[str, Tensor], named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    for name, value in fisher.items():
        if name not in named or value.shape != named[name].shape:
            raise InputError(
                f"fisher information of '{name}', {tuple(value.shape)}, is not of this network's"
                " scales and shifts: measure it on this network, with the same layers chosen"
            )
        if not bool((value >= 0).all()) or not bool(value.isfinite().all()):
            raise InputError(
                f"fisher information of '{name}' has values that are negative or not finite:"
                " measure it on batches whose logits are finite"
            )
    return {name: value.detach().clone() for name, value in fisher.items()}
