"""Recalibration: batch norms' statistics measured anew behind channels that are gone.

What is left of a network gets other activations than it was trained with, and its running mean and
variance are those of before. Measuring them anew on pictures, without labels, is AdaBN (Li et al.
2017) with the own data as the target; here with a word about how far they moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..norm.population import Population, apply_, distance, layer_means, measure
from ..norm.undo import Undo


class Recalibration(Undo):
    """What `recalibrate_` did; calling it, or leaving its `with` block, takes it back.

    Args:
        before, after: the model's statistics.

    Attributes:
        before, after: as given; `after` knows the number of pictures.
        moved: by layer, how far its statistics moved in the mean over its channels: symmetric KL
            divergence in nats, the farthest layer first.
    """

    def __init__(self, before: Population, after: Population) -> None:
        super().__init__()
        self.before, self.after = before, after
        reached = {name: before.layers[name] for name in after.layers}
        self.moved = layer_means(distance(Population(reached, before.fingerprint), after))

    @property
    def pictures(self) -> int:
        """Pictures that were measured."""
        return self.after.samples or 0

    def describe(self) -> str:
        """Say in a sentence what moved."""
        values = sorted(self.moved.values())
        farthest = next(iter(self.moved))
        text = (
            f"The statistics of {len(values)} norm layers were measured on {self.pictures} pictures"
            f" and moved by {values[len(values) // 2]:.2g} nats in the median layer, most in"
            f" '{farthest}' ({self.moved[farthest]:.2g})"
        )
        unreached = len(self.after.unreached)
        return f"{text}; {unreached} layers were not reached." if unreached else f"{text}."


def recalibrate_(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: str = "one-pass",
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Recalibration:
    """Measure the statistics of all norm layers on pictures and write them into the model.

    Args:
        model: changed in place: its running statistics, nothing else.
        loader: batches, as `normapps.norm.population.measure` takes them: large and mixed ones in
            mode one-pass.
        mode: one-pass, layerwise or fixed; see `measure`.
        limit: at most so many pictures.
        progress: called after each batch with its number of pictures.

    Raises:
        InputError: as `measure`; nothing has changed then.
    """
    before = Population.of(model)
    after = measure(model, loader, mode=mode, limit=limit, progress=progress)
    done = Recalibration(before, after)
    done.add(apply_(model, after))
    return done
