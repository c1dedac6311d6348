"""What a trace knows of each tensor: the axes of its dimensions, and who shares its memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor, nn

from .atoms import Axes, Axis

_KEY = "_normapps_channels"


class Label:
    """A tensor's axes.

    Attributes:
        axes: one a dimension; None where it has no channels, or they are of fixed number.
        name: state-dict name, if the tensor is a parameter or buffer itself.
        source: state-dict name of the parameter or buffer whose memory it views.
        open: dimensions of a parameter or buffer that no operation has read yet.
        weight: it is a parameter or buffer, or computed of nothing else.
        memory: the labels of all tensors that share its memory.
    """

    def __init__(self, axes: Iterable[Axis | None], name: str | None = None) -> None:
        self.axes: Axes = tuple(axes)
        self.name = self.source = name
        self.weight = name is not None
        self.open: set[int] = set()
        self.memory: weakref.WeakSet[Label] = weakref.WeakSet([self])

    def share(self, other: Label) -> None:
        """Say that this tensor is a view of another's memory."""
        self.memory, self.source = other.memory, other.source
        self.memory.add(self)

    def others(self) -> list[Label]:
        """Return the labels of other living tensors in the same memory."""
        return [label for label in self.memory if label is not self]


class Labels:
    """Labels by tensor. A result carries its label itself, so that both end together."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._foreign: dict[int, tuple[Tensor, Label]] = {}
        self._key = object()  # a tensor that a module keeps may carry a label of an earlier trace
        self.names: dict[str, Label] = {}
        memory: dict[int, Label] = {}
        for name, tensor in named:
            if id(tensor) not in self._foreign:
                self._add_named(name, tensor, memory)
            self.names[name] = self._foreign[id(tensor)][1]

    def _add_named(self, name: str, tensor: Tensor, memory: dict[int, Label]) -> None:
        label = Label([None] * tensor.dim(), name)
        label.open = {dim for dim, size in enumerate(tensor.shape) if size > 1}
        first = memory.setdefault(tensor.untyped_storage().data_ptr(), label)
        if first is not label and tensor.numel():
            label.memory = first.memory
            label.memory.add(label)
        self._foreign[id(tensor)] = (tensor, label)

    def of(self, tensor: Tensor) -> Label:
        """Return a tensor's label; one that no traced operation made gets an empty one."""
        known = self._foreign.get(id(tensor))
        if known is not None:
            return known[1]
        key, label = tensor.__dict__.get(_KEY, (None, None))
        if key is not self._key or label is None:
            label = Label([None] * tensor.dim())
            self._foreign[id(tensor)] = (tensor, label)  # kept alive: its id stays its own
        found: Label = label
        return found

    def add(self, tensor: Tensor, axes: Axes, sources: Iterable[Tensor]) -> None:
        """Label the result of an operation on `sources`."""
        label = Label(axes)
        sources = list(sources)
        label.weight = bool(sources) and all(self.of(source).weight for source in sources)
        place = tensor.untyped_storage().data_ptr()
        for source in sources:
            if place and source.untyped_storage().data_ptr() == place:
                label.share(self.of(source))
                break
        tensor.__dict__[_KEY] = (self._key, label)


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer by its state-dict name; shared ones by each name."""
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
