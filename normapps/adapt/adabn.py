"""AdaBN: a batch norm's statistics replaced by those of the target domain (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..norm.convert.selection import Patterns
from ..norm.nesting import detached_copy
from .adaptation import Adaptation, check_weight, measured_target, settle_


def adabn(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: str = "one-pass",
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    sync: bool = False,
    group: Any = None,
) -> nn.Module:
    """Return a copy of a model with the statistics of other data; see `adabn_`.

    The copy has the model's classes, keys and training flags, and shares nothing with it.

    Example:
        >>> adapted = adabn(model, photos_at_night)
    """
    adapted = detached_copy(model)
    adabn_(
        adapted,
        loader,
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


def adabn_(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: str = "one-pass",
    include: Patterns = (),
    exclude: Patterns = (),
    weight: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    sync: bool = False,
    group: Any = None,
) -> Adaptation:
    """Replace a model's running statistics by those of other data (Li et al. 2017).

    μ and σ² of each layer become the target's, γ and β stay. The paper pools online over all of
    the target; so does this, exactly, with the variance between the batches' means.

    Args:
        model: any network with population layers; changed in place. Nothing else than running
            means and (co)variances changes, and weights need no labels and get no gradient.
        loader: batches of the target domain, as `normapps.norm.measure` takes them.
        mode: `one-pass`, `layerwise` or `fixed`; see `normapps.norm.measure`.
        include, exclude: shell patterns of names of layers, or of modules around them. Layers that
            are not chosen keep their statistics, and normalize with them while the others are
            measured.
        weight: share of the target in what is written, 1: all, 0: no bit changes. Between them
            means and variances are mixed linearly.
        limit: at most so many inputs.
        progress: called after each batch with its number of inputs.
        sync, group: measure over all processes together, as `normapps.norm.measure` does.

    Returns:
        The way back, a context manager too, with the populations `before`, `target`, `applied`.

    Raises:
        InputError: as `normapps.norm.measure`; a pattern that matches no layer; a weight outside
            of [0, 1]. The model is as it was then.

    Example:
        >>> with adabn_(model, photos_at_night):
        ...     evaluate(model)
    """
    check_weight(weight)
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
    return settle_(model, layers, target, weight=weight)
