"""LAME: predictions of a batch that agree with their neighbours'; no parameter changes.

Boudiaf et al., CVPR 2022. Made for streams sorted by class, where every method that changes the
network goes wrong. On streams of shuffled classes it can only lose a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...norm.nesting import detached_copy
from ..losses import log_probabilities
from .base import Online

_LEAST_LOG = -23.0  # log 1e-10, the least probability of the paper's code


class Lame(Online):
    """Laplacian-adjusted maximum-likelihood estimation; returns log-probabilities as logits.

    Neighbours are near by the features that enter the last linear layer (timm's `get_classifier`,
    or the last `nn.Linear` by name), or by the logits where there is none. A batch of one has no
    neighbours: the network's own logits come back.

    Args:
        model: in inference mode; it never changes, `export` returns it.
        neighbours: of a sample, whose predictions pull at its own.
        weight: of the neighbours against the network's prediction, the paper's bound λ.
        iterations: at most; it stops where the energy changes by less than 1e-8 of itself.

    Raises:
        InputError: an option out of range.
    """

    needs_gradient = False

    def __init__(
        self, model: nn.Module, *, neighbours: int = 5, weight: float = 1.0, iterations: int = 100
    ) -> None:
        super().__init__(model)
        if neighbours < 1 or weight < 0 or iterations < 1:
            raise InputError(
                f"neighbours {neighbours}, weight {weight}, iterations {iterations}: must be at"
                " least 1, 0 and 1"
            )
        self.neighbours, self.weight, self.iterations = neighbours, weight, iterations

    def step(self, x: Tensor) -> Tensor:
        """Return the adjusted log-probabilities (N, C) of a batch (N, ...)."""
        with _heard(classifier_of(self.model)) as features:
            logits = self.logits(x)
        if len(x) == 1:
            self.facts = {"iterations": 0, "changed": 0}
            return logits
        fitting = [each.flatten(1) for each in features if len(each) == len(x)]
        near = affinity(fitting[-1] if fitting else logits, self.neighbours)
        assigned, iterations = adjust(logits, near, self.weight, self.iterations)
        changed = assigned.argmax(1) != logits.argmax(1)
        self.facts = {"iterations": iterations, "changed": float(changed.float().mean())}
        return assigned.to(logits.dtype)


def lame(
    model: nn.Module, *, neighbours: int = 5, weight: float = 1.0, iterations: int = 100
) -> Lame:
    """Make LAME of a copy of any classifier, with norm layers or without.

    Args:
        neighbours, weight, iterations: see `Lame`.

    Raises:
        InputError: an option out of range.
    """
    with torch.inference_mode(False):
        copied = detached_copy(model).eval().requires_grad_(False)
    return Lame(copied, neighbours=neighbours, weight=weight, iterations=iterations)


def affinity(features: Tensor, neighbours: int) -> Tensor:
    """Return which samples are whose nearest neighbours, (N, N) of 0 and 1: row i has i's.

    By the Euclidean distance of the features brought to length 1. No sample is its own neighbour.
    The paper's code drops the nearest found, which among equal samples may be another.

    Args:
        features: (N, D).
        neighbours: k; all others where N is smaller.
    """
    directions = F.normalize(features.float(), dim=1)
    distances = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(min(neighbours, len(features) - 1), largest=False).indices
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def adjust(
    logits: Tensor, near: Tensor, weight: float = 1.0, iterations: int = 100
) -> tuple[Tensor, int]:
    """Find assignments z that stay near the prediction p and agree with their neighbours'.

    Minimizes KL(z‖p) − λ Σ_ij w_ij z_i·z_j by the bound that the paper iterates (eq. 6):
    z_i ← softmax(log p_i + λ Σ_j w_ij z_j).

    Args:
        logits: (N, C).
        near: w, (N, N), see `affinity`.
        weight: λ.
        iterations: at most.

    Returns:
        log z, (N, C) float32 or better, and the number of iterations.
    """
    log_p = log_probabilities(logits).clamp_min(_LEAST_LOG)
    log_z, last = log_p.log_softmax(1), float("inf")
    for count in range(1, iterations + 1):
        pull = weight * near.to(log_p) @ log_z.exp()
        log_z = (log_p + pull).log_softmax(1)
        energy = float((log_z.exp() * (log_z - log_p - pull)).sum())
        if count > 2 and abs(energy - last) <= 1e-8 * abs(last):
            return log_z, count
        last = energy
    return log_z, iterations


def classifier_of(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits of features: timm's, or the last linear one, or None."""
    named = getattr(model, "get_classifier", None)
    found = named() if callable(named) else None
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, nn.Module) and not isinstance(found, nn.Identity):
        return found
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


@contextmanager
def _heard(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """What goes into a layer while the context is open."""
    heard: list[Tensor] = []

    def hear(module: nn.Module, inputs: tuple[object, ...]) -> None:
        heard.extend(each.detach() for each in inputs[:1] if isinstance(each, Tensor))

    handle = None if layer is None else layer.register_forward_pre_hook(hear)
    try:
        yield heard
    finally:
        if handle is not None:
            handle.remove()
