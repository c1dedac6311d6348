"""What doomed channels say to the layers that read them, by numbers: for `compensation`.

A model is run once and every convolution and linear product is listened to. The product is linear
in its input, so what its doomed inputs add is the same product of these inputs alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from ..engine.device import evaluating
from ..graph.graph import ChannelGraph, Keep
from ..norm.moments import Moments, merge
from ..norm.partition import BATCH

LAYERS = (nn.Linear, _ConvNd)
"""Layers that have a bias, or can be given one."""

_PRODUCTS = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)
_ARGUMENTS = ("input", "weight", "bias")


@dataclass(frozen=True, eq=False)
class Reading:
    """What the doomed inputs of one weight add to its outputs.

    Attributes:
        weight: its name in the model's state.
        channels: doomed inputs.
        added: moments over inputs and positions, (1, O) float64, of what they add.
        low, high: (O,) float64, its extremes.
        outputs: moments of the whole outputs, (1, O) float64.
        norm: the batch norm that reads these outputs, where nothing else reads them and it
            reads nothing else.
    """

    weight: str
    channels: int
    added: Moments
    low: Tensor
    high: Tensor
    outputs: Moments
    norm: str | None


def listen(
    model: nn.Module, graph: ChannelGraph, keep: Keep, inputs: Any
) -> tuple[tuple[Reading, ...], tuple[str, ...]]:
    """Run a model once and return what doomed channels add.

    Args:
        model: with all its channels; not changed, run in evaluation mode without gradients.
        graph: of it.
        keep: (count,) bool, False for the doomed.
        inputs: a tensor, or a tuple of positional arguments.

    Returns:
        The readings in order of execution, and the names of weights that read doomed channels
        but were not seen doing so: they are never called, or another weight is made of them.
    """
    listener = _Listener(model, graph, keep)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with evaluating(model), listener:
        returned = model(*args)
    for tensor in _tensors(returned):
        listener.note_use(tensor, "")
    return listener.readings(), listener.missed()


class _Heard:
    """What was heard of one weight so far; it may be called several times."""

    def __init__(self) -> None:
        self.added: list[Moments] = []
        self.outputs: list[Moments] = []
        self.low: list[Tensor] = []
        self.high: list[Tensor] = []

    def hear(self, added: Tensor, outputs: Tensor) -> None:
        """Take the rows (M, O) of one call."""
        self.added.append(Moments.of(added, BATCH))
        self.outputs.append(Moments.of(outputs, BATCH))
        self.low.append(added.amin(0))
        self.high.append(added.amax(0))


class _Listener(TorchFunctionMode):
    """Sees every call of torch that the model makes."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
        super().__init__()
        self._model = model
        self._dead = dict(_dead_inputs(model, graph, keep))
        self._weights = {id(model.get_parameter(name)): name for name in self._dead}
        self._means = {
            id(buffer): name.rpartition(".")[0]
            for name, buffer in model.named_buffers()
            if name.rpartition(".")[2] == "running_mean"
        }
        self._heard: dict[str, _Heard] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._users: dict[str, set[str]] = {}  # of a weight's outputs; "" is no batch norm
        self._sources: dict[str, set[str]] = {}  # of a norm's inputs; "" is no weight that reads

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        out = func(*args, **options)
        if out is None or next(_tensors(out), None) is not None:  # to ask for a shape is no use
            self._note_uses(func, args, options)
        if func in _PRODUCTS:
            self._note_product(func, args, options, out)
        return out

    def readings(self) -> tuple[Reading, ...]:
        """Return what was heard."""
        return tuple(self._reading(name, heard) for name, heard in self._heard.items())

    def missed(self) -> tuple[str, ...]:
        """Return the weights of layers that were to be heard, and were not."""
        unheard = (name for name in self._dead if name not in self._heard)
        return tuple(name for name in unheard if isinstance(owner_of(self._model, name), LAYERS))

    def note_use(self, tensor: Tensor, user: str) -> None:
        """Remember that a batch norm, or something else (""), reads a tensor."""
        if source := self._source(tensor):
            self._users.setdefault(source, set()).add(user)

    def _reading(self, name: str, heard: _Heard) -> Reading:
        users = self._users.get(name, set())
        norm = next(iter(users)) if len(users) == 1 else ""
        return Reading(
            name,
            int(self._dead[name].sum()),
            merge(heard.added),
            torch.stack(heard.low).amin(0),
            torch.stack(heard.high).amax(0),
            merge(heard.outputs),
            norm if norm and self._sources[norm] == {name} else None,
        )

    def _source(self, tensor: Tensor) -> str:
        reference, name = self._made.get(id(tensor), (None, ""))
        return name if reference is not None and reference() is tensor else ""

    def _note_uses(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        user = ""
        if func is F.batch_norm:
            named = _named(("input", "running_mean"), args, options)
            user = self._means.get(id(named["running_mean"]), "")
            if user:
                self._sources.setdefault(user, set()).add(self._source(named["input"]))
        for tensor in _tensors((args, options)):
            self.note_use(tensor, user)

    def _note_product(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        out: Tensor,
    ) -> None:
        named = _named(_ARGUMENTS, args, options)
        x, weight = named["input"], named["weight"]
        name = self._weights.get(id(weight))
        if name is None:
            return
        self._made[id(out)] = weakref.ref(out), name
        dead = self._dead[name].to(x.device).view(-1, *[1] * (weight.dim() - 2))
        others = {key: value for key, value in options.items() if key not in _ARGUMENTS}
        added = func(x * dead, weight, None, *args[3:], **others)
        channels = 1 - weight.dim()  # the last axis of a linear layer, before the positions else
        self._heard.setdefault(name, _Heard()).hear(_rows(added, channels), _rows(out, channels))


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module that has a tensor of this name."""
    return model.get_submodule(name.rpartition(".")[0])


def _dead_inputs(model: nn.Module, graph: ChannelGraph, keep: Keep) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight that reads doomed channels, with (I,) bool of its inputs."""
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or name not in graph.slots:
            continue
        owner = owner_of(model, name)
        is_transposed = isinstance(owner, _ConvNd) and owner.transposed
        atoms = graph.slots[name][0 if is_transposed else 1]
        if atoms is None or keep[atoms].all():
            continue
        # dim 1 of a grouped convolution holds the inputs of one group, alike in all of them
        groups = owner.groups if isinstance(owner, _ConvNd) and not is_transposed else 1
        yield name, torch.from_numpy(np.tile(~keep[atoms], groups))


def _named(
    names: tuple[str, ...], args: tuple[Any, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **options}


def _rows(x: Tensor, channels: int) -> Tensor:
    """Lay all inputs and positions below each other: (M, O) float64."""
    return x.detach().movedim(channels, -1).flatten(0, -2).double()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
