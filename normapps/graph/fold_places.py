"""Places: into which convolutions or linear layers a norm layer may go, and why into none.

Between a norm and its layers only operations may stand that move numbers or average them within
a channel. Which channel comes to be where is not derived from their arguments: the operations run
again on numbers that are constant within a channel, which shows it, and whether they add anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import NormappsError
from ..norm.convert.sites import Site
from .flow import Flow, ModuleCall, Op, Value
from .fold_layers import CONVS, LAYERS, Layer

MOVES = frozenset(("view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t"))
MOVES |= {"unsqueeze", "squeeze", "slice", "select", "clone", "alias", "contiguous", "expand"}
MOVES |= {"split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "roll", "flip", "detach"}
MOVES |= {"pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d"}
AVERAGES = frozenset(("mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d"))
AVERAGES |= {"avg_pool3d", "upsample_bilinear2d"}
MOVES |= AVERAGES
"""Linear operations without weights. Those that change a constant show it when they run again."""

SPLITS = frozenset(("split", "split_with_sizes", "chunk", "unbind", "unsafe_split"))
"""Those whose several results have no number in common, so that one of them may change alone."""

_PRODUCT = frozenset(("t", "transpose", "permute", "linear", "addmm", "mm", "bmm", "matmul", "add"))
_PRODUCT |= {"view", "_unsafe_view", "reshape", "expand", "clone", "unsqueeze", "squeeze"}
"""What a linear layer may consist of."""


class StaysError(NormappsError):
    """A norm layer cannot go into the layers at one side of it; the message says why."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a norm layer goes.

    Attributes:
        where: "after" the layers, which its inputs come from, or "before" them.
        channels: by the name of each layer, which channel of the norm stands at each of its
            outputs (after) or inputs (before); −1 at outputs that the norm does not read.
        is_averaged: the norm reads averages, which vary less than what its layers give.
    """

    where: str
    channels: dict[str, Tensor]
    is_averaged: bool = False

    def equals(self, other: Place) -> bool:
        """Whether both are the same layers with the same channels."""
        mine, theirs = self.channels, other.channels
        return mine.keys() == theirs.keys() and all(mine[k].equal(theirs[k]) for k in mine)


class Finder:
    """Finds places in one network, as it ran."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self.layers: dict[str, Any] = {
            name: each for name, each in model.named_modules() if isinstance(each, LAYERS)
        }
        self._calls = {
            call.gives[0]: call
            for name in self.layers
            for call in flow.calls_of(name)
            if len(call.gives) == 1
        }
        self._owners = _owners(model)

    def after(self, site: Site) -> Place:
        """Return the layers whose outputs alone a norm reads.

        Raises:
            StaysError: there are none, or they cannot take it in.
        """
        return self._agreed([self._behind(each, site) for each in self._runs(site)])

    def before(self, site: Site) -> Place:
        """Return the layers that alone read a norm's outputs.

        Raises:
            StaysError: there are none, or they cannot take it in.
        """
        return self._agreed([self._ahead(each, site) for each in self._runs(site)])

    def _runs(self, site: Site) -> Sequence[ModuleCall]:
        calls = [call for name in site.names for call in self.flow.calls_of(name)]
        if not calls:
            raise StaysError("does not run on these inputs")
        if any(len(call.takes) != 1 or len(call.gives) != 1 for call in calls):
            raise StaysError("takes or gives more than one tensor")
        return calls

    def _agreed(self, places: Sequence[Place]) -> Place:
        if not all(each.equals(places[0]) for each in places):
            raise StaysError("runs several times, behind different layers")
        for name in places[0].channels:
            self._check(name, len(places))
        return places[0]

    def _behind(self, call: ModuleCall, site: Site) -> Place:
        sources: list[ModuleCall] = []
        moves: list[Op] = []
        self._climb(call.takes[0], set(call.ops), sources, moves)
        known, labels, start = {}, _labels(self._outputs(sources)), 0
        for source in sources:
            count = self._outputs([source])
            known[source.gives[0]] = self._filled(source, labels[start : start + count])
            start += count
        self._replay(sorted(moves, key=lambda op: op.index), known)
        axis = -1 if site.layout == "tokens" else 1
        index = _found(known[call.takes[0]], axis, labels)
        if len(index.unique()) < len(index):
            raise StaysError("reads an output of its layer twice")
        inverse = torch.full((len(labels),), -1)
        inverse[index] = torch.arange(len(index))
        parts = inverse.split([self._outputs([source]) for source in sources])
        channels = {source.name: part for source, part in zip(sources, parts, strict=True)}
        return Place("after", channels, any(op.name in AVERAGES for op in moves))

    def _climb(
        self, value: Value, within: set[int], sources: list[ModuleCall], moves: list[Op]
    ) -> None:
        """Go from a norm's input to the layers that made it."""
        made, op = self._calls.get(value), self.flow.maker(value)
        if made is None:
            if op is None:
                raise StaysError("reads an input of the network, or a constant")
            if op.name not in (MOVES if len(op.gives) == 1 else SPLITS):
                raise StaysError(f"reads what {_said(op)} gives")
        self._check_alone(value, within)
        if made is not None:
            sources.append(made)
        elif op is not None:
            moves.append(op)
            for each in op.reads:
                self._climb(each, {op.index}, sources, moves)

    def _check_alone(self, value: Value, within: set[int]) -> None:
        others = [op for op in self.flow.readers(value) if op.index not in within]
        if others:
            raise StaysError(f"reads what {_said(others[0])} reads, too")
        if value in self.flow.outputs:
            raise StaysError("reads an output of the network")

    def _ahead(self, call: ModuleCall, site: Site) -> Place:
        sinks: dict[str, Value] = {}
        moves: dict[int, Op] = {}
        self._descend(call.gives[0], sinks, moves)
        labels = _labels(site.num_features)
        axis = -1 if site.layout == "tokens" else 1
        known = {call.gives[0]: self._labelled(call.gives[0], axis, labels)}
        self._replay([moves[index] for index in sorted(moves)], known)
        channels = {
            name: _found(known[value], self._input_axis(name), labels)
            for name, value in sinks.items()
        }
        return Place("before", channels)

    def _descend(self, value: Value, sinks: dict[str, Value], moves: dict[int, Op]) -> None:
        """Go from a norm's output to the layers that read it."""
        readers = self.flow.readers(value)
        if value in self.flow.outputs or not readers:
            raise StaysError("gives an output of the network")
        for op in readers:
            if (name := self._reading(op, value)) is not None:
                if sinks.setdefault(name, value) != value:
                    raise StaysError(f"is read by '{name}' more than once")
            elif op.name not in MOVES:
                raise StaysError(f"{_said(op)} reads what it gives")
            elif op.index not in moves:
                moves[op.index] = op
                for each in op.gives:
                    if self.flow.readers(each) or each in self.flow.outputs:
                        self._descend(each, sinks, moves)

    def _reading(self, op: Op, value: Value) -> str | None:
        """The layer within whose call an operation takes a value."""
        for call in self.flow.calls_of(op.owner) if op.owner in self.layers else ():
            if op.index in call.ops and value in call.takes:
                return op.owner
        return None

    def _replay(self, moves: Iterable[Op], known: dict[Value, Tensor]) -> None:
        for op in moves:
            try:
                results = op.run(known)
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise StaysError(f"{_said(op)} joins it with something else") from error
            known.update(zip(op.gives, results, strict=True))

    def _outputs(self, sources: Sequence[ModuleCall]) -> int:
        layers = [self.layers[source.name] for source in sources]
        return sum(
            each.out_features if isinstance(each, nn.Linear) else each.out_channels
            for each in layers
        )

    def _filled(self, source: ModuleCall, labels: Tensor) -> Tensor:
        layer, value = self.layers[source.name], source.gives[0]
        dims = len(self.flow.layouts[value].shape)
        axis = -1 if isinstance(layer, nn.Linear) else dims - layer.weight.dim() + 1
        return self._labelled(value, axis, labels)

    def _input_axis(self, name: str) -> int:
        layer = self.layers[name]
        return -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()

    def _labelled(self, value: Value, axis: int, labels: Tensor) -> Tensor:
        """A tensor that lies in memory as a value did, with a number a channel."""
        layout = self.flow.layouts[value]
        made = torch.empty_strided(layout.shape, layout.strides, dtype=torch.float64)
        made.movedim(axis, -1).copy_(labels)
        return made

    def _check(self, name: str, times: int) -> None:
        """Check that a layer is its weight and bias and nothing else, and nobody else's.

        Raises:
            StaysError: it is not.
        """
        layer, calls = self.layers[name], self.flow.calls_of(name)
        if len(calls) != times:
            raise StaysError(f"'{name}' runs {len(calls)} times, and it {times}")
        if parametrize.is_parametrized(layer):
            raise StaysError(f"'{name}' is parametrized; remove_parametrizations first")
        for key in ("weight", "bias"):
            owners = self._owners.get(id(layer._parameters.get(key)), [])
            if len(owners) > 1:
                raise StaysError(f"'{name}' shares its {key} with another module")
        readers = self.flow.readers_of(f"{name}.weight")
        computed = f"'{name}' computes its weight ({type(layer).__name__})"
        if layer._parameters.get("weight") is None or len(readers) != times:
            raise StaysError(computed)
        for call in calls:
            self._check_call(name, layer, call, computed)

    def _check_call(self, name: str, layer: Layer, call: ModuleCall, computed: str) -> None:
        ops = [self.flow.ops[index] for index in call.ops]
        core = [op for op in ops if f"{name}.weight" in op.parameters]
        own = {f"{name}.weight", f"{name}.bias"}
        if len(core) != 1 or any(not own.issuperset(op.parameters) for op in ops):
            raise StaysError(computed)
        if not isinstance(layer, CONVS):
            if any(op.name not in _PRODUCT for op in ops):
                raise StaysError(computed)
            return
        weight, bias = (self.flow.names.get(f"{name}.{key}") for key in ("weight", "bias"))
        if core[0].name != "convolution" or core[0].arguments["weight"] != weight:
            raise StaysError(computed)
        if core[0].arguments["bias"] != bias or self.flow.maker(call.gives[0]) is not core[0]:
            raise StaysError(f"'{name}' is more than a convolution ({type(layer).__name__})")


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Modules that hold each parameter, by its identity."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(module)
    return found


def _said(op: Op) -> str:
    return f"aten.{op.name} of '{op.owner}'" if op.owner else f"aten.{op.name}"


def _labels(count: int) -> Tensor:
    """A number a channel that no average of others equals."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _found(value: Tensor, axis: int, labels: Tensor) -> Tensor:
    """Which label stands at each place of an axis.

    Raises:
        StaysError: the places of one index differ, or are no label.
    """
    rows = value.movedim(axis, 0).flatten(1)
    if not rows.numel():
        raise StaysError("runs on no numbers")
    order = labels.sort()
    near = torch.searchsorted(order.values, rows[:, 0].contiguous()).clamp(1, len(labels) - 1)
    if len(labels) == 1:
        near = torch.zeros(len(rows), dtype=torch.long)
    else:
        gaps = [(order.values[near - step] - rows[:, 0]).abs() for step in (1, 0)]
        near = torch.where(gaps[0] < gaps[1], near - 1, near)
    index = order.indices[near]
    if not torch.allclose(rows, labels[index].unsqueeze(1).expand_as(rows), rtol=0, atol=1e-9):
        raise StaysError("what stands between it and its layer mixes channels, or pads them")
    return index
