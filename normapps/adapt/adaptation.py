"""What every adaptation of a model's statistics shares: the choice of layers, the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, Self

from torch import nn

from ..errors import InputError
from ..norm.convert.selection import Patterns
from ..norm.population.algebra import mix
from ..norm.population.choosing import choose, only
from ..norm.population.measuring import measure
from ..norm.population.statistics import Population, apply_, population_layers
from ..norm.undo import Undo


class Adaptation(Undo):
    """What an adaptation did to a model's statistics, and the way back, to the bit.

    Called, or at the end of a `with` block, it takes the change back.

    Attributes:
        layers: names of the layers that were chosen.
        before: the model's own statistics of all layers, without a count.
        target: what was found in the data, of the chosen layers; the others are in its
            `unreached`, so that `apply_` takes it for the whole model and leaves them.
        applied: what was written: the target's, or a mixture of it and the model's own.
    """

    def __init__(
        self, layers: tuple[str, ...], before: Population, target: Population, applied: Population
    ) -> None:
        super().__init__()
        self.layers, self.before, self.target, self.applied = layers, before, target, applied

    def __enter__(self) -> Self:
        return self


def check_weight(weight: float) -> None:
    """Check a strength of adaptation.

    Raises:
        InputError: no number in [0, 1].
    """
    if not isinstance(weight, Real) or not 0 <= weight <= 1:
        raise InputError(f"weight {weight!r}: 0 keeps the model's statistics, 1 takes the target's")


def measured(
    model: nn.Module,
    layers: tuple[str, ...],
    find: Callable[[], Population],
) -> Population:
    """Find the population of some layers while all others stay what they are.

    Args:
        model: with more population layers than `layers`, or not.
        find: returns the population of a model that has these population layers only.

    Returns:
        The population; layers that were not chosen are in its `unreached`.
    """
    whole = tuple(population_layers(model))
    with only(model, layers):
        found = find()
    return replace(found, unreached=tuple(name for name in whole if name not in found.layers))


def measured_target(
    model: nn.Module, loader: Any, include: Patterns, exclude: Patterns, **options: Any
) -> tuple[tuple[str, ...], Population]:
    """Return the layers that the patterns take and their population; `options` are `measure`'s.

    In mode `one-pass` the layers that are not chosen normalize with the model's own statistics,
    as they will in the adapted model; only the chosen ones normalize with each batch's.
    """
    layers = choose(model, include, exclude)
    return layers, measured(model, layers, lambda: measure(model, loader, **options))


def settle_(
    model: nn.Module,
    layers: tuple[str, ...],
    target: Population,
    wanted: Population | None = None,
    weight: float = 1.0,
) -> Adaptation:
    """Write a population into a model, or its mixture with what the model has.

    Args:
        model: changed in place; with weight 0 no bit is.
        layers: those that were chosen.
        target: what was found in the data.
        wanted: what to write with weight 1; the target itself if None.
        weight: share of `wanted`, from 0 to 1; means and variances mix linearly.

    Raises:
        InputError: as `apply_`; nothing has changed then.
    """
    before = Population.of(model)
    wanted = target if wanted is None else wanted
    if weight == 0:
        return Adaptation(layers, before, target, before)
    applied = wanted if weight == 1 else mix(before, wanted, 1 - weight, samples=weight)
    undo = apply_(model, applied)
    adaptation = Adaptation(layers, before, target, applied)
    adaptation.add(undo)
    return adaptation
