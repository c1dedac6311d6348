"""Prior mixing: a source counts as n samples of the target (Schneider et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from torch import nn

from ..errors import InputError, unknown
from ..norm.convert.selection import Patterns
from ..norm.nesting import detached_copy
from ..norm.population.algebra import mix
from ..norm.population.statistics import Population
from .adaptation import Adaptation, check_weight, measured_target, settle_

RULES = ("linear", "pooled")


def prior(
    model: nn.Module,
    loader: Iterable[Any],
    n: float = 16,
    *,
    rule: str = "linear",
    mode: str = "one-pass",
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    sync: bool = False,
    group: Any = None,
) -> nn.Module:
    """Return a copy of a model with its own statistics and other data's, mixed; see `prior_`.

    The copy has the model's classes, keys and training flags, and shares nothing with it.

    Example:
        >>> adapted = prior(model, few_photos_at_night, 16)
    """
    adapted = detached_copy(model)
    prior_(
        adapted,
        loader,
        n,
        rule=rule,
        mode=mode,
        include=include,
        exclude=exclude,
        weight=weight,
        limit=limit,
        progress=progress,
        sync=sync,
        group=group,
    )
    return adapted


def prior_(
    model: nn.Module,
    loader: Iterable[Any],
    n: float = 16,
    *,
    rule: str = "linear",
    mode: str = "one-pass",
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    sync: bool = False,
    group: Any = None,
) -> Adaptation:
    """Mix a model's running statistics with those of other data, by samples.

    n/(n+m)·source + m/(n+m)·target, where m is the number of inputs that were read, whatever
    the batches were. Schneider et al. write N for our n, and n for our m. n = 0 is AdaBN. For
    few inputs: of 16 half of the source remains, of 1600 a hundredth.

    Args:
        model: changed in place, as by `adabn_`.
        loader: batches of the target domain, as `normapps.norm.measure` takes them.
        n: number of samples that the source counts for, from 0 to infinity; with infinity no bit
            changes.
        rule: `linear` mixes variances linearly, as the paper does, the unbiased ones that layers
            store; `pooled` adds the variance between the two means.
        mode, include, exclude, weight, limit, progress, sync, group: as `adabn_`. `weight` is
            the share of the mixture, against the model's own statistics once more.

    Returns:
        The way back, a context manager too, with the populations `before`, `target`, `applied`.

    Raises:
        InputError: as `adabn_`; n negative or no number; an unknown rule. The model is as it was
            then.
    """
    check_weight(weight)
    _check(n, rule)
    layers, target = measured_target(
        model,
        loader,
        include,
        exclude,
        mode=mode,
        limit=limit,
        progress=progress,
        sync=sync,
        group=group,
    )
    if n == math.inf:
        return settle_(model, layers, target, weight=0)
    wanted = mix(Population.of(model), target, n, rule=rule)
    return settle_(model, layers, target, wanted, weight)


def _check(n: float, rule: str) -> None:
    if not isinstance(n, Real) or not n >= 0:
        raise InputError(f"n {n!r}: the source counts for 0 samples or more")
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
