"""Online statistics: they follow the stream of batches, and each batch uses the updated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from torch import nn

from ..errors import InputError
from ..norm.convert.selection import Patterns
from ..norm.nesting import detached_copy
from ..norm.population.choosing import choose
from ..norm.population.following import follow
from .adaptation import Adaptation, check_weight, measured, settle_


def ema(
    model: nn.Module,
    loader: Iterable[Any],
    momentum: float = 0.1,
    *,
    cumulative: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> nn.Module:
    """Return a copy of a model whose statistics have followed a stream; see `ema_`.

    The copy has the model's classes, keys and training flags, and shares nothing with it.

    Example:
        >>> adapted = ema(model, frames_of_tonight, momentum=0.05)
    """
    adapted = detached_copy(model)
    ema_(
        adapted,
        loader,
        momentum,
        cumulative=cumulative,
        include=include,
        exclude=exclude,
        weight=weight,
        limit=limit,
        progress=progress,
    )
    return adapted


def ema_(
    model: nn.Module,
    loader: Iterable[Any],
    momentum: float = 0.1,
    *,
    cumulative: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Adaptation:
    """Let a model's running statistics follow a stream of batches.

    running ← (1−m)·running + m·batch, from the model's own on, and every batch is normalized with
    the updated value: the robust batch norm of RoTTA (Yuan et al. 2023, eq. 3), whose m is 0.05.
    Variances are biased, as in its code. The online method `ema` leaves the same behind; what
    `model.train()` alone does differs, because there each batch is normalized by itself.

    Args:
        model: changed in place, as by `adabn_`.
        loader: batches of the stream in its order, as `normapps.norm.measure` takes them. A layer
            to which a batch brings one value a channel stays where it is.
        momentum: m, torch's sense: the weight of the new, from 0 (no bit changes) to 1.
        cumulative: instead pool all batches so far by their counts, without the model's own
            statistics and without a momentum.
        include, exclude, weight, limit, progress: as `adabn_`.

    There is no `sync`: a stream has an order, and shards of it have none.

    Returns:
        The way back, a context manager too, with the populations `before`, `target`, `applied`.

    Raises:
        InputError: as `adabn_`; a momentum outside of [0, 1]. The model is as it was then.
    """
    check_weight(weight)
    if not isinstance(momentum, Real) or not 0 <= momentum <= 1:
        raise InputError(f"momentum {momentum!r}: the weight of a batch, from 0 to 1")
    layers = choose(model, include, exclude)
    share = None if cumulative else momentum
    target = measured(
        model, layers, lambda: follow(model, loader, share, limit=limit, progress=progress)
    )
    return settle_(model, layers, target, weight=0 if share == 0 else weight)
