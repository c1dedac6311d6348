"""What layers read, by numbers: for `compensation`, and for `lossless`.

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

FORWARD = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding")


@dataclass(frozen=True, eq=False)
class Product:
    """One call of a convolution or linear function with a weight of the model.

    Attributes:
        name: of the weight in the model's state.
        func: torch's function.
        args, options: as it was called.
        out: what it returned.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    out: Tensor

    @property
    def named(self) -> dict[str, Any]:
        """Arguments by name: input and weight at least; bias, stride and padding where given."""
        return _named(_ARGUMENTS, self.args, self.options)

    def of(self, x: Tensor) -> Tensor:
        """Return the product of another input, without the bias."""
        others = {k: v for k, v in self.options.items() if k not in ("input", "weight", "bias")}
        out: Tensor = self.func(x, self.named["weight"], None, *self.args[3:], **others)
        return out


class ProductListener(TorchFunctionMode):
    """Hears every convolution and linear product that a model makes with weights of its own.

    Args:
        weights: names by the id of the parameter; products with others are not heard.
    """

    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()
        self._weights = weights

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        out = func(*args, **options)
        self.hear_call(func, args, options, out)
        if func in FORWARD or func in _TRANSPOSED:
            name = self._weights.get(id(_named(_ARGUMENTS, args, options)["weight"]))
            if name is not None:
                self.hear(Product(name, func, args, options, out))
        return out

    def hear(self, product: Product) -> None:
        """Take note of a product."""
        raise NotImplementedError

    def hear_call(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], out: Any
    ) -> None:
        """Take note of any call, before it is heard as a product."""


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


class _Listener(ProductListener):
    """Hears what doomed channels add, and who uses it."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
        self._model = model
        self._dead = dict(_dead_inputs(model, graph, keep))
        super().__init__({id(model.get_parameter(name)): name for name in self._dead})
        self._means = {
            id(buffer): name.rpartition(".")[0]
            for name, buffer in model.named_buffers()
            if name.rpartition(".")[2] == "running_mean"
        }
        self._heard: dict[str, _Heard] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._users: dict[str, set[str]] = {}  # of a weight's outputs; "" is no batch norm
        self._sources: dict[str, set[str]] = {}  # of a norm's inputs; "" is no weight that reads

    def hear_call(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], out: Any
    ) -> None:
        """Note who uses which tensor."""
        if out is None or next(_tensors(out), None) is not None:  # to ask for a shape is no use
            self._note_uses(func, args, options)

    def hear(self, product: Product) -> None:
        """Note what the doomed inputs of a weight add."""
        name, x, dims = product.name, product.named["input"], product.named["weight"].dim()
        self._made[id(product.out)] = weakref.ref(product.out), name
        dead = self._dead[name].to(x.device).view(-1, *[1] * (dims - 2))
        channels = 1 - dims  # the last axis of a linear layer, before the positions else
        rows = rows_of(product.of(x * dead), channels), rows_of(product.out, channels)
        self._heard.setdefault(name, _Heard()).hear(*(each.double() for each in rows))

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


def rows_of(x: Tensor, channels: int) -> Tensor:
    """Lay all inputs and positions below each other: (M, C), where C is the axis `channels`."""
    return x.detach().movedim(channels, -1).flatten(0, -2)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
