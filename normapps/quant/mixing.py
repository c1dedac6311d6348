"""How much each layer loses in int8, and which stay float: by the pictures that calibrate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .mixed import Choice, Sensitivity, choose_float, sensitivity
from .options import QuantizeOptions
from .pictures import Progress, Seen
from .ranging import Ranges

FEW = 32
"""Pictures by which layers are put in an order; the choice is made by all that calibrate."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Pictures to try networks on.

    Attributes:
        images: batches (n, C, H, W) float32.
        labels: (N,) classes of them all; None where they tell nothing.
    """

    images: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, seen: Seen | None, images: np.ndarray | None) -> Shown | None:
        """Take distilled images, or the pictures that calibrate; None where there are neither."""
        if images is not None:
            return cls((images,))
        if seen is None or not seen.calibrating:
            return None
        found = list(seen.calibration_with_labels())
        labels = [each.numpy() for _, each in found if each is not None]
        batches = tuple(np.ascontiguousarray(each.numpy()) for each, _ in found)
        return cls(batches, np.concatenate(labels) if labels else None)

    def few(self) -> tuple[np.ndarray, ...]:
        """Return the first `FEW`."""
        return tuple(self._first(FEW))

    def _first(self, count: int) -> Iterator[np.ndarray]:
        for each in self.images:
            if count > 0:
                yield each[:count]
            count -= len(each)


@dataclass(frozen=True, eq=False)
class Mixture:
    """What was found out about the layers.

    Attributes:
        order: every layer alone in int8, the most sensitive first; empty where not tried.
        choice: which stay float; None without `--mixed`.
        without_kernel: those that the backend has no int8 kernel for, by the names of their nodes.
    """

    order: tuple[Sensitivity, ...] = ()
    choice: Choice | None = None
    without_kernel: tuple[str, ...] = ()

    @property
    def kept_float(self) -> tuple[str, ...]:
        """Names of the nodes that stay float."""
        return self.without_kernel if self.choice is None else self.choice.exclude


def mix(
    path: Path,
    ranges: Ranges,
    shown: Shown | None,
    options: QuantizeOptions,
    progress: Progress | None,
) -> Mixture:
    """Try every layer alone in int8 and, with `--mixed`, choose those that stay float.

    Args:
        path: the float network.
        ranges: of its tensors.
        shown: pictures, none of which judges; None tries nothing.
        options: `mixed`, `max_drop`, `per_channel` and `reduce_range` count.
        progress: told of every network that is tried.

    Raises:
        InputError: no mixture keeps within `max_drop`.
    """
    if shown is None or not (options.sensitivity or options.mixed):
        return Mixture()

    def told(what: str) -> Callable[[int, int], object]:
        return lambda _, total: progress and progress(what, total)

    rounding = {"per_channel": options.per_channel, "reduce_range": options.reduce_range}
    trying = told("trying layers")
    order = sensitivity(path, ranges, shown.few(), **rounding, progress=trying)
    if not options.mixed:
        return Mixture(order)
    choice = choose_float(
        path,
        ranges,
        shown.images,
        order,
        max_drop=options.max_drop,
        labels=shown.labels,
        **rounding,
        progress=told("choosing layers"),
    )
    if len(choice.exclude) == len(order):
        raise InputError(
            f"--mixed: with a single layer in int8 more than --max-drop {options.max_drop:g} is"
            " lost; allow more, or leave the network in float32"
        )
    return Mixture(order, choice)
