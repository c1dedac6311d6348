"""What can be done with populations: mix them, merge them, say how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real

import torch
from torch import Tensor

from ...errors import InputError, unknown
from ..moments import Moments
from ..moments import merge as merge_moments
from ..moments import mix as mix_moments
from .statistics import Population, check_weights, stored


def mix(
    source: Population,
    target: Population,
    n: float,
    *,
    samples: float | None = None,
    rule: str = "linear",
) -> Population:
    """Mix a target's statistics with a source's, which count as n samples (Schneider et al. 2020).

    n/(n+m)·source + m/(n+m)·target, where m is the target's true number of samples, so that a
    last, smaller batch gets its smaller share. The paper's N is 16 by default, and its n our m.
    Variances are mixed as a layer stores them, unbiased, so that n = 0 is the target's and m = 0
    the source's. The result has no count.

    Args:
        source: the model's own, as `Population.of(model)`.
        target: measured on the target domain.
        n: number of samples that the source counts for, 0 or more.
        samples: m, where the target does not know its own or another is meant.
        rule: `linear` mixes variances linearly, as the paper does; `pooled` adds the variance
            between the two means: the variance of the mixed population.

    Raises:
        InputError: m is not known, n or m is no number or negative, both are 0, the two belong to
            different weights or have different layers, or the rule is unknown.
    """
    m = target.samples if samples is None else samples
    if m is None:
        raise InputError("the target population has no sample count: give samples=")
    for each in (n, m):
        if not isinstance(each, Real):
            raise InputError(f"{each!r} samples: give a number")
    if not (0 <= n < math.inf and 0 <= m < math.inf and n + m > 0):
        raise InputError(f"{n} source and {m} target samples: neither may be negative, nor both 0")
    if rule not in ("linear", "pooled"):
        raise unknown("rule", rule, ("linear", "pooled"))
    check_weights(target.fingerprint, source.fingerprint)
    layers = {}
    for name, mine, theirs in _pairs(source, target):
        layers[name] = mix_moments((_as_stored(mine), _as_stored(theirs)), (n, m), rule)
    return Population(layers, target.fingerprint, None, target.unreached)


def merge(parts: Iterable[Population]) -> Population:
    """Return the population of all inputs of the parts together, by their counts.

    Exact for parts measured in mode `fixed` on shards of a data set, under the same running
    statistics, which is checked. Parts of mode `one-pass` give the population of one process that
    went through the same batches. Parts measured layer by layer, each under its own statistics,
    give an approximation: `measure` with `sync=True` is exact. A layer that only some parts reached
    has the moments of those.

    Raises:
        InputError: no parts, one without counts, or parts of different weights, modes or, in mode
            `fixed`, running statistics.
    """
    whole = list(parts)
    if not whole:
        raise InputError("no populations to merge: give at least one")
    for part in whole:
        if part.samples is None:
            raise InputError(
                "a population without counts (a checkpoint's, a mixed one) cannot be merged"
            )
        check_weights(part.fingerprint, whole[0].fingerprint)
    mode, based_on = _one_measurement(whole)
    names = dict.fromkeys(name for part in whole for name in (*part.layers, *part.unreached))
    layers = {}
    for name in names:
        if found := [part.layers[name] for part in whole if name in part.layers]:
            layers[name] = merge_moments(each.to(torch.float64) for each in found)
    samples = sum(part.samples or 0 for part in whole)
    unreached = tuple(name for name in names if name not in layers)
    return Population(layers, whole[0].fingerprint, samples, unreached, mode, based_on)


def _one_measurement(parts: Sequence[Population]) -> tuple[str | None, str | None]:
    """The mode of all parts and the statistics that they are based on, as far as known."""
    modes = sorted({part.mode for part in parts if part.mode is not None})
    if len(modes) > 1:
        raise InputError(f"parts measured in modes {' and '.join(modes)}: measure all in one mode")
    bases = {part.based_on for part in parts if part.based_on is not None}
    if len(bases) > 1:
        raise InputError(
            "parts measured in mode fixed while the model had different running statistics: measure"
            " all parts in one state of the model, before apply_"
        )
    return next(iter(modes), None), next(iter(bases), None)


def distance(
    a: Population, b: Population, *, full: bool = False, eps: float = 1e-5
) -> dict[str, Tensor]:
    """Return how far two populations are apart: symmetric KL divergence a channel, in nats.

    The sum of both directions between Gaussians,
    ½(σ₁²/σ₂² + σ₂²/σ₁² + (μ₁−μ₂)²(1/σ₁² + 1/σ₂²)) − 1, of the unbiased variances plus `eps`, the
    constant that batch norms add: a dead channel, with variance 0 in both, is at distance 0.

    Args:
        a, b: of the same layers, measured or of a checkpoint.
        full: of layers with covariance, the divergence between the full Gaussians, (G,) a
            layer; otherwise their diagonal counts, as it does for all other layers.

    Returns:
        By layer (C,) in float64 on the CPU. `layer_means` sums it up.

    Raises:
        InputError: the two have different layers or shapes.
    """
    measure = _divergence if full else _diagonal_divergence
    return {name: measure(mine, theirs, eps) for name, mine, theirs in _pairs(a, b)}


def layer_means(distances: dict[str, Tensor]) -> dict[str, float]:
    """Return each layer's mean over its channels, the layer that differs most first."""
    means = {name: float(values.mean()) for name, values in distances.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _as_stored(moments: Moments) -> Moments:
    """The moments as a layer's buffers hold them, in float64, without a count."""
    mean, spread = (part.double() for part in stored(moments))
    mean = mean.view(moments.mean.shape)
    zero = torch.zeros(len(mean), dtype=torch.float64)
    if moments.cov is None:
        return Moments(zero, mean, spread.view(mean.shape), None, moments.partition)
    var = spread.diagonal(dim1=1, dim2=2).clone()
    return Moments(zero, mean, var, spread, moments.partition)


def _pairs(a: Population, b: Population) -> Iterator[tuple[str, Moments, Moments]]:
    """Layers of both; those that only one reached are left out.

    Raises:
        InputError: a layer that is in one of the two alone, or differs in shape.
    """
    for name in dict.fromkeys((*a.layers, *b.layers)):
        mine, theirs = a.layers.get(name), b.layers.get(name)
        if mine is not None and theirs is not None:
            if stored(mine)[1].shape != stored(theirs)[1].shape:
                raise InputError(f"layer '{name}' differs in shape: populations of two models")
            yield name, mine, theirs
        elif name not in a.unreached and name not in b.unreached:
            raise InputError(f"layer '{name}' is in one of the two populations only")


def _diagonal_divergence(a: Moments, b: Moments, eps: float) -> Tensor:
    a, b = _as_stored(a), _as_stored(b)
    var_a, var_b = a.var + eps, b.var + eps
    shift = (a.mean - b.mean).square()
    both = var_a / var_b + var_b / var_a + shift * (1 / var_a + 1 / var_b)
    return (both / 2 - 1).flatten().clamp_min(0)


def _divergence(a: Moments, b: Moments, eps: float) -> Tensor:
    """Half of tr(B⁻¹A) + tr(A⁻¹B) − 2d + δᵀ(A⁻¹ + B⁻¹)δ, of each group (G,)."""
    if a.cov is None or b.cov is None:
        return _diagonal_divergence(a, b, eps)
    width = a.cov.shape[-1]
    ridge = eps * torch.eye(width, dtype=torch.float64)
    cov_a, cov_b = a.cov.double() + ridge, b.cov.double() + ridge
    shift = (a.mean - b.mean).double().unsqueeze(2)
    both = torch.zeros(len(shift), dtype=torch.float64) - 2 * width
    for cov, other in ((cov_a, cov_b), (cov_b, cov_a)):
        spread = other + shift @ shift.transpose(1, 2)
        solved = torch.linalg.solve(cov, spread)
        both = both + solved.diagonal(dim1=1, dim2=2).sum(1)
    return (both / 2).clamp_min(0)
