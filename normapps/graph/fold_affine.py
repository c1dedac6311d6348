"""Affine: what a norm layer does at inference, where that is a fixed map of the channels."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..norm.condition import ConditionalLayer
from ..norm.convert.sites import Site
from ..norm.layers.batch import BatchNorm
from ..norm.layers.mean_only import MeanOnlyBatchNorm
from ..norm.layers.population import PopulationNorm
from ..norm.layers.switchable_whitening import SwitchableWhitening
from ..norm.layers.tracking import Tracking
from ..norm.layers.whitening import Whitening


@dataclass(frozen=True, eq=False)
class Affine:
    """y = factor·x + shift of C channels, in float64 on the CPU, and what it says of y.

    Attributes:
        factor: (C,), or (C, C) where channels are mixed.
        shift: (C,).
        mean, var: (C,) the moments of y where x has the norm layer's population: β and
            γ²·σ²/(σ²+ε), which is γ² but for channels that hardly vary.
    """

    factor: Tensor
    shift: Tensor
    mean: Tensor
    var: Tensor

    @property
    def is_full(self) -> bool:
        """Whether channels are mixed."""
        return self.factor.dim() == 2

    def at(self, index: Tensor) -> Affine:
        """Return the map of channels in another order, or of some of them only.

        Args:
            index: which channel stands at each place; all of them, once, where they are mixed.
                −1 is a place that the map leaves alone, with moments that are not known (NaN).
        """
        factor, shift, mean, var = (
            each[index] for each in (self.factor, self.shift, self.mean, self.var)
        )
        if self.is_full:
            return Affine(factor[:, index], shift, mean, var)
        alone = index < 0
        for tensor, value in ((factor, 1.0), (shift, 0.0), (mean, math.nan), (var, math.nan)):
            tensor[alone] = value
        return Affine(factor, shift, mean, var)


def is_population_norm(site: Site) -> bool:
    """Whether a norm layer is one that a fold is expected of: it has, or should have, a population.

    Layers that only measure their input (layer, group, instance, RMS norm) are not.
    """
    return isinstance(site.module, Tracking) or "batch" in site.kinds


def reason_against(site: Site) -> str:
    """Say why a norm layer is no fixed map of its channels; nothing if it is one."""
    layer = site.module
    if site.refusal:
        return site.refusal
    if isinstance(layer, ConditionalLayer):
        return "normalizes by a condition; fold what is made for one (DomainModel.export(domain))"
    if isinstance(layer, Tracking) and not _is_fixed(layer):
        return "measures each input at inference, too"
    if site.tensor("running_mean") is None:
        return "keeps no statistics and measures each batch (track_running_stats=False)"
    return ""


@torch.no_grad()
def affine_of(site: Site) -> Affine:
    """Return what a norm layer does at inference.

    Args:
        site: of a layer that `reason_against` has nothing against.
    """
    if isinstance(site.module, Whitening):
        return _of_whitening(site.module)
    if isinstance(site.module, MeanOnlyBatchNorm):
        return _of_centring(site)
    if isinstance(site.module, PopulationNorm):
        return _of_population(site, site.module)
    mean, var = (_wide(site.tensor(f"running_{name}"), site, 0.0) for name in ("mean", "var"))
    gamma, beta = _wide(site.tensor("weight"), site, 1.0), _wide(site.tensor("bias"), site, 0.0)
    inverse = (var + _eps(site.module)).rsqrt()
    factor = gamma * inverse
    return Affine(factor, beta - mean * factor, beta, (gamma * inverse).square() * var)


def _is_fixed(layer: Tracking) -> bool:
    if isinstance(layer, PopulationNorm):
        return layer.is_fixed
    fixed = isinstance(layer, BatchNorm | Whitening | MeanOnlyBatchNorm)
    return fixed and not isinstance(layer, SwitchableWhitening)


def _of_population(site: Site, layer: PopulationNorm) -> Affine:
    used = layer.fixed().to("cpu").to(torch.float64)
    mean, var = (_wide(site.tensor(f"running_{name}"), site, 0.0) for name in ("mean", "var"))
    gamma, beta = _wide(site.tensor("weight"), site, 1.0), _wide(site.tensor("bias"), site, 0.0)
    factor = gamma * (used.var[0] + layer.eps).rsqrt()
    shift = beta - used.mean[0] * factor
    return Affine(factor, shift, factor * mean + shift, factor.square() * var)


def _of_whitening(layer: Whitening) -> Affine:
    wide = copy.deepcopy(layer).cpu().double()
    population = wide.population()
    matrix, shift = wide.map(population)
    factor, cov = (torch.block_diag(*each) for each in (matrix.double(), _cov(population.cov)))
    shift, mean = shift.double().flatten(), population.mean.double().flatten()
    return Affine(factor, shift, factor @ mean + shift, (factor @ cov * factor).sum(1))


def _of_centring(site: Site) -> Affine:
    """γ(x−μ) + β; how much x varies is not known."""
    mean = _wide(site.tensor("running_mean"), site, 0.0)
    gamma, beta = _wide(site.tensor("weight"), site, 1.0), _wide(site.tensor("bias"), site, 0.0)
    unknown = torch.full_like(beta, math.nan)
    return Affine(gamma, beta - mean * gamma, unknown, unknown.clone())


def _cov(cov: Tensor | None) -> Tensor:
    if cov is None:
        raise TypeError("a whitening layer keeps a covariance")
    return cov.double()


def _eps(layer: nn.Module) -> float:
    return float(getattr(layer, "eps", 0.0))


def _wide(tensor: Tensor | None, site: Site, default: float) -> Tensor:
    if tensor is None:
        return torch.full((site.num_features,), default, dtype=torch.float64)
    return tensor.detach().cpu().double()
