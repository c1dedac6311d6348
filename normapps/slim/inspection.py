"""What could go from a network: `normapps slim inspect`. Nothing is changed, nothing written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..graph.graph import ChannelGraph
from ..models.load import open_by
from ..models.options import preprocessing_of
from ..models.trying import answer_of, check_finite
from .importance import importance, scales_of
from .plan import plan
from .prune_options import SelectOptions
from .removal import channels_of, prunable
from .tracing import trace

RATIOS = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass(frozen=True)
class Step:
    """What a ratio would leave.

    Attributes:
        ratio: share of the channels that was asked for.
        gone: share of them that would go.
        threshold: the highest importance among these; None where there is not one for all.
        channels: of all batch norms, left.
        parameters, macs: left.
        narrowest: the layer of the fewest channels left, and how many.
    """

    ratio: float
    gone: float
    threshold: float | None
    channels: int
    parameters: int
    macs: int
    narrowest: tuple[str, int]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        model: in words: name and weights.
        size: channels of all batch norms, parameters, multiply-accumulates of a picture.
        free: channels that could go.
        silent: of these, those whose scales are all exactly 0.
        steps: one a ratio.
        left: groups of channels that must stay whole, by name, and why.
    """

    model: str
    size: tuple[int, int, int]
    free: int
    silent: int
    steps: tuple[Step, ...]
    left: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        facts = dataclasses.asdict(self)
        facts["size"] = dict(zip(("channels", "parameters", "macs"), self.size, strict=True))
        facts["left"] = [{"channels_of": name, "why": why} for name, why in self.left]
        return facts


def inspect_model(
    spec: str, options: SelectOptions, say: Callable[[str], object] = print
) -> Inspection:
    """Find out what pruning would leave of a model, at ratios of 10 to 90 %.

    Args:
        spec: the model, as `open_model` takes it.
        options: how channels are chosen.
        say: told what was opened and at what size it was followed, a line each.

    Raises:
        InputError: a model that cannot be used, or without a channel that could go.
    """
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    preprocessing = preprocessing_of(opened, options)
    say(opened.describe())
    say(preprocessing.describe())
    answer_of(opened.model, preprocessing, opened.name)
    graph, _ = trace(opened.model, preprocessing, opened.name)
    rated = importance(opened.model, graph, options.importance, seed=options.seed)
    steps = tuple(_step(graph, rated, options, ratio) for ratio in RATIOS)
    free = channels_of(graph) * prunable(graph, options.ignore)
    return Inspection(
        opened.describe(),
        (sum(graph.layer_channels().values()), graph.parameters(), graph.macs()),
        int(free.sum()),
        int(free[silent(opened.model, graph)].sum()),
        steps,
        left_whole(graph),
    )


def left_whole(graph: ChannelGraph) -> tuple[tuple[str, str], ...]:
    """Return the groups with a batch norm that must stay as they are, by name, and why."""
    return tuple((each.name, each.reason) for each in graph.groups if each.layers and each.reason)


def silent(model: nn.Module, graph: ChannelGraph) -> NDArray[np.bool_]:
    """Return (count,) bool: the atoms with scales, all of which are exactly 0."""
    sums = np.zeros(graph.count)
    for layer, values in scales_of(model, graph).items():
        sums += np.bincount(graph.scales[layer], values, graph.count)
    found: NDArray[np.bool_] = (sums == 0) & (channels_of(graph) > 0)
    return found


def _step(graph: ChannelGraph, rated: NDArray[Any], options: SelectOptions, ratio: float) -> Step:
    found = plan(graph, rated, ratio=ratio, **options.rules())
    channels = graph.layer_channels(found.keep)
    narrowest = min(channels, key=lambda name: channels[name])
    return Step(
        ratio,
        found.reached["ratio"],
        found.threshold,
        sum(channels.values()),
        graph.parameters(found.keep),
        graph.macs(found.keep),
        (narrowest, channels[narrowest]),
    )
