"""Which channels `normapps slim prune` takes, by what its options say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..graph.graph import ChannelGraph
from ..models.load import OpenedModel
from ..options import flag
from .cutting import without
from .importance import importance
from .lossless import lossless
from .plan import Plan, plan
from .prune_options import PruneOptions
from .removal import channels_of, prunable
from .report import Choice


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is to stay, and how that was chosen.

    Attributes:
        plan: what is to stay.
        rated: (count,) importance of each atom; None where importance did not choose.
    """

    plan: Plan
    rated: NDArray[Any] | None

    def described(self, graph: ChannelGraph, keep: NDArray[Any], options: PruneOptions) -> Choice:
        """Return it for the report; `keep` is what stays in the end."""
        name, value = options.amount
        amount = flag(name) if name == "lossless" else f"{flag(name)} {value:g}"
        notes = (*self.plan.notes, *_notes(options))
        kind, gone, stays = "", [], []
        if self.rated is not None:
            able, times = prunable(graph, options.ignore), channels_of(graph)
            gone, stays = (
                np.repeat(self.rated[mask], times[mask]).tolist()
                for mask in (able & ~keep, able & keep)
            )
            kind = options.importance
        # of several steps the last one's threshold is no line through the first one's ratings
        threshold = self.plan.threshold if options.iterative == 1 else None
        return Choice(amount, self.plan.reached, kind, threshold, gone, stays, notes)


def choose(
    opened: OpenedModel,
    graph: ChannelGraph,
    inputs: Tensor,
    options: PruneOptions,
    measure: Callable[[NDArray[Any]], float] | None = None,
) -> Chosen:
    """Choose what stays of a model.

    Args:
        opened: the model.
        graph: of it.
        inputs: (1, C, H, W) that it takes.
        options: how much, by what, and what must stay.
        measure: seconds that the model takes without some channels; only a latency target asks.

    Raises:
        InputError: as `plan` and `importance`, or nothing is lossless.
    """
    name, value = options.amount
    if name == "lossless":
        return Chosen(_lossless(opened, graph, inputs, options), None)
    first = importance(opened.model, graph, options.importance, seed=options.seed)

    def again(keep: NDArray[Any]) -> NDArray[Any]:
        rest = without(opened.model, graph, keep)
        return importance(rest, graph, options.importance, seed=options.seed)

    is_stepwise = options.iterative > 1 and options.importance == "l2"
    asked: dict[str, Any] = {name: value, **options.rules()}
    found = plan(
        graph,
        again if is_stepwise else first,
        measure=measure,
        iterative=options.iterative,
        **asked,
    )
    return Chosen(found, first)


def _lossless(
    opened: OpenedModel, graph: ChannelGraph, inputs: Tensor, options: PruneOptions
) -> Plan:
    may = lossless(opened.model, graph, inputs)
    if not may.any():
        raise InputError(
            f"{opened.name}: --lossless finds no channel whose scales are 0 and whose constant can"
            " be moved exactly; train it sparse by `normapps slim train`, or give --ratio"
        )
    return plan(graph, np.zeros(graph.count), lossless=may, **options.rules())


def _notes(options: PruneOptions) -> tuple[str, ...]:
    if options.iterative > 1 and options.importance != "l2":
        return (
            f"--iterative {options.iterative}: without training between them the steps see the same"
            f" {options.importance}, and choose together what one step chooses.",
        )
    return ()
